"""The front of what was told so far, kept from one candidate to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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
