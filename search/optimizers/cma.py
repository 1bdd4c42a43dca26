"""CMA-ES (pycma), for one objective or several scalarised ones; categories as integer variables.

Utilities are scalarised by :mod:`search.optimizers.scalarise`. Hansen, "The CMA evolution strategy: a tutorial",
arXiv:1604.00772; restarts with a doubled population: Auger & Hansen, CEC 2005; integer variables: Marty et al.,
LB+IC-CMA-ES, PPSN 2024; injected points: Hansen, arXiv:1110.4181; separable CMA-ES: Ros & Hansen, PPSN 2008.

Asynchronous: a generation is the first popsize tells of points that this strategy proposed, from whichever generation.
Asks beyond a generation's own draw further points from the present distribution.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from search.optimizers.contract import Box, Genome, Outcome, Settings, Trial
from search.optimizers.outcomes import Array, generator, genome
from search.optimizers.scalarise import Score, Scorer

LARGEST_POPULATION = 1024


class CmaOptions(BaseModel):
    """Options of ``cma``.

    Attributes:
        popsize: points per generation (>= 4) before the first restart; pycma's own, about 4 + 3 ln n, if None.
        sigma0: first step size in units of a gene's range, in (0, 1]. The default is EvoLLM's.
        restarts: whether to begin again with twice the population where pycma finds that it has converged.
        start: center: at the best point that was told before, else at the run's center, with the next best injected.
            middle: at 0.5 in every gene, learning from its own proposals alone; what baselines and earlier stages found
            is not looked at. That is how published searches with Optuna's CMA-ES began, EvoLLM's among them.
        diagonal: variances without covariances (separable CMA-ES): time and memory per proposal grow with the genes,
            not with their square. For thousands of genes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    popsize: int | None = Field(default=None, ge=4)
    sigma0: float = Field(default=1 / 6, gt=0.0, le=1.0)
    restarts: bool = True
    start: Literal["center", "middle"] = "center"
    diagonal: bool = False


@dataclass(frozen=True)
class Proposal:
    """A point that was asked for: its coordinates as pycma knows it, and the restart that they belong to."""

    restart: int
    genome: Genome
    point: Array


