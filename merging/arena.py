"""Sources where candidates can be computed from them fastest: each in one piece of memory, in the order of the layout.

Memory-mapped files are read as fast only while the system keeps their pages, and count as memory all the same.

Of an adapter nothing is laid out in main memory. What it leaves as it is lies where the base's does; what it changes
stays in its factors, from which :meth:`merging.sources.Sources.tensor` makes a tensor whenever a candidate needs it. On
a device, where products of its own would have other bits than those of an export, what is changed lies multiplied out.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from merging import shared
from merging.checkpoint import TensorInfo
from merging.code import code_hash
from merging.memory import free_memory, free_on
from merging.pool import ALIGNMENT
from merging.recipe import MergingError
from merging.sources import Sources

Home = Literal["auto", "device", "host", "shared", "mmap"]
Where = Literal["device", "host", "shared", "files"]

HOMES: tuple[Home, ...] = ("auto", "device", "host", "shared", "mmap")

# Of what is free, how much sources may take where ``auto`` decides: the live model's own work needs the rest.
SHARE = 0.8

_LOG = logging.getLogger("paretomerge")

_HELD: WeakKeyDictionary[Sources, Where] = WeakKeyDictionary()


def hold(sources: Sources, beside: torch.device | Mapping[str, torch.device], home: Home = "auto") -> Where:
    """Read the sources' merged tensors into arenas, one for each model, dtype and device. A second call does nothing.

    Args:
        sources: afterwards :meth:`Sources.tensor` returns views of the arenas.
        beside: device of the live model, or of each of its tensors.
        home: ``device`` holds them beside the live tensors, ``host`` in main memory, ``mmap`` leaves them in their
            files; ``auto`` takes the first of these that has room. ``shared`` does so too, but what lies in main memory
            lies there once for all processes of this machine that say so.

    Returns:
        Where they are.

    Raises:
        MergingError: an unknown home, or one without room.
    """
    if home not in HOMES:
        raise MergingError(f"expected sources to be kept in {', '.join(HOMES[:-1])} or {HOMES[-1]}, found {home!r}")
    if sources in _HELD:
        return _HELD[sources]
    order = layout_order(sources)
    devices = {name: beside if isinstance(beside, torch.device) else beside[name] for name in order}
    thin = _Thin(sources, order)
    needed = thin.size + sum(map(size_of, _infos(sources, order, thin)))
    # Of shared ones some may be there already: what is missing is known once it is this process's turn to make it.
    where = choose(home, 0 if home == "shared" else needed, free_memory(), _on_accelerators(sources, devices, thin))
    try:
        if where == "shared":
            where = _hold_shared(sources, thin)
        elif where != "files":
            places = devices if where == "device" else dict.fromkeys(order, torch.device("cpu"))
            for arena in _arenas(sources, places, thin):
                _fill(sources, arena, allocate(arena.elements, arena.dtype, arena.device)[0])
        if where != "files":
            thin.keep()
    except (torch.OutOfMemoryError, MemoryError, RuntimeError, OSError) as error:
        raise MergingError(
            f"the sources need {needed / 1e9:.1f} GB in {where} memory, and that much is not free "
            f"({error}); keep them in host memory or in their files (home='host' or home='mmap')"
        ) from error
    _HELD[sources] = where
    return where


def choose(home: Home, needed: int, host: int, accelerators: Sequence[tuple[int, int]] = ()) -> Where:
    """Where sources go.

    Args:
        home: see :func:`hold`.
        needed: bytes of all sources; of those that are not there yet, where they are shared.
        host: bytes of main memory that are free, or will be.
        accelerators: for each device that the live model lies on, CPUs left out: (bytes of the sources of its tensors,
            bytes that are free there once the live model is in place).
    """
    if home == "mmap":
        return "files"
    if home in ("device", "host"):
        return "device" if home == "device" and accelerators else "host"
    if accelerators and all(own <= SHARE * free for own, free in accelerators):
        return "device"
    if needed > SHARE * host:
        return "files"
    if home == "shared":
        return "shared" if shared.available() else "files"  # of which the system keeps one copy too, as long as it can
    return "host"


def layout_order(sources: Sources) -> list[str]:
    """The merged tensors, group by group: what changes together lies together."""
    order = {group: number for number, group in enumerate(sources.layout.groups)}
    return sorted(sources.tensors, key=lambda name: (order[sources.layout.group(name)], name))


def size_of(info: TensorInfo) -> int:
    """Bytes of a tensor."""
    return info.numel * info.dtype.itemsize


class _Thin:
    """Task vectors in factors: what need not be laid out."""

    def __init__(self, sources: Sources, names: Sequence[str]):
        self._sources = sources
        self._factors = {
            (alias, name): factors
            for alias in sources.checkpoints
            for name in names
            if (factors := sources.factors(alias, name)) is not None
        }

    @property
    def size(self) -> int:
        """Bytes of the factors."""
        return sum(4 * (each.left.numel() + each.right.numel()) for each in self._factors.values())

    def stays(self, alias: str, name: str, place: torch.device | None = None) -> bool:
        """Whether a tensor gets no memory of its own: it is the base's, or smaller in factors, and not on a device."""
        factors = self._factors.get((alias, name))
        if factors is None or not factors.rank:
            return factors is not None
        smaller = 4 * (factors.left.numel() + factors.right.numel()) < size_of(self._sources.info(alias, name))
        return smaller and (place is None or place.type == "cpu")

    def keep(self) -> None:
        """Have the sources keep the factors, and the base's tensors where they are the base's."""
        sources = self._sources
        for (alias, name), factors in self._factors.items():
            if factors.rank:
                sources.keep_factors(alias, name, factors)
            else:
                sources.place(alias, name, sources.tensor(sources.base, name))


