"""How a method's assignment is written: one spelling for one effect, the same as :mod:`merging.methods` would write.

Coefficients stay as the genes give them, also where only their ratio acts (slerp, karcher), so that a genome can be
read back from its recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from merging.methods import DELTA_SCALE, canonical
from merging.recipe import Assignment, MergingError, Value
from search.space.methods import COEFFICIENT, DENSITY, SearchedMethod
from search.space.scales import SpaceError

NEGLIGIBLE = 1e-6
"""Below this absolute sum of coefficients a method that divides by the sum has no meaning."""

PLAIN = "task_arithmetic"
PLAIN_PARAMETERS: tuple[tuple[str, Value], ...] = (("normalize", False), ("scale", 1.0))

SLERP = "slerp"
SLERP_DEFAULT = ("on", "weights")

Parameters = tuple[tuple[str, Value], ...]


class Settled(NamedTuple):
    """A method with a value for every parameter but coefficients and densities.

    Attributes:
        method: which.
        shared, per_source: (parameter, value), sorted by name.
        divides: it means nothing where the coefficients sum to 0.
    """

    method: SearchedMethod
    shared: Parameters
    per_source: Parameters
    divides: bool

    @staticmethod
    def of(method: SearchedMethod, genes: Mapping[str, Value]) -> Settled:
        """With the values of its searched parameters."""
        shared, own = dict(method.shared), dict(method.per_source)
        for gene in method.genes:
            (own if gene.per_source else shared)[gene.name] = genes[gene.name]
        divides = method.divides(shared)
        if shared.get(DELTA_SCALE.name) == DELTA_SCALE.default:
            del shared[DELTA_SCALE.name]
        # Runs of old wrote slerp without it, and keep their hashes.
        if method.name == SLERP and shared.get(SLERP_DEFAULT[0]) == SLERP_DEFAULT[1]:
            del shared[SLERP_DEFAULT[0]]
        return Settled(method, tuple(sorted(shared.items())), tuple(sorted(own.items())), divides)

    def is_plain(self, row: tuple[float, ...]) -> bool:
        """Whether plain task arithmetic stands in for it: nothing of any expert, or a sum that it cannot divide by."""
        if not self.method.coefficients:
            return False
        return not any(row) or (self.divides and abs(sum(row)) < NEGLIGIBLE)


class Speller:
    """Writes assignments for a space's experts.

    Args:
        experts: aliases, in the order that methods see them.
    """

    def __init__(self, experts: tuple[str, ...]) -> None:
        self._experts = experts
        self._by_name = sorted(range(len(experts)), key=lambda index: experts[index])

    def assignment(self, settled: Settled, row: tuple[float, ...], densities: tuple[float, ...]) -> Assignment:
        """What happens to a group.

        Args:
            settled: the method.
            row: [experts] coefficients; () for a method without.
            densities: [experts]; the first is that of a method with one for all; () for a method without.

        Raises:
            SpaceError: the method refuses these numbers.
        """
        method = settled.method
        if settled.is_plain(row):
            return self.plain(row)
        if method.drops_zeros:
            used = [index for index in self._by_name if row[index]]
        else:
            used = self._by_name if method.symmetric else list(range(len(self._experts)))
        shared = settled.shared
        if method.density == "shared":
            shared = tuple(sorted((*shared, (DENSITY, densities[0]))))
        if method.density != "per_source" and not settled.per_source and method.coefficients:
            sources = self._alone(used, row)
        else:
            sources = tuple((self._experts[index], self._own(settled, index, row, densities)) for index in used)
        written = Assignment(method.name, sources, shared)
        return written if method.plain_spelling or method.name == SLERP else _canonical(written, method.coefficients)

    def plain(self, row: tuple[float, ...]) -> Assignment:
        """Plain task arithmetic, which for all zeros is the base."""
        return Assignment(PLAIN, self._alone([index for index in self._by_name if row[index]], row), PLAIN_PARAMETERS)

    def _alone(self, used: Sequence[int], row: tuple[float, ...]) -> tuple[tuple[str, Parameters], ...]:
        """Sources with nothing but a coefficient."""
        return tuple((self._experts[index], ((COEFFICIENT, row[index]),)) for index in used)

    def _own(self, settled: Settled, index: int, row: tuple[float, ...], densities: tuple[float, ...]) -> Parameters:
        values: list[tuple[str, Value]] = list(settled.per_source)
        if settled.method.coefficients:
            values.append((COEFFICIENT, row[index]))
        if settled.method.density == "per_source":
            values.append((DENSITY, densities[index]))
        values.sort()
        return tuple(values)


def _canonical(written: Assignment, coefficients: bool) -> Assignment:
    """As the method spells it, with the coefficients as they were given."""
    try:
        spelled = canonical(written)
    except MergingError as error:
        raise SpaceError(f"the space holds a merge that its method refuses: {error}") from error
    if not coefficients:
        return spelled
    given = {alias: dict(values)[COEFFICIENT] for alias, values in written.sources}
    sources = tuple(
        (alias, tuple((name, given[alias] if name == COEFFICIENT else value) for name, value in values))
        for alias, values in spelled.sources
    )
    return replace(spelled, sources=sources)
