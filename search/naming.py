"""What every name means: methods, evaluators, optimizers, presets, metrics, keys of a config, words.

Names and options of what is built in come from the committed schema and the glossary beside it, so that they are there
in a moment; a plug-in is loaded when it is asked for.
"""

from __future__ import annotations

import inspect
import json
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from search.config_schema import committed
from search.errors import SearchError
from search.presets import PRESETS, template

Facts = dict[str, Any]


@cache
def schema() -> Facts:
    """The committed schema of a config."""
    found: Facts = json.loads(committed().read_text(encoding="utf-8"))
    return found


@cache
def glossary() -> Facts:
    """Evaluators, their metrics, and words."""
    import yaml

    text = (resources.files("search") / "glossary.yaml").read_text(encoding="utf-8")
    found: Facts = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return found


def names() -> list[str]:
    """All that can be explained by its bare name, but for plug-ins."""
    return [*built_in("methods"), *built_in("evaluators"), *built_in("optimizers"), *PRESETS, *metrics(), *words()]


def built_in(kind: str) -> list[str]:
    """Names of built-in ``methods``, ``evaluators`` or ``optimizers``; nothing is imported for it."""
    section = schema()["$defs"][{"methods": "Method", "evaluators": "Evaluator", "optimizers": "Optimizer"}[kind]]
    if kind != "methods":
        section = section["properties"][section["required"][0]]
    found: list[str] = section["anyOf"][0]["enum"]
    return found


def words() -> dict[str, Facts]:
    """Word -> what it ``says`` and what to ``see``."""
    found: dict[str, Facts] = glossary()["words"]
    return found


def metrics() -> dict[str, list[Facts]]:
    """Metric -> the evaluators that report it, each with direction, low, high, unit and what it says."""
    found: dict[str, list[Facts]] = {}
    for evaluator, section in glossary()["evaluators"].items():
        for name, each in section["metrics"].items():
            found.setdefault(name, []).append({"evaluator": evaluator, **_metric(name, each)})
    return found


def _metric(name: str, facts: Facts) -> Facts:
    return {
        "name": name, "direction": facts["direction"], "low": facts["low"],
        "high": None if facts["high"] == float("inf") else facts["high"],
        "unit": facts.get("unit", ""), "says": facts["says"], "with": facts.get("with"),
    }  # fmt: skip


# -- evaluators, optimizers, presets -------------------------------------------------------------------------------


def options_of(kind: str, name: str) -> list[Facts]:
    """Options of an evaluator or optimizer: name, type, range, default, whether required, what it means.

    Args:
        kind: ``evaluators`` or ``optimizers``.
        name: a built-in one, an installed package's, or ``path/to/file.py:Name``.

    Raises:
        EvaluatorError, OptimizerError: there is none of that name, or it cannot be loaded.
    """
    place = f"{kind.removesuffix('s')}-{name}"
    if place in schema()["$defs"]:
        return _options(schema()["$defs"][place], schema())
    whole = _model(kind, name).model_json_schema()
    return _options(whole, whole)


def _model(kind: str, name: str) -> Any:
    if kind == "evaluators":
        from evaluators.registry import options_model

        return options_model(name)
    from search.optimizers.registry import options_model as optimizer_options

    return optimizer_options(name)


def _options(section: Facts, whole: Facts) -> list[Facts]:
    from search.schema_words import type_words

    required = set(section.get("required", []))
    return [
        {
            "name": name, "type": type_words(each, whole), "required": name in required,
            "default": each.get("default"), "says": each.get("description", ""),
        }
        for name, each in section.get("properties", {}).items()
        if "const" not in each
    ]  # fmt: skip


def evaluator_facts(name: str) -> Facts:
    """Summary, options, metrics, a record and an example of an evaluator.

    Raises:
        EvaluatorError: no such evaluator, or one that cannot be loaded.
    """
    options = options_of("evaluators", name)
    known = glossary()["evaluators"].get(name)
    facts: Facts = {"name": name, "kind": "evaluator", "summary": "", "options": options}
    if known is None:  # a plug-in: its options say what it is
        summary = _paragraphs(inspect.getdoc(_model("evaluators", name)))[:1]
        return {**facts, "summary": "".join(summary), "metrics": [], "record": None, "example": None}
    return {
        **facts, "summary": known["summary"], "metrics": [_metric(*each) for each in known["metrics"].items()],
        "record": known["record"], "example": known["example"],
    }  # fmt: skip


def optimizer_facts(name: str) -> Facts:
    """Summary, text and options of an optimizer.

    Raises:
        OptimizerError: no such optimizer, or one that cannot be loaded.
    """
    from search.optimizers.registry import BUILT_IN

    options = options_of("optimizers", name)
    paragraphs: list[str] = []
    if name in BUILT_IN:
        paragraphs = _paragraphs(_docstring(BUILT_IN[name].partition(":")[0]))
    example = f"search: {{optimizer: {name}}}"
    return {
        "name": name, "kind": "optimizer", "summary": paragraphs[0] if paragraphs else "", "doc": paragraphs[1:],
        "options": options, "example": example,
    }  # fmt: skip


