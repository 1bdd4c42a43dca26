"""How the search got better: the front's hypervolume and the best of every objective, candidate by candidate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search import pareto
from search.report.facts import Facts, better
from search.report.history import Step

Array = npt.NDArray[np.float64]

EXACT = {1: math.inf, 2: math.inf, 3: math.inf, 4: 1000, 5: 300}
"""Objectives -> candidates for which every hypervolume on the way is computed exactly. With more it would take minutes
to hours: 200 points with 8 objectives are half a minute, once."""
POINTS = 1 << 16
"""Random points of the unit box by which a hypervolume is estimated: 95 % of estimates are within 0.004."""


@dataclass(frozen=True)
class Progress:
    """The candidates after which something was better than ever, and the last one, in the order of telling.

    Attributes:
        steps: [m] when each was told.
        hypervolume: [m] of the front of all feasible candidates up to that one, in utilities.
        best: [m][objectives] number of the feasible candidate with the best value so far.
        exact: whether the hypervolumes are; else they are estimated from :data:`POINTS` points.
    """

    steps: list[Step]
    hypervolume: list[float]
    best: list[tuple[int, ...]]
    exact: bool = True

    @property
    def ids(self) -> list[int]:
        """[m] candidate numbers."""
        return [each.candidate for each in self.steps]


def progress(facts: Facts) -> Progress:
    """Follow the front through the candidates.

    Only what enters the front changes the hypervolume, so it is looked at once per entry and not once per candidate.

    Raises:
        SearchError: the log is damaged.
    """
    results = facts.results
    scores, objectives = results.scores["search"], len(facts.targets)
    known = set(facts.scored)
    told = [each for each in facts.history.steps if each.candidate in known]
    utilities = results.judge.utilities(scores, [each.candidate for each in told])
    exact = len(told) <= EXACT.get(objectives, 0)
    volume: _Exact | _Estimated = _Exact(results.objectives.reference) if exact else _Estimated(objectives)
    found = Progress([], [], [], exact)
    best: tuple[int, ...] = ()
    for step, point in _feasible(facts, told, utilities):
        id = step.candidate
        leaders = tuple(
            id if better(target, scores[id][target.name][0], scores[leader][target.name][0]) else leader
            for target, leader in zip(facts.targets, best or (id,) * objectives, strict=True)
        )
        entered = volume.add(point)
        if entered or leaders != best:
            best = leaders
            found.steps.append(step)
            found.hypervolume.append(volume.value)
            found.best.append(best)
    if told and found.steps and found.steps[-1] is not told[-1]:
        found.steps.append(told[-1])
        found.hypervolume.append(found.hypervolume[-1])
        found.best.append(best)
    return found


def _feasible(facts: Facts, told: Sequence[Step], utilities: Array) -> Iterator[tuple[Step, Array]]:
    for step, point in zip(told, utilities, strict=True):
        if facts.results.judge.violation(step.candidate, "search") <= 0.0:
            yield step, point


class _Exact:
    """A growing front and its hypervolume.

    Args:
        reference: [objectives] in utilities.
    """

    def __init__(self, reference: Sequence[float]) -> None:
        self._reference = reference
        self._front: Array = np.empty((0, len(reference)))
        self.value = 0.0

    def add(self, point: Array) -> bool:
        """One more point [objectives]; whether it entered the front."""
        if (self._front >= point).all(axis=1).any():
            return False
        self._front = np.vstack([self._front[~(point >= self._front).all(axis=1)], point])
        self.value = pareto.hypervolume(self._front, self._reference)
        return True


class _Estimated:
    """The same by counting: the share of random points of the unit box that some point dominates.

    The points are the same for every run, so that an estimate is never smaller after one more candidate.

    Args:
        objectives: how many.
    """

    def __init__(self, objectives: int) -> None:
        self._front: Array = np.empty((0, objectives))
        self._left = np.random.default_rng(0).random((POINTS, objectives))

    @property
    def value(self) -> float:
        """The estimate."""
        return 1.0 - len(self._left) / POINTS

    def add(self, point: Array) -> bool:
        """One more point [objectives]; whether it entered the front."""
        if (self._front >= point).all(axis=1).any():
            return False
        self._front = np.vstack([self._front[~(point >= self._front).all(axis=1)], point])
        self._left = self._left[(self._left > point).any(axis=1)]
        return True
