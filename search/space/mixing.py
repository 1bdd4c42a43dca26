"""From what has genes to the experts' coefficients.

By default every expert has coefficients of its own; all may share one set; or they are those of an expression in
variables, such as ``legal + a*(real - synthetic)``, and the variables have the genes. In all three cases the experts'
coefficients are a matrix times the owners' numbers, plus constants.
"""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from merging.expressions import expand, parametric
from merging.recipe import MergingError
from search.space.scales import DIGITS, Array, Bounds, SpaceError, rounded

VARIABLE_STEP = 1e8
"""Variables are rounded to 1e-8, so that they can be read back from coefficients of 12 digits."""

RESERVED = frozenset({"base", "coefficient", "density", "method"})
"""What a variable may not be called: the names of other genes begin so."""


@dataclass(frozen=True, eq=False)
class Mixing:
    """Owners of genes, and what their numbers do.

    Attributes:
        owners: aliases of experts, variables, or "" where all experts share one.
        bounds: [owners].
        matrix: [experts, owners].
        offset: [experts].
        of_variables: the owners are variables.
    """

    owners: tuple[str, ...]
    bounds: tuple[Bounds, ...]
    matrix: Array
    offset: Array
    of_variables: bool = False

    @staticmethod
    def own(experts: Sequence[str], bounds: Bounds) -> Mixing:
        """Every expert has coefficients of its own."""
        return Mixing(tuple(experts), (bounds,) * len(experts), np.eye(len(experts)), np.zeros(len(experts)))

    @staticmethod
    def shared(experts: Sequence[str], bounds: Bounds) -> Mixing:
        """All experts have the same."""
        return Mixing(("",), (bounds,), np.ones((len(experts), 1)), np.zeros(len(experts)))

    def values(self, genes: Array) -> Array:
        """[owners, genes of one] numbers of genes in [0, 1]."""
        low = np.array([[each.low] for each in self.bounds])
        high = np.array([[each.high] for each in self.bounds])
        values = low + (high - low) * genes
        return self.settled(values) if self.of_variables else values

    def coefficients(self, values: Array) -> Array:
        """[experts, …] of the owners' numbers [owners, …]."""
        if not self.of_variables:
            return values if len(self.owners) == len(self.offset) else np.repeat(values, len(self.offset), axis=0)
        found = rounded(self.matrix @ values + self.offset.reshape(-1, *[1] * (values.ndim - 1)), DIGITS)
        # 1 - 0.4 - 0.6 is 0, and an expert without a coefficient is left out.
        return np.where(np.abs(found) < 0.5 / VARIABLE_STEP, 0.0, found)

    def read(self, coefficients: Array) -> Array:
        """[owners] the numbers behind the coefficients of the experts [experts]; of variables the nearest."""
        if not self.of_variables:
            return coefficients[: len(self.owners)]
        found, *_ = np.linalg.lstsq(self.matrix, coefficients - self.offset, rcond=None)
        return self.settled(np.asarray(found, dtype=np.float64))

    @staticmethod
    def settled(values: Array) -> Array:
        """Rounded as variables are; no negative zero."""
        return np.rint(values * VARIABLE_STEP) / VARIABLE_STEP + 0.0

    def range_of(self, expert: int) -> tuple[float, float]:
        """The smallest and the largest coefficient that an expert can have."""
        slopes, offset = self.matrix[expert], float(self.offset[expert])
        ends = np.array([[each.low, each.high] for each in self.bounds]) * slopes[:, None]
        return offset + float(ends.min(axis=1).sum()), offset + float(ends.max(axis=1).sum())


def mixed(
    expression: str,
    variables: Mapping[str, Bounds],
    experts: Sequence[str],
    derived: Mapping[str, str] | None = None,
) -> tuple[tuple[str, ...], Mixing]:
    """An expression with variables as a mixing.

    Args:
        expression: such as ``legal + a*(real - synthetic)``.
        variables: name -> bounds.
        experts: the models that there are besides the base, derived ones left out.
        derived: name -> expression of those that it may name too; they are written out.

    Returns:
        The experts that take part, in the order of ``experts``, and how their coefficients come about.

    Raises:
        SpaceError: no such expression, a variable that it does not name, or variables that only act together.
    """
    known = dict(derived or {})
    for name in variables:
        if keyword.iskeyword(name):
            raise SpaceError(
                f"{name!r} has a meaning of its own in expressions, and can be no variable; call it otherwise, such as "
                f"{name[0]}"
            )
        if not name.isidentifier() or name in RESERVED:
            raise SpaceError(
                f"expected a word for the name of a variable, other than {', '.join(sorted(RESERVED))}; found {name!r}"
            )
    try:
        form = parametric(expression, (*experts, *known), tuple(variables))
        inner = expand(known, experts)
    except MergingError as error:
        raise SpaceError(str(error)) from error
    names = tuple(variables)
    table = {expert: np.zeros(1 + len(names)) for expert in experts}
    for alias, coefficient in form.items():
        row = np.array([coefficient.constant, *(coefficient.slope(name) for name in names)])
        for expert, factor in inner.get(alias, {alias: 1.0}).items():
            table[expert] += factor * row
    unused = [name for at, name in enumerate(names) if not any(row[1 + at] for row in table.values())]
    if unused:
        raise SpaceError(
            f"expected every variable to have an effect in {expression!r}, found none of {', '.join(unused)}; leave "
            "it out of the variables, or use it"
        )
    taking = tuple(expert for expert in experts if np.any(table[expert]))
    matrix = np.array([table[expert][1:] for expert in taking]).reshape(len(taking), len(names))
    if np.linalg.matrix_rank(matrix) < len(names):
        raise SpaceError(
            f"expected variables that can be told apart by what they do in {expression!r}, found that some of "
            f"{', '.join(names)} only act together; leave one of them out"
        )
    offset = np.array([table[expert][0] for expert in taking])
    return taking, Mixing(names, tuple(variables.values()), matrix, offset, of_variables=True)
