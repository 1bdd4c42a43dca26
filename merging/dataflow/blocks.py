"""The layers of all models as modules whose parameters are the sources' own memory: each layer once, however often and
in however many paths it is run."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from merging.arena import SHARE, Home, hold, layout_order
from merging.conversion import Placement, Strided, place, row_major
from merging.dataflow.live_path import Anatomy
from merging.kernel import MergeFailed
from merging.live import _equal_bits
from merging.memory import free_memory, free_on
from merging.recipe import MergingError
from merging.sources import Sources


class Part(NamedTuple):
    """A canonical tensor in a live one.

    Attributes:
        name: canonical.
        where: how it lies in the live tensor, or the live one in it.
        split: the live tensor is a part of the canonical one, which is several of them.
    """

    name: str
    where: Strided
    split: bool


@dataclass(frozen=True)
class Spec:
    """What a live tensor is filled with.

    Attributes:
        own: its name, from the module on that is filled.
        shape, dtype, device: of the live tensor.
        parts: what it holds.
    """

    own: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    parts: tuple[Part, ...]

    @property
    def is_whole(self) -> bool:
        """Whether it is one canonical tensor, laid out as that is."""
        return len(self.parts) == 1 and self.parts[0].where[1:] == (0, row_major(self.shape))

    @property
    def is_stored(self) -> bool:
        """Whether it is memory of one canonical tensor: all of it, or a part."""
        return self.is_whole or (len(self.parts) == 1 and self.parts[0].split)


@dataclass
class Block:
    """One layer of one model. Never run itself: hops are copies of its module that share its parameters.

    Attributes:
        module: with the parameters.
        tensors: canonical name, as in its own model -> live tensor.
        owned: some of its memory is not the sources'.
        hops: copies of the module, as many as a path needed at once so far.
        sure: nothing but this class can have written to it since it was filled.
    """

    module: nn.Module
    tensors: dict[str, Tensor]
    owned: bool
    hops: list[Any] = field(default_factory=list)
    sure: bool = True


class Blocks:
    """Layers of models, and the tensors around them.

    Attributes:
        stack: the live model's list of blocks.
        where: its name.
        anatomy: which tensors belong to which layer.
        inside: [layers] what is filled in each.
        templates: [layers] the base's modules, their parameters empty.
    """

    def __init__(self, sources: Sources, model: nn.Module, home: Home) -> None:
        """Take the live model apart. Its own weights are let go: the sources hold the same.

        Args:
            sources: the models.
            model: the live one, which holds the base.
            home: see :func:`merging.arena.hold`. Where most of what is run is a copy in any case, since the live model
                has another dtype, or joins tensors that are stored apart, sources stay in their files.

        Raises:
            MergingError: several stacks of layers or none, or modules that are no list of them.
        """
        self.anatomy = Anatomy.of(sources)
        self._sources = sources
        self._model = model
        specs = _specs(place(model, {name: info.shape for name, info in sources.tensors.items()}), model)
        self.stack, self.where = _stack(model, specs, self.anatomy)
        self.inside, self._outside = _apart(specs, self.where, len(self.stack))
        self._around = {spec.own: _holders(model, spec.own) for spec in self._outside}
        self.templates = [_emptied(self.stack[number], specs) for number, specs in enumerate(self.inside)]
        for spec in self._outside:
            self._around[spec.own][0].parameter.data = torch.empty(0, dtype=spec.dtype, device=spec.device)
        every = [spec for specs in (*self.inside, self._outside) for spec in specs]
        self._dtypes = {part.name: spec.dtype for spec in every for part in spec.parts}
        beside = {part.name: spec.device for spec in every for part in spec.parts}
        places = {name: beside.get(name, torch.device("cpu")) for name in layout_order(sources)}
        hold(sources, places, "mmap" if home in ("auto", "shared") and self._copies_most(every) else home)
        self.keeps = self._fits(every)
        self._blocks: dict[tuple[str, int], Block] = {}
        self._near: dict[tuple[str, str], tuple[Tensor, dict[str, Tensor], bool]] = {}
        self._doubted: set[tuple[str, str]] = set()

    def block(self, alias: str, layer: int) -> Block:
        """A layer, filled when it is first asked for.

        Raises:
            MergeFailed: its weights are not finite in the live dtype.
        """
        found = self._blocks.get((alias, layer))
        if found is None:
            filled = {spec.own: self._fill(alias, spec) for spec in self.inside[layer]}
            module = copied(self.templates[layer], {own: data for own, (data, _, _) in filled.items()})
            tensors = {name: each for _, parts, _ in filled.values() for name, each in parts.items()}
            found = self._blocks[alias, layer] = Block(module, tensors, any(own for _, _, own in filled.values()))
        elif not found.sure:
            for spec in self.inside[layer]:
                self._restore(alias, spec, tensor_of(found.module, spec.own))
            found.sure = True
        return found

    def around(self, outside: Mapping[str, str]) -> dict[str, Tensor]:
        """Let the modules outside the layers have the tensors of these models. Ties stay.

        Args:
            outside: canonical name -> alias.

        Returns:
            Canonical name -> live tensor.
        """
        ready = []
        for spec in self._outside:
            aliases = {outside[part.name] for part in spec.parts}
            if len(aliases) != 1:
                raise MergingError(
                    f"{spec.own} of the live model is made from {len(spec.parts)} tensors, and the recipe takes them "
                    f"from several models ({', '.join(sorted(aliases))})"
                )
            ready.append((spec, self._near_of(aliases.pop(), spec)))
        live: dict[str, Tensor] = {}
        for spec, (data, parts) in ready:
            for slot in self._around[spec.own]:
                slot.parameter.data = data
                slot.holder[slot.leaf] = slot.parameter
            live |= parts
        return live

    def dtype(self, name: str) -> torch.dtype | None:
        """Of a live canonical tensor; None where the model's class does not load it."""
        return self._dtypes.get(name)

    def doubt(self) -> None:
        """Take nothing for granted of what any of the memory holds: it is compared with the files before its next
        use, and put right."""
        for block in self._blocks.values():
            block.sure = False
            block.hops.clear()
        self._doubted = set(self._near)

    def drop_others(self, used: Iterable[tuple[str, int]]) -> None:
        """Let go of the copies of layers that are not used, where there is no room for all of them."""
        if self.keeps:
            return
        kept = set(used)
        for key in [key for key, block in self._blocks.items() if block.owned and key not in kept]:
            del self._blocks[key]

    @property
    def bytes(self) -> tuple[int, int]:
        """(bytes of layers and tensors in use that are the sources' own memory, bytes that are copies)."""
        found: dict[int, tuple[int, bool]] = {}
        for block in self._blocks.values():
            for _, each in _held(block.module):
                found[each.data_ptr()] = (each.nbytes, block.owned)
        for data, _, owned in self._near.values():
            found[data.data_ptr()] = (data.nbytes, owned)
        return (
            sum(size for size, owned in found.values() if not owned),
            sum(size for size, owned in found.values() if owned),
        )

    def _near_of(self, alias: str, spec: Spec) -> tuple[Tensor, dict[str, Tensor]]:
        key = (alias, spec.own)
        if key not in self._near:
            self._near[key] = self._fill(alias, spec)
        data, parts, _ = self._near[key]
        if key in self._doubted:
            self._restore(alias, spec, data)
            self._doubted.discard(key)
        return data, parts

    def _fill(self, alias: str, spec: Spec) -> tuple[Tensor, dict[str, Tensor], bool]:
        """(what a live tensor holds of a model, the canonical tensors in it, whether that is memory of its own)."""
        first = spec.parts[0]
        if spec.is_stored:
            stored = self._sources.tensor(alias, first.name)
            ours = (stored.dtype, stored.device) == (spec.dtype, spec.device) and stored.is_contiguous()
            whole = stored if ours else _cast(first.name, alias, stored, spec).contiguous()
            owned = not ours or self._sources.composes(alias, first.name)
            return shown(whole, first, spec), {first.name: whole}, owned
        data, parts = joined(spec, {part.name: self._sources.info(alias, part.name).shape for part in spec.parts})
        for name, part in parts.items():
            part.copy_(_cast(name, alias, self._sources.tensor(alias, name), spec))
        return data, parts, True

    def _restore(self, alias: str, spec: Spec, data: Tensor) -> None:
        """Compare a live tensor with the files, and put it right."""
        for part in spec.parts:
            info = self._sources.info(alias, part.name)
            fresh = torch.empty(info.shape, dtype=info.dtype)
            self._sources.read_into(alias, part.name, fresh)
            if part.split:
                wanted, there = shown(fresh, part, spec), data
            else:
                there = data if spec.is_whole else data.as_strided(info.shape, part.where.strides, part.where.offset)
                wanted = fresh
            wanted = wanted.to(there.dtype)
            if not _equal_bits(wanted, there):
                there.copy_(wanted)

    def _copies_most(self, specs: list[Spec]) -> bool:
        """Whether most of the live tensors cannot be the stored ones."""
        sources, copied, every = self._sources, 0, 0
        for alias in sources.checkpoints:
            for spec in specs:
                for part in spec.parts:
                    info = sources.info(alias, part.name)
                    every += info.numel
                    copied += 0 if info.dtype == spec.dtype and (part.split or spec.is_whole) else info.numel
        return 2 * copied > every

    def _fits(self, specs: list[Spec]) -> bool:
        """Whether copies of all layers of all models may stay in memory, as far as there have to be copies."""
        sources, needed = self._sources, dict[torch.device, int]()
        for alias in sources.checkpoints:
            for spec in specs:
                for part in spec.parts:
                    info = sources.info(alias, part.name)
                    shared = info.dtype == spec.dtype and (part.split or spec.is_whole)
                    shared = shared and not sources.composes(alias, part.name)
                    if shared and sources.tensor(alias, part.name).device == spec.device:
                        continue
                    needed[spec.device] = needed.get(spec.device, 0) + info.numel * spec.dtype.itemsize
        free = {each: free_memory() if each.type == "cpu" else free_on(each) for each in needed}
        return all(size <= SHARE * free[device] for device, size in needed.items())


