"""A recipe: one complete, concrete merge as plain data, with a content hash.

A recipe names its sources, and says for every group of tensors (a depth × a module kind) which method combines which
sources with which numbers. It leaves nothing to defaults, to order or to chance: the same recipe over the same source
bytes is the same model, bit for bit.

The hash identifies the *result*: sources enter by the hash of their content and not by path or alias, parameters are
canonical (defaults written out, what has no effect left out), so that two ways to write one merge are known to be one.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from merging import plain_yaml

FORMAT = "paretomerge-recipe/1"

SCALED_FORMAT = "paretomerge-recipe/2"
"""Of a recipe with scales alone: a version that does not know them would ignore them, and build another model."""

Value = float | int | bool | str

Layers = tuple[Mapping[str, int], ...]

KINDS = ("attention", "mlp", "norm", "embedding", "head", "other")

DTYPES = ("float32", "bfloat16", "float16", "float64")

MOST_LAYERS = 100_000
"""Blocks of a result; a recipe is plain data, and must not stand for more than fits into memory."""

_GROUP = re.compile(r"^(?:(?P<stack>[^/]+)/)?(?P<kind>[a-z]+)(?:\.(?P<depth>\d+))?$")


class MergingError(Exception):
    """A user's mistake in models, recipes or merge configs: one paragraph, shown without a traceback."""


@dataclass(frozen=True)
class Group:
    """Tensors that share genes: a module kind at a depth.

    Attributes:
        kind: one of :data:`KINDS`.
        depth: index of the block, from 0; None for what lies outside the blocks (embedding, head, final norm).
        stack: which stack of blocks, for models that have several (an encoder and a decoder); "" where there is one.
    """

    kind: str
    depth: int | None = None
    stack: str = ""

    def __str__(self) -> str:
        depth = "" if self.depth is None else f".{self.depth}"
        return f"{self.stack}/{self.kind}{depth}" if self.stack else f"{self.kind}{depth}"

    @staticmethod
    def parse(text: str) -> Group:
        """The inverse of ``str``: ``attention.3``, ``embedding``, ``encoder/mlp.0``."""
        match = _GROUP.match(text)
        if match is None or match["kind"] not in KINDS:
            raise MergingError(
                f"expected a group such as 'attention.3', 'embedding' or 'encoder/mlp.0' (kinds: {', '.join(KINDS)}), "
                f"found {text!r}"
            )
        depth = None if match["depth"] is None else int(match["depth"])
        return Group(match["kind"], depth, match["stack"] or "")

    @property
    def order(self) -> tuple[str, int, int]:
        """Sort key: stack, depth (outside first), kind."""
        return (self.stack, -1 if self.depth is None else self.depth, KINDS.index(self.kind))


@dataclass(frozen=True)
class SourceRef:
    """A model that takes part: where it was found, and what it contained.

    Attributes:
        path: folder, as the user gave it. Not part of the hash.
        content: :attr:`merging.checkpoint.Checkpoint.content`, ``sha256:…`` of its tensors.
        made_by: the merge that made it, where it is no model of somebody's but one that can be made again. Not part of
            the hash either, nor of what makes two of them equal: the content says it all.
    """

    path: str
    content: str
    made_by: Recipe | None = field(default=None, compare=False, repr=False)

    def as_data(self) -> dict[str, Any]:
        """Plain data for YAML."""
        data: dict[str, Any] = {"path": self.path, "content": self.content}
        return data if self.made_by is None else data | {"made_by": self.made_by.as_data()}


@dataclass(frozen=True)
class Assignment:
    """What happens to one group: a method, the sources in order, and every number.

    Attributes:
        method: name of a registered method.
        sources: (alias, parameters of this source) in the order that the method sees them.
        parameters: the method's shared parameters.
    """

    method: str
    sources: tuple[tuple[str, tuple[tuple[str, Value], ...]], ...]
    parameters: tuple[tuple[str, Value], ...] = ()

    @staticmethod
    def of(method: str, sources: Mapping[str, Mapping[str, Value]], **parameters: Value) -> Assignment:
        """Build from mappings; parameters are sorted by name, sources keep their order."""
        return Assignment(
            method,
            tuple((alias, tuple(sorted(values.items()))) for alias, values in sources.items()),
            tuple(sorted(parameters.items())),
        )

    def as_data(self) -> dict[str, Any]:
        """Plain data for YAML and JSON."""
        data: dict[str, Any] = {
            "method": self.method,
            "sources": {alias: dict(values) for alias, values in self.sources},
        }
        if self.parameters:
            data["parameters"] = dict(self.parameters)
        return data


