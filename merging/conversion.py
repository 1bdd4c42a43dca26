"""Where the tensors of a checkpoint lie in a live model: transformers' own loading rules, followed without data.

transformers renames tensors when it loads them, and fuses or splits some: the experts of a Mixtral, one matrix each on
disk, become slices of one parameter. The rules are the library's (``transformers.conversion_mapping``) and are not
repeated here. They run on meta tensors, which have shapes and strides but no memory, while every copy is recorded; then
the elements of each tensor are followed through the copies. So the place of a tensor is known from structure alone,
at no cost in memory, even where two tensors hold the same numbers.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from merging.recipe import MergingError

Shape = tuple[int, ...]

# Tensors up to this size are followed element by element, larger ones at their corners and at some of their elements.
EVERY = 1 << 12
SOME = 1 << 8


class Strided(NamedTuple):
    """How one tensor lies in another: element i is element ``offset + sum(i * strides)`` of the other, row by row."""

    within: str
    offset: int
    strides: Shape


@dataclass(frozen=True)
class Placement:
    """How the tensors of a checkpoint and those of a live model correspond.

    Attributes:
        views: canonical name -> where it lies in a live tensor.
        pieces: live name -> where it lies in a canonical tensor, for canonical tensors that the loader splits.
        unplaced: canonical names for which the live model has no tensor.
    """

    views: Mapping[str, Strided]
    pieces: Mapping[str, Strided]
    unplaced: tuple[str, ...]


def place(model: nn.Module, shapes: Mapping[str, Shape]) -> Placement:
    """Find every canonical tensor in a live model by the names and conversions with which transformers loads it.

    Args:
        model: live model; its weights are not read.
        shapes: canonical name -> shape, as stored.

    Raises:
        MergingError: a conversion that is no rearrangement into strided views, or that cannot be followed; another
            shape than what is stored.
    """
    live = {own: tuple(each.shape) for own, each in model.state_dict().items() if isinstance(each, Tensor)}
    plain, groups, unplaced = _names(model, shapes, live)
    views = {name: Strided(own, 0, row_major(shapes[name])) for name, own in plain.items()}
    pieces: dict[str, Strided] = {}
    for group in groups:
        forward, backward = _follow(group, model, shapes, live)
        views |= forward
        pieces |= backward
    return Placement(views, pieces, unplaced)


@dataclass
class _Group:
    """Canonical tensors that one converter turns into live ones, with the pattern that each of them matched."""

    target: str
    converter: Any
    members: dict[str, str] = field(default_factory=dict)


def _names(
    model: nn.Module, shapes: Mapping[str, Shape], state: Mapping[str, Shape]
) -> tuple[dict[str, str], list[_Group], tuple[str, ...]]:
    """(canonical -> live name where only the name changes, what is converted, what has no live counterpart).

    The same steps, in the same order, as transformers.core_model_loading.convert_and_load_state_dict_in_model.
    """
    try:
        from transformers import PreTrainedModel
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key
    except ImportError as error:
        import transformers

        raise MergingError(
            f"expected the weight conversions of transformers where its tested version has them, found transformers "
            f"{transformers.__version__} without ({error}); install the version of constraints.txt"
        ) from error
    transforms = get_model_conversion_mapping(model) if isinstance(model, PreTrainedModel) else []
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    renamings = [each for each in transforms if not isinstance(each, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix = getattr(model, "base_model_prefix", None) or None
    plain: dict[str, str] = {}
    groups: dict[str, _Group] = {}
    unplaced = []
    for name in sorted(shapes, key=dot_natural_key):
        own, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if own not in state and name in state:
            own, pattern = rename_source_key(name, [], [], prefix, state)
        if own not in state:
            unplaced.append(name)
        elif pattern is None:
            _check_shape(name, shapes[name], own, state[own], model)
            plain[name] = own
        else:
            group = groups.setdefault(own, _Group(own, deepcopy(by_pattern[pattern])))
            group.members[name] = pattern
    return plain, list(groups.values()), tuple(unplaced)


def _check_shape(name: str, stored: Shape, own: str, live: Shape, model: nn.Module) -> None:
    if stored != live:
        raise MergingError(
            f"expected {name} in shape {list(stored)}, found {own} of the live {type(model).__name__} in shape "
            f"{list(live)}; load the model from the folder of the base. Where vocabularies are aligned, the live model "
            "needs the merged one's rows"
        )


class _Box(NamedTuple):
    """A strided view of a storage."""

    storage: int
    offset: int
    shape: Shape
    strides: Shape

    @staticmethod
    def of(tensor: Tensor) -> _Box:
        storage = tensor.untyped_storage()._cdata
        return _Box(storage, int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()))

    def positions(self, coordinates: Tensor) -> Tensor:
        """Of elements, in the storage: int64 [n, dims] -> [n]."""
        return self.offset + coordinates @ torch.tensor(self.strides, dtype=torch.int64)

    def locate(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Which positions of the storage the view shows, and their coordinates: bool [n], int64 [n, dims]."""
        rest = positions - self.offset
        inside = rest >= 0
        coordinates = torch.zeros(len(positions), len(self.shape), dtype=torch.int64)
        for axis in sorted(range(len(self.shape)), key=lambda each: -self.strides[each]):
            if self.shape[axis] > 1:
                coordinates[:, axis] = rest // self.strides[axis]
                inside &= coordinates[:, axis] < self.shape[axis]
                rest = rest % self.strides[axis]
        return inside & (rest == 0), coordinates