def preset_facts(name: str) -> Facts:
    """Summary and template of a preset.

    Raises:
        SearchError: there is none of that name.
    """
    text = template(name)
    preset = PRESETS[name]
    return {
        "name": name, "kind": "preset", "summary": preset.summary, "models": list(preset.kinds),
        "candidates": preset.candidates, "template": text,
        "example": f"paretomerge init {name} --base PATH --expert NAME=PATH --evaluator NAME=DATA",
    }  # fmt: skip


def _docstring(module: str) -> str | None:
    """Of a module that is not imported for it: optimizers bring Optuna and SciPy."""
    import ast
    from importlib.util import find_spec

    spec = find_spec(module)
    if spec is None or spec.origin is None:
        return None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))


def _paragraphs(text: str | None) -> list[str]:
    """A docstring's paragraphs, without reST's marks; lists keep their lines."""
    found = []
    for each in inspect.cleandoc(text or "").split("\n\n"):
        plain = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", each).replace("``", "")
        lists = any(re.match(r"\s*(\d+\.|-|\*) ", line) for line in plain.splitlines())
        found.append(plain if lists else " ".join(plain.split()))
    return [each for each in found if each]


# -- keys of a config ------------------------------------------------------------------------------------------------


def key_facts(path: str) -> Facts | None:
    """What a key of a config takes: ``search.fidelity``, ``models.experts.math``; None if there is no such key."""
    from search.schema_words import child, children, described, type_words

    section: Facts = schema()
    required = False
    for part in path.split("."):
        required = part in described(section, schema()).get("required", [])
        below = child(section, part, schema())
        if below is None:
            return None
        section = below
    resolved = described(section, schema())
    return {
        "name": path, "kind": "key", "summary": section.get("description") or resolved.get("description", ""),
        "type": type_words(section, schema()), "default": section.get("default"), "required": required,
        "keys": [
            {"name": name, "type": type_words(each, schema()), "says": each.get("description", ""),
             "default": each.get("default")}
            for name, each in children(section, schema()).items()
        ],
    }  # fmt: skip


@cache
def key_paths() -> tuple[str, ...]:
    """All keys of a config that have a fixed name, by their paths."""
    from search.schema_words import children

    found: list[str] = []

    def walk(section: Facts, path: str, depth: int) -> None:
        for name, each in children(section, schema()).items():
            found.append(f"{path}{name}")
            if depth < 4:
                walk(each, f"{path}{name}.", depth + 1)

    walk(schema(), "", 0)
    return tuple(found)


# -- any name --------------------------------------------------------------------------------------------------------


def explain(name: str) -> list[Facts]:
    """Everything of that name: a method, an evaluator, an optimizer, a preset, metrics, keys of a config, a word.

    Args:
        name: bare, a dotted key, or ``path/to/file.py:Name`` of a merge method.

    Returns:
        One entry for each meaning, each with its ``kind``; the likeliest first.

    Raises:
        SearchError: nothing is called so; says what comes near.
        MergingError, EvaluatorError, OptimizerError: a plug-in of that name cannot be loaded.
    """
    from search.method_facts import is_method, method_facts

    found: list[Facts] = []
    if is_method(name):
        found.append({"kind": "method", **method_facts(name)})
    if name in _all_evaluators():
        found.append(evaluator_facts(name))
    if name in _all_optimizers():
        found.append(optimizer_facts(name))
    if name in PRESETS:
        found.append(preset_facts(name))
    word = name.replace("_", " ").replace("-", " ").lower()
    found += [
        {"kind": "word", "name": each, "summary": words()[each]["says"], "see": words()[each].get("see", [])}
        for each in (word, word.removesuffix("s"))[: 1 if word in words() else 2]
        if each in words()
    ]
    if name in metrics():
        found.append({"kind": "metric", "name": name, "reported_by": metrics()[name]})
    found += _keys(name, bool(found))
    if not found:
        raise SearchError(_nothing(name))
    return found


def _keys(name: str, known: bool) -> list[Facts]:
    """The key of that path; or, of a bare name that is nothing else, all keys that end so."""
    exact = key_facts(name)
    if exact is not None:
        return [exact]
    if "." in name or known:
        return []
    return [facts for path in key_paths() if path.endswith(f".{name}") and (facts := key_facts(path)) is not None]


def _all_evaluators() -> list[str]:
    from evaluators.registry import names as evaluators

    return evaluators()


def _all_optimizers() -> tuple[str, ...]:
    from search.optimizers.registry import optimizers

    return optimizers()


def _nothing(name: str) -> str:
    from difflib import get_close_matches

    known = [*names(), *key_paths()]
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    near = f"did you mean {_either([repr(each) for each in dict.fromkeys(close)])}?" if close else (
        "`paretomerge ls methods` lists merge methods such as task_arithmetic; there are also ls evaluators, "
        "optimizers, presets, metrics and words"
    )  # fmt: skip
    return f"nothing is called {name!r}; {near}"


def _either(names: list[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    return " or ".join([", ".join(names[:-1])] * (len(names) > 1) + names[-1:])
