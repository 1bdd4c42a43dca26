"""Sums that several methods share. Plain multiplications and additions, never fused: the same bits however cut."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from merging.methods.contract import Elements, Inputs, Values
from merging.recipe import Assignment, MergingError, Value

Sources = tuple[tuple[str, tuple[tuple[str, Value], ...]], ...]


def weighted_sum(inputs: Inputs) -> Tensor:
    """Σ c_t · x_t, in the order given and in the dtype of the numbers. At least one source."""
    total = inputs.sources[0].to(inputs.numbers.dtype) * inputs.numbers[0]
    for number, source in enumerate(inputs.sources[1:], start=1):
        total = total + source.to(total.dtype) * inputs.numbers[number]
    return total


def base_plus_deltas(inputs: Inputs) -> Tensor:
    """θ0 + Σ c_t · (x_t − θ0), deltas first, in the dtype of the numbers. No source gives the base.

    Deltas are taken at the accumulation precision: exact, or nearly, for 16-bit weights.
    """
    base = inputs.base.to(inputs.numbers.dtype)
    total: Tensor | None = None
    for number, source in enumerate(inputs.sources):
        term = (source.to(base.dtype) - base) * inputs.numbers[number]
        total = term if total is None else total + term
    return base if total is None else total + base


def sum_of_weights(coefficients: Sequence[float]) -> Elements:
    """Σ c_t · θ_t; sources of coefficient 0 are not read."""
    used = tuple(number for number, each in enumerate(coefficients) if each != 0.0) or (0,)
    numbers = tuple(coefficients[number] for number in used)
    return Elements(weighted_sum, numbers=numbers, sources=used, base=False, gain=sum(map(abs, numbers)))


def base_plus(coefficients: Sequence[float]) -> Elements:
    """θ0 + Σ c_t · τ_t; sources of coefficient 0 are not read."""
    used = tuple(number for number, each in enumerate(coefficients) if each != 0.0)
    numbers = tuple(coefficients[number] for number in used)
    return Elements(base_plus_deltas, numbers=numbers, sources=used, gain=1.0 + 2.0 * sum(map(abs, numbers)))


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
