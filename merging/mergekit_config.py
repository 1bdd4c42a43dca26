"""A mergekit config as it is written: checked, its models listed, nothing loaded yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merging.mergekit_methods import METHODS
from merging.methods.contract import suggest
from merging.recipe import MergingError, is_range

_TOP = (
    *("base_model", "chat_template", "dtype", "merge_method", "models", "modules", "out_dtype", "parameters", "slices"),
    *("tokenizer", "tokenizer_source"),
)
_SLICE = ("base_model", "parameters", "sources")
_INPUT = ("layer_range", "model", "parameters")


@dataclass(frozen=True)
class Input:
    """A model in a slice.

    Attributes:
        reference: as the config names it.
        parameters: its own.
        layers: first and last + 1; None for all.
        appended: the config does not list it; mergekit adds the base_model to the models.
    """

    reference: str
    parameters: Mapping[str, Any]
    layers: tuple[int, int] | None = None
    appended: bool = False


@dataclass(frozen=True)
class Slice:
    """Some blocks of the result.

    Attributes:
        inputs: the models, in order.
        parameters: of the slice.
        base: a base_model of its own.
    """

    inputs: tuple[Input, ...]
    parameters: Mapping[str, Any]
    base: str | None = None

    @property
    def length(self) -> int | None:
        """Number of blocks; None for all that the models have."""
        return next((each.layers[1] - each.layers[0] for each in self.inputs if each.layers is not None), None)


@dataclass(frozen=True)
class Config:
    """A checked config.

    Attributes:
        method: its name.
        base: reference of the base; the first model where the config names none.
        has_base: whether it names one.
        slices: at least one.
        parameters: of the top level.
        dtype, out_dtype: as written.
        tokenizer: ``base``, ``union`` or a model's reference; None where the config says nothing.
    """

    method: str
    base: str
    has_base: bool
    slices: tuple[Slice, ...]
    parameters: Mapping[str, Any]
    dtype: str | None
    out_dtype: str | None
    tokenizer: str | None

    @property
    def references(self) -> tuple[str, ...]:
        """Every model that is named, in order; some more than once."""
        named = [each.reference for slice_ in self.slices for each in slice_.inputs]
        return (*named, *(slice_.base for slice_ in self.slices if slice_.base is not None))


def check(data: Any, path: Path) -> Config:
    """A config from loaded YAML.

    Raises:
        MergingError: not a mergekit config, a method or feature that is not supported, an unknown key.
    """
    if not isinstance(data, dict) or "merge_method" not in data:
        raise MergingError(
            f"expected a mergekit config (merge_method, models, …), a merge (base, experts, method, …) or a recipe in "
            f"{path}, found none of them"
        )
    _known(data, _TOP, str(path))
    method = str(data["merge_method"])
    if method not in METHODS:
        raise MergingError(f"{path}: merge_method {method!r} is not one of mergekit's here{suggest(method, METHODS)}")
    given = [key for key in ("models", "slices", "modules") if data.get(key) is not None]
    if given == ["modules"]:
        raise MergingError(
            f"{path}: modules (a config for each part of a model) are not supported; merge such models by models, with "
            "filters on the names of each part"
        )
    if given not in (["models"], ["slices"]):
        raise MergingError(f"{path}: expected one of models and slices, found {' and '.join(given) or 'neither'}")
    base = None if data.get("base_model") is None else _reference(data["base_model"], path)
    parameters = _parameters(data, method, str(path))
    if given == ["models"]:
        inputs = _inputs(data["models"], method, f"{path}, models", path)
        chosen = next((each.reference for each in inputs if each.layers is not None), None)
        if chosen is not None:
            raise MergingError(f"{path}: {chosen} has a layer_range under models; layers are chosen under slices")
        if base is not None and all(each.reference != base for each in inputs):
            inputs = (*inputs, Input(base, {}, appended=True))
        slices: tuple[Slice, ...] = (Slice(inputs, {}),)
    else:
        slices = _slices(data["slices"], method, path)
    _check_bases(method, base, slices, path)
    named = base or next((each.base for each in slices if each.base), None)
    return Config(
        method,
        named or slices[0].inputs[0].reference,
        named is not None,
        slices,
        parameters,
        _text(data, "dtype", path),
        _text(data, "out_dtype", path),
        _tokenizer(data, path),
    )


def _slices(entries: Any, method: str, path: Path) -> tuple[Slice, ...]:
    if not isinstance(entries, list) or not entries or not all(isinstance(each, dict) for each in entries):
        raise MergingError(f"{path}: expected slices to be a list of mappings with sources")
    slices = []
    for index, entry in enumerate(entries):
        where = f"{path}, slices[{index}]"
        _known(entry, _SLICE, where)
        base = None if entry.get("base_model") is None else _reference(entry["base_model"], path)
        inputs = _inputs(entry.get("sources"), method, f"{where}, sources", path)
        lengths = {each.reference: each.layers[1] - each.layers[0] for each in inputs if each.layers is not None}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{reference} {length}" for reference, length in lengths.items())
            raise MergingError(f"{where}: expected all sources to give as many layers, found {found}")
        if len(entries) > 1 and len(lengths) < len(inputs):
            raise MergingError(f"{where}: expected a layer_range for every source, since there are several slices")
        slices.append(Slice(inputs, _parameters(entry, method, where), base))
    return tuple(slices)


def _inputs(entries: Any, method: str, where: str, path: Path) -> tuple[Input, ...]:
    if not isinstance(entries, list) or not entries:
        raise MergingError(f"{where}: expected a list of models, found {entries!r}")
    inputs = []
    for index, entry in enumerate(entries):
        here = f"{where}[{index}]"
        if not isinstance(entry, dict) or "model" not in entry:
            raise MergingError(f"{here}: expected a mapping with a model, found {entry!r}")
        _known(entry, _INPUT, here)
        layers = entry.get("layer_range")
        if layers is not None and not is_range(layers):
            raise MergingError(f"{here}: expected layer_range: [first, last + 1], found {layers!r}")
        own = _parameters(entry, method, here, per_source=True)
        inputs.append(Input(_reference(entry["model"], path), own, None if layers is None else (layers[0], layers[1])))
    twice = [name for name, count in Counter(each.reference for each in inputs).items() if count > 1]
    if twice:
        raise MergingError(f"{where}: the model {twice[0]} is listed twice; list it once, with the summed weight")
    return tuple(inputs)


def _check_bases(method: str, base: str | None, slices: tuple[Slice, ...], path: Path) -> None:
    role = METHODS[method].base
    for slice_ in slices:
        named = slice_.base or base
        if role in {"origin", "arc"} and named is None:
            raise MergingError(f"{path}: {method} needs a base_model, found none")
        if role == "arc":
            others = sum(each.reference != named for each in slice_.inputs)
            if others != 1:
                raise MergingError(
                    f"{path}: slerp expects the base_model and exactly one other model, found {others} others; merge "
                    "two models at a time, or use nuslerp, multislerp or karcher"
                )
    bases = {slice_.base or base for slice_ in slices}
    if role in {"origin", "optional"} and len(bases) > 1:
        raise MergingError(f"{path}: the slices have different base_models; a merge has one, for all its task vectors")


def _known(data: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in data:
        if key not in known:
            raise MergingError(f"{where}: unknown key {key!r}{suggest(str(key), known)}")


def _parameters(data: Mapping[str, Any], method: str, where: str, *, per_source: bool = False) -> Mapping[str, Any]:
    found = data.get("parameters") or {}
    if not isinstance(found, dict):
        raise MergingError(f"{where}: expected parameters to be a mapping, found {type(found).__name__}")
    for key in found:
        METHODS[method].check_parameter(str(key), method, where, per_source=per_source)
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
        raise MergingError(f"{path}: {value!r} adds a LoRA to a model, which is not supported; fold it in first")
    return value


def _tokenizer(data: Mapping[str, Any], path: Path) -> str | None:
    """What ``tokenizer_source``, or ``tokenizer: {source}``, asks for."""
    if data.get("chat_template") is not None:
        raise MergingError(f"{path}: chat_template is not supported; remove it, the base's is kept")
    given, source = data.get("tokenizer"), data.get("tokenizer_source")
    if given is not None:
        if source is not None or not isinstance(given, dict):
            raise MergingError(f"{path}: expected one of tokenizer_source and tokenizer: {{source: …}}")
        _known(given, ("pad_to_multiple_of", "source", "tokens"), f"{path}, tokenizer")
        extra = [key for key in ("tokens", "pad_to_multiple_of") if given.get(key)]
        if extra:
            raise MergingError(
                f"{path}: tokenizer.{extra[0]} is not supported; rows that a model lacks are the base's, and the mean "
                "of the experts' where the base lacks them too"
            )
        source = given.get("source", "union")
    return None if source is None else source if source in {"base", "union"} else _reference(source, path)


def _text(data: Mapping[str, Any], key: str, path: Path) -> str | None:
    found = data.get(key)
    if found is not None and not isinstance(found, str):
        raise MergingError(f"{path}: expected {key} to be a name such as bfloat16, found {found!r}")
    return found
