"""The front of what was told so far, kept from one candidate to the next."""

from __future__ import annotations

from collections.abc import Sequence

from search import pareto
from search.optimizers.contract import Outcome


class GrowingFront:
    """Non-dominated points, and their hypervolume.

    Args:
        reference: [objectives] the hypervolume's reference point, in utilities.

    Attributes:
        points: [n][objectives] utilities, each once.
        hypervolume: of them; 0 without any.
    """

    def __init__(self, reference: Sequence[float]) -> None:
        self._reference = tuple(reference)
        self.points: list[tuple[float, ...]] = []
        self.hypervolume = 0.0

    def add(self, outcome: Outcome) -> None:
        """One more candidate; only one that is complete and feasible can change anything."""
        if outcome.state != "complete" or not outcome.feasible or outcome.utilities in self.points:
            return
        points = [*self.points, outcome.utilities]
        keep = pareto.nondominated(points)
        if keep[-1]:
            self.points = [point for point, kept in zip(points, keep, strict=True) if kept]
            self.hypervolume = pareto.hypervolume(self.points, self._reference)

    def __len__(self) -> int:
        return len(self.points)