class _Copies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records which views are copied to which while it is active; views themselves need no record."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[tuple[_Box, _Box]] = []
        self._alive: list[Any] = []  # a storage's address identifies it only as long as the storage lives

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.is_mutable:
            raise NotImplementedError(f"{func} changes a tensor in place")
        out = func(*args, **(kwargs or {}))
        self._alive.append((args, out))
        aten = torch.ops.aten
        if func in {aten.clone.default, aten._to_copy.default}:
            self._copied(args[0], out)
        elif func in {aten.cat.default, aten.stack.default}:
            axis = args[1] if len(args) > 1 else 0
            lengths = [each.shape[axis] if func is aten.cat.default else 1 for each in args[0]]
            for part, whole in zip(args[0], out.split(lengths, axis), strict=True):
                self._copied(part, whole if func is aten.cat.default else whole.squeeze(axis))
        return out

    def _copied(self, source: Tensor, out: Tensor) -> None:
        if not any(size > 1 and stride == 0 for size, stride in zip(source.shape, source.stride(), strict=True)):
            self.made.append((_Box.of(source), _Box.of(out)))


def _follow(
    group: _Group, model: nn.Module, shapes: Mapping[str, Shape], state: Mapping[str, Shape]
) -> tuple[dict[str, Strided], dict[str, Strided]]:
    """The places of a group's canonical tensors in live ones, or of live ones in canonical ones."""
    disk = {name: torch.empty(shapes[name], device="meta") for name in group.members}
    copies = _Copies()
    try:
        for name, pattern in group.members.items():
            group.converter.add_tensor(group.target, name, pattern, disk[name])
        with torch.no_grad(), copies:
            made = group.converter.convert(group.target, model=model, config=model.config)
        live = {own: each[0] if isinstance(each, list) else each for own, each in made.items()}
        strange = [own for own in live if tuple(live[own].shape) != state[own]]
    except Exception as error:  # the library's operations raise what they like
        raise _refusal(group, model, f"{type(error).__name__}: {error}") from error
    if strange:
        raise _refusal(group, model, f"{strange[0]} has another shape than what was stored for it")
    ends = _numbered([_Box.of(each) for each in (*disk.values(), *live.values())], copies.made)
    stored, loaded, made_of = ends[0][: len(disk)], ends[0][len(disk) :], ends[1]
    forward = _places(stored, loaded, made_of)
    if forward is not None:
        return _named(disk, forward, list(live)), {}
    backward = _places(loaded, stored, tuple((target, source) for source, target in made_of))
    if backward is not None and _numel(loaded) == _numel(stored):
        return {}, _named(live, backward, list(disk))
    raise _refusal(group, model, "it is more than slices, transposes and joins of whole tensors")


def _refusal(group: _Group, model: nn.Module, why: str) -> MergingError:
    names = list(group.members)
    operations = ", ".join(type(each).__name__ for each in group.converter.operations)
    return MergingError(
        f"transformers converts {len(names)} tensors on their way into {group.target} of the live "
        f"{type(model).__name__} ({operations}), first {names[0]}, in a way that cannot be written in place: {why}. "
        "Load the models with transformers, save them with save_pretrained(save_original_format=False), and merge those"
    )


def _numbered(
    boxes: list[_Box], copies: list[tuple[_Box, _Box]]
) -> tuple[tuple[_Box, ...], tuple[tuple[_Box, _Box], ...]]:
    """The same with storages numbered as they appear, so that equal layers of a model are equal here."""
    numbers: dict[int, int] = {}

    def number(box: _Box) -> _Box:
        return box._replace(storage=numbers.setdefault(box.storage, len(numbers)))

    return tuple(map(number, boxes)), tuple((number(source), number(target)) for source, target in copies)