def _infos(sources: Sources, names: Iterable[str], thin: _Thin, on: torch.device | None = None) -> Iterator[TensorInfo]:
    """Of what is laid out."""
    both = ((alias, name) for name in names for alias in sources.checkpoints)
    return (sources.info(alias, name) for alias, name in both if not thin.stays(alias, name, on))


def _on_accelerators(sources: Sources, devices: Mapping[str, torch.device], thin: _Thin) -> list[tuple[int, int]]:
    found = []
    for device in sorted({device for device in devices.values() if device.type != "cpu"}, key=str):
        own = _infos(sources, (name for name in devices if devices[name] == device), thin, device)
        found.append((sum(map(size_of, own)), free_on(device)))
    return found


@dataclass(frozen=True)
class _Arena:
    """Tensors of one model that lie in one piece."""

    alias: str
    dtype: torch.dtype
    device: torch.device
    names: tuple[str, ...]
    elements: tuple[int, ...]


def _arenas(sources: Sources, places: Mapping[str, torch.device], thin: _Thin) -> list[_Arena]:
    """In the order of the models; ``places`` is in that of the layout."""
    found = []
    for alias in sources.checkpoints:
        laid = [name for name in places if not thin.stays(alias, name, places[name])]
        infos = {name: sources.info(alias, name) for name in laid}
        for dtype, device in sorted({(infos[name].dtype, places[name]) for name in laid}, key=str):
            names = [name for name in laid if (infos[name].dtype, places[name]) == (dtype, device)]
            elements = tuple(infos[name].numel for name in names)
            found.append(_Arena(alias, dtype, device, tuple(names), elements))
    return found


def _fill(sources: Sources, arena: _Arena, memory: Tensor) -> None:
    """Read an arena's tensors into its memory, and let the sources have them there."""
    _read(sources, arena, memory)
    _place(sources, arena, memory)


def _read(sources: Sources, arena: _Arena, memory: Tensor) -> None:
    for name, view in _views(sources, arena, memory):
        if arena.device.type == "cpu":
            sources.read_into(arena.alias, name, view)
        else:
            staged = torch.empty(view.shape, dtype=arena.dtype)
            sources.read_into(arena.alias, name, staged)
            view.copy_(staged)


def _place(sources: Sources, arena: _Arena, memory: Tensor) -> None:
    for name, view in _views(sources, arena, memory):
        sources.place(arena.alias, name, view)


def _views(sources: Sources, arena: _Arena, memory: Tensor) -> Iterator[tuple[str, Tensor]]:
    offsets, _ = _spread(arena.elements, arena.dtype)
    for name, offset, size in zip(arena.names, offsets, arena.elements, strict=True):
        yield name, memory[offset : offset + size].view(sources.info(arena.alias, name).shape)


