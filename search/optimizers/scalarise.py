"""One number per outcome, for optimizers that know only one objective: shared by ``cma`` and ``catcma``.

Several utilities become one by the augmented Tchebycheff function (:func:`search.pareto.tchebycheff`) with the run's
weights, between the best utilities seen so far and the run's reference point. Only the ranking within a generation is
read, so a scale that moves does no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from search import pareto
from search.optimizers.contract import Genome, Outcome, Settings, Trial
from search.optimizers.outcomes import Array, utilities, violation

ELITES = 16


class Score(NamedTuple):
    """What ranks an outcome. Classes, best first: 0 complete, 1 breaks a constraint, 2 censored, 3 failed.

    Attributes:
        rank: the class.
        violation: total violation, which sorts class 1.
        utilities: [objectives], which sort classes 0 and 2; empty when failed.
    """

    rank: int
    violation: float = 0.0
    utilities: tuple[float, ...] = ()


class Scorer:
    """Scores of what was told, and the best genomes so far.

    Attributes:
        elites: (score, genome), best first, complete or infeasible ones, no genome twice.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ideal = np.full(settings.objectives, -np.inf)
        self._censored: set[int] = set()
        self.elites: list[tuple[Score, Genome]] = []

    @property
    def start(self) -> Genome:
        """Where a strategy begins: the best point known, else the run's center, else the middle."""
        if self.elites:
            return self.elites[0][1]
        if self._settings.center is not None:
            return self._settings.center
        box = self._settings.box
        return Genome((0.5,) * box.continuous, tuple((count - 1) // 2 for count in box.categories))

    def hear(self, trial: Trial, outcome: Outcome) -> tuple[Score, bool]:
        """The score of an outcome, and whether its genome is now the best of all.

        Raises:
            OptimizerError: another number of utilities than objectives.
        """
        score = self.score(trial.id, outcome)
        if score.rank == 0:
            self._ideal = np.maximum(self._ideal, score.utilities)
        return score, self._remember(score, trial.genome)

    def score(self, id: int, outcome: Outcome) -> Score:
        """The score of an outcome; a duplicate of a censored trial is censored too."""
        found = utilities(outcome, self._settings.objectives)
        if found is None:
            return Score(3)
        values = tuple(found.tolist())
        if outcome.state == "censored" or outcome.of in self._censored:
            self._censored.add(id)
            return Score(2, 0.0, values)
        broken = violation(outcome)
        return Score(int(broken > 0.0), broken, values)

    def values(self, scores: Sequence[Score]) -> Array:
        """[n] numbers to minimise, in the order of the scores: the scalarised utilities of the complete ones, and
        beyond their worst one step per rank."""
        keys = list(zip(*self._keys(scores), strict=True))
        good = [key[2] for key in keys if key[0] == 0]
        worst, step = (max(good), max(1e-3, max(good) - min(good))) if good else (0.0, 1.0)
        places = {key: place for place, key in enumerate(sorted({key for key in keys if key[0] > 0}), start=1)}
        return np.asarray([worst + step * places[key] if key in places else key[2] for key in keys])

    def _remember(self, score: Score, genome: Genome) -> bool:
        """Keep the best ones; True if this is now the best of all."""
        if score.rank > 1:
            return False
        self.elites = [each for each in self.elites if each[1] != genome] + [(score, genome)]
        order = np.argsort(self.values([each for each, _ in self.elites]), kind="stable")[:ELITES]
        newest = len(self.elites) - 1
        self.elites = [self.elites[index] for index in order]
        return int(order[0]) == newest

    def _keys(self, scores: Sequence[Score]) -> tuple[list[int], list[float], list[float]]:
        """Sort keys, smaller is better: class, violation, scalarised utilities."""
        scalar = np.zeros(len(scores))
        known = [index for index, score in enumerate(scores) if score.rank < 3]
        if known:
            scalar[known] = self._scalarise(np.asarray([scores[index].utilities for index in known]))
        return [score.rank for score in scores], [score.violation for score in scores], scalar.tolist()

    def _scalarise(self, points: Array) -> Array:
        """[n, objectives] utilities to [n] numbers to minimise."""
        if self._settings.objectives == 1:
            return -points[:, 0]
        # Nothing complete and feasible so far: these are only ranked among themselves.
        ideal = np.where(np.isfinite(self._ideal), self._ideal, points.max(axis=0))
        reference = np.asarray(self._settings.reference, dtype=np.float64)
        nadir = np.where(ideal > reference, reference, ideal - 1.0)
        return pareto.tchebycheff(points, ideal, nadir, self._settings.weights)
