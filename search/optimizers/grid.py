"""Full factorial search: every combination of a few levels per coefficient with every choice. Learns nothing.

Its order is that of a Sobol sequence rounded to the lattice, each point once, so that any prefix is spread over the
space: a budget that ends early has not spent itself in one corner. When the lattice is used up it is refined, each gap
between neighbouring levels halved, so that nothing is asked twice while there is anything new.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from search.optimizers.contract import Box, Genome, OptimizerError, Outcome, Settings, Trial
from search.optimizers.sobol import choices, len_of, points

MOST_POINTS = 1_000_000
PATIENCE = 4  # Sobol points drawn per lattice point before what is left of the lattice is simply listed
MOST_LEVELS = 2**20


class GridOptions(BaseModel):
    """Options of ``grid``.

    Attributes:
        levels: of every coefficient, evenly spaced from 0 to 1 (one level: the middle). If None, as many as the budget
            pays for on the whole lattice, and at least two: with many coefficients even that lattice is larger than any
            budget, and the search covers it as evenly as its budget allows.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    levels: int | None = Field(default=None, ge=1, le=MOST_LEVELS)


class Grid:
    """Proposes lattice points in the order of the asks; the seed decides the order.

    Raises:
        OptimizerError: levels were asked for whose lattice nobody can evaluate.
    """

    Options: ClassVar[type[BaseModel]] = GridOptions

    def __init__(self, settings: Settings) -> None:
        options = GridOptions.model_validate(settings.options)
        levels = options.levels or affordable(settings.box, settings.budget)
        if options.levels is not None and size(settings.box, options.levels) > MOST_POINTS:
            raise OptimizerError(_absurd(settings, options.levels))
        self._lattice = lattices(settings.box, levels, settings.seed)
        self._size = size(settings.box, levels)
        self._levels = levels

    def ask(self, id: int, pending: Sequence[Trial]) -> Genome:
        """See :class:`search.optimizers.contract.Optimizer`."""
        return next(self._lattice)

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """See :class:`search.optimizers.contract.Optimizer`."""

    def diagnosis(self) -> dict[str, float | str]:
        """The lattice: levels of a coefficient, and points in all."""
        return {"levels": float(self._levels), "points": float(min(self._size, 10**300))}


def size(box: Box, levels: int) -> int:
    """Points of a lattice."""
    return int(levels**box.continuous * math.prod(box.categories))


def affordable(box: Box, budget: int) -> int:
    """Most levels (>= 2) whose lattice a budget pays for; 2 where none does."""
    levels = 2
    while box.continuous and levels < MOST_LEVELS and size(box, levels + 1) <= budget:
        levels += 1
    return levels


def lattices(box: Box, levels: int, seed: int) -> Iterator[Genome]:
    """Endless: the lattice, then its refinements; once there is nothing finer, again from the start."""
    seen: set[tuple[float | int, ...]] = set()
    while True:
        for point in itertools.chain(_spread(box, levels, seed), _listed(box, levels)):
            if point not in seen:
                seen.add(point)
                yield Genome(tuple(map(float, point[: box.continuous])), tuple(map(int, point[box.continuous :])))
        if box.continuous == 0 or levels >= MOST_LEVELS:
            seen.clear()
        else:
            levels = 3 if levels == 1 else 2 * levels - 1


def _spread(box: Box, levels: int, seed: int) -> Iterator[tuple[float | int, ...]]:
    """Sobol points, rounded to the lattice; some more than once, some not at all."""
    axis = _axis(levels)
    total = size(box, levels)
    drawn: Iterator[int] = itertools.count() if total > MOST_POINTS else iter(range(PATIENCE * total))
    for _, point in zip(drawn, points(len_of(box), seed), strict=False):
        steps = np.floor(point[: box.continuous] * levels).astype(np.int64)
        yield (*(axis[step] for step in steps), *choices(point[box.continuous :], box).tolist())


def _listed(box: Box, levels: int) -> Iterator[tuple[float | int, ...]]:
    """The whole lattice."""
    return itertools.product(*[_axis(levels)] * box.continuous, *(range(count) for count in box.categories))


def _axis(levels: int) -> list[float]:
    return [0.5] if levels == 1 else [step / (levels - 1) for step in range(levels)]


def _absurd(settings: Settings, levels: int) -> str:
    box = settings.box
    genes = f"{box.continuous} coefficients" + (f" and {len(box.categories)} categories" if box.categories else "")
    power = math.log10(levels) * box.continuous + sum(map(math.log10, box.categories))
    return (
        f"expected a grid that can be evaluated (up to {MOST_POINTS} points), found about 10^{power:.0f} points: "
        f"{levels} levels of {genes}; take fewer levels, a coarser granularity (`granularity: model`), or the "
        "optimizer `sobol`, which covers a space of any size evenly"
    )
