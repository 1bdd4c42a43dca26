"""Sums that several methods share. Plain multiplications and additions, never fused: the same bits however cut."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from merging.methods.contract import Values
from merging.pool import Workspace
from merging.recipe import Assignment, MergingError, Value

Sources = tuple[tuple[str, tuple[tuple[str, Value], ...]], ...]


def weighted_sum(terms: Sequence[Tensor], coefficients: Sequence[float], out: Tensor, workspace: Workspace) -> None:
    """out = Σ c_t · x_t, in the order given and in the dtype of ``out``. At least one term."""
    out.copy_(terms[0]).mul_(coefficients[0])
    term = workspace.like(out, 1)
    for tensor, coefficient in zip(terms[1:], coefficients[1:], strict=True):
        out.add_(term.copy_(tensor).mul_(coefficient))


def base_plus_deltas(
    base: Tensor, terms: Sequence[Tensor], coefficients: Sequence[float], out: Tensor, workspace: Workspace
) -> None:
    """out = θ0 + Σ c_t · (x_t − θ0), deltas first, in the dtype of ``out``. No term gives the base."""
    if not terms:
        out.copy_(base)
        return
    origin = workspace.like(out, 2).copy_(base)
    out.copy_(terms[0]).sub_(origin).mul_(coefficients[0])
    term = workspace.like(out, 1)
    for tensor, coefficient in zip(terms[1:], coefficients[1:], strict=True):
        out.add_(term.copy_(tensor).sub_(origin).mul_(coefficient))
    out.add_(origin)


def normalized(coefficients: Sequence[float], what: str) -> tuple[float, ...]:
    """c_t / Σ c.

    Raises:
        MergingError: Σ c is zero.
    """
    total = sum(coefficients)
    if abs(total) < 1e-8:
        raise MergingError(
            f"{what} with normalize divides by the sum of the coefficients, and {list(coefficients)} sum to {total:g}; "
            "set normalize: false or change the coefficients"
        )
    return tuple(coefficient / total for coefficient in coefficients)


def without_zeros(assignment: Assignment, values: Values) -> Sources:
    """The assignment's sources whose coefficient is not 0."""
    coefficients = values.column("coefficient")
    return tuple(each for each, c in zip(assignment.sources, coefficients, strict=True) if c != 0.0)