class Cma:
    """See the module docstring."""

    Options: ClassVar[type[BaseModel]] = CmaOptions

    def __init__(self, settings: Settings) -> None:
        self._options = CmaOptions.model_validate(settings.options)
        self._alone = self._options.start == "middle"
        if self._alone:
            settings = replace(settings, center=None)
        self._settings = settings
        self._coordinates = Coordinates(settings.box)
        self._scorer = Scorer(settings)
        self._asked: dict[int, Proposal] = {}
        self._restart = 0
        self._strategy: Any = None
        self._queue: list[Array] = []
        self._generation: list[tuple[Array, Score]] = []
        self._inject: list[Genome] = []
        self._better: Genome | None = None  # found elsewhere since this strategy began

    def ask(self, id: int, pending: Sequence[Trial]) -> Genome:
        """See :class:`search.optimizers.contract.Optimizer`."""
        with _quiet():
            if self._strategy is None:
                self._begin(None)
            point = self._queue.pop(0) if self._queue else self._strategy.ask(1)[0]
        proposed = self._coordinates.genome(point)
        self._asked[id] = Proposal(self._restart, proposed, point)
        return proposed

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """See :class:`search.optimizers.contract.Optimizer`."""
        proposal = self._asked.pop(trial.id, None)
        if self._alone and proposal is None:
            return
        score, best = self._scorer.hear(trial, outcome)
        own = proposal is not None and proposal.restart == self._restart and proposal.genome == trial.genome
        if own and proposal is not None:
            self._generation.append((proposal.point, score))
            if len(self._generation) >= self._strategy.popsize:
                self._learn()
        elif best and self._strategy is not None:
            self._better = trial.genome

    def _learn(self) -> None:
        """Update the distribution with a full generation, and begin again where it has converged."""
        points = [point for point, _ in self._generation]
        values = self._scorer.values([score for _, score in self._generation])
        self._generation, self._queue = [], []
        with _quiet():
            self._strategy.tell(points, values.tolist())
            if self._options.restarts and self._strategy.stop():
                self._restart += 1
                self._begin(min(LARGEST_POPULATION, 2 * self._strategy.popsize))
            else:
                self._draw()

    def _begin(self, popsize: int | None) -> None:
        """A new strategy at the best point known, else at the run's center."""
        self._better = None
        strategy = self._new(self._scorer.start, popsize or self._options.popsize)
        self._strategy = strategy
        if self._restart == 0:
            self._inject = [each for _, each in self._scorer.elites[1:]]
        self._draw()

    def _new(self, start: Genome, popsize: int | None) -> Any:
        cma = _pycma()
        random = generator(self._settings.seed, self._restart)
        coordinates = self._coordinates
        options: dict[str, Any] = {
            "bounds": [coordinates.low.tolist(), coordinates.high.tolist()],
            "CMA_stds": coordinates.scale.tolist(),
            "integer_variables": list(coordinates.integers),
            # Step sizes without mirrored pairs: pairs would have to be told together, in order.
            "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
            "randn": lambda *shape: random.standard_normal(shape),
            "seed": np.nan,
            "maxiter": np.inf,
            "verbose": -10,
            "verb_log": 0,
            "verb_disp": 0,
            "signals_filename": None,
        }
        if popsize is not None:
            options["popsize"] = popsize
        if self._options.diagonal:
            options["CMA_diagonal"] = True
        strategy = cma.CMAEvolutionStrategy(coordinates.point(start), self._options.sigma0, options)
        if coordinates.integers:
            strategy.integer_centering = PrivateCentering(strategy.integer_centering, random)
        return strategy

    def _draw(self) -> None:
        """The points of the next generation; at most a third of them in the direction of injected ones. A better point
        that was found elsewhere goes on drawing the distribution until it is surpassed."""
        strategy = self._strategy
        if self._better is not None and self._scorer.elites[0][1] == self._better:
            self._inject.insert(0, self._better)
        count = max(1, strategy.popsize // 3)
        strategy.inject(
            [
                strategy.gp.geno(self._coordinates.point(each), from_bounds=strategy.boundary_handler.inverse)
                for each in self._inject[:count]
            ]
        )
        self._inject = self._inject[count:]
        self._queue = list(strategy.ask())


class Coordinates:
    """A box as pycma sees it: coefficients in [0, 1], then one integer for each category that has a choice.

    Attributes:
        low: [N] lower bounds.
        high: [N] upper bounds.
        scale: [N] first standard deviations, in units of sigma0.
        integers: indices of the integer coordinates.
    """

    def __init__(self, box: Box) -> None:
        self._box = box
        self._free = [index for index, count in enumerate(box.categories) if count > 1]
        choices = np.asarray([box.categories[index] for index in self._free], dtype=np.float64)
        idle = max(0, 2 - box.continuous - len(choices))  # pycma starts at two dimensions; these have no effect
        self.integers = range(box.continuous, box.continuous + len(choices))
        self.low = np.concatenate([np.zeros(box.continuous), np.full(len(choices), -0.5), np.zeros(idle)])
        self.high = np.concatenate([np.ones(box.continuous), choices - 0.5, np.ones(idle)])
        self.scale = np.concatenate([np.ones(box.continuous), 1.5 * choices, np.ones(idle)])

    def point(self, genome: Genome) -> Array:
        """[N] coordinates of a genome."""
        idle = np.full(len(self.low) - self._box.continuous - len(self._free), 0.5)
        return np.concatenate([genome.values, [genome.categories[index] for index in self._free], idle]).astype(float)

    def genome(self, point: Array) -> Genome:
        """The genome at coordinates [N]."""
        categories = np.zeros(len(self._box.categories), dtype=np.int64)
        chosen = np.rint(point[self.integers.start : self.integers.stop])
        limits = np.asarray([self._box.categories[index] - 1 for index in self._free])
        categories[self._free] = np.clip(chosen, 0, limits).astype(np.int64)
        return genome(np.asarray(point[: self._box.continuous], dtype=np.float64), categories)


class PrivateCentering:
    """pycma's integer centering on random numbers of its own: it draws from numpy's global generator, which is lent a
    private state for the call and gets its own back."""

    def __init__(self, centering: Any, random: np.random.Generator) -> None:
        self._centering = centering
        self._state = np.random.RandomState(random.integers(2**32)).get_state()

    def __call__(self, solutions: Any, mean: Any) -> Any:
        """Center solutions in place; see ``cma.integer_centering``."""
        theirs = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._state)  # noqa: NPY002
        try:
            return self._centering(solutions, mean)
        finally:
            self._state = np.random.get_state()  # noqa: NPY002
            np.random.set_state(theirs)  # noqa: NPY002


def _pycma() -> Any:
    with _quiet():  # it warns where matplotlib is not installed
        import cma
    return cma


@contextmanager
def _quiet() -> Iterator[None]:
    """pycma warns about what is expected here: points that are told late, injected ones, equal values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