@dataclass(frozen=True)
class Recipe:
    """One complete merge.

    Attributes:
        base: alias of the base model: task vectors are differences to it; config, tokenizer and buffers are its own.
        sources: alias -> model, the base included.
        groups: what happens to each group of the layout; every group that the model has must be here.
        tensors: exceptions by canonical (on-disk) tensor name; they win over the group.
        dtype: of the merged weights, one of :data:`DTYPES`; None keeps the base's, tensor by tensor.
        source_dtype: sources are rounded to this before they are merged, one of :data:`DTYPES`; None reads them as they
            are. What mergekit's ``dtype`` means, where it is narrower than the checkpoints.
        layers: [blocks of the result] alias -> the block of that model which this block is made from; None where every
            block is made from the blocks of its own number. Groups and tensors are then named as in the result.
        scales: [blocks of the result] what the hidden state is multiplied by before this block, finite and > 0; None
            where every one is 1. Only beside ``layers``. The merged weights have them within: see
            :func:`merging.dataflow.folded`.
        tokenizer: how vocabularies were aligned, as :attr:`merging.sources.Sources.tokenizer` says it: ``base``,
            ``union`` or ``path:`` and the hash of a tokenizer; None where there was nothing to align.
        tokenizer_path: where that tokenizer was found. Not part of the hash.
    """

    base: str
    sources: Mapping[str, SourceRef]
    groups: Mapping[Group, Assignment]
    tensors: Mapping[str, Assignment] = field(default_factory=dict)
    dtype: str | None = None
    source_dtype: str | None = None
    layers: Layers | None = None
    tokenizer: str | None = None
    tokenizer_path: str | None = None
    scales: tuple[float, ...] | None = None

    @property
    def hash(self) -> str:
        """``sha256`` hex of what determines the result (see the module docstring)."""
        contents = self._identities()

        def identity(assignment: Assignment) -> list[Any]:
            return [
                assignment.method,
                [[contents[alias], _canonical(values)] for alias, values in assignment.sources],
                _canonical(assignment.parameters),
            ]

        data: dict[str, Any] = {
            "format": FORMAT,
            "base": contents[self.base],
            "dtype": self.dtype,
            "groups": {str(group): identity(assignment) for group, assignment in self.groups.items()},
            "tensors": {name: identity(assignment) for name, assignment in self.tensors.items()},
        }
        # What a recipe of old could not say enters where it is said, so that old recipes keep their hash.
        if self.source_dtype is not None:
            data["source_dtype"] = self.source_dtype
        if self.layers is not None:
            data["layers"] = [sorted([contents[alias], at] for alias, at in block.items()) for block in self.layers]
        if self.tokenizer is not None:
            data["tokenizer"] = self.tokenizer
        if self.scales is not None and set(self.scales) != {1}:
            data["scales"] = [_number(scale) for scale in self.scales]
        text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def _identities(self) -> dict[str, str]:
        """Alias -> what stands for that source in the hash."""
        contents = {alias: source.content for alias, source in self.sources.items()}
        if self.layers is not None:
            # One model under two aliases gives two different blocks: which of them is meant must be told apart.
            for content in {each for each in contents.values() if list(contents.values()).count(each) > 1}:
                same = sorted(alias for alias, each in contents.items() if each == content)
                contents |= {alias: f"{content}#{number}" for number, alias in enumerate(same)}
        return contents

    def for_tensor(self, name: str, group: Group) -> Assignment:
        """The assignment of one tensor: its own, or its group's.

        Raises:
            MergingError: the recipe says nothing about it.
        """
        found = self.tensors.get(name) or self.groups.get(group)
        if found is None:
            raise MergingError(
                f"the recipe says nothing about tensor {name} (group {group}); it names "
                f"{len(self.groups)} groups and {len(self.tensors)} tensors. Was it made for another architecture?"
            )
        return found

    def with_sources(self, sources: Mapping[str, SourceRef]) -> Recipe:
        """The same merge with its sources found elsewhere."""
        return replace(self, sources=dict(sources))

    def to_yaml(self) -> str:
        """YAML for people: groups with one assignment stand together. :meth:`from_yaml` reads it back, equal."""
        return plain_yaml.dump(self.as_data())

    def as_data(self) -> dict[str, Any]:
        """What :meth:`to_yaml` writes, as plain data."""
        together: dict[Assignment, list[Group]] = {}
        for group in sorted(self.groups, key=lambda each: each.order):
            together.setdefault(self.groups[group], []).append(group)
        data: dict[str, Any] = {
            "format": FORMAT if self.scales is None else SCALED_FORMAT,
            "base": self.base,
            "sources": {alias: source.as_data() for alias, source in self.sources.items()},
            "dtype": self.dtype,
            "groups": [
                {"in": [str(group) for group in groups], **assignment.as_data()}
                for assignment, groups in together.items()
            ],
        }
        if self.source_dtype is not None:
            data["source_dtype"] = self.source_dtype
        if self.tokenizer is not None:
            path, content = self.tokenizer_path, self.tokenizer.removeprefix("path:")
            data["tokenizer"] = self.tokenizer if path is None else {"path": path, "content": content}
        if self.layers is not None:
            data["layers"] = slices_of(self.layers)
        if self.scales is not None:
            data["scales"] = [float(scale) for scale in self.scales]
        if self.tensors:
            data["tensors"] = {name: assignment.as_data() for name, assignment in sorted(self.tensors.items())}
        return data

    @staticmethod
    def from_yaml(text: str) -> Recipe:
        """Read what :meth:`to_yaml` wrote.

        Raises:
            MergingError: not YAML, not a recipe, an unknown format or a malformed entry.
        """
        try:
            data = plain_yaml.load(text)
        except plain_yaml.PlainYamlError as error:
            raise MergingError(f"expected a recipe in YAML, found something that is not YAML: {error}") from error
        try:
            return Recipe.from_data(data)
        except RecursionError as error:
            raise MergingError("the recipe is malformed: one of its sources is made by the recipe itself") from error

    @staticmethod
    def from_data(data: Any) -> Recipe:
        """The inverse of :meth:`as_data`.

        Raises:
            MergingError: as :meth:`from_yaml`.
        """
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        if not isinstance(data, dict) or found not in {FORMAT, SCALED_FORMAT}:
            raise MergingError(f"expected a recipe of format {FORMAT!r} or {SCALED_FORMAT!r}, found {found!r}")
        if found == FORMAT and data.get("scales") is not None:
            raise MergingError(
                f"the recipe has scales, which a version that reads {FORMAT!r} may ignore; give it the format "
                f"{SCALED_FORMAT!r}"
            )
        try:
            tokenizer, tokenizer_path = _tokenizer(data.get("tokenizer"))
            sources = {
                str(alias): SourceRef(str(source["path"]), str(source["content"]), _made_by(str(alias), source))
                for alias, source in data["sources"].items()
            }
            layers = None if data.get("layers") is None else layers_of(data["layers"], sources)
            return Recipe(
                base=str(data["base"]),
                sources=sources,
                groups={Group.parse(group): _assignment(entry) for entry in data["groups"] for group in entry["in"]},
                tensors={str(name): _assignment(entry) for name, entry in (data.get("tensors") or {}).items()},
                dtype=data.get("dtype"),
                source_dtype=data.get("source_dtype"),
                layers=layers,
                tokenizer=tokenizer,
                tokenizer_path=tokenizer_path,
                scales=None if data.get("scales") is None else scales_of(data["scales"], layers),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise MergingError(
                f"the recipe is malformed ({type(error).__name__}: {error}); expected the keys base, sources, dtype "
                "and groups, as `paretomerge export` writes them"
            ) from error


def slices_of(layers: Layers) -> list[dict[str, list[int]]]:
    """Layers in the form for people: a list of slices alias -> [first, last + 1], each as long as can be."""
    slices: list[dict[str, list[int]]] = []
    for block in layers:
        if slices and {alias: end for alias, (_, end) in slices[-1].items()} == block:
            for alias in block:
                slices[-1][alias][1] += 1
        else:
            slices.append({alias: [at, at + 1] for alias, at in block.items()})
    return slices


def layers_of(slices: object, aliases: Iterable[str]) -> Layers:
    """The inverse of :func:`slices_of`; slices may be cut in any way.

    Args:
        slices: alias -> [first, last + 1], a mapping for every slice.
        aliases: the models that there are.

    Raises:
        MergingError: malformed, empty, slices of unequal length, or of an unknown model.
    """
    known = set(aliases)
    if not isinstance(slices, Sequence) or isinstance(slices, str) or not slices:
        raise MergingError(f"expected layers to be a list of slices {{alias: [first, last + 1]}}, found {slices!r}")
    layers: list[Mapping[str, int]] = []
    for number, entry in enumerate(slices):
        where = f"slice {number} of the layers"
        if not isinstance(entry, Mapping) or not entry:
            raise MergingError(f"expected {where} to be a mapping alias: [first, last + 1], found {entry!r}")
        for alias, ends in entry.items():
            if alias not in known:
                raise MergingError(f"{where} names the model {alias!r}; there are {', '.join(sorted(known))}")
            if not is_range(ends):
                raise MergingError(f"expected [first, last + 1] for {alias} in {where}, found {ends!r}")
        lengths = {alias: end - first for alias, (first, end) in entry.items()}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{alias} {length}" for alias, length in lengths.items())
            raise MergingError(f"expected all models of {where} to give as many blocks, found {found}")
        length = next(iter(lengths.values()))
        if len(layers) + length > MOST_LAYERS:
            raise MergingError(f"expected at most {MOST_LAYERS} blocks in the layers, found more, from {where} on")
        layers += [{alias: first + step for alias, (first, _) in entry.items()} for step in range(length)]
    return tuple(layers)


def scales_of(given: object, layers: Layers | None) -> tuple[float, ...]:
    """What the hidden state is multiplied by before each block, checked.

    Args:
        given: a number for each block; a larger scale gives the blocks before it more say in what follows.
        layers: the blocks, as :attr:`Recipe.layers`.

    Raises:
        MergingError: no list of numbers, not as many as there are blocks, or one that is not finite or not above 0.
    """
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise MergingError(f"expected scales to be a list with a number for each block of the layers, found {given!r}")
    if layers is None:
        raise MergingError(
            "scales need layers: list the blocks of the result under layers, also where they are the base's own"
        )
    if len(given) != len(layers):
        raise MergingError(f"expected a scale for each of the {len(layers)} blocks of the layers, found {len(given)}")
    for number, scale in enumerate(given):
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise MergingError(
                f"expected the scale of block {number} to be a finite number above 0, found {scale!r}: 0 would erase "
                "what the blocks before it computed, and the sign of a hidden state cannot be folded into weights"
            )
    return tuple(float(scale) for scale in given)


def is_range(ends: object) -> bool:
    """Whether this is [first, last + 1] of at least one block."""
    return (
        isinstance(ends, Sequence)
        and len(ends) == 2
        and all(type(end) is int for end in ends)
        and 0 <= ends[0] < ends[1]
    )


def _made_by(alias: str, source: Mapping[str, Any]) -> Recipe | None:
    if source.get("made_by") is None:
        return None
    try:
        return Recipe.from_data(source["made_by"])
    except MergingError as error:
        raise MergingError(f"of source {alias!r}, what it is made by: {error}") from error


def _tokenizer(entry: Any) -> tuple[str | None, str | None]:
    if isinstance(entry, Mapping):
        return f"path:{entry['content']}", str(entry["path"])
    return None if entry is None else str(entry), None


def _assignment(entry: Mapping[str, Any]) -> Assignment:
    sources = {str(alias): dict(values or {}) for alias, values in entry["sources"].items()}
    return Assignment.of(str(entry["method"]), sources, **dict(entry.get("parameters") or {}))


def _canonical(values: Iterable[tuple[str, Value]]) -> dict[str, Value]:
    """Parameters whose equal values hash equally: 1 and 1.0 and -0.0 and 0.0 are not told apart."""
    return {name: value if isinstance(value, bool | str) else _number(value) for name, value in values}


def _number(value: float) -> float:
    return int(value) if float(value).is_integer() else float(value)
