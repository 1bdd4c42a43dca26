"""WUDI: the merged task vector that interferes least with each task's own inputs, taken from the weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from merging.linear_algebra import solve_right
from merging.methods.contract import Parameter, Values
from merging.methods.products import SCALE, SubspaceMethod

REGULARISATION = Parameter(
    "regularisation",
    float,
    "pull towards the sum of the task vectors, as a multiple of the mean eigenvalue of Σ H_t",
    default=0.03,
    low=0.0,
)


class Wudi(SubspaceMethod):
    """argmin Σ_t ‖(Δ − Δ_t)·Δ_tᵀ‖² / ‖Δ_t‖², near Σ Δ_t (Cheng et al. 2025, eq. 8, in closed form).

    The rows of a task vector lie in the space of the inputs that its task was trained on, so Δ_t stands for them. With
    H_t = Δ_tᵀ·Δ_t / ‖Δ_t‖²: Δ = (Σ Δ_t·H_t + μ·Σ Δ_t)·(Σ H_t + μ·I)⁻¹, μ = regularisation·tr(Σ H_t) / n.

    The authors start gradient steps (Adam, 300 of 1e-5) from the sum and stop; in the limit such steps reach this
    solution with μ → 0, and μ does what stopping early does: directions of small eigenvalues stay as in the sum. The
    default was nearest to those steps (in the median over the matrices of two small families of models, with task
    vectors of standard deviation 3e-4 per element). ``regularisation: 0`` is the limit itself. Tasks that did not move
    a matrix have no part in it.
    """

    name: ClassVar[str] = "wudi"
    formula: ClassVar[str] = "θ = θ0 + scale·argmin_Δ Σ ‖(Δ − τ_t)·τ_tᵀ‖² / ‖τ_t‖² + μ·‖Δ − Σ τ_t‖²"
    paper: ClassVar[str] = "Cheng et al. 2025, arXiv 2503.08099"
    fixed: ClassVar[frozenset[str]] = frozenset({REGULARISATION.name})
    parameters: ClassVar[tuple[Parameter, ...]] = (REGULARISATION, SCALE)

    def merge(self, deltas: Sequence[Tensor], noise: Sequence[float], shape: tuple[int, int], values: Values) -> Tensor:
        """See the class."""
        moved = [each for each in deltas if bool(each.any())]
        if not moved:
            return torch.zeros_like(deltas[0])
        return closed_form(moved, float(values.shared[REGULARISATION.name]), shape[1])


def closed_form(deltas: Sequence[Tensor], regularisation: float, inputs: int | None = None) -> Tensor:
    """Δ of the class.

    As a correction of the sum, so that what no task vector spans is not touched: Σ Δ_t + E·B·(Bᵀ·B + μ·I)⁻¹ with
    B = [Δ_t / ‖Δ_t‖] stacked and E = [(Δ_t − Σ Δ)·Δ_tᵀ / ‖Δ_t‖] side by side; where B has fewer rows than columns, as
    E·(B·Bᵀ + μ·I)⁻¹·B, which is the same.

    Args:
        deltas: [tasks] of [out, in] float64, none of them zero.
        regularisation: μ as a multiple of the mean eigenvalue of Σ H_t = Bᵀ·B.
        inputs: columns of the matrices themselves, where these are their cores.
    """
    anchor = sum(deltas[1:], start=deltas[0])
    norms = [float(torch.linalg.matrix_norm(delta)) for delta in deltas]
    units = [delta / norm for delta, norm in zip(deltas, norms, strict=True)]
    rows, columns = anchor.shape
    mu = regularisation * len(deltas) / (inputs or columns)  # every H_t has trace 1
    if rows * len(deltas) < columns:
        stacked = torch.cat(units)
        gaps = torch.cat([(delta - anchor) @ unit.mT for delta, unit in zip(deltas, units, strict=True)], dim=1)
        return anchor + solve_right(gaps, _regular(stacked @ stacked.mT, mu)) @ stacked
    gap, moments = torch.zeros_like(anchor), anchor.new_zeros(columns, columns)
    for delta, unit in zip(deltas, units, strict=True):
        own = unit.mT @ unit
        gap += (delta - anchor) @ own
        moments += own
    return anchor + solve_right(gap, _regular(moments, mu))


def _regular(moments: Tensor, mu: float) -> Tensor:
    moments.diagonal().add_(mu)
    return moments
