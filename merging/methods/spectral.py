"""Merges of the singular directions of task vectors, matrix by matrix.

Every direction counts here, however little a model moved along it, so those that only the rounding of the stored
weights made have to be told apart: a singular value is taken for noise where it is at most what that rounding gives
(:func:`rounding`). Of models in float32 this leaves out what is exactly singular, such as the directions that a
low-rank adapter never had. Adapters that were not folded into weights have no such noise, and are merged in their joint
subspace (:class:`merging.methods.products.SubspaceMethod`); the result agrees with that of the weights that they were
folded into to some 1e-6 of the task vectors where no singular value of theirs lies below that rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from merging.linear_algebra import leading, polar
from merging.methods.contract import Parameter, Values
from merging.methods.products import SCALE, SubspaceMethod

# Dtypes in which models are kept, the coarsest first.
_GRIDS = (torch.bfloat16, torch.float16, torch.float32)

# Times the expected largest singular value of noise: what it may come to by chance in a matrix of some 50 rows.
_ABOVE = 1.25

# How far :func:`merging.linear_algebra.leading` lets directions be from orthonormal.
_PROJECTED = 1e-7

COMMON_FRACTION = Parameter(
    "common_fraction", float, "share of the directions that is left to what the tasks have in common", 0.8, 0.0, 1.0
)


class SpectralMethod(SubspaceMethod):
    """A method of singular vectors, which tells apart those that rounding made."""

    def noise(self, base: Tensor, expert: Tensor) -> float:
        """See :func:`rounding`."""
        return rounding(base, expert)


class TsvM(SpectralMethod):
    """Task singular vectors, made orthogonal to those of the other tasks (Gargiulo et al. 2025, eq. 7-9).

    Of each task's Δ_t = U_t·S_t·V_tᵀ the ⌊min(m, n) / T⌋ largest singular values are kept. U and V, those of all tasks
    side by side, are replaced by the nearest orthonormal matrices, PQᵀ of U = P·D·Qᵀ; Δ = U⊥·S·V⊥ᵀ.

    Edge cases: directions that several tasks share exactly are counted once (D is restricted to its numerical rank), so
    equal experts give their own truncated Δ_t. Mutually orthogonal tasks of low rank are summed. One source is taken
    whole. Where a matrix has fewer rows or columns than there are sources: the mean of the task vectors.
    """

    name: ClassVar[str] = "tsv_m"
    formula: ClassVar[str] = "θ = θ0 + scale·U⊥·S·V⊥ᵀ, of the leading singular vectors of every τ_t, made orthogonal"
    paper: ClassVar[str] = "Gargiulo et al. 2025, arXiv 2412.00081"

    def merge(self, deltas: Sequence[Tensor], noise: Sequence[float], shape: tuple[int, int], values: Values) -> Tensor:
        """See the class."""
        count = min(shape) // len(deltas)
        if len(deltas) == 1 or not count:
            return _sum(deltas) / len(deltas)
        return _joined([leading(delta, count, each) for delta, each in zip(deltas, noise, strict=True)], flat=False)


class IsoC(SpectralMethod):
    """The sum of the task vectors with a flat spectrum (Marczak et al. 2025, section 4.1).

    Σ Δ_t = U·S·Vᵀ becomes Δ = mean(S)·U·Vᵀ: every direction is moved along alike. U, V and the mean are restricted to
    the numerical rank: the authors' code has all min(m, n) directions, which makes noise as large as what was learned
    where the sum has a lower rank, as with adapters.
    """

    name: ClassVar[str] = "iso_c"
    formula: ClassVar[str] = "θ = θ0 + scale·mean(S)·U·Vᵀ, with Σ τ_t = U·S·Vᵀ"
    paper: ClassVar[str] = "Marczak et al. 2025, arXiv 2502.04959"

    def merge(self, deltas: Sequence[Tensor], noise: Sequence[float], shape: tuple[int, int], values: Values) -> Tensor:
        """See the class."""
        u, s, vh = leading(_sum(deltas), noise=math.hypot(*noise))
        return (u @ vh) * s.mean() if len(s) else torch.zeros_like(deltas[0])


class IsoCts(SpectralMethod):
    """A flat spectrum over directions common to the tasks and directions of each (Marczak et al. 2025, section 4.2).

    Of r = min(m, n) directions, T·s are for the tasks, s = round((r − ⌊common_fraction·r⌋) / T), and c = r − T·s are
    common: the leading ones U_c of Σ Δ_t. Each task adds the s leading ones of (I − U_c·U_cᵀ)·Δ_t. All U side by side,
    and all V, are replaced by the nearest orthonormal matrices; Δ = mean(S)·U⊥·V⊥ᵀ, S all singular values gathered.

    Edge cases: directions below the rounding of the weights are left out of U, V and the mean; what several tasks
    share exactly is one direction. One source: as ``iso_c``.
    """

    name: ClassVar[str] = "iso_cts"
    formula: ClassVar[str] = "θ = θ0 + scale·mean(S)·U⊥·V⊥ᵀ, of common singular vectors and those of every τ_t"
    paper: ClassVar[str] = "Marczak et al. 2025, arXiv 2502.04959"
    fixed: ClassVar[frozenset[str]] = frozenset({COMMON_FRACTION.name})
    parameters: ClassVar[tuple[Parameter, ...]] = (COMMON_FRACTION, SCALE)

    def merge(self, deltas: Sequence[Tensor], noise: Sequence[float], shape: tuple[int, int], values: Values) -> Tensor:
        """See the class."""
        common, own = shares(min(shape), len(deltas), float(values.shared[COMMON_FRACTION.name]))
        floor = math.hypot(*noise)
        shared = leading(_sum(deltas), common, floor)
        found = [shared]
        for delta, each in zip(deltas, noise, strict=True):
            # What was projected away leaves the rounding of the task and of the sum, and that of the directions.
            left = max(math.hypot(each, floor), _PROJECTED * float(torch.linalg.matrix_norm(delta)))
            found.append(leading(delta - shared[0] @ (shared[0].mT @ delta), own, left))
        return _joined(found, flat=True)


def shares(directions: int, tasks: int, fraction: float) -> tuple[int, int]:
    """How many directions are common, and how many are each task's own.

    Args:
        directions: min(m, n) of the matrix.
        tasks: number of sources.
        fraction: wanted for the common ones; the tasks' part is rounded to a multiple of their number.
    """
    own = min(round((directions - int(directions * fraction)) / tasks), directions // tasks)
    return directions - own * tasks, own


def rounding(base: Tensor, expert: Tensor) -> float:
    """A bound on the singular values that storing an expert's weights has given its task vector, about.

    Rounding to a grid of spacing u is an error of variance u²/12; m·n such errors have singular values up to their
    deviation times √m + √n, in the mean, and hardly ever a quarter more. The grid is the coarsest of bfloat16, float16
    and float32 that holds all the expert's numbers, whatever dtype they come in. Elements that equal the base's may
    have moved too, by less than half a spacing: as a fine-tune that moves few elements over a spacing moves the others
    by far less than one, they count with the share of those that did move.

    Args:
        base, expert: [m, n] of any floating dtype, of the same numbers as they are stored.
    """
    moved = float((expert.to(torch.float64) != base.to(torch.float64)).to(torch.float64).mean())
    if not moved:
        return 0.0
    grid = next((each for each in _GRIDS if torch.equal(expert.to(each).to(expert.dtype), expert)), expert.dtype)
    exponents = torch.frexp(expert.to(torch.float64))[1]
    spacings = torch.ldexp(torch.full_like(exponents, 1.0, dtype=torch.float64), exponents - 1)
    spacings = (spacings * torch.finfo(grid).eps).where(expert != 0, 0.0)
    variance = float(spacings.square_().mean()) / 12.0 * moved * (2.0 - moved)
    return _ABOVE * math.sqrt(variance) * (math.sqrt(expert.shape[0]) + math.sqrt(expert.shape[1]))


def _sum(matrices: Sequence[Tensor]) -> Tensor:
    return sum(matrices[1:], start=matrices[0])


def _joined(found: Sequence[tuple[Tensor, Tensor, Tensor]], *, flat: bool) -> Tensor:
    """U⊥·S·V⊥ᵀ of several (U, S, Vᵀ); ``flat`` with the mean of S for each."""
    u = polar(torch.cat([each for each, _, _ in found], dim=1))
    s = torch.cat([each for _, each, _ in found])
    vh = polar(torch.cat([each for _, _, each in found]))
    if not len(s):
        return u.new_zeros(u.shape[0], vh.shape[1])
    return (u @ vh) * s.mean() if flat else (u * s) @ vh
