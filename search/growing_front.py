"""The front of what was told so far, kept from one candidate to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from search import pareto
from search.optimizers.contract import Outcome


@dataclass(frozen=True, eq=False)
class Front:
    """Non-dominated points as they were after some candidate.

    Attributes:
        points: [n][objectives] utilities, each once.
        reference: [objectives] the hypervolume's reference point, in utilities.
    """

    points: tuple[tuple[float, ...], ...]
    reference: tuple[float, ...]

    @cached_property
    def hypervolume(self) -> float:
        """Of the points; 0 without any. With many objectives it takes seconds: computed when somebody asks."""
        return pareto.hypervolume(self.points, self.reference)


class GrowingFront:
    """The front so far.

    Args:
        reference: [objectives] the hypervolume's reference point, in utilities.

    Attributes:
        now: as it stands; another one as soon as it changes.
    """

    def __init__(self, reference: Sequence[float]) -> None:
        self.now = Front((), tuple(reference))

    @property
    def hypervolume(self) -> float:
        """Of the front as it stands."""
        return self.now.hypervolume

    def add(self, outcome: Outcome) -> None:
        """One more candidate; only one that is complete and feasible can change anything."""
        known = self.now.points
        if outcome.state != "complete" or not outcome.feasible or outcome.utilities in known:
            return
        points = (*known, outcome.utilities)
        keep = pareto.nondominated(points)
        if keep[-1]:
            kept = tuple(point for point, kept in zip(points, keep, strict=True) if kept)
            self.now = Front(kept, self.now.reference)

    def __len__(self) -> int:
        return len(self.now.points)


class NumberedFront:
    """A front that knows whose its points are, and what it was. Of equal points all stay, as where people see a front.

    Args:
        reference: [objectives] the hypervolume's reference point, in utilities.

    Attributes:
        ids: of those on it, in the order in which they came.
        points: [front, objectives] utilities, in the order of the ids.
    """

    def __init__(self, reference: Sequence[float]) -> None:
        self.ids: list[int] = []
        self.points: npt.NDArray[np.float64] = np.empty((0, len(reference)))
        self._reference = tuple(reference)
        self._entered: list[tuple[float, ...]] = []
        self._volumes: dict[int, float] = {}

    def add(self, id: int, utilities: Sequence[float]) -> bool:
        """One more point.

        Returns:
            Whether the front is another one now: the point is neither dominated by what is there, nor equal to it.
        """
        point = np.asarray(utilities, dtype=np.float64)
        no_worse = (self.points >= point).all(axis=1)
        if (self.points[no_worse] > point).any():
            return False
        stay = (self.points > point).any(axis=1) | no_worse
        if not stay.all():
            kept = np.flatnonzero(stay).tolist()
            self.ids, self.points = [self.ids[place] for place in kept], self.points[kept]
        self.ids.append(id)
        self.points = np.vstack([self.points, point])
        if no_worse.any():
            return False
        self._entered.append(tuple(utilities))
        return True

    def hypervolume(self, changes: int) -> float:
        """Of the front as it was after so many changes; with many objectives it takes seconds.

        Args:
            changes: how often :meth:`add` had said that it was another one.
        """
        if changes not in self._volumes:
            points = np.array(self._entered[:changes]).reshape(changes, len(self._reference))
            self._volumes[changes] = pareto.hypervolume(points[pareto.nondominated(points)], self._reference)
        return self._volumes[changes]
