"""Where a search stands: what is known of each candidate, whose turn it is, what was spent. All of it is in the log."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from evaluators.contract import ItemScores
from merging.recipe import Recipe
from search.budget import Progress
from search.events import (
    Asked,
    BudgetSpent,
    EvaluationStarted,
    Event,
    Failed,
    Resumed,
    RungReached,
    Scored,
    Settled,
    StageBegun,
    Told,
)
from search.objectives import Objectives
from search.optimizers.contract import Outcome
from search.patience import Patience
from search.proposals import Known, Proposals
from search.racing import Racer
from search.workers.evaluation import Evaluation

FAILURES_IN_A_ROW = 20
"""So many failed candidates one after the other mean that the setup is wrong, not the candidates."""

ItemReader = Callable[[int], Mapping[str, ItemScores]]


@dataclass(frozen=True)
class Schedule:
    """When candidates are proposed and told: see :mod:`search.loop`.

    Attributes:
        kind: "strict" or "steady".
        window: of a strict schedule; a steady one is as wide as its pool.
    """

    kind: Literal["strict", "steady"] = "strict"
    window: int = 1


@dataclass
class Record:
    """A candidate.

    Attributes:
        known: its number, stage and genome.
        recipe_hash: what it is recognised by.
        parts: what its rungs have given so far.
        rung: the next one.
        starts: of the task that is next, or under way, as far as they are logged.
        again: whether its next start is one more of the same task, and is logged.
        recipe: while it is under way.
        settled: what became of it, once that is known.
        scores: of a settled one that was not told yet.
        busy: seconds that workers spent on it.
    """

    known: Known
    recipe_hash: str
    parts: list[Evaluation] = field(default_factory=list)
    rung: int = 0
    starts: int = 1
    again: bool = False
    recipe: Recipe | None = None
    settled: Outcome | None = None
    scores: Mapping[str, ItemScores] = field(default_factory=dict)
    busy: float = 0.0


class Standing:
    """The state of a search between two events, brought up to date by each of them.

    Args:
        schedule: who may be proposed and told when.
        proposals: hear of logged asks and tells.
        racer: hears who entered, left and was admitted; None where every item is scored at once.
        objectives: from metrics to utilities.
        patience: learns how long tasks take.
        last_stage: index of the open-ended one.

    Attributes:
        records: by id.
        untold: those that were asked and not told, in the order of asking.
        next: the id of the next candidate.
        progress: what was spent.
        failures: reasons of the latest candidates, as long as they failed in a row.
        ended: the limit that ended the search, until it is raised.
    """

    def __init__(
        self,
        schedule: Schedule,
        proposals: Proposals,
        racer: Racer | None,
        objectives: Objectives,
        patience: Patience,
        last_stage: int,
    ) -> None:
        self.schedule = schedule
        self.records: dict[int, Record] = {}
        self.untold: dict[int, Record] = {}
        self.next = 0
        self.progress = Progress(objectives.reference, last_stage)
        self.failures: deque[str] = deque(maxlen=FAILURES_IN_A_ROW)
        self.ended: BudgetSpent | None = None
        self._proposals = proposals
        self._racer = racer
        self._objectives = objectives
        self._patience = patience
        self._first_with: dict[str, int] = {}

    @property
    def pending(self) -> list[Known]:
        """Asked and not told yet."""
        return [record.known for record in self.untold.values()]

    def first_with(self, recipe_hash: str) -> int:
        """The candidate that had this recipe first."""
        return self._first_with[recipe_hash]

    def next_may_be_asked(self) -> bool:
        """Whether all were told that the next candidate has to wait for."""
        first = next(iter(self.untold), self.next)
        return self.schedule.kind == "steady" or first > self.next - self.schedule.window

    def may_be_told(self, id: int) -> bool:
        """Whether it is this candidate's turn, once it is settled."""
        if self.schedule.kind == "steady":
            return True
        first = next(iter(self.untold)) == id
        return first and (self.ended is not None or self.next >= id + self.schedule.window)

    def remember(self, known: Known, recipe_hash: str) -> Record:
        """A candidate was asked for."""
        record = self.records[known.id] = self.untold[known.id] = Record(known, recipe_hash)
        self._first_with.setdefault(recipe_hash, known.id)
        while self.next in self.records:
            self.next += 1
        if self._racer is not None:
            self._racer.enter(known.id)
        return record

    def conclude(self, told: Told, scores: Mapping[str, ItemScores]) -> None:
        """A candidate was told.

        Args:
            told: the event.
            scores: all its item scores on the search split; read where it is complete and feasible, with a racer.
        """
        outcome, record = told.outcome, self.untold.pop(told.candidate)
        record.settled, record.scores, record.parts, record.recipe = outcome, {}, [], None
        self.progress.note(told)
        if outcome.state == "failed":
            self.failures.append(outcome.reason)
        else:
            self.failures.clear()
        if self._racer is not None:
            self._racer.release(told.candidate)
            if outcome.state == "complete" and outcome.feasible:
                self._racer.admit(told.candidate, scores)

    def recall(self, events: Iterator[Event], read: ItemReader) -> None:
        """Read the log.

        Args:
            events: all of them, in order.
            read: the stored item scores of a candidate on the search split.
        """
        for event in events:
            self._recall(event, read)
        for id, record in self.untold.items():
            if record.settled is not None:
                record.scores = read(id)
            elif record.parts:
                record.parts = [replace(record.parts[0], scores=dict(read(id)))]

    def excuse(self) -> None:
        """The last process ended by itself: its starts of what was under way are no sign against that."""
        for record in self.untold.values():
            if record.settled is None:
                record.starts = max(0, record.starts - 1)

    def _recall(self, event: Event, read: ItemReader) -> None:
        match event:
            case StageBegun():
                self._proposals.recall_begun(event.stage, event.seconds, event.heard)
            case Asked():
                self.ended = None
                known = Known(event.candidate, event.stage, event.genome)
                self._proposals.recall_asked(known, self.pending, event.memo)
                self.remember(known, event.recipe_hash)
            case EvaluationStarted(split="search"):
                self.records[event.candidate].starts += 1
            case RungReached():
                self._recall_rung(event)
            case Scored(split="search"):
                seconds = sum(event.seconds.values())
                self._proposals.note_cost(seconds)
                self._patience.observe(seconds)
                self.records[event.candidate].busy = seconds
            case Failed(split="search"):
                self.records[event.candidate].busy += sum(event.seconds.values())
            case Settled():
                self.records[event.candidate].settled = event.outcome
            case Resumed(let_go=True):
                self.excuse()
            case BudgetSpent():
                self.ended = event
            case Told():
                wanted = self._racer is not None and event.outcome.state == "complete"
                self.conclude(event, read(event.candidate) if wanted else {})
                self._proposals.recall_told(self.records[event.candidate].known, event.outcome)
            case _:
                pass

    def _recall_rung(self, event: RungReached) -> None:
        """A logged rung: what the racer decided, and where the candidate goes on if it is not settled yet."""
        if self._racer is None:
            return
        record = self.records[event.candidate]
        record.rung, record.starts, record.busy = event.rung + 1, 0, sum(event.seconds.values())
        record.parts = [Evaluation(event.values, {}, {}, event.seconds)]
        self._racer.recall(event.candidate, event.rung, self._objectives.utilities(event.values), event.opponent)
