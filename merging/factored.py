"""Task vectors in factors: inner products and lengths of matrices that are never made.

An adapter's Δ = L·R is known by (out + in)·r numbers. What its statistics need of Δ is in the small products of the
factors of two adapters: ⟨L_i·R_i, L_j·R_j⟩ = tr((L_iᵀ·L_j)·(R_j·R_iᵀ)), in float64 and on one thread, so that no bit
depends on the number of threads. Against sums over the elements of Δ the relative error is some 1e-15 times
‖L_i‖·‖R_i‖·‖L_j‖·‖R_j‖, which for what training gives is within a few times ‖Δ_i‖·‖Δ_j‖.

What is measured here is Δ itself; the stored weights of a model that an adapter was folded into differ from base + Δ by
the rounding of their dtype, and so do the task vectors that are read from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from merging.composed import Factors
from merging.joint import joint_space
from merging.linear_algebra import one_thread, wide
from merging.pool import pieces

# Elements of a piece of the outer factors, of which a product is held.
_PIECE = 1 << 18

# A sum of task vectors below this fraction of its terms cannot be told from 0.
_LOST = 1e-14


def inner_products(factors: Sequence[Factors]) -> np.ndarray:
    """⟨Δ_i, Δ_j⟩ over all elements.

    Args:
        factors: [sources] of one tensor, of any ranks, also 0.

    Returns:
        [sources, sources] float64, symmetric.
    """
    count = len(factors)
    result = np.zeros((count, count))
    with torch.no_grad(), one_thread():
        lefts, rights = _wide(factors)
        for i in range(count):
            for j in range(i + 1):
                terms = (lefts[i].mT @ lefts[j]) * (rights[i] @ rights[j].mT)
                result[i, j] = result[j, i] = math.fsum(terms.reshape(-1).tolist())
    return result


def row_inner_products(factors: Sequence[Factors]) -> np.ndarray:
    """As :func:`inner_products`, of every row of Δ apart.

    Returns:
        [rows, sources, sources] float64.
    """
    with torch.no_grad(), one_thread():
        lefts, rights = _wide(factors)
        return _vectors(lefts, lambda i, j: rights[i] @ rights[j].mT)


def column_inner_products(factors: Sequence[Factors]) -> np.ndarray:
    """As :func:`inner_products`, of every column of Δ apart.

    Returns:
        [columns, sources, sources] float64.
    """
    with torch.no_grad(), one_thread():
        lefts, rights = _wide(factors)
        return _vectors([each.mT for each in rights], lambda i, j: lefts[i].mT @ lefts[j])


def norm_of_sum(factors: Sequence[Factors], coefficients: Sequence[float]) -> float:
    """‖Σ f_t·Δ_t‖, also where the sum nearly cancels: its error is some 1e-15 of the terms, not of their squares. What
    is no larger than that is 0.

    Args:
        factors: [sources] of one tensor.
        coefficients: [sources].
    """
    with torch.no_grad(), one_thread():
        cores = joint_space([(each.left, each.right) for each in factors]).cores
        terms = [core * each for core, each in zip(cores, coefficients, strict=True)]
        found = float(torch.linalg.vector_norm(sum(terms[1:], start=terms[0])))
        return found if found > _LOST * math.fsum(float(torch.linalg.vector_norm(each)) for each in terms) else 0.0


def _wide(factors: Sequence[Factors]) -> tuple[list[Tensor], list[Tensor]]:
    return [wide(each.left) for each in factors], [wide(each.right) for each in factors]


def _vectors(outer: Sequence[Tensor], inner: Callable[[int, int], Tensor]) -> np.ndarray:
    """o_iᵀ·M_ij·o_j of every row o of the outer factors, M_ij the product of the inner ones."""
    count, vectors = len(outer), outer[0].shape[0]
    result = np.zeros((vectors, count, count))
    for i in range(count):
        for j in range(i + 1):
            middle = inner(i, j)
            for start, stop in pieces(vectors, max(1, _PIECE // max(1, middle.shape[1]))):
                found = ((outer[i][start:stop] @ middle) * outer[j][start:stop]).sum(-1)
                result[start:stop, i, j] = result[start:stop, j, i] = found.numpy()
    return result
