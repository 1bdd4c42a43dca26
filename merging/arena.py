"""Sources where candidates can be computed from them fastest: each in one piece of memory, in the order of the layout.

Memory-mapped files are read as fast only while the system keeps their pages, and count as memory all the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from merging.pool import ALIGNMENT
from merging.recipe import MergingError
from merging.sources import Sources

Home = Literal["auto", "device", "host", "mmap"]

# Of what is free, how much sources may take where ``auto`` decides: the live model's own work needs the rest.
_SHARE = 0.8

_HELD: WeakKeyDictionary[Sources, torch.device] = WeakKeyDictionary()


def hold(sources: Sources, device: torch.device, home: Home = "auto") -> torch.device | None:
    """Read the sources' merged tensors into arenas, one for each model and dtype. A second call does nothing.

    Args:
        sources: afterwards :meth:`Sources.tensor` returns views of the arenas.
        device: of the live model.
        home: ``device`` holds them beside the live model, ``host`` in main memory, ``mmap`` leaves them in their files;
            ``auto`` takes the first of these that has room.

    Returns:
        Where they are; None where they stay in their files.

    Raises:
        MergingError: an unknown home, or one without room.
    """
    if home not in {"auto", "device", "host", "mmap"}:
        raise MergingError(f"expected sources to be kept in auto, device, host or mmap, found {home!r}")
    if sources in _HELD:
        return _HELD[sources]
    place = _place(_bytes(sources), device, home)
    if place is not None:
        try:
            for alias in sources.checkpoints:
                _fill(sources, alias, place)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            raise MergingError(
                f"the sources need {_bytes(sources) / 1e9:.1f} GB on {place}, and that much is not free ({error}); "
                "keep them in host memory or in their files (home='host' or home='mmap')"
            ) from error
        _HELD[sources] = place
    return place


def layout_order(sources: Sources) -> list[str]:
    """The merged tensors, group by group: what changes together lies together."""
    order = {group: number for number, group in enumerate(sources.layout.groups)}
    return sorted(sources.tensors, key=lambda name: (order[sources.layout.group(name)], name))


def _bytes(sources: Sources) -> int:
    return sum(
        info.numel * info.dtype.itemsize
        for alias in sources.checkpoints
        for info in (sources.info(alias, name) for name in sources.tensors)
    )


def _place(needed: int, device: torch.device, home: Home) -> torch.device | None:
    host = torch.device("cpu")
    if home == "mmap":
        return None
    if home != "auto":
        return device if home == "device" else host
    if device.type == "cuda" and needed <= _SHARE * torch.cuda.mem_get_info(device)[0]:
        return device
    return host if needed <= _SHARE * free_memory() else None


def free_memory() -> int:
    """Bytes of main memory that can be taken without swapping; a guess of half of it where the system does not tell."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _fill(sources: Sources, alias: str, place: torch.device) -> None:
    names = layout_order(sources)
    for dtype in sorted({sources.info(alias, name).dtype for name in names}, key=str):
        own = [name for name in names if sources.info(alias, name).dtype == dtype]
        arena, offsets = allocate([sources.info(alias, name).numel for name in own], dtype, place)
        for name, offset in zip(own, offsets, strict=True):
            info = sources.info(alias, name)
            view = arena[offset : offset + info.numel].view(info.shape)
            if place.type == "cpu":
                sources.read_into(alias, name, view)
            else:
                staged = torch.empty(info.shape, dtype=dtype)
                sources.read_into(alias, name, staged)
                view.copy_(staged)
            sources.place(alias, name, view)


def allocate(sizes: Sequence[int], dtype: torch.dtype, place: torch.device) -> tuple[Tensor, list[int]]:
    """One piece of memory for tensors in a row.

    Args:
        sizes: elements of each.
        dtype: of all.
        place: where.

    Returns:
        The flat arena, zero between the tensors and uninitialised in them; where each tensor starts.
    """
    step = ALIGNMENT // dtype.itemsize
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // step) * step
    arena = torch.empty(end, dtype=dtype, device=place)
    for size, start, stop in zip(sizes, offsets, [*offsets[1:], end], strict=True):
        arena[start + size : stop].zero_()
    return arena, offsets


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