def _hold_shared(sources: Sources, thin: _Thin) -> Where:
    """One copy for all processes of this machine; none where there is no room for it."""
    arenas = _arenas(sources, dict.fromkeys(layout_order(sources), torch.device("cpu")), thin)
    keys = {arena: (_key(sources, arena), _spread(arena.elements, arena.dtype)[1] * arena.dtype.itemsize)
            for arena in arenas if sum(arena.elements)}  # fmt: skip
    found = {arena: piece for arena, each in keys.items() if (piece := shared.find(*each)) is not None}
    if len(found) < len(keys):
        with shared.making():
            for arena, each in keys.items():
                piece = found.get(arena) or shared.find(*each)
                if piece is not None:
                    found[arena] = piece
            missing = {arena: each for arena, each in keys.items() if arena not in found}
            if choose("shared", sum(size for _, size in missing.values()), free_memory()) != "shared":
                return "files"
            try:
                for arena, (key, size) in missing.items():
                    found[arena] = shared.make(key, size, partial(_write, sources, arena))
            except OSError as error:
                _LOG.warning("note: sources stay in their files, since no memory could be shared for them: %s", error)
                return "files"
    for arena in arenas:
        memory = (
            torch.frombuffer(found[arena], dtype=arena.dtype) if arena in found else torch.empty(0, dtype=arena.dtype)
        )
        _place(sources, arena, memory)
    return "shared"


def _write(sources: Sources, arena: _Arena, piece: mmap.mmap) -> None:
    _read(sources, arena, torch.frombuffer(piece, dtype=arena.dtype))


def _key(sources: Sources, arena: _Arena) -> str:
    """All that the bytes of an arena depend on."""
    models = [arena.alias] if sources.tokenizer is None else [sources.base, arena.alias, *sorted(sources.checkpoints)]
    said = [
        code_hash(Path(__file__).parent),
        sources.tokenizer,
        [sources.refs[alias].content for alias in models],
        str(arena.dtype),
        [[sources.source_name(arena.alias, name), list(sources.info(arena.alias, name).shape)] for name in arena.names],
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:40]


def allocate(sizes: Sequence[int], dtype: torch.dtype, place: torch.device) -> tuple[Tensor, list[int]]:
    """One piece of memory for tensors in a row.

    Args:
        sizes: elements of each.
        dtype: of all.
        place: where.

    Returns:
        The flat arena, zero between the tensors and uninitialised in them; where each tensor starts.
    """
    offsets, end = _spread(sizes, dtype)
    arena = torch.empty(end, dtype=dtype, device=place)
    for size, start, stop in zip(sizes, offsets, [*offsets[1:], end], strict=True):
        arena[start + size : stop].zero_()
    return arena, offsets


def _spread(sizes: Sequence[int], dtype: torch.dtype) -> tuple[list[int], int]:
    """(where each of some tensors in a row starts, where the last ends), in elements."""
    step = ALIGNMENT // dtype.itemsize
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // step) * step
    return offsets, end


def rehome(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Move live parameters into arenas of their own, as the sources lie in theirs. Values and ties stay.

    Parameters that hold several of the tensors, or parts of one, stay where they are.

    Args:
        model: whose parameters are moved.
        tensors: live tensors, in the order in which they shall lie.
    """
    holders: dict[int, list[Tensor]] = {}
    for each in (*model.parameters(), *model.buffers()):
        holders.setdefault(each.data_ptr(), []).append(each)
    movable: dict[tuple[torch.dtype, torch.device], list[tuple[Tensor, list[Tensor]]]] = {}
    for tensor in tensors.values():
        held = holders.get(tensor.data_ptr(), [])
        whole = held and all(each.is_contiguous() and each.numel() == tensor.numel() for each in held)
        if whole and tensor.is_contiguous() and tensor.numel():
            movable.setdefault((tensor.dtype, tensor.device), []).append((tensor, held))
    for (dtype, device), moved in movable.items():
        arena, offsets = allocate([tensor.numel() for tensor, _ in moved], dtype, device)
        for (tensor, held), offset in zip(moved, offsets, strict=True):
            new = arena[offset : offset + tensor.numel()].copy_(tensor.view(-1))
            for each in held:
                each.data = new.view(each.shape)
