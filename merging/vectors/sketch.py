"""A few numbers of a base that tell how far another base is from it, when the first is not at hand.

A sketch is linear: 64 sums per tensor, in which every element stands once, with a random sign. The sums of the
difference of two models are the difference of their sums, and their squares add up, on average, to the squared length
of the difference (Alon, Matias, Szegedy 1996, as a count sketch: Charikar, Chen, Farach-Colton 2002). The estimate of
the length is within about a tenth for one tensor, and much closer over the many of a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from merging.checkpoint import Checkpoint
from merging.masks import keys, seed32

SUMS = 64
"""Numbers per tensor."""

# Signs are a product of one per place in a row and one per row: pairwise independent, and as fast as a matrix product.
# The prime keeps rows of this sketch off the rows of any weight.
_ROW = 65_537
_ROWS_AT_ONCE = 16


def sketch_of(checkpoint: Checkpoint, names: Iterable[str]) -> tuple[Tensor, float]:
    """Read tensors once, in pieces.

    Args:
        checkpoint: the model.
        names: of tensors; rows of those that hold no floating-point numbers are zero.

    Returns:
        ([tensors, 64] float32, the Euclidean length of all of them together).
    """
    rows, squares = [], []
    signs, places = _pattern()
    for name in names:
        sums, square = torch.zeros(_ROW, dtype=torch.float64), 0.0
        if checkpoint.tensors[name].dtype.is_floating_point:
            sums, square = _summed(checkpoint, name)
        rows.append(torch.zeros(SUMS, dtype=torch.float64).index_add_(0, places, sums * signs))
        squares.append(square)
    return torch.stack(rows).to(torch.float32), math.sqrt(math.fsum(squares))


def distance(one: Tensor, other: Tensor) -> float:
    """The length of the difference of two models, estimated from their sketches.

    Args:
        one, other: [tensors, 64], of the same names in the same order.
    """
    return float(torch.linalg.vector_norm(one.double() - other.double()))


def _summed(checkpoint: Checkpoint, name: str) -> tuple[Tensor, float]:
    """(sum of the rows, each with its sign; sum of squares)."""
    info = checkpoint.tensors[name]
    sums, square = torch.zeros(_ROW, dtype=torch.float64), 0.0
    buffer = torch.empty(min(_ROW * _ROWS_AT_ONCE, info.numel), dtype=info.dtype)
    with checkpoint.reader(name) as read:
        for start in range(0, info.numel, _ROW * _ROWS_AT_ONCE):
            piece = buffer[: info.numel - start]
            read(piece, start)
            wide = piece.double()
            square += float(wide @ wide)
            whole, first = wide.numel() // _ROW, start // _ROW
            by_row = _signs(torch.arange(first, first + whole + 1), "rows")
            sums += by_row[:-1] @ wide[: whole * _ROW].view(whole, _ROW)
            rest = wide[whole * _ROW :]
            sums[: rest.numel()] += by_row[-1] * rest
    return sums, square


def _pattern() -> tuple[Tensor, Tensor]:
    """(sign, which of the 64 sums) of every place in a row."""
    index = torch.arange(_ROW)
    places = keys(index.to(torch.int32), torch.tensor(seed32(0, "", "", "sketch places"), dtype=torch.int32))
    return _signs(index, "columns"), places.to(torch.int64) & (SUMS - 1)


def _signs(index: Tensor, operation: str) -> Tensor:
    seed = torch.tensor(seed32(0, "", "", f"sketch {operation}"), dtype=torch.int32)
    return torch.where(keys(index.to(torch.int32), seed) < 0, -1.0, 1.0).double()
