"""One pass over all weights when models are opened: are they finite, and how far are the experts from the base?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from merging.checkpoint import TensorInfo
from merging.files import Read

# Elements of a piece: its buffers stay in the second-level cache, and a piece costs more than the calls that it takes.
_PIECE = 1 << 17

# ‖τ‖/‖θ0‖: fine-tunes stay under about 0.1, continued pre-training somewhat above; independent models are near √2.
PLAUSIBLE = 0.5

# Opens a tensor for reading by pieces: alias, name, and where to leave what has to be closed.
Opener = Callable[[str, str, ExitStack], Read]


def scan(
    base: str,
    infos: Mapping[str, Mapping[str, TensorInfo]],
    widths: Mapping[str, int],
    opener: Opener,
    refuse: Callable[[str, str], None],
) -> dict[str, float]:
    """Read every weight once.

    Squares are summed in float32 within pieces of 2¹⁷ elements, and in float64 over them.

    Args:
        base: alias of the base.
        infos: alias, the base first -> tensor name -> what will be read; the same names for all.
        widths: tensors that are read by whole rows -> elements of a row.
        opener: opens a tensor.
        refuse: called with alias and name of a tensor that is not finite; raises.

    Returns:
        Alias of each expert -> ‖τ‖/‖θ0‖ over all tensors together; infinite where the base is all zeros.
    """
    squares: dict[str, list[float]] = {alias: [] for alias in infos}
    held, passing = _Buffers(), _Buffers()  # the base's piece stays until all experts' have passed
    for name, info in infos[base].items():
        width = widths.get(name, 1)
        step = max(1, _PIECE // width) * width
        with ExitStack() as stack:
            reads = {alias: opener(alias, name, stack) for alias in infos}
            for start in range(0, info.numel, step):
                size = min(step, info.numel - start)
                origin: Tensor | None = None
                for alias, read in reads.items():
                    stored = infos[alias][name].dtype
                    buffers = held if alias == base else passing
                    weights = buffers.read(read, start, size, stored)
                    if origin is None:
                        origin, difference = weights, weights
                    else:
                        difference = _difference(weights, origin)
                    square = float(torch.dot(difference, difference))
                    if not math.isfinite(square):  # broken weights, or sound ones whose squares overflow
                        again = buffers.raw(read, start, size, stored)
                        if not torch.isfinite(again).all():
                            refuse(alias, name)
                        exact = again.to(torch.float64)
                        exact = exact if alias == base else exact - origin.to(torch.float64)
                        square = float(torch.dot(exact, exact))
                    squares[alias].append(square)
    whole = math.fsum(squares[base])
    return {alias: _ratio(math.fsum(each), whole) for alias, each in squares.items() if alias != base}


def far(base: Path, experts: Mapping[str, Path], distance: Mapping[str, float]) -> tuple[str, ...]:
    """What should be said of experts that hardly were trained from this base, one sentence each.

    Args:
        base: its folder.
        experts: alias -> folder.
        distance: alias -> ‖τ‖/‖θ0‖.
    """
    return tuple(
        f"{experts[alias]} is far from the base: ‖τ‖/‖θ0‖ = {ratio:.2f}, where fine-tunes are under about 0.1 and "
        f"unrelated models near 1.4; is {base} the base that it was trained from?"
        for alias, ratio in distance.items()
        if ratio > PLAUSIBLE
    )


class _Buffers:
    """The memory that one model's pieces are read into."""

    def __init__(self) -> None:
        self._raw = torch.empty(0, dtype=torch.uint8)
        self._wide = torch.empty(0)

    def raw(self, read: Read, start: int, size: int, dtype: torch.dtype) -> Tensor:
        """[size] as stored."""
        if self._raw.numel() < size * dtype.itemsize:
            self._raw = torch.empty(size * dtype.itemsize, dtype=torch.uint8)
        piece = self._raw[: size * dtype.itemsize].view(dtype)
        read(piece, start)
        return piece

    def read(self, read: Read, start: int, size: int, dtype: torch.dtype) -> Tensor:
        """[size] in float32, or float64 where that is stored."""
        piece = self.raw(read, start, size, dtype)
        if dtype.itemsize > 2:
            return piece
        if self._wide.numel() < size:
            self._wide = torch.empty(size)
        return self._wide[:size].copy_(piece)


def _difference(weights: Tensor, origin: Tensor) -> Tensor:
    if weights.dtype == origin.dtype:
        return weights.sub_(origin)
    return weights.to(torch.float64) - origin.to(torch.float64)


def _ratio(square: float, whole: float) -> float:
    if whole == 0.0:
        return 0.0 if square == 0.0 else math.inf
    return math.sqrt(square / whole)
