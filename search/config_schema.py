"""The JSON schema of a search's config, for editors: keys, types, ranges, and the options of all that is built in.

It is as strict as one file alone allows: what :func:`search.config.load_config` takes, it takes. Options depend on a
name (``type`` of an evaluator, ``name`` of an optimizer or method): for each there is one ``if``/``then``, which
editors follow and which points at the wrong option rather than at the whole section.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.option_texts import describe, first_sentence

if TYPE_CHECKING:
    from pydantic import BaseModel

    from merging.methods import Parameter

DIALECT = "https://json-schema.org/draft/2020-12/schema"
OF_A_FILE = {"pattern": r"\.py:\w+$", "description": "path/to/file.py:Name", "type": "string"}
_REF = "#/$defs/"

Schema = dict[str, Any]


def committed() -> Path:
    """Where the copy lies that is installed with the package."""
    return Path(str(resources.files("search") / "config.schema.json"))


def config_schema(*, plug_ins: bool = False) -> Schema:
    """The schema, draft 2020-12.

    Args:
        plug_ins: also what installed packages bring; their code is run for it. Those that cannot be loaded are named
            with no options.

    Returns:
        plain data, the same on every machine unless ``plug_ins``.
    """
    from search.schema import Config

    found = _Collected()
    root = found.add(Config)
    defs = found.defs
    _named_options(defs, found, plug_ins)
    _short_forms(defs)
    whole = _tidy({**defs.pop(root), "$defs": defs})
    whole["$defs"] = dict(sorted(_reached({**whole, "$defs": {}}, whole["$defs"]).items()))
    return {"$schema": DIALECT, "title": "paretomerge: the config of a search", **whole}


def schema_text(schema: Schema) -> str:
    """A schema as it is written to a file."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


class _Collected:
    """Definitions of several models under one roof: two models of one name are told apart by their modules."""

    def __init__(self) -> None:
        self.defs: dict[str, Schema] = {}

    def add(self, model: type[BaseModel]) -> str:
        """Take in a model and all that it refers to; under which name it stands."""
        schema = model.model_json_schema(ref_template=_REF + "{model}")
        inner: dict[str, Schema] = schema.pop("$defs", {})
        describe(model, schema.get("properties", {}))
        schema["description"] = first_sentence(model.__doc__)
        renamed = {name: self._name(name, each) for name, each in inner.items()}
        for name, each in inner.items():
            self.defs[renamed[name]] = _renamed(each, renamed)
        name = self._name(model.__name__, schema)
        self.defs[name] = _renamed(schema, renamed)
        return name

    def _name(self, name: str, schema: Schema) -> str:
        free = name
        number = 1
        while free in self.defs and self.defs[free] != schema:
            number += 1
            free = f"{name}{number}"
        return free


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            key: _REF + names.get(each.removeprefix(_REF), each.removeprefix(_REF))
            if key == "$ref" and isinstance(each, str)
            else _renamed(each, names)
            for key, each in value.items()
        }
    return [_renamed(each, names) for each in value] if isinstance(value, list) else value


# -- options by name ---------------------------------------------------------------------------------------------------


def _named_options(defs: dict[str, Schema], found: _Collected, plug_ins: bool) -> None:
    from evaluators.calibration import InputsOptions

    evaluators = {name: _options(found, model, "type", name) for name, model in _evaluators(plug_ins)}
    defs["Evaluator"] = _by_name("type", evaluators, "how a live model is scored; `paretomerge ls evaluators`")
    optimizers = {name: _options(found, model, "name", name) for name, model in _optimizers(plug_ins)}
    defs["Optimizer"] = _by_name("name", optimizers, "what proposes candidates; `paretomerge ls optimizers`")
    found.add(InputsOptions)
    for name, model in _trackers():
        found.add(model)
        defs[f"tracker-{name}"] = defs[model.__name__]
    methods = list(_methods(plug_ins))
    for kind, many in (("MethodConfig", True), ("VirtualConfig", False)):
        defs[kind]["allOf"] = [
            _if_then("name" if many else "method", name, {"properties": {"parameters": _parameters(parameters, many)}})
            for name, parameters in methods
        ]
    defs["Method"] = _choice([name for name, _ in methods], "a merge method; `paretomerge ls methods`")
    defs["MethodConfig"]["properties"]["name"] = {"$ref": _REF + "Method"}
    defs["VirtualConfig"]["properties"]["method"] = {"$ref": _REF + "Method"}


