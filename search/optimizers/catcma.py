"""CatCMA with margin (cmaes), for one objective or several scalarised ones: coefficients, densities, choice of method.

Beside ``cma``, which treats a category as an integer, each category has a distribution of its own over its choices, so
their order means nothing. Utilities are scalarised by :mod:`search.optimizers.scalarise`; the distribution is
:class:`search.optimizers.kernel.Kernel`; restarts with a doubled population: Auger & Hansen, CEC 2005.

Asynchronous: a generation is the first popsize tells of points that this strategy proposed, from whichever generation.
The best points that were told before it began take up to a third of its first generation; one found elsewhere that is
better than all takes a place in the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from search.optimizers.contract import Genome, Outcome, Settings, Trial
from search.optimizers.kernel import Kernel, kept_choices
from search.optimizers.scalarise import Score, Scorer

LARGEST_POPULATION = 1024


class CatCmaOptions(BaseModel):
    """Options of ``catcma``.

    Attributes:
        popsize: points per generation (>= 4) before the first restart; cmaes' own, about 4 + 3 ln n, if None.
        sigma0: first step size in units of a gene's range, in (0, 1].
        kept: first probability of the start's own choices, in [0, 1), the rest uniform over all of them; 0.25 if None,
            or what the settings are sure of.
        restarts: whether to begin again with twice the population after convergence.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    popsize: int | None = Field(default=None, ge=4)
    sigma0: float = Field(default=0.15, gt=0.0, le=1.0)
    kept: float | None = Field(default=None, ge=0.0, lt=1.0)
    restarts: bool = True


@dataclass(frozen=True)
class Proposal:
    """A point that was asked for: the solution as cmaes knows it, and the restart that it belongs to."""

    restart: int
    genome: Genome
    solution: Any


class CatCma:
    """See the module docstring."""

    Options: ClassVar[type[BaseModel]] = CatCmaOptions

    def __init__(self, settings: Settings) -> None:
        self._options = CatCmaOptions.model_validate(settings.options)
        self._settings = settings
        self._scorer = Scorer(settings)
        self._asked: dict[int, Proposal] = {}
        self._restart = 0
        self._kernel: Kernel | None = None
        self._generation: list[tuple[Any, Score]] = []

    def ask(self, id: int, pending: Sequence[Trial]) -> Genome:
        """See :class:`search.optimizers.contract.Optimizer`."""
        kernel = self._kernel or self._begin(None)
        solution = kernel.draw(self._settings.seed, 0, id)
        proposed = kernel.genome(solution)
        self._asked[id] = Proposal(self._restart, proposed, solution)
        return proposed

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """See :class:`search.optimizers.contract.Optimizer`."""
        score, best = self._scorer.hear(trial, outcome)
        proposal = self._asked.pop(trial.id, None)
        if self._kernel is None:
            return
        if proposal is not None and proposal.restart == self._restart and proposal.genome == trial.genome:
            self._generation.append((proposal.solution, score))
        elif best:
            self._generation.append((self._kernel.solution(trial.genome), score))
        if len(self._generation) >= self._kernel.popsize:
            self._learn(self._kernel)

    def _learn(self, kernel: Kernel) -> None:
        values = self._scorer.values([score for _, score in self._generation])
        kernel.learn([solution for solution, _ in self._generation], values)
        self._generation = []
        if kernel.broken or (self._options.restarts and kernel.converged):
            self._restart += 1
            self._begin(min(LARGEST_POPULATION, 2 * kernel.popsize))

    def _begin(self, popsize: int | None) -> Kernel:
        """A new distribution at the best point known, else at the run's center."""
        options = self._options
        shares = kept_choices(self._settings, options.kept)
        kernel = Kernel(self._settings.box, self._scorer.start, options.sigma0, shares, popsize or options.popsize)
        if self._restart == 0:
            told = self._scorer.elites[1 : 1 + kernel.popsize // 3]
            self._generation = [(kernel.solution(genome), score) for score, genome in told]
        self._kernel = kernel
        return kernel