class _Slot(NamedTuple):
    """A place where a parameter hangs."""

    holder: dict[str, Any]
    leaf: str
    parameter: Tensor


def copied(module: nn.Module, data: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A module of the same kind.

    Args:
        module: its buffers and its config are shared.
        data: name -> what its parameter or buffer of that name holds in the copy; None shares all of them.
    """
    memo: dict[int, Any] = {}
    for own, each in _held(module):
        fresh = None if data is None else data.get(own)
        memo[id(each)] = each if fresh is None else _like(each, fresh)
    for part in module.modules():
        config = getattr(part, "config", None)
        if config is not None:
            memo[id(config)] = config
    return copy.deepcopy(module, memo)


def _like(tensor: Tensor, data: Tensor) -> Tensor:
    return nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data


def _held(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def tensor_of(module: nn.Module, own: str) -> Tensor:
    """A parameter or buffer by its name."""
    parent, _, leaf = own.rpartition(".")
    found: Tensor = getattr(module.get_submodule(parent), leaf)
    return found


def _holders(model: nn.Module, own: str) -> list[_Slot]:
    """All places where a live tensor hangs: several where it is tied."""
    parent, _, leaf = own.rpartition(".")
    tensor = getattr(model.get_submodule(parent), leaf)
    return [
        _Slot(holder, name, each)
        for module in model.modules()
        for holder in (module._parameters, module._buffers)
        for name, each in holder.items()
        if each is tensor
    ]


def _emptied(module: nn.Module, specs: list[Spec]) -> nn.Module:
    """The module with nothing in what is filled anew for every model."""
    for spec in specs:
        tensor_of(module, spec.own).data = torch.empty(0, dtype=spec.dtype, device=spec.device)
    return module


def _specs(places: Placement, model: nn.Module) -> list[Spec]:
    parts: dict[str, list[Part]] = {}
    for name, where in places.views.items():
        parts.setdefault(where.within, []).append(Part(name, where, split=False))
    for own, where in places.pieces.items():
        parts.setdefault(own, []).append(Part(where.within, where, split=True))
    found = []
    for own, each in parts.items():
        tensor = tensor_of(model, own)
        found.append(Spec(own, tuple(tensor.shape), tensor.dtype, tensor.device, tuple(each)))
    return found


def _stack(model: nn.Module, specs: list[Spec], anatomy: Anatomy) -> tuple[nn.ModuleList, str]:
    """The list of blocks, and its name."""
    layers = {name: number for number, names in enumerate(anatomy.layers) for name in names}
    first = next(spec for spec in specs if any(layers.get(part.name) == 0 for part in spec.parts))
    tokens = first.own.split(".")
    for end in (at for at, token in enumerate(tokens) if token == "0"):
        found = model.get_submodule(".".join(tokens[:end]))
        if isinstance(found, nn.ModuleList) and len(found) == len(anatomy.layers):
            where = ".".join(tokens[:end])
            if all(
                spec.own.startswith(f"{where}.{layers[part.name]}.") == (part.name in layers)
                for spec in specs for part in spec.parts if part.name in layers
            ):  # fmt: skip
                return found, where
    raise MergingError(
        f"the layers of {type(model).__name__} are not one list of {len(anatomy.layers)} modules, which paths through "
        "layers need; found their first weight at " + first.own
    )


def _apart(specs: list[Spec], where: str, layers: int) -> tuple[list[list[Spec]], list[Spec]]:
    """([layers] what is filled in each, what is filled around them)."""
    inside: list[list[Spec]] = [[] for _ in range(layers)]
    outside = []
    for spec in specs:
        number, dot, own = spec.own.removeprefix(f"{where}.").partition(".")
        if spec.own.startswith(f"{where}.") and dot:
            inside[int(number)].append(Spec(own, spec.shape, spec.dtype, spec.device, spec.parts))
        else:
            outside.append(spec)
    return inside, outside


def joined(spec: Spec, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Memory for a live tensor that is no stored one, and the canonical tensors in it.

    Args:
        spec: of the live tensor.
        shapes: of its canonical tensors.
    """
    data = torch.empty(spec.shape, dtype=spec.dtype, device=spec.device)
    return data, {
        part.name: data.as_strided(shapes[part.name], part.where.strides, part.where.offset) for part in spec.parts
    }


def shown(whole: Tensor, part: Part, spec: Spec) -> Tensor:
    """What of a canonical tensor a live one shows: all of it, or its own part."""
    if not part.split:
        return whole
    return whole.as_strided(spec.shape, part.where.strides, whole.storage_offset() + part.where.offset)


def _cast(name: str, alias: str, stored: Tensor, spec: Spec) -> Tensor:
    found = stored.to(spec.device, spec.dtype)
    if found.dtype != stored.dtype and not bool(torch.isfinite(found).all()):
        raise MergeFailed(
            f"{name} of {alias!r} is not finite in {str(spec.dtype).removeprefix('torch.')}, the live model's dtype; "
            "choose a wider one (models.dtype)"
        )
    return found