def _options(found: _Collected, model: type[BaseModel] | None, key: str, name: str) -> str:
    """A definition of the options with their name among them."""
    place = f"{'evaluator' if key == 'type' else 'optimizer'}-{name}"
    schema = {} if model is None else copy.deepcopy(found.defs[found.add(model)])
    schema["properties"] = {key: {"const": name}, **schema.get("properties", {})}
    schema["required"] = [key, *schema.get("required", [])]
    found.defs[place] = schema
    return place


def _by_name(key: str, options: dict[str, str], description: str) -> Schema:
    return {
        "type": "object",
        "required": [key],
        "properties": {key: _choice(options, description)},
        "allOf": [_if_then(key, name, {"$ref": _REF + place}) for name, place in options.items()],
    }


def _choice(names: Iterable[str], description: str) -> Schema:
    return {"description": description, "anyOf": [{"enum": list(names)}, dict(OF_A_FILE)]}


def _if_then(key: str, name: str, then: Schema) -> Schema:
    return {"if": {"properties": {key: {"const": name}}, "required": [key]}, "then": then}


def _parameters(parameters: tuple[Parameter, ...], many: bool) -> Schema:
    properties = {each.name: _value(each, many) for each in parameters}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _value(parameter: Parameter, many: bool) -> Schema:
    """What a parameter may be: a value, and in a space also a list: [low, high] of a number, words to choose from."""
    kinds = {float: "number", int: "integer", bool: "boolean", str: "string"}
    value: Schema = {"type": kinds[parameter.type]}
    if parameter.choices:
        value = {"enum": list(parameter.choices)}
    for key, bound in (("minimum", parameter.low), ("maximum", parameter.high)):
        if parameter.type in (float, int) and math.isfinite(bound):
            value[key] = bound
    if many:
        value = {"anyOf": [value, {"type": "array", "items": value, "minItems": 1}]}
    value["description"] = parameter.doc
    if parameter.default is not None:
        value["default"] = parameter.default
    return value


def _evaluators(plug_ins: bool) -> Iterator[tuple[str, type[BaseModel] | None]]:
    from evaluators.contract import EvaluatorError
    from evaluators.registry import BUILT_IN, names, options_model

    for name in names() if plug_ins else BUILT_IN:
        try:
            yield name, options_model(name)
        except EvaluatorError:
            yield name, None


def _optimizers(plug_ins: bool) -> Iterator[tuple[str, type[BaseModel] | None]]:
    from search.optimizers.contract import OptimizerError
    from search.optimizers.registry import BUILT_IN, optimizers, options_model

    for name in optimizers() if plug_ins else sorted(BUILT_IN):
        try:
            yield name, options_model(name)
        except OptimizerError:
            yield name, None


def _trackers() -> Iterator[tuple[str, type[BaseModel]]]:
    from search.trackers import OPTIONS

    yield from OPTIONS.items()


def _methods(plug_ins: bool) -> Iterator[tuple[str, tuple[Parameter, ...]]]:
    from importlib.metadata import entry_points

    from merging.methods import DELTA_SCALE, get, names
    from merging.recipe import MergingError

    others = () if plug_ins else tuple(each.name for each in entry_points(group="paretomerge.methods"))
    for name in sorted(set(names()) - set(others)):
        try:
            method = get(name)
        except MergingError:
            continue
        yield name, (*method.parameters, DELTA_SCALE)


