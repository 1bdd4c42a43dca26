"""Import of mergekit's YAML: the interchange form of a merge. Only its documented conventions, none of its code.

A value is a scalar, a gradient (a list, interpolated over the layers), or a list of ``{filter, value}`` of which the
first whose filter is a substring of the tensor's name counts. A source's own parameters win over the slice's, these
over the top level's. Outside the layers a gradient has its first value, at the embedding and at the head alike: so does
mergekit.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from merging.configs import Resolve, find_model, load_yaml, read_text
from merging.kernel import torch_dtype
from merging.layout import Layout
from merging.methods.contract import suggest
from merging.recipe import DTYPES, Assignment, Group, MergingError, Recipe, Value
from merging.sources import BASE, Sources

_TOP: tuple[str, ...] = (
    "base_model",
    "chat_template",
    "dtype",
    "merge_method",
    "models",
    "modules",
    "out_dtype",
    "parameters",
    "slices",
)
_TOP += ("tokenizer", "tokenizer_source")
_SLICE = ("base_model", "parameters", "sources")

# Parameters that mergekit reads for other methods and that change nothing here; configs carry them along.
_NO_EFFECT = ("int8_mask",)


@dataclass(frozen=True)
class _Method:
    """How a mergekit method reads: its parameters, per source and shared, with mergekit's defaults; None: required."""

    per_source: Mapping[str, Any]
    shared: Mapping[str, Any]
    needs_base: bool = False


_METHODS = {
    "linear": _Method({"weight": None}, {"normalize": True}),
    "slerp": _Method({}, {"t": None}, needs_base=True),
    "task_arithmetic": _Method({"weight": None}, {"lambda": 1.0, "normalize": False}, needs_base=True),
}


@dataclass(frozen=True)
class _Config:
    """A checked config: one slice over all layers.

    Attributes:
        method: its name.
        base: reference of the base; None where the config names none.
        models: [models] (reference, own parameters, layer range or None).
        parameters: of the slice, then of the top level.
        dtype, out_dtype: as written.
    """

    method: str
    base: str | None
    models: tuple[tuple[str, Mapping[str, Any], tuple[int, int] | None], ...]
    parameters: tuple[Mapping[str, Any], ...]
    dtype: str | None
    out_dtype: str | None


def read_mergekit(path: Path | str, resolve: Resolve | None = None) -> tuple[Recipe, Sources]:
    """Read a mergekit config, and load its models.

    Args:
        path: the YAML file. Model paths in it are relative to its folder, or else to the working directory.
        resolve: finds a model that is named in another way than by its folder; None for what it does not know.

    Returns:
        The recipe, tensor by tensor what mergekit's conventions say, and its sources.

    Raises:
        MergingError: not a mergekit config, a method or feature that is not supported yet, an unknown key.
    """
    path = Path(path)
    config = _check(load_yaml(read_text(path), path), path)
    base = config.base or config.models[0][0]
    paths = {
        reference: find_model(reference, path.parent, resolve) for reference in (base, *(m[0] for m in config.models))
    }
    aliases = _aliases(base, paths)
    sources = Sources.load(paths[base], {alias: paths[ref] for ref, alias in aliases.items() if alias != BASE})
    _check_layers(config, sources.layout)
    assignments = {name: _assignment(config, aliases, name, sources.layout) for name in sources.tensors}
    groups, tensors = _grouped(assignments, sources.layout)
    dtype = _dtype(config.dtype, "dtype")
    recipe = Recipe(
        base=BASE,
        sources=sources.refs,
        groups=groups,
        tensors=tensors,
        dtype=_dtype(config.out_dtype, "out_dtype") or dtype or _promoted(sources),
        source_dtype=dtype if dtype and _narrows(sources, dtype) else None,
    )
    return recipe, sources


def _check(data: Any, path: Path) -> _Config:
    if not isinstance(data, dict) or "merge_method" not in data:
        raise MergingError(f"expected a mergekit config (merge_method, models, …) or a recipe in {path}, found neither")
    _known(data, _TOP, str(path))
    if data.get("tokenizer_source") not in {None, "base"} or data.get("tokenizer") or data.get("chat_template"):
        raise MergingError(
            f"{path}: tokenizer, chat_template and a tokenizer_source other than 'base' are not supported yet; remove "
            "them, the base's tokenizer is kept"
        )
    method = str(data["merge_method"])
    if method not in _METHODS:
        raise MergingError(f"{path}: merge_method {method!r} is not supported yet{suggest(method, _METHODS)}")
    given = [key for key in ("models", "slices", "modules") if data.get(key) is not None]
    if given not in (["models"], ["slices"]):
        if given == ["modules"]:
            raise MergingError(f"{path}: modules (models of several parts) are not supported yet")
        raise MergingError(f"{path}: expected one of models and slices, found {' and '.join(given) or 'neither'}")
    base, levels = data.get("base_model"), [_parameters(data, method, str(path))]
    entries = data["models"] if given == ["models"] else None
    if entries is None:
        entries, slice_base, own = _one_slice(data["slices"], method, path)
        base, levels = slice_base or base, [own, *levels]
    models = _models(entries, method, path)
    return _finish(method, None if base is None else _reference(base, path), models, tuple(levels), data, path)


