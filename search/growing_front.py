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
    """A front that knows whose its points are. Of equal points all stay, as they do where people are shown a front.

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

    def add(self, id: int, utilities: Sequence[float]) -> bool:
        """One more point.

        Returns:
            Whether the front is another one now: neither dominated by what is there, nor equal to it.
        """
        point = np.asarray(utilities, dtype=np.float64)
        no_worse, better = (self.points >= point).all(axis=1), (self.points > point).any(axis=1)
        if (no_worse & better).any():
            return False
        beaten = (point >= self.points).all(axis=1) & (point > self.points).any(axis=1)
        kept = np.flatnonzero(np.logical_not(beaten)).tolist()
        self.ids = [*(self.ids[place] for place in kept), id]
        self.points = np.vstack([self.points[kept], point])
        return not no_worse.any()

    def snapshot(self) -> Front:
        """As it stands, each point once."""
        return Front(tuple(dict.fromkeys(map(tuple, self.points.tolist()))), self._reference)