# -- what the file may say more shortly -------------------------------------------------------------------------------


def _short_forms(defs: dict[str, Schema]) -> None:
    """What validators take that the models' types do not show."""
    config = defs["Config"]["properties"]
    config["evaluators"] |= {"patternProperties": _of_names(config["evaluators"], {"$ref": _REF + "Evaluator"})}
    objective = {
        "anyOf": [
            {"type": "string", "pattern": r"^[^.]+\..+$", "description": "evaluator.metric"},
            {"$ref": _REF + "Objective"},
        ]
    }
    first = defs["FirstConfig"]["properties"]["objectives"]["anyOf"]
    for each in (config["objectives"], *(one for one in first if one.get("type") == "array")):
        each["items"] = objective
    config["trackers"]["properties"] = {
        name.removeprefix("tracker-"): {"$ref": _REF + name} for name in defs if name.startswith("tracker-")
    }
    config["trackers"]["additionalProperties"] = False
    config["trackers"].pop("propertyNames", None)
    settings = defs["SearchSettings"]["properties"]
    settings["optimizer"] = {
        "description": settings["optimizer"].get("description", "which optimizer, and its options"),
        "default": "auto",
        "anyOf": [_choice(_names_of(defs["Optimizer"]), "its name alone"), {"$ref": _REF + "Optimizer"}],
    }
    settings["fidelity"] = {
        "description": settings["fidelity"]["description"],
        "anyOf": [{"enum": ["off", False]}, {"$ref": _REF + "FidelityConfig"}],
    }
    defs["SpaceConfig"]["properties"]["methods"]["items"] = {
        "anyOf": [{"$ref": _REF + "Method"}, {"$ref": _REF + "MethodConfig"}]
    }
    defs["ConstraintConfig"]["oneOf"] = [
        {"properties": {side: {"type": "number"}}, "required": [side]} for side in ("at_least", "at_most")
    ]
    defs["Models"]["properties"]["experts"]["propertyNames"]["not"] = {"const": "base"}
    defs["CalibrationConfig"]["properties"]["inputs"]["patternProperties"] = _of_names(
        defs["CalibrationConfig"]["properties"]["inputs"], {"$ref": _REF + "InputsOptions"}
    )
    for each in _dictionaries(defs):  # a key that fits no pattern is a mistake
        each["additionalProperties"] = False


def _names_of(section: Schema) -> list[str]:
    key = section["required"][0]
    names: list[str] = section["properties"][key]["anyOf"][0]["enum"]
    return names


def _of_names(section: Schema, value: Schema) -> Schema:
    return dict.fromkeys(section["patternProperties"], value)


def _dictionaries(value: Any) -> Iterator[Schema]:
    if isinstance(value, dict):
        if isinstance(value.get("patternProperties"), dict) and "additionalProperties" not in value:
            yield value
        for each in value.values():
            yield from _dictionaries(each)
    elif isinstance(value, list):
        for each in value:
            yield from _dictionaries(each)


# -- tidying -----------------------------------------------------------------------------------------------------------


def _reached(start: Schema, defs: dict[str, Schema]) -> dict[str, Schema]:
    """The definitions that something refers to."""
    found: dict[str, Schema] = {}
    waiting: list[Any] = [start]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            name = value.get("$ref")
            if isinstance(name, str) and (key := name.removeprefix(_REF)) not in found:
                found[key] = defs[key]
                waiting.append(defs[key])
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return found


def _tidy(schema: Any) -> Any:
    """Without pydantic's titles, which repeat the keys, and ``format: path``, which is no format of JSON schema."""
    if isinstance(schema, list):
        return [_tidy(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    tidy: Schema = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties", "$defs"):
            tidy[key] = {name: _tidy(each) for name, each in value.items()}
        elif key in ("default", "const", "enum"):
            tidy[key] = value
        elif key != "title" and (key, value) != ("format", "path"):
            tidy[key] = _tidy(value)
    return tidy
