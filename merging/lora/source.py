"""An adapter and its base, read as one model: what a merge takes an adapter for."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from merging.bounded import printable
from merging.checkpoint import Checkpoint
from merging.composed import Change, Composed
from merging.conversion import Shape
from merging.layout import Layout
from merging.lora.adapter import Adapter, Module
from merging.lora.edits import Edit, Edited, LowRank, Magnitudes, Rows, Stack, Thunk, Whole, Within
from merging.lora.naming import Names, Place
from merging.lora.placing import placed
from merging.lora.refusals import (
    lost_modules,
    misfit,
    no_magnitude,
    no_parameter,
    other_rank,
    other_shape,
    scattered,
    trained_apart,
    wrong_tokens,
)
from merging.matrices import parts
from merging.recipe import MergingError


def open_adapter(path: Path | str, base: Checkpoint, *, allow_pickle: bool = False) -> Composed:
    """Read an adapter as the model that it makes of its base. Only headers are read, and weights that it replaces.

    LoRA and rsLoRA, also of convolutions, embeddings and Conv1D, and of experts that are stored apart, stay factored;
    DoRA, stacks of experts, trained tokens and whole modules (``modules_to_save``, biases) are composed when they are
    asked for. All agrees with ``merge_and_unload`` of peft, in float32.

    Args:
        path: folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: the model that it was trained on.
        allow_pickle: see :meth:`merging.lora.adapter.Adapter.open`.

    Raises:
        MergingError: no such adapter, one of another kind, or one that does not fit the base.
    """
    adapter = Adapter.open(Path(path), allow_pickle=allow_pickle)
    built = _Builder(adapter, base)
    built.replace()
    built.adapt()
    if built.lost:
        raise MergingError(lost_modules(adapter, base, built.lost))
    return Composed(adapter.path, base, built.changes(), notes=(*_other_base(adapter, base), *built.notes()))


class _Builder:
    """Collects what an adapter does to each tensor of its base.

    Attributes:
        edits: name on disk -> steps.
        lost: live names that the base does not have.
    """

    def __init__(self, adapter: Adapter, base: Checkpoint):
        self.edits: dict[str, list[Edit]] = {}
        self.lost: list[str] = []
        self._adapter = adapter
        self._base = base
        self._shared: dict[str, Edit] = {}  # name on disk of what is tied -> the first that is added
        self._half: set[str] = set()
        self._names = Names(base)
        self._layout = Layout.of({name: info.shape for name, info in base.tensors.items()})

    def changes(self) -> Mapping[str, Change]:
        """Name on disk -> what becomes of it."""
        return {name: Edited(tuple(edits), self._dtype(name, edits)) for name, edits in self.edits.items() if edits}

    def _dtype(self, name: str, edits: list[Edit]) -> torch.dtype:
        """float32, or float64 where the base has that; a tensor that is replaced keeps the dtype it was saved in."""
        if isinstance(edits[0], Whole) and len(edits) == 1:
            return edits[0].value().dtype
        return torch.float64 if self._base.tensors[name].dtype == torch.float64 else torch.float32

    def replace(self) -> None:
        """Whole tensors. Those that the base has in the same way change nothing."""
        for name, tensor in self._adapter.whole.items():
            for place in self._find(name):
                self._check_shape(name, self._adapter.info(tensor).shape, place.live)
                self._replace_one(name, place, tensor)

    def _replace_one(self, name: str, place: Place, tensor: str) -> None:
        def value() -> Tensor:
            held = self._adapter.read(tensor)
            if place.view is None:
                return held
            flat = held.contiguous()
            return flat.as_strided(self._stored(place), place.view.strides, flat.storage_offset() + place.view.offset)

        edits = self.edits.setdefault(place.name, [])
        if place.piece is not None:
            edits.append(Within(Whole(value), place.live, place.piece.strides, place.piece.offset))
        elif not self._is_base(place.name, value()):
            self._check_tie(name, place, value())
            edits[:] = [Whole(value)]

    def _is_base(self, name: str, value: Tensor) -> bool:
        own = self._base.read(name)
        return own.shape == value.shape and torch.equal(own.to(value.dtype), value)

    def _check_tie(self, name: str, place: Place, value: Tensor) -> None:
        """A head that is one with its embedding is replaced with it, by the same numbers, or not at all."""
        tied = self._tied(place)
        given = [self._adapter.whole[each] for each in tied if each in self._adapter.whole]
        same = all(torch.equal(self._adapter.read(each), value) for each in given)
        all_of_them = len(given) == len(tied) or self._adapter.settings.data.get("ensure_weight_tying")
        if tied and not (same and all_of_them):
            raise MergingError(trained_apart(self._adapter, self._base, name, tied))

    def _tied(self, place: Place) -> frozenset[str]:
        """Live names of embedding and head, where they are one parameter."""
        group = self._layout.group(place.name)
        return self._names.tied(place.name) if group.kind in {"embedding", "head"} else frozenset()

    def adapt(self) -> None:
        """Products, with their magnitudes and biases, and trained tokens."""
        counts = Counter(each.name for each in self._adapter.modules if "A" in each.parts)
        for module in self._adapter.modules:
            if "A" in module.parts:
                self._adapt_layer(module, counts[module.name])
            elif "embedding_A" in module.parts:
                self._embedding(module)
            if "bias" in module.parts:
                self._bias(module)
            if "tokens" in module.parts:
                self._tokens(module)

    def _adapt_layer(self, module: Module, count: int) -> None:
        """A layer, or bare parameters, which have no weight of their own or are adapted several at a time."""
        weights = (f"{module.name}.weight", f"{module.name}.in_proj_weight")
        places = next((found for each in weights if (found := self._search(each))), ())
        if places and count == 1:
            self._linear(module, places)
        elif self._names.parameters(module.name):
            self._parameter(module, count)
        else:
            self.lost.append(weights[0])

    def _linear(self, module: Module, places: tuple[Place, ...]) -> None:
        """A linear layer, a Conv1D, a convolution, or the input projection of torch's attention."""
        a, b = self._factors(module, "A", "B")
        # A weight that was named as a bare parameter has the patterns of its own name.
        settings, own = self._adapter.settings, f"{module.name}.weight"
        bare = any(own == end or own.endswith(f".{end}") for end in settings.parameters)
        name = own if bare else module.name
        rank = self._check_rank(name, a[0], a)
        for place in places:
            turned = self._is_turned(module, place, a, b, rank)
            product = self._product(module.parts["A"], module.parts["B"], rank, settings.scale_of(name), turned)
            self._add(place, module, product, int(turned))

    def _product(self, one: str, other: str, rank: int, scale: float, turned: bool) -> LowRank:
        """scale·B·A, or its transpose; convolutions seen as matrices [out, in·kernel]."""
        b: Thunk = lambda: self._adapter.read_float(other).reshape(-1, rank)  # noqa: E731
        a: Thunk = lambda: self._adapter.read_float(one).reshape(rank, -1)  # noqa: E731
        if turned:
            return LowRank(lambda: a().T, lambda: b().T * scale)
        return LowRank(b, lambda: a() * scale)

    def _is_turned(self, module: Module, place: Place, a: Shape, b: Shape, rank: int) -> bool:
        """Whether the live weight is [in, out], as that of a Conv1D: by its shape, or its kind where it is square."""
        outputs, inputs = b[0], _numel(a[1:])
        plain = _numel(b) == outputs * rank
        if plain and len(a) > 2 and place.live == (outputs, *a[1:]):
            return False
        straight, turned = place.live == (outputs, inputs), place.live == (inputs, outputs)
        if not plain or len(a) != 2 or not (straight or turned):
            raise MergingError(misfit(self._adapter, module.name, a, b, place))
        if straight and turned:
            bias = self._base.tensors.get(f"{place.name.rpartition('.')[0]}.bias")
            found = parts(place.name, place.live, self._base.config, bias=bias.shape[-1] if bias else 0)
            return bool(found) and found[0].turned
        return turned

    def _bias(self, module: Module) -> None:
        """``lora_bias``: what B adds to every output."""
        tensor, scale = module.parts["bias"], self._adapter.settings.scale_of(module.name)
        for place in self._find(f"{module.name}.bias"):
            self._check_shape(f"{module.name}.bias", self._adapter.info(tensor).shape, place.live)
            column: Thunk = lambda: self._adapter.read_float(tensor)[:, None] * scale  # noqa: E731
            self._add(place, None, LowRank(column, lambda: torch.ones(1, 1)), 0)

    def _embedding(self, module: Module) -> None:
        a, b = self._factors(module, "embedding_A", "embedding_B")
        rank, scale = self._check_rank(module.name, a[0], a), self._adapter.settings.scale_of(module.name)
        for place in self._find(f"{module.name}.weight"):
            if len(a) != 2 or b[1:] != (rank,) or place.live != (a[1], b[0]):
                raise MergingError(misfit(self._adapter, module.name, a, b, place))
            product = self._product(module.parts["embedding_A"], module.parts["embedding_B"], rank, scale, True)
            self._add(place, module, product, 1)

    def _tokens(self, module: Module) -> None:
        """Rows of an embedding; of a head that is tied to it, the same."""
        named, tensor = self._adapter.settings.tokens, module.parts["tokens"]
        key = next((each for each in named if each and f".{module.name}".endswith(f".{each}")), "")
        indices, shape = named.get(key), self._adapter.info(tensor).shape
        for place in self._find(f"{module.name}.weight"):
            plain = place.view is None and place.piece is None
            fits = indices is not None and plain and shape == (len(indices), *place.live[1:])
            if indices is None or not fits or max(indices, default=-1) >= place.live[0]:
                raise MergingError(wrong_tokens(self._adapter, module.name, shape, place.live))
            edits = self.edits.setdefault(place.name, [])
            if not any(isinstance(each, Rows) for each in edits):
                edits.append(Rows(indices, lambda: self._adapter.read_float(tensor)))

    def _parameter(self, module: Module, count: int) -> None:
        """A bare parameter (``target_parameters``): a matrix, or a stack of experts, for which PEFT keeps A as
        [experts·r, in] and B as [out, r·experts], the experts running fastest."""
        a, b = self._factors(module, "A", "B")
        name, shape = self._adapted_parameter(module, count, a, b)
        experts = shape[0] if len(shape) == 3 else 1
        rank, scale = a[0] // experts, self._adapter.settings.scale_of(name)
        self._check_rank(name, rank, a)

        def left() -> Tensor:
            held = self._adapter.read_float(module.parts["B"])
            return held.reshape(held.shape[0], rank, experts).permute(2, 0, 1) * scale

        def right() -> Tensor:
            return self._adapter.read_float(module.parts["A"]).reshape(experts, rank, -1)

        straight, turned = shape[-2:] == (b[0], a[1]), shape[-2:] == (a[1], b[0])
        if straight and turned and len(shape) == 3:
            straight = not self._names.is_turned(module.name)
        stack = Stack(left, right) if straight else Stack(lambda: right().mT, lambda: left().mT)
        edit = stack if len(shape) == 3 else LowRank(lambda: stack.left()[0], lambda: stack.right()[0])
        for place in self._find(name):
            self._put(place, edit)

    def _adapted_parameter(self, module: Module, count: int, a: Shape, b: Shape) -> tuple[str, Shape]:
        """Which parameter of its module. PEFT wraps the module once for each, the first innermost."""
        held = [each for each in self._names.parameters(module.name) if len(each[1]) in (2, 3)]
        ends = self._adapter.settings.parameters
        named = [each for each in held if any(f".{each[0]}".endswith(f".{end}") for end in ends)] or held
        fitting = [each for each in named if _fits(each[1], a, b)]
        in_order = named[count - 1 - module.depth] if len(named) == count > module.depth else None
        if in_order is not None and in_order in fitting:
            return in_order
        if len(fitting) != 1:
            raise MergingError(no_parameter(self._adapter, self._base, module.name, a, b, named, len(fitting)))
        return fitting[0]

    def _add(self, place: Place, module: Module | None, product: LowRank, axis: int) -> None:
        """A product at a place of the base, and the magnitudes of its module."""
        magnitude = None if module is None else module.parts.get("magnitude")
        if module is None or (magnitude is None and not self._adapter.settings.dora):
            self._put(place, product)
            return
        if magnitude is None:
            raise MergingError(no_magnitude(self._adapter, module.name))
        held, own = magnitude, f"{module.name}.lora_magnitude_vector"
        self._check_shape(own, (self._adapter.info(held).numel,), (place.live[axis],))
        self._put(place, Magnitudes(product, lambda: self._adapter.read_float(held), axis))

    def _put(self, place: Place, edit: Edit) -> None:
        found = placed(edit, place, self._stored(place))
        if found is None:
            raise MergingError(scattered(self._adapter, place))
        tied = self._tied(place)
        if tied:
            twin = self._shared.setdefault(place.name, edit)
            if twin is not edit and not _same(twin, edit):
                raise MergingError(trained_apart(self._adapter, self._base, place.name, tied))
            if twin is not edit:  # embedding and head share what is added, as they share what it is added to
                self._half.discard(place.name)
                return
            self._half.add(place.name)
        self.edits.setdefault(place.name, []).append(found)

    def notes(self) -> tuple[str, ...]:
        """What its user should know."""
        return tuple(
            f"the adapter {self._adapter.path} adds to {name} in one of its two places only, and the base has one "
            "tensor for embedding and head: as in peft's merge_and_unload both change, which is another model than was "
            "trained"
            for name in sorted(self._half)
        )

    def _search(self, name: str) -> tuple[Place, ...]:
        try:
            return self._names.find(name)
        except MergingError as error:
            raise MergingError(
                f"the adapter {self._adapter.path} changes {printable(name)}, a name that its base does not have on "
                f"disk, and where transformers puts it cannot be told: {error}"
            ) from error

    def _find(self, name: str) -> tuple[Place, ...]:
        found = self._search(name)
        if not found:
            self.lost.append(name)
        return found

    def _stored(self, place: Place) -> Shape:
        return self._base.tensors[place.name].shape

    def _factors(self, module: Module, *names: str) -> tuple[Shape, Shape]:
        one, other = (self._adapter.info(module.parts[each]).shape for each in names)
        if not _numel(one) or not _numel(other) or len(one) < 2 or len(other) < 2:
            raise MergingError(other_rank(self._adapter, module.name, one, other))
        return one, other

    def _check_rank(self, module: str, rank: int, a: Shape) -> int:
        expected = self._adapter.settings.rank_of(module)
        if rank != expected:
            raise MergingError(other_rank(self._adapter, module, a, expected))
        return rank

    def _check_shape(self, name: str, found: Shape, expected: Shape) -> None:
        if tuple(found) != tuple(expected):
            raise MergingError(other_shape(self._adapter, name, found, expected))