def _named(names: Iterable[str], places: Iterable[tuple[int, int, Shape]], ends: list[str]) -> dict[str, Strided]:
    return {
        name: Strided(ends[end], offset, strides) for name, (end, offset, strides) in zip(names, places, strict=True)
    }


def _numel(boxes: Iterable[_Box]) -> int:
    return sum(torch.Size(box.shape).numel() for box in boxes)


@lru_cache(maxsize=64)  # the layers of a model ask the same
def _places(
    starts: tuple[_Box, ...], ends: tuple[_Box, ...], copies: tuple[tuple[_Box, _Box], ...]
) -> tuple[tuple[int, int, Shape], ...] | None:
    """Where each start lies: (index of the end, offset, strides). None if one is spread over several ends, is lost, or
    is shuffled."""
    ways = _Ways(defaultdict(list), defaultdict(list))
    for end, box in enumerate(ends):
        ways.ends[box.storage].append((end, box))
    for source, target in copies:
        ways.copies[source.storage].append((source, target))
    found = []
    for box in starts:
        samples = _samples(box.shape)
        arrived = list(_flow(box.storage, box.positions(samples), torch.arange(len(samples)), ways))
        origin = torch.cat([which for _, which, _ in arrived]) if arrived else torch.empty(0)
        once = torch.equal(origin.sort().values, torch.arange(len(samples)))
        if not once or len({end for end, _, _ in arrived}) != 1:
            return None
        end = arrived[0][0]
        rows = _Box(0, 0, ends[end].shape, row_major(ends[end].shape))
        positions = torch.empty(len(samples), dtype=torch.int64)
        positions[origin] = torch.cat([rows.positions(coordinates) for _, _, coordinates in arrived])
        strides = _strides(box.shape, samples, positions)
        if strides is None:
            return None
        found.append((end, int(positions[0]), strides))
    return tuple(found)


class _Ways(NamedTuple):
    """By storage: the ends that are views of it, and the copies that leave it."""

    ends: defaultdict[int, list[tuple[int, _Box]]]
    copies: defaultdict[int, list[tuple[_Box, _Box]]]


def _flow(storage: int, positions: Tensor, which: Tensor, ways: _Ways) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Follow elements of a storage: (index of the end, which elements arrived in it, their coordinates there)."""
    for end, box in ways.ends.get(storage, ()):
        inside, coordinates = box.locate(positions)
        if inside.any():
            yield end, which[inside], coordinates[inside]
    for source, target in ways.copies.get(storage, ()):
        inside, coordinates = source.locate(positions)
        if inside.any():
            yield from _flow(target.storage, target.positions(coordinates[inside]), which[inside], ways)


def _samples(shape: Shape) -> Tensor:
    """Coordinates of elements, int64 [n, dims]: the first, its neighbour along every axis, all corners, and more."""
    numel = torch.Size(shape).numel()
    if numel <= EVERY:
        chosen = torch.arange(numel)
    else:
        strides = row_major(shape)
        corners = [
            sum(each)
            for each in itertools.product(*((0, (size - 1) * step) for size, step in zip(shape, strides, strict=True)))
        ]
        neighbours = [stride for size, stride in zip(shape, strides, strict=True) if size > 1]
        inner = torch.randint(numel, (SOME,), generator=torch.Generator().manual_seed(0))
        chosen = torch.cat([torch.tensor([0, *neighbours, *corners]), inner])
    return torch.stack(torch.unravel_index(chosen, shape), dim=1) if shape else torch.zeros(1, 0, dtype=torch.int64)


def _strides(shape: Shape, samples: Tensor, positions: Tensor) -> Shape | None:
    """The strides with which the samples' positions are explained, or None."""
    strides = []
    for axis, size in enumerate(shape):
        step = torch.zeros(len(shape), dtype=torch.int64)
        step[axis] = 1
        neighbour = (samples == step).all(1).nonzero() if size > 1 else None
        strides.append(1 if neighbour is None else int(positions[neighbour[0, 0]] - positions[0]))
    expected = positions[0] + samples @ torch.tensor(strides, dtype=torch.int64)
    return tuple(strides) if torch.equal(expected, positions) else None


def row_major(shape: Shape) -> Shape:
    """The strides of a contiguous tensor."""
    return tuple(torch.Size(shape[axis + 1 :]).numel() for axis in range(len(shape)))
