"""A tensor of a fine-tune beside its base's: their bits, their difference, and how far a copy is off.

All of it goes piece by piece, so that beside the two tensors and the result no third one of their size is needed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merging.composed import Change
from merging.pool import pieces
from merging.recipe import MergingError

Bits = NDArray[Any]

PIECE = 1 << 20
"""Elements that are worked on at a time, and of one compressed frame: part of the format."""


class OutOfReach(MergingError):
    """A codec cannot hold a tensor as it is asked to; another one can."""


_SLICE = 1 << 14


class Pair:
    """A tensor of a fine-tune and its base's, of one shape.

    Attributes:
        name: for messages.
        base: see :func:`aligned`.
        expert: contiguous, on the CPU.
    """

    def __init__(self, name: str, base: Tensor, expert: Tensor):
        self.name = name
        self.expert = expert.detach().to("cpu").contiguous()
        self.base = aligned(base.detach().to("cpu"), tuple(expert.shape), expert.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the fine-tune's tensor."""
        return tuple(self.expert.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of the fine-tune's tensor."""
        return self.expert.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.expert.numel()

    def bits(self, start: int, stop: int) -> tuple[Bits, Bits]:
        """Of elements of the base, in the fine-tune's dtype, and of the fine-tune: unsigned integers."""
        base = self.base.reshape(-1)[start:stop].to(self.dtype)
        return bits_of(base), bits_of(self.expert.reshape(-1)[start:stop])

    def is_equal(self) -> bool:
        """Whether the fine-tune's bits are the base's, in the fine-tune's dtype."""
        return all(np.array_equal(*self.bits(*ends)) for ends in pieces(self.numel, PIECE))

    def delta(self, start: int = 0, stop: int | None = None) -> Tensor:
        """τ of elements [start, stop), flat, float32: the difference in the wider dtype, rounded once."""
        ends = slice(start, self.numel if stop is None else stop)
        one, two = wide(self.base.reshape(-1)[ends], self.expert.reshape(-1)[ends])
        return (two - one).to(torch.float32)

    def deltas(self) -> Iterator[Tensor]:
        """τ, piece by piece."""
        for start, stop in pieces(self.numel, PIECE):
            yield self.delta(start, stop)

    def energy(self) -> float:
        """‖τ‖², in float64."""
        return math.fsum(float(torch.linalg.vector_norm(each.double())) ** 2 for each in self.deltas())

    def sample(self, elements: int) -> Pair:
        """A smaller pair of about as many elements, from slices that lie evenly over this one; itself if it has no
        more, or if nothing changed in them."""
        if self.numel <= elements:
            return self
        count = -(-elements // _SLICE)
        starts = [round(each * (self.numel - _SLICE) / max(1, count - 1)) for each in range(count)]
        base, expert = (
            torch.cat([flat.reshape(-1)[start : start + _SLICE] for start in starts])
            for flat in (self.base, self.expert)
        )
        found = Pair(self.name, base, expert)
        return self if found.is_equal() else found


def aligned(base: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The base's tensor in the shape of the fine-tune's, contiguous.

    A fine-tune with tokens of its own has more rows than its base: those, and all rows of a tensor that is shaped
    differently, or is of another kind (integers are no weights), are zeros here.

    Args:
        base: as the base stores it, on the CPU.
        shape, dtype: of the fine-tune's tensor.
    """
    comparable = base.dtype == dtype or (base.is_floating_point() and dtype.is_floating_point)
    if comparable and tuple(base.shape) == shape:
        return base.contiguous()
    found = torch.zeros(shape, dtype=base.dtype if comparable else dtype)
    if comparable and base.ndim == len(shape) > 0 and tuple(base.shape[1:]) == shape[1:]:
        common = min(base.shape[0], shape[0])
        found[:common] = base[:common]
    return found


def wide(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors for a sum or difference: float64 where one of them is, else float32."""
    dtype = torch.float64 if torch.float64 in (one.dtype, two.dtype) else torch.float32
    return one.to(dtype), two.to(dtype)


def bits_of(tensor: Tensor) -> Bits:
    """The bits of a tensor's elements: flat, unsigned integers of its element's size; a view where it is contiguous."""
    flat = tensor.contiguous().reshape(-1)
    found: Bits = flat.view(torch.uint8).numpy().view(f"<u{tensor.element_size()}")
    return found


def from_bits(bits: Bits, dtype: torch.dtype) -> Tensor:
    """The inverse of :func:`bits_of`, flat."""
    return torch.from_numpy(np.ascontiguousarray(bits).view(np.uint8)).view(dtype)


def check_finite(pair: Pair) -> None:
    """Refuse NaN and infinity in either.

    Raises:
        MergingError: names the tensor.
    """
    for whose, tensor in (("base", pair.base), ("fine-tune", pair.expert)):
        if not tensor.is_floating_point():
            continue
        flat = tensor.reshape(-1)
        for start, stop in pieces(flat.numel(), PIECE):
            piece = flat[start:stop]
            ends = torch.aminmax(piece if piece.element_size() > 1 else piece.to(torch.float32))
            if not all(math.isfinite(end) for end in ends):
                raise MergingError(
                    f"expected finite weights, found NaN or infinity among the elements {start} to {stop - 1} of "
                    f"tensor {pair.name} of the {whose}; that model is broken, save it again"
                )


def relative_error(pair: Pair, change: Change) -> float:
    """‖θ − θ̂‖_F / ‖θ − θ0‖_F in float64, of what ``change`` composes.

    Returns:
        0.0 if and only if the fine-tune's bits come back; where but the signs of zeros differ, the smallest number.
    """
    found, wanted, base = (each.reshape(-1) for each in (change.compose(pair.base), pair.expert, pair.base))
    places = [slice(*ends) for ends in pieces(pair.numel, PIECE)]
    if all(np.array_equal(bits_of(found[place]), bits_of(wanted[place])) for place in places):
        return 0.0
    off = math.hypot(*(_norm(found[place].double() - wanted[place].double()) for place in places))
    whole = math.hypot(*(_norm(wanted[place].double() - base[place].double()) for place in places))
    if not off:
        return sys.float_info.min
    return max(off / whole, sys.float_info.min) if whole else math.inf


def _norm(values: Tensor) -> float:
    """Euclidean norm of float64 values that may be too small or too large to be squared."""
    found = float(torch.linalg.vector_norm(values))
    if 1e-140 < found < 1e140:
        return found
    peak = float(values.abs().max())
    return peak * float(torch.linalg.vector_norm(values / peak)) if peak else 0.0