def _numel(shape: Shape) -> int:
    return int(torch.Size(shape).numel())


def _same(one: Edit, other: Edit) -> bool:
    """Whether two products have the same factors."""
    if not isinstance(one, LowRank) or not isinstance(other, LowRank):
        return False
    return torch.equal(one.left(), other.left()) and torch.equal(one.right(), other.right())


def _fits(shape: Shape, a: Shape, b: Shape) -> bool:
    """Whether a parameter of this shape may have these factors."""
    experts = shape[0] if len(shape) == 3 else 1
    ends = shape[-2:] == (b[0], a[1]) or (len(shape) == 3 and shape[-2:] == (a[1], b[0]))
    return len(a) == len(b) == 2 and a[0] == b[1] and experts > 0 and a[0] % experts == 0 and ends


def _other_base(adapter: Adapter, base: Checkpoint) -> tuple[str, ...]:
    """A note where the adapter names another base than is given: by the last part of names, all that travels."""
    said = adapter.settings.base
    known = {
        str(base.path),
        str(base.path.resolve()),
        str(base.config.get("_name_or_path") or ""),
        *base.path.parts[-1:],
    }
    last = _last(said)
    cached = f"models--{said.replace('/', '--')}"
    if not said or last in {_last(each) for each in known} or cached in base.path.absolute().parts:
        return ()
    return (
        f"the adapter {adapter.path} says that it was trained on {printable(said)}, and is read over {base.path}: over "
        "other weights than it was trained on, it is another model",
    )


def _last(name: str) -> str:
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]
