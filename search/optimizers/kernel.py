"""One CatCMA-with-margin distribution over a box: a Gaussian for the coefficients, and a table of probabilities for
each category. What ``catcma`` and ``como_catcma`` share; the mathematics are those of the library cmaes.

Hamano et al., "CatCMA with Margin: stochastic optimization for continuous, integer, and categorical variables",
GECCO 2025, arXiv:2504.07884. Injected points: Hansen, arXiv:1110.4181.

Drawing changes nothing: a draw is decided by the distribution and its own seed. So the state depends on
:meth:`Kernel.learn` alone, and what was asked for and never told leaves no trace.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from search.optimizers.contract import Box, Genome, Settings
from search.optimizers.outcomes import Array, generator, genome

FINEST_STEP = 1e-4
"""Standard deviation of a gene, in units of its range, below which no merge can be told from its neighbour."""


KEPT = 0.25
"""Of the start's choices, where nobody says more."""


def kept_choices(settings: Settings, given: float | None) -> list[float]:
    """[categories] what of its probability the start's own choice has beside its uniform share.

    Args:
        settings: may say how sure the start's choices are in all.
        given: by the user; wins.
    """
    if given is not None or settings.sure is None:
        return [KEPT if given is None else given] * len(settings.box.categories)
    return [
        max(0.0, (settings.sure - 1.0 / count) / (1.0 - 1.0 / count)) if count > 1 else 0.0
        for count in settings.box.categories
    ]


class Kernel:
    """A distribution over genomes.

    Attributes:
        popsize: so many solutions make a generation.
    """

    def __init__(
        self, box: Box, start: Genome, sigma0: float, kept: float | Sequence[float], popsize: int | None = None
    ) -> None:
        """A round distribution around a genome.

        Args:
            box: the space.
            start: the mean.
            sigma0: standard deviation of every coefficient, > 0.
            kept: probability of the start's own choices in [0, 1), beside a uniform share of the rest; of all
                categories or of each.
            popsize: as :attr:`popsize`; cmaes' own, about 4 + 3 ln n, if None.
        """
        from cmaes import CatCMAwM

        self._box = box
        self._free = [index for index, count in enumerate(box.categories) if count > 1]
        self._counts = np.asarray([box.categories[index] for index in self._free], dtype=np.int64)
        values = list(start.values)
        if not values and not self._free:
            values = [0.5]  # cmaes starts at one dimension; this one has no effect
        mean = np.asarray(values, dtype=np.float64)
        self._best: list[float] = []
        self._strategy: Any = CatCMAwM(
            x_space=np.asarray([[0.0, 1.0]] * len(mean)) if len(mean) else None,
            c_space=self._counts.tolist() or None,
            population_size=popsize,
            mean=mean,
            sigma=sigma0,
            cov=np.eye(len(mean)),
            cat_param=self._table(start, kept) if self._free else None,
            seed=0,
        )
        self.popsize = int(self._strategy.population_size)

    def draw(self, seed: int, *path: int) -> Any:
        """A solution, decided by the distribution and the seed's path."""
        self._strategy.reseed_rng(int(generator(seed, *path).integers(2**32)))
        return self._strategy.ask()

    def genome(self, solution: Any) -> Genome:
        """What a solution means."""
        values = np.zeros(0) if solution.x is None else solution.x[: self._box.continuous]
        return self._genome(values, solution.c)

    def incumbent(self) -> Genome:
        """The mean, and each category's most probable choice."""
        strategy = self._strategy
        mean = strategy._mean[: self._box.continuous] if strategy._use_gaussian else np.zeros(0)
        return self._genome(mean, strategy._q if strategy._use_categorical else None)

    def solution(self, genome: Genome) -> Any:
        """A genome as if it had been drawn here; a step that is too long to be from this distribution is shortened."""
        strategy = self._strategy
        kind = type(strategy)
        chosen = None
        if self._free:
            chosen = np.zeros((len(self._free), int(self._counts.max())), dtype=bool)
            chosen[np.arange(len(self._free)), [genome.categories[index] for index in self._free]] = True
        if not strategy._use_gaussian:
            return kind.Solution(None, None, chosen, None)
        step = np.zeros(strategy._Nmi)
        step[: self._box.continuous] = genome.values - strategy._mean[: self._box.continuous]
        axes, deviations = strategy._eigen_decomposition()
        length = float(np.linalg.norm((axes.T @ step) / (strategy._sigma * np.maximum(deviations, 1e-300))))
        n = strategy._Nmi
        longest = math.sqrt(n) + 2.0 * math.sqrt(n) / (n + 2.0)
        point = strategy._mean + step * min(1.0, longest / max(length, 1e-300))
        return kind.Solution(point, None, chosen, point)

    def learn(self, solutions: Sequence[Any], values: Array) -> None:
        """Move the distribution.

        Args:
            solutions: :attr:`popsize` of them, from whichever state of this kernel.
            values: [popsize] smaller is better. Only their order is used: cmaes scales the penalty on coefficients
                beyond the bounds by the values' spread, and has none where all are equal.
        """
        places = np.empty(len(solutions))
        places[np.argsort(values, kind="stable")] = np.arange(len(solutions))
        self._best = [*self._best, float(np.min(values))][-self._patience :]
        if float(np.ptp(values)) > 0.0:  # nothing is learnt from equals
            with np.errstate(all="ignore"):
                self._strategy.tell(list(zip(solutions, places.tolist(), strict=True)))

    @property
    def _patience(self) -> int:
        """Generations without any change after which it has converged, as in CMA-ES."""
        return 10 + math.ceil(30 * (self._box.continuous + len(self._free)) / self.popsize)

    @property
    def broken(self) -> bool:
        """True when the numbers have run away; there is nothing to draw from."""
        strategy = self._strategy
        numbers = [strategy._mean, strategy._C, strategy._sigma] if strategy._use_gaussian else []
        if strategy._use_categorical:
            numbers += [strategy._q, strategy._Delta]
        return not all(np.isfinite(each).all() for each in numbers)

    @property
    def converged(self) -> bool:
        """True when values stand still, or no step that is left can matter."""
        if len(self._best) >= self._patience and max(self._best) == min(self._best):
            return True
        strategy = self._strategy
        if strategy._use_gaussian and strategy._sigma * math.sqrt(np.diag(strategy._C).max()) >= FINEST_STEP:
            return False
        if not strategy._use_categorical:
            return True
        margin = strategy._qmin * (self._counts - 1)  # which no category's other choices can fall below
        return bool((strategy._q.max(axis=1) >= 1.0 - 1.01 * margin).all())

    def _table(self, start: Genome, kept: float | Sequence[float]) -> Array:
        """[categories, most choices] probabilities at the start, padded with zeros."""
        table = np.zeros((len(self._free), int(self._counts.max())))
        shares = np.broadcast_to(np.asarray(kept, dtype=np.float64), len(self._box.categories))
        for row, index in enumerate(self._free):
            table[row, : self._counts[row]] = (1.0 - shares[index]) / self._counts[row]
            table[row, start.categories[index]] += shares[index]
        return table

    def _genome(self, values: Array, table: Array | None) -> Genome:
        categories = np.zeros(len(self._box.categories), dtype=np.int64)
        if table is not None:
            categories[self._free] = np.argmax(table, axis=1)
        return genome(np.asarray(values, dtype=np.float64), categories)