def _one_slice(slices: Any, method: str, path: Path) -> tuple[Any, Any, Mapping[str, Any]]:
    if not isinstance(slices, list) or not slices or not all(isinstance(each, dict) for each in slices):
        raise MergingError(f"{path}: expected slices to be a list of mappings with sources")
    if len(slices) > 1:
        raise MergingError(
            f"{path}: found {len(slices)} slices; stacking layers of several slices is not supported yet, only one "
            "slice that covers all layers"
        )
    _known(slices[0], _SLICE, f"{path}, slices[0]")
    return slices[0].get("sources"), slices[0].get("base_model"), _parameters(slices[0], method, f"{path}, slices[0]")


def _models(entries: Any, method: str, path: Path) -> tuple[tuple[str, Mapping[str, Any], tuple[int, int] | None], ...]:
    if not isinstance(entries, list) or not entries:
        raise MergingError(f"{path}: expected a list of models, found {type(entries).__name__}")
    models = []
    for index, entry in enumerate(entries):
        where = f"{path}, models[{index}]"
        if not isinstance(entry, dict) or "model" not in entry:
            raise MergingError(f"{where}: expected a mapping with a model, found {entry!r}")
        _known(entry, ("layer_range", "model", "parameters"), where)
        layers = entry.get("layer_range")
        if layers is not None and not (
            isinstance(layers, list) and len(layers) == 2 and all(type(each) is int for each in layers)
        ):
            raise MergingError(f"{where}: expected layer_range: [first, last + 1], found {layers!r}")
        own = _parameters(entry, method, where, source=True)
        models.append((_reference(entry["model"], path), own, None if layers is None else (layers[0], layers[1])))
    names = [reference for reference, _, _ in models]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise MergingError(f"{path}: the model {twice[0]} is listed twice; list it once, with the summed weight")
    return tuple(models)


def _finish(
    method: str,
    base: str | None,
    models: tuple[tuple[str, Mapping[str, Any], tuple[int, int] | None], ...],
    levels: tuple[Mapping[str, Any], ...],
    data: Mapping[str, Any],
    path: Path,
) -> _Config:
    if _METHODS[method].needs_base and base is None:
        raise MergingError(f"{path}: {method} needs a base_model, found none")
    if method == "slerp":
        ends = [reference for reference, _, _ in models if reference != base]
        if len(ends) != 1:
            raise MergingError(
                f"{path}: slerp expects the base_model and exactly one other model, found {len(ends)} others; merge "
                "two models at a time, or use linear"
            )
    return _Config(method, base, models, levels, data.get("dtype"), data.get("out_dtype"))


