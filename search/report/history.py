"""What a run's log says of its course: when, how much, in which starts, with which mishaps.

Hours are those of searching: what lies between two starts of the process is left out, and so is what lies between the
end of the run and somebody's later wish for another mix.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from search.events import (
    BudgetSpent,
    Chosen,
    EvaluationStarted,
    Event,
    Failed,
    FinalistsNamed,
    Finished,
    Incident,
    Interrupted,
    Opened,
    Picked,
    Resumed,
    RungReached,
    RunStarted,
    Salvaged,
    Scored,
    Settled,
    StageBegun,
    Told,
)
from search.store import Store

_KINDS: tuple[type[Event], ...] = (
    RunStarted, StageBegun, Resumed, EvaluationStarted, RungReached, Scored, Failed, Told, Settled, Incident,
    BudgetSpent, Salvaged, FinalistsNamed, Chosen, Picked, Opened, Interrupted, Finished,
)  # fmt: skip
"""All but the proposals, which are the bulk of a log."""

_ENDS = (Interrupted, Finished)
_LATER = (Picked, Opened, EvaluationStarted)
"""What a wish for another mix begins with, days after the run's end maybe."""


@dataclass(frozen=True)
class Step:
    """A candidate was told to its optimizer.

    Attributes:
        candidate: its number.
        stage: index.
        state: of its outcome.
        hours: of searching, up to here.
        items: scored by the search up to here.
        evaluations: candidates so far that were no repetitions of another one.
    """

    candidate: int
    stage: int
    state: str
    hours: float
    items: int
    evaluations: int


@dataclass(frozen=True)
class Start:
    """A process began to work on the run.

    Attributes:
        at: unix time.
        after: candidates that had been told by then.
        hours: of searching up to then.
        budget: candidates in all, as it then was; 0 where the log does not say.
        different: candidates that this process would have proposed otherwise.
    """

    at: float
    after: int
    hours: float
    budget: int = 0
    different: int = 0


@dataclass(frozen=True)
class Rung:
    """What happened to candidates at one rung.

    Attributes:
        reached: how many got there.
        dropped: how many ended there.
        items: scored up to there, the most of any.
    """

    reached: int
    dropped: int
    items: int


@dataclass
class History:
    """The course of a run.

    Attributes:
        steps: one for every told candidate, in the order of telling.
        starts: of processes, the first one included.
        incidents: what went wrong and was mended.
        failed: evaluations that came to nothing, on any split.
        openings: (unix time, event) of every look at the holdout.
        picks: (unix time, event) of every wish for another mix.
        rungs: by index.
        spent: how the search's budget ended, or None.
        salvaged: repairs of the database.
        hours: wall hours of all processes, finals included.
        finals: wall hours from the last told candidate to the end of the finals; 0 before.
        exact: whether the log has the searching time of its own; else it is told from the times of events.
        began: unix time of the first event, and of the last.
    """

    steps: list[Step] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    openings: list[tuple[float, Opened]] = field(default_factory=list)
    picks: list[tuple[float, Picked]] = field(default_factory=list)
    rungs: dict[int, Rung] = field(default_factory=dict)
    spent: BudgetSpent | None = None
    salvaged: list[Salvaged] = field(default_factory=list)
    hours: float = 0.0
    finals: float = 0.0
    exact: bool = True
    began: tuple[float, float] = (0.0, 0.0)


def read_history(folder: Path) -> History:
    """The course of the run in a folder.

    Raises:
        SearchError: no run is there, or its log is damaged.
    """
    store = Store.open(folder, read_only=True)
    try:
        return history_of(store.timed(*_KINDS))
    finally:
        store.close()


def history_of(events: Iterable[tuple[float, Event]]) -> History:
    """The course that a log tells.

    Args:
        events: (unix time, event), oldest first.
    """
    reader = _Reader()
    for at, event in events:
        reader.take(at, event)
    return reader.done()


class _Reader:
    """Follows a log; one life is what one process did."""

    def __init__(self) -> None:
        self.history = History()
        self._told: list[tuple[float, Told]] = []  # of this life: (hours of it, event)
        self._previous: tuple[float, Event] | None = None
        self._wall = 0.0  # hours of this life
        self._searched = 0.0  # hours of searching in the lives before
        self._searching = False  # whether the last thing that was told is still the last

    def take(self, at: float, event: Event) -> None:
        """One event more."""
        history = self.history
        if self._previous is None:
            history.began = (at, at)
        history.began = (history.began[0], at)
        self._pass_time(at, event)
        match event:
            case RunStarted():
                history.starts.append(Start(at, 0, 0.0))
            case Resumed():
                self._end_life()
                after, hours = len(history.steps), self._searched
                history.starts.append(Start(at, after, hours, event.budget, len(event.different)))
            case Told():
                self._told.append((self._wall, event))
                history.finals, self._searching = 0.0, True
            case RungReached():
                known = history.rungs.get(event.rung, Rung(0, 0, 0))
                dropped = known.dropped + event.dropped
                history.rungs[event.rung] = Rung(known.reached + 1, dropped, max(known.items, event.items))
            case Incident():
                history.incidents.append(event)
            case Failed():
                history.failed.append(event)
            case Opened():
                history.openings.append((at, event))
            case Picked():
                history.picks.append((at, event))
            case BudgetSpent():
                history.spent = event
            case Salvaged():
                history.salvaged.append(event)
            case Finished():
                self._searching = False
            case _:
                pass
        self._previous = (at, event)

    def done(self) -> History:
        """What was read."""
        self._end_life()
        return self.history

    def _pass_time(self, at: float, event: Event) -> None:
        if self._previous is None:
            return
        before, last = self._previous
        paused = isinstance(event, Resumed) or (isinstance(last, _ENDS) and isinstance(event, _LATER))
        passed = 0.0 if paused else max(0.0, at - before) / 3600.0  # a clock may have been set back
        self._wall += passed
        self.history.hours += passed
        if self._searching and not isinstance(event, Told):
            self.history.finals += passed

    def _end_life(self) -> None:
        """The candidates of a life become steps: by the searching time that they were told with, where there is any."""
        logged = any(told.elapsed > 0.0 for _, told in self._told)
        if self._told and not logged:
            self.history.exact = False
        hours, began = self._searched, 0.0
        for wall, told in self._told:
            hours += told.elapsed / 3600.0 if logged else wall - began
            began = wall
            self._step(told, hours)
        self._searched = hours
        self._told, self._wall = [], 0.0

    def _step(self, told: Told, hours: float) -> None:
        last = self.history.steps[-1] if self.history.steps else Step(-1, 0, "", 0.0, 0, 0)
        repeated = told.outcome.state == "duplicate"
        self.history.steps.append(
            Step(
                candidate=told.candidate,
                stage=told.stage,
                state=told.outcome.state,
                hours=hours,
                items=last.items + (0 if repeated else told.outcome.items),
                evaluations=last.evaluations + (not repeated),
            )
        )
