"""What candidates of a run took so far: the measurements that an estimate of the rest is made from."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluators.contract import Split
from search.events import Told

RECENT = 200
"""So many candidates at most speak for those to come: what early ones took may be long past."""


@dataclass(frozen=True)
class Cost:
    """What one candidate took that was told.

    Attributes:
        stage: that proposed it.
        start: how many times the run had been resumed then.
        worked: somebody evaluated it; False for one that repeats another's recipe.
        busy: seconds that a worker spent on it.
        overhead: seconds of proposing, telling and storing.
        elapsed: wall seconds since the one told before, as logged; 0 in logs of old.
        items: that it was scored on.
    """

    stage: int
    start: int
    worked: bool
    busy: float
    overhead: float
    elapsed: float
    items: int


class Pace:
    """Costs of the latest candidates, and sums over all of them.

    Attributes:
        recent: the latest :data:`RECENT` candidates, oldest first.
        items: scored by the search; equal recipes count once.
        seconds: of searching, over all starts.
        gpu_seconds: that workers kept GPUs busy for.
        finals: split -> seconds of each candidate that was scored on it.
        per_item: evaluating seconds an item, of the latest candidates that were scored.
        materializing: seconds before the first item, of the same.
        most_at_once: evaluations that were under way together since the run was last started.
    """

    def __init__(self) -> None:
        self.recent: deque[Cost] = deque(maxlen=RECENT)
        self.items = 0
        self.seconds = 0.0
        self.gpu_seconds = 0.0
        self.finals: dict[Split, list[float]] = {"selection": [], "holdout": []}
        self.per_item: deque[float] = deque(maxlen=RECENT)
        self.materializing: deque[float] = deque(maxlen=RECENT)
        self.most_at_once = 0
        self.start = 0

    def resume(self) -> None:
        """The run goes on, maybe with other workers."""
        self.start += 1
        self.most_at_once = 0

    def note_running(self, count: int) -> None:
        """So many evaluations are under way."""
        self.most_at_once = max(self.most_at_once, count)

    def note_scored(self, split: Split, seconds: Mapping[str, float], items: int) -> None:
        """A candidate has its scores.

        Args:
            split: on this split.
            seconds: what it took, by stage of the work.
            items: that it was scored on.
        """
        if split != "search":
            self.finals[split].append(sum(seconds.values()))
        if items > 0 and "evaluate" in seconds:
            self.per_item.append(seconds["evaluate"] / items)
            self.materializing.append(seconds.get("materialize", 0.0))

    def note_told(self, told: Told, seconds: float) -> None:
        """A candidate was told.

        Args:
            told: the event.
            seconds: that its evaluation took, for logs of old, which did not say so with the tell.
        """
        outcome = told.outcome
        worked = outcome.of is None
        items = outcome.items if outcome.state != "duplicate" else 0
        busy = (told.busy or seconds) if worked else 0.0
        self.recent.append(
            Cost(told.stage, self.start, worked, busy, sum(told.seconds.values()), told.elapsed, items)
        )  # fmt: skip
        self.items += items
        self.seconds += told.elapsed
        self.gpu_seconds += told.busy * told.gpus

    def speaking(self, stage: int) -> Sequence[Cost]:
        """The costs that speak for candidates of a stage: those of the same stage; where there are fewer than five
        that were worked on, of all stages."""
        same = [each for each in self.recent if each.stage == stage]
        return same if sum(each.worked for each in same) >= 5 else list(self.recent)

    def parallelism(self) -> float:
        """How many evaluations get done in the time of one: measured since the last start, as worker seconds per
        wall second; where that is not known yet, as many as were under way together."""
        here = [each for each in self.recent if each.start == self.start]
        busy, elapsed = sum(each.busy + each.overhead for each in here), sum(each.elapsed for each in here)
        if sum(each.worked for each in here) >= 5 and elapsed > 0.0 and busy > 0.0:
            return min(busy / elapsed, float(max(1, self.most_at_once)))
        return float(max(1, self.most_at_once))
