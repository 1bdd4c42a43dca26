"""The joint subspace of low-rank task vectors: all of them as small matrices over two orthonormal bases.

Of Δ_t = L_t·R_t, t = 1…T, the columns lie in the span of [L_1 | … | L_T] and the rows in that of the stacked R_t. With
orthonormal bases Q and P of the two, Δ_t = Q·C_t·P exactly, C_t a *core* of at most (Σr_t)×(Σr_t). What is defined by
singular vectors, norms and products of the Δ_t commutes with such a change of basis, so a method may be run on the
cores and its result brought back: Core Space (Panariello et al. 2025, arXiv 2509.17786), and KnOTS (Stoica et al. 2024,
arXiv 2410.19735) on one side.

Everything in float64; call within :func:`merging.linear_algebra.one_thread`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from merging.composed import Factors
from merging.linear_algebra import wide
from merging.matrices import Part

Pair = tuple[Tensor, Tensor]

# Singular values of Δ = L·R below this fraction of its largest are what storing L and R in float32 may have made.
RESOLUTION = float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True, eq=False)
class JointSpace:
    """Matrices of one shape over common bases: Δ_t = left @ cores[t] @ right.

    Attributes:
        left: [m, p] float64, orthonormal columns.
        right: [q, n] float64, orthonormal rows.
        cores: [sources] of [p, q] float64.
    """

    left: Tensor
    right: Tensor
    cores: tuple[Tensor, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.left.shape[0], self.right.shape[1]

    def lift(self, core: Tensor) -> Factors:
        """left @ core @ right, of the smaller rank that its sides allow.

        Args:
            core: [p, q] float64.
        """
        if core.shape[0] <= core.shape[1]:
            return Factors.of(self.left, core @ self.right)
        return Factors.of(self.left @ core, self.right)


def joint_space(pairs: Sequence[Pair]) -> JointSpace:
    """The joint subspace of products.

    Args:
        pairs: [sources] of (L [m, r_t], R [r_t, n]), any floating dtype; ranks may differ, and be 0. At least one.
    """
    lefts, rights = [wide(left) for left, _ in pairs], [wide(right) for _, right in pairs]
    left, columns = torch.linalg.qr(torch.cat(lefts, dim=1))
    right, rows = torch.linalg.qr(torch.cat(rights).mT)
    ranks = [each.shape[1] for each in lefts]
    cores = tuple(
        column @ row.mT for column, row in zip(columns.split(ranks, dim=1), rows.split(ranks, dim=1), strict=True)
    )
    return JointSpace(left, right.mT, cores)


def resolution(core: Tensor) -> float:
    """Singular values of a task vector in factors that are no larger are none of its own.

    An adapter that was written with more rank than it needs has directions whose singular values are what float32 made
    of zero; methods that move every direction alike would make them as large as the others.

    Args:
        core: [p, q] of a :class:`JointSpace`.
    """
    return RESOLUTION * float(torch.linalg.matrix_norm(core, 2)) if core.numel() else 0.0


def part_factors(part: Part, factors: Factors, shape: tuple[int, ...]) -> Pair | None:
    """Factors of one matrix [out, in] within a stored tensor.

    Args:
        part: the matrix.
        factors: of the tensor's task vector.
        shape: of the tensor.

    Returns:
        (L [out, r], R [r, in]); None where a product of factors of the tensor is none of the matrix: a stack along the
        first axis of three.
    """
    left, right = factors.left, factors.right
    if part.count:
        if len(shape) != 2:
            return None
        left = left.reshape(part.count, -1, left.shape[1])[part.number]
    if part.turned:
        left, right = right.mT, left.mT
    if part.outputs and left.shape[1]:
        left = replace(part, count=0, turned=False).take(left)
    elif part.outputs:  # nothing can be viewed in a matrix without columns
        left = left.new_zeros(replace(part, count=0, turned=False).take(left.new_zeros(left.shape[0], 1)).shape[0], 0)
    return left, right
