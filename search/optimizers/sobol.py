"""Scrambled Sobol points: random search without its gaps and clumps. Learns nothing.

Sobol, USSR Comput. Math. Math. Phys. 7(4), 1967; scrambling after Matousek, J. Complexity 14(4), 1998 (as in
``scipy.stats.qmc``). A prefix of 2^k points is balanced: each gene's 2^k equal parts hold one point each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy.stats import qmc

from search.optimizers.contract import Box, Genome, OptimizerError, Outcome, Settings, Trial
from search.optimizers.outcomes import Array, generator, genome

BLOCK = 64  # points drawn at once; a power of two, as the sequence wants
MOST_DIMENSIONS = qmc.Sobol.MAXDIM


class SobolOptions(BaseModel):
    """Sobol search has no options."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sobol:
    """Proposes one sequence's points in the order of the asks; the seed scrambles it."""

    Options: ClassVar[type[BaseModel]] = SobolOptions

    def __init__(self, settings: Settings) -> None:
        SobolOptions.model_validate(settings.options)
        self._box = settings.box
        self._points = points(len_of(settings.box), settings.seed)

    def ask(self, id: int, pending: Sequence[Trial]) -> Genome:
        """See :class:`search.optimizers.contract.Optimizer`."""
        point = next(self._points)
        coefficients = self._box.continuous
        return genome(point[:coefficients], choices(point[coefficients:], self._box))

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """See :class:`search.optimizers.contract.Optimizer`."""


def len_of(box: Box) -> int:
    """Dimensions of the sequence: one a coefficient and one a category."""
    return box.continuous + len(box.categories)


def points(dimensions: int, seed: int) -> Iterator[Array]:
    """Endless: [dimensions] in [0, 1), decided by the seed.

    Raises:
        OptimizerError: more dimensions than there are direction numbers for.
    """
    if dimensions > MOST_DIMENSIONS:
        raise OptimizerError(
            f"expected at most {MOST_DIMENSIONS} genes, for which Sobol sequences are tabulated, found {dimensions}; "
            "take a coarser granularity, or the optimizer `random`"
        )
    return _points(dimensions, seed)


def _points(dimensions: int, seed: int) -> Iterator[Array]:
    if not dimensions:
        while True:
            yield np.zeros(0)
    sequence = qmc.Sobol(dimensions, scramble=True, rng=generator(seed))
    while True:
        yield from sequence.random(BLOCK)


def choices(point: Array, box: Box) -> npt.NDArray[np.int64]:
    """[m] categories from m coordinates in [0, 1), each choice with an equal share."""
    return np.asarray(np.floor(point * np.asarray(box.categories, dtype=np.float64)), dtype=np.int64)
