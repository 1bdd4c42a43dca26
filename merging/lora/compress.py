"""Low-rank approximations of task vectors: the best of a rank, or the smallest within an error.

By Eckart and Young (1936) the leading singular vectors are the best approximation of any rank. A task vector that is
known as a product, or a sum of products, is never made dense: its singular values are those of a core matrix between
the orthonormal bases of the stacked factors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from merging.composed import Factors
from merging.linear_algebra import leading, one_thread, svd
from merging.recipe import MergingError

EXACT = 2048
"""Matrices with a side up to this are decomposed exactly, larger ones by subspace iteration."""

_ITERATIONS = 6
_MORE = 16
_AT_ONCE = 1 << 22
_LARGEST_RANK = 1_000_000


@dataclass(frozen=True)
class Rank:
    """How much of a task vector is kept.

    Attributes:
        most: of every matrix; None for as much as ``error`` needs.
        error: ‖Δ − Δ̂‖/‖Δ‖ that each matrix may have; None where the rank alone counts.
    """

    most: int | None = None
    error: float | None = None

    @staticmethod
    def parse(text: str) -> Rank:
        """``16``, or ``auto:0.02`` for the smallest ranks with that relative error.

        Raises:
            MergingError: neither.
        """
        match = re.fullmatch(r"\s*(?:(\d+)|auto:(\d*\.?\d+(?:[eE]-?\d+)?))\s*", text)
        if match and match[1] and 0 < int(match[1]) <= _LARGEST_RANK:
            return Rank(most=int(match[1]))
        if match and match[2] and 0.0 < float(match[2]) < 1.0:
            return Rank(error=float(match[2]))
        raise MergingError(
            f"expected a rank such as 16, or auto:0.02 for ranks with a relative error of 2 % at most, found {text!r}"
        )

    def __str__(self) -> str:
        return str(self.most) if self.most is not None else f"auto:{self.error:g}"


class Product(NamedTuple):
    """An approximation Δ̂ = left·right.

    Attributes:
        left: [rows, k] in the dtype that was asked for; both factors have the same share of the singular values.
        right: [k, columns].
        square: ‖Δ‖².
        lost: ‖Δ − Δ̂‖², of the factors as they are here, rounding and all.
    """

    left: Tensor
    right: Tensor
    square: float
    lost: float

    @property
    def rank(self) -> int:
        """k; 0 for a Δ that is zero."""
        return self.left.shape[1]


def compress(delta: Tensor, rank: Rank, dtype: torch.dtype = torch.float32) -> Product:
    """Approximate a dense matrix.

    Exactly where a side has at most :data:`EXACT` elements; else by subspace iteration (Halko, Martinsson and Tropp
    2011, algorithm 4.4) with a fixed start, whose error is told as it is, and is within a few percent of the best.

    Args:
        delta: [rows, columns], float32 or float64, on the CPU.
        rank: what to keep.
        dtype: of the factors.

    Raises:
        MergingError: the decomposition does not converge.
    """
    with torch.no_grad(), one_thread():
        square = _squares(delta)
        if not square:
            return _nothing(delta.shape[0], delta.shape[1], dtype)
        u, s, vh = _leading(delta, rank, square)
        kept = _count(s, square, rank)
        left, right = _balanced(u[:, :kept], s[:kept], vh[:kept], dtype)
        lost = _squares(delta, left, right)
    return Product(left, right, square, lost)


def recompress(terms: Sequence[Factors], rank: Rank, dtype: torch.dtype = torch.float32) -> Product:
    """Approximate a sum of products, exactly the best of its rank, without making it dense.

    Args:
        terms: at least one, all of one shape; whatever coefficients they have are folded in.
        rank: what to keep.
        dtype: of the factors.

    Raises:
        MergingError: the decomposition does not converge.
    """
    with torch.no_grad(), one_thread():
        left = torch.cat([each.left for each in terms], 1).to(torch.float64)
        right = torch.cat([each.right for each in terms]).to(torch.float64)
        if not left.shape[1]:
            return _nothing(left.shape[0], right.shape[1], dtype)
        q, a = torch.linalg.qr(left)
        p, b = torch.linalg.qr(right.mT)
        u, s, vh = svd(a @ b.mT)
        square = float(s.square().sum())
        if not square:
            return _nothing(left.shape[0], right.shape[1], dtype)
        floor = float(s[0]) * max(left.shape[0], right.shape[1]) * torch.finfo(torch.float64).eps
        kept = min(_count(s, square, rank), int((s > floor).sum()))
        one, other = _balanced(q @ u[:, :kept], s[:kept], vh[:kept] @ p.mT, dtype)
        lost = _square(torch.cat([left, -one.to(torch.float64)], 1), torch.cat([right, other.to(torch.float64)]))
    return Product(one, other, square, lost)


def _square(left: Tensor, right: Tensor) -> float:
    """‖left·right‖², from triangles: what cancels in it cancels in float64, and not in squares."""
    one, other = torch.linalg.qr(left, mode="r").R, torch.linalg.qr(right.mT, mode="r").R
    return float((one @ other.mT).square().sum())


def _squares(delta: Tensor, left: Tensor | None = None, right: Tensor | None = None) -> float:
    """‖delta − left·right‖², in float64, a few rows at a time: of a large matrix no second one is made."""
    total = 0.0
    for start in range(0, delta.shape[0], step := max(1, _AT_ONCE // max(1, delta.shape[1]))):
        rows = delta[start : start + step].to(torch.float64)
        if left is not None and right is not None:
            rows = rows - left[start : start + step].to(torch.float64) @ right.to(torch.float64)
        total += float(rows.square().sum())
    return total


def _leading(delta: Tensor, rank: Rank, square: float) -> tuple[Tensor, Tensor, Tensor]:
    """As many singular values and vectors as are needed, largest first: in float64, or in float32 of a large matrix."""
    smaller = min(delta.shape)
    if smaller <= EXACT:
        return leading(delta.to(torch.float64), rank.most)
    wanted = rank.most or 64
    while wanted + _MORE < smaller // 2:
        u, s, vh = _subspace(delta, wanted)
        if rank.error is None or square - float(s.square().sum()) <= rank.error**2 * square:
            return u, s, vh
        wanted *= 2
    return leading(delta.to(torch.float64), rank.most)


def _subspace(delta: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    start = torch.randn(
        delta.shape[1], count + _MORE, dtype=delta.dtype, generator=torch.Generator().manual_seed(count)
    )
    basis = torch.linalg.qr(delta @ start).Q
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(delta @ torch.linalg.qr(delta.mT @ basis).Q).Q
    u, s, vh = svd(basis.mT @ delta)
    return basis @ u[:, :count], s[:count], vh[:count]


def _count(s: Tensor, square: float, rank: Rank) -> int:
    """How many singular values are kept: the fewest that leave no more than the error, and no more than the most."""
    kept = len(s) if rank.most is None else min(rank.most, len(s))
    if rank.error is None:
        return kept
    left = square - s.square().cumsum(0)  # after keeping 1, 2, …
    enough = (left <= rank.error**2 * square).nonzero()
    return min(kept, int(enough[0]) + 1) if len(enough) else kept


def _balanced(u: Tensor, s: Tensor, vh: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    root = s.clamp_min(0.0).sqrt()
    return (u * root).to(dtype).contiguous(), (root[:, None] * vh).to(dtype).contiguous()


def _nothing(rows: int, columns: int, dtype: torch.dtype) -> Product:
    return Product(torch.zeros(rows, 0, dtype=dtype), torch.zeros(0, columns, dtype=dtype), 0.0, 0.0)


def relative(lost: float, square: float) -> float:
    """‖Δ − Δ̂‖/‖Δ‖; 0 where there is nothing to lose."""
    return math.sqrt(lost / square) if square else 0.0