def _known(data: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in data:
        if key not in known:
            raise MergingError(f"{where}: unknown key {key!r}{suggest(str(key), known)}")


def _parameters(data: Mapping[str, Any], method: str, where: str, *, source: bool = False) -> Mapping[str, Any]:
    found = data.get("parameters") or {}
    if not isinstance(found, dict):
        raise MergingError(f"{where}: expected parameters to be a mapping, found {type(found).__name__}")
    reads = _METHODS[method]
    known = (*reads.per_source, *(() if source else reads.shared))
    for key in found:
        if key not in known and key not in _NO_EFFECT:
            shared = "; it is shared: write it in the top level's parameters" if key in reads.shared else ""
            raise MergingError(f"{where}: {method} has no parameter {key!r} here{shared or suggest(str(key), known)}")
    return found


def _reference(value: Any, path: Path) -> str:
    if isinstance(value, dict):
        inner = value.get("model", value)
        value = inner.get("path") if isinstance(inner, dict) and set(inner) == {"path"} else None
    if not isinstance(value, str) or not value:
        raise MergingError(
            f"{path}: expected a model as the path of a folder, found {value!r}; revisions and overrides are not "
            "supported"
        )
    if "+" in value.rsplit("/", 1)[-1] and not Path(value).exists():
        raise MergingError(f"{path}: {value!r} adds a LoRA to a model, which is not supported yet; fold it in first")
    return value


def _aliases(base: str, paths: Mapping[str, Path]) -> dict[str, str]:
    """Reference -> alias: ``base``, and the names of the other folders, numbered where they are the same."""
    aliases = {base: BASE}
    for reference, path in paths.items():
        if reference not in aliases:
            stem = re.sub(r"[^\w.-]+", "-", path.resolve().name) or "model"
            alias, number = stem, 2
            while alias in aliases.values():
                alias, number = f"{stem}-{number}", number + 1
            aliases[reference] = alias
    return aliases


def _check_layers(config: _Config, layout: Layout) -> None:
    ranges = {reference: layers for reference, _, layers in config.models if layers is not None}
    depth = max((layout.depth(stack) for stack in layout.stacks), default=0)
    for reference, layers in ranges.items():
        if layers != (0, depth):
            raise MergingError(
                f"{reference} gives layers {list(layers)} of {depth}; taking some of the layers is not supported yet, "
                f"only a slice that covers all: [0, {depth}]"
            )


def _assignment(config: _Config, aliases: Mapping[str, str], name: str, layout: Layout) -> Assignment:
    """What mergekit would do to one tensor."""
    group = layout.group(name)
    reads = _METHODS[config.method]

    def value(key: str, default: Any, own: tuple[Mapping[str, Any], ...] = ()) -> Any:
        for level in (*own, *config.parameters):
            found = _evaluate(level.get(key), name, group, layout) if key in level else None
            if found is not None:
                return found
        if default is None:
            raise MergingError(f"{config.method} needs a {key} for tensor {name}, and nothing in the config gives one")
        return default

    shared = {key: value(key, default) for key, default in reads.shared.items()}
    if config.method == "slerp":
        other = next(reference for reference, _, _ in config.models if reference != config.base)
        t = _number(shared["t"], "t")
        return Assignment.of("slerp", {BASE: {"coefficient": 1.0 - t}, aliases[other]: {"coefficient": t}})
    merged = [model for model in config.models if config.method == "linear" or model[0] != config.base]
    weights = {
        aliases[reference]: {"coefficient": _number(value("weight", None, (own,)), "weight")}
        for reference, own, _ in merged
    }
    parameters: dict[str, Value] = {"normalize": bool(shared["normalize"])}
    if "lambda" in shared:
        parameters["scale"] = _number(shared["lambda"], "lambda")
    return Assignment.of(config.method, weights, **parameters)


def _evaluate(value: Any, name: str, group: Group, layout: Layout) -> Any:
    """The value for one tensor; None where no filter matches."""
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        for rule in value:
            _known(rule, ("filter", "value"), f"a filter of tensor {name}")
            if rule.get("filter") in {None, "*"} or str(rule["filter"]) in name:
                return _evaluate(rule.get("value"), name, group, layout)
        return None
    if isinstance(value, list):
        return _gradient(value, _position(group, layout))
    return value


def _position(group: Group, layout: Layout) -> float:
    if group.depth is None:
        return 0.0
    last = layout.depth(group.stack) - 1
    return group.depth / last if last else 1.0


def _gradient(knots: list[Any], t: float) -> Any:
    if not knots:
        raise MergingError("expected a gradient with at least one value, found an empty list")
    if any(isinstance(each, bool | str) for each in knots):
        return knots[int(t * (len(knots) - 1))]
    numbers = [_number(each, "a gradient") for each in knots]
    scaled = t * (len(numbers) - 1)
    low = min(math.floor(scaled), max(len(numbers) - 2, 0))
    high = min(low + 1, len(numbers) - 1)
    part = scaled - low
    return (1.0 - part) * numbers[low] + part * numbers[high]


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise MergingError(f"expected a number for {what}, found {value!r}")
    return float(value)


def _grouped(
    assignments: Mapping[str, Assignment], layout: Layout
) -> tuple[dict[Group, Assignment], dict[str, Assignment]]:
    """Per group what most of its tensors have, and the exceptions by name."""
    groups: dict[Group, Assignment] = {}
    tensors: dict[str, Assignment] = {}
    for group in layout.groups:
        names = layout.of_group(group)
        groups[group] = Counter(assignments[name] for name in names).most_common(1)[0][0]
        tensors |= {name: assignments[name] for name in names if assignments[name] != groups[group]}
    return groups, tensors


def _dtype(name: Any, key: str) -> str | None:
    if name is None:
        return None
    if name not in DTYPES:
        raise MergingError(
            f"expected {key} to be one of {', '.join(DTYPES)}, found {name!r}{suggest(str(name), DTYPES)}"
        )
    return str(name)


def _stored(sources: Sources) -> list[torch.dtype]:
    return [
        each.tensors[name].dtype
        for each in sources.checkpoints.values()
        for name in sources.tensors
        if name in each.tensors
    ]


def _promoted(sources: Sources) -> str | None:
    """The dtype that holds every source's values where they differ; None where all have the base's."""
    dtypes = sorted(set(_stored(sources)), key=str)
    if len(dtypes) == 1:
        return None
    wide = dtypes[0]
    for dtype in dtypes[1:]:
        wide = torch.promote_types(wide, dtype)
    return str(wide).removeprefix("torch.")


def _narrows(sources: Sources, dtype: str) -> bool:
    """Whether rounding the sources to a dtype loses anything: mergekit does it before it merges."""
    wanted = torch_dtype(dtype)
    assert wanted is not None
    return any(torch.promote_types(stored, wanted) != wanted for stored in set(_stored(sources)))
