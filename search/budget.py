"""When a search ends: what was spent so far, and which limit was reached first.

Everything is read from the log's tells, so that a resumed search has spent what it had spent, and a clock that was set
meanwhile counts for nothing: hours are sums of durations, never differences of dates.
"""

from __future__ import annotations

from collections.abc import Sequence

from search.events import BudgetSpent, Told
from search.growing_front import Front, GrowingFront
from search.schema import Budget, PlateauConfig


class Progress:
    """What a search has spent, and how its hypervolume grew.

    Args:
        reference: [objectives] the hypervolume's reference point, in utilities.
        last_stage: index of the stage in which a plateau counts: earlier ones lead on to the next instead.

    Attributes:
        candidates: told so far.
        items: scored so far, on the search split; shared scores of equal recipes count once.
    """

    def __init__(self, reference: Sequence[float], last_stage: int) -> None:
        self._last_stage = last_stage
        self._front = GrowingFront(reference)
        self._grown: list[Front] = []
        self.candidates = 0
        self.items = 0
        self._seconds = 0.0
        self._gpu_seconds = 0.0

    @property
    def hours(self) -> float:
        """Of searching, over all starts."""
        return self._seconds / 3600.0

    @property
    def gpu_hours(self) -> float:
        """That workers kept GPUs busy for."""
        return self._gpu_seconds / 3600.0

    def note(self, told: Told) -> None:
        """One more candidate was told."""
        outcome = told.outcome
        self.candidates += 1
        self._seconds += told.elapsed
        self._gpu_seconds += told.busy * told.gpus
        if outcome.state != "duplicate":
            self.items += outcome.items
        self._front.add(outcome)
        if told.stage == self._last_stage:
            self._grown.append(self._front.now)

    def reached(self, budget: Budget, reserve: float) -> BudgetSpent | None:
        """The first limit that is reached, or None.

        Args:
            budget: as it is now.
            reserve: share of ``budget.items`` that is kept for the finals.
        """
        if self.candidates >= budget.candidates:
            return BudgetSpent("candidates", f"{self.candidates} candidates")
        if budget.items is not None and self.items >= round(budget.items * (1.0 - reserve)):
            return BudgetSpent("items", f"{self.items} items of {budget.items}, the rest is for the finalists")
        if budget.hours is not None and self.hours >= budget.hours:
            return BudgetSpent("hours", f"{self.hours:.3g} hours")
        if budget.gpu_hours is not None and self.gpu_hours >= budget.gpu_hours:
            return BudgetSpent("gpu_hours", f"{self.gpu_hours:.3g} GPU-hours")
        if budget.plateau is not None and self._is_flat(budget.plateau):
            return BudgetSpent(
                "plateau",
                f"the hypervolume grew by less than {budget.plateau.gain:.3g} of {self._front.hypervolume:.4g} over "
                f"{budget.plateau.candidates} candidates",
            )
        return None

    def _is_flat(self, plateau: PlateauConfig) -> bool:
        """Against what the hypervolume was so many candidates ago."""
        if len(self._grown) <= plateau.candidates:
            return False
        before, now = self._grown[-1 - plateau.candidates], self._grown[-1]
        return before is now or now.hypervolume <= before.hypervolume * (1.0 + plateau.gain)
