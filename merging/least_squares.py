"""The linear map that is nearest to several maps, each on inputs of its own: W = (Σ s_t·W_t·A_t)·(Σ s_t·A_t)⁻¹.

A_t are the second moments of the inputs of W_t, made regular. What differs from candidate to candidate are the shares
s_t, which sum to 1. There are three ways to the same W:

- :func:`by_columns`, where the A_t are diagonal: a weighted mean of every column.
- :func:`solved`: a Cholesky factor of Σ s_t·A_t for every vector of shares, and two triangular solves for every W.
- :class:`Pair`, for two maps: a basis in which both A_t are diagonal, found once; then one matrix product for every W.

All take differences to the first map, so that what the maps agree in is not rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from merging.linear_algebra import eigh, wide

# Mean squares below this are the rounding of nothing.
_NOTHING = 1e-200


class Singular(Exception):
    """The inputs do not span all directions, and nothing was added that would decide what the others do."""


class Moments(NamedTuple):
    """What is known of the inputs of several maps, for one choice of parameters.

    A_t = (α·G_t + (1 − α)·diag(G_t)) / u + ridge·I, with the same u and ridge for all: in a direction that no input
    ever took, W is then the mean of the W_t by their shares.

    Attributes:
        read: map -> G_t [in, in], symmetric; None where it had no inputs. Called wherever one is needed, so that few
            are in memory at a time.
        alpha: α in [0, 1].
        ridge: at least 0.
        unit: u, the mean of the G_t's mean eigenvalues.
    """

    read: Callable[[int], Tensor | None]
    alpha: float
    ridge: float
    unit: float

    @property
    def empty(self) -> bool:
        """Whether there were no inputs but zeros, and what is next to zero."""
        return self.unit < _NOTHING

    def matrix(self, number: int, like: Tensor) -> Tensor:
        """[in, in] A_t in float64, where ``like`` [out, in] is worked on; a new tensor."""
        gram, size, device = self.read(number), like.shape[-1], _place(like)
        if gram is None:
            return self.ridge * torch.eye(size, dtype=torch.float64, device=device)
        found = gram.to(device, torch.float64, copy=True).div_(self.unit)
        diagonal = found.diagonal().clone()
        found *= self.alpha
        found.diagonal().copy_(diagonal + self.ridge)
        return found

    def diagonal(self, number: int, like: Tensor) -> Tensor:
        """[in] the diagonal of A_t in float64, where ``like`` [out, in] is worked on."""
        gram, device = self.read(number), _place(like)
        if gram is None:
            return torch.full((like.shape[-1],), self.ridge, dtype=torch.float64, device=device)
        return gram.diagonal().to(device, torch.float64) / self.unit + self.ridge


def mean(maps: Sequence[Tensor], shares: Sequence[float | Tensor]) -> Tensor:
    """Σ s_t·W_t in float64; a share may be one number for every column."""
    first = wide(maps[0])
    total = first.clone()
    for each, share in zip(maps[1:], shares[1:], strict=True):
        total += share * (wide(each) - first)
    return total


def by_columns(maps: Sequence[Tensor], moments: Moments, shares: Sequence[float]) -> Tensor:
    """W where the A_t are diagonal (α = 0): every column the mean by s_t·A_t,jj; by s_t where all those are 0.

    Args:
        maps: [maps] W_t [out, in].
        moments: of their inputs.
        shares: [maps] s_t.
    """
    weights = torch.stack([share * moments.diagonal(t, maps[t]) for t, share in enumerate(shares)])
    total = weights.sum(0)
    known = total > 0.0
    weights = torch.where(known, weights / torch.where(known, total, 1.0), weights.new_tensor(shares)[:, None])
    return mean(maps, list(weights))


def factor(moments: Moments, shares: Sequence[float], like: Tensor) -> Tensor:
    """[in, in] the lower Cholesky factor of Σ s_t·A_t, float64.

    Raises:
        Singular: to working precision.
    """
    total = shares[0] * moments.matrix(0, like)
    for number, share in enumerate(shares[1:], start=1):
        total.add_(moments.matrix(number, like), alpha=share)
    return _cholesky(total)


def moved(maps: Sequence[Tensor], moments: Moments) -> list[Tensor]:
    """[maps − 1] (W_t − W_1)·A_t of all but the first, float64: what no shares change."""
    first = wide(maps[0])
    return [(wide(each) - first) @ moments.matrix(t, each) for t, each in enumerate(maps[1:], start=1)]


def solved(first: Tensor, moved: Sequence[Tensor], shares: Sequence[float], factor: Tensor) -> Tensor:
    """W = W_1 + Σ s_t·(W_t − W_1)·A_t · (Σ s_t·A_t)⁻¹.

    Args:
        first: W_1 [out, in].
        moved: see :func:`moved`.
        shares: [maps] s_t.
        factor: see :func:`factor`.
    """
    total = shares[1] * moved[0]
    for each, share in zip(moved[1:], shares[2:], strict=True):
        total.add_(each, alpha=share)
    found = torch.cholesky_solve(total.mT, factor).mT
    found += wide(first)
    return found


class Pair(NamedTuple):
    """A basis in which the moments of two maps are both diagonal: A_1 = B·diag(1−q)·Bᵀ, A_2 = B·diag(q)·Bᵀ.

    Then W = s_1·W_1 + s_2·W_2 + (W_2 − W_1)·B·diag(s_2·q / (s_1·(1−q) + s_2·q) − s_2)·B⁻¹: a direction whose inputs
    are all of the second map (q = 1) gets the second, and one without inputs (q = ½) the mean.

    Attributes:
        second: [in] q, the share of the second map's inputs in each direction; float64 in [0, 1].
        basis: [in, in] B, float64.
        inverse: [in, in] B⁻¹, float32.
    """

    second: Tensor
    basis: Tensor
    inverse: Tensor

    @staticmethod
    def of(moments: Moments, like: Tensor) -> Pair:
        """By the generalised symmetric eigenproblem A_2·x = q·(A_1 + A_2)·x.

        Raises:
            Singular: the two together, to working precision.
        """
        other = moments.matrix(1, like)
        lower = _cholesky(moments.matrix(0, like).add_(other))
        half = torch.linalg.solve_triangular(lower, other, upper=False)
        whitened = torch.linalg.solve_triangular(lower, half.mT, upper=False)
        values, vectors = eigh((whitened + whitened.mT) / 2)
        inverse = torch.linalg.solve_triangular(lower.mT, vectors, upper=True).mT
        return Pair(values.clamp(0.0, 1.0), lower @ vectors, inverse.to(torch.float32).contiguous())

    def coordinates(self, maps: Sequence[Tensor]) -> Tensor:
        """[out, in] (W_2 − W_1)·B, float32; not without ``basis``."""
        return ((wide(maps[1]) - wide(maps[0])) @ self.basis).to(torch.float32)

    def slim(self) -> Pair:
        """Without ``basis``, which is needed for no more than the coordinates."""
        return self._replace(basis=self.basis.new_empty(0))

    def solved(self, maps: Sequence[Tensor], coordinates: Tensor, shares: Sequence[float]) -> Tensor:
        """W, by one product in float32.

        Args:
            maps: [2] W_t [out, in].
            coordinates: see :meth:`coordinates`.
            shares: [2] s_t, both above 0.
        """
        weights = shares[1] * self.second / (shares[0] * (1.0 - self.second) + shares[1] * self.second) - shares[1]
        with _full_precision():
            turned = (coordinates * weights.to(torch.float32)) @ self.inverse
        total = mean(maps, shares)
        total += turned
        return total


def _place(like: Tensor) -> torch.device:
    """Where a tensor is worked on in float64: see :func:`merging.linear_algebra.wide`."""
    return torch.device("cpu") if like.device.type == "mps" else like.device


def _cholesky(matrix: Tensor) -> Tensor:
    """Raises Singular where the smallest pivot is no more than rounding."""
    largest = float(matrix.diagonal().max()) if matrix.numel() else 0.0
    found: Tensor
    found, info = torch.linalg.cholesky_ex(matrix)
    smallest = float(found.diagonal().min()) ** 2 if matrix.numel() and not int(info) else 0.0
    if matrix.numel() and not smallest > largest * matrix.shape[-1] * torch.finfo(matrix.dtype).eps:
        raise Singular
    return found


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 are those of float32, whatever the program asked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
