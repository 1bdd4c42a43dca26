"""How far a run is: what is under way, what came of the rest, what it took. Fed event by event, so it can be followed.

``run`` feeds it with events as they happen, ``watch`` and ``status`` with those of the log; nothing here reads a file
or a clock. All of it follows from the log alone, also from logs of old, which lack some of it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from evaluators.contract import Split
from search import pareto
from search.consistency import check_started, config_of, contradicts
from search.constraints import Constraints
from search.events import (
    Asked,
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
    Resumed,
    RungReached,
    RunStarted,
    Salvaged,
    Scored,
    Settled,
    Told,
)
from search.fidelity import rung_sizes
from search.growing_front import NumberedFront
from search.objectives import Objectives
from search.pace import Pace
from search.stages import stage_names

HEARD = (
    Asked, Told, EvaluationStarted, RungReached, Scored, Failed, Settled, FinalistsNamed, Chosen, Opened, Finished,
    Resumed, Interrupted, Incident, BudgetSpent, Salvaged,
)  # fmt: skip
"""The kinds of events that a :class:`Course` has to hear, all of them in order."""

MOST_FOR_VOLUME = 5
"""Objectives up to which a front's hypervolume is quick to compute: milliseconds for hundreds of points, where seven
objectives take seconds and eight take minutes."""

REPEATED = "same recipe as a candidate that failed"
LATEST = 50
"""Failures and incidents that are kept with their details."""

Phase = Literal["search", "selection", "holdout", "finished"]
State = Literal["running", "interrupted", "finished"]


@dataclass(frozen=True)
class Running:
    """An evaluation that is under way.

    Attributes:
        candidate: its number.
        split: that it is scored on.
        rung: from 0: the one that is being climbed.
        rungs: how many there are for it; 1 where all items are scored at once.
        since: unix time, by the writer's clock.
    """

    candidate: int
    split: Split
    rung: int
    rungs: int
    since: float


@dataclass(frozen=True)
class Mishap:
    """Something that went wrong, with a candidate or beside it.

    Attributes:
        at: unix time, by the writer's clock.
        candidate: which; None where it was no candidate's.
        what: "failed", "salvaged", or one of :data:`search.workers.contract.Trouble`.
        detail: for people.
    """

    at: float
    candidate: int | None
    what: str
    detail: str


class Course:
    """See the module docstring.

    Args:
        started: the first event.
        where: what an error message names.

    Raises:
        SearchError: it is no such event.

    Attributes:
        config: as the run started with, with the number of candidates as it is now.
        objectives: the run's.
        told: candidates whose outcome is known to the optimizer.
        asked: candidates in all.
        states: outcome state -> how many; "infeasible": how many of the complete ones break a constraint.
        running: by candidate.
        waiting: candidates that repeat the recipe of one that is under way.
        infeasible: complete candidates that break a constraint.
        labels: candidate -> label, of those that have any.
        values, errors: candidate -> metric -> score on the search split, and its standard error.
        on: split -> candidate -> metric -> (value, standard error), of the finals.
        best: metric of an objective -> the candidate that is best in it, among the complete and feasible ones.
        changes: how many candidates were told at each change of the front, ascending.
        reasons: why candidates failed -> how many.
        mishaps: failures and incidents, oldest first, the latest of them.
        incidents: what -> how many.
        finalists, baselines, opened: as last named; empty before.
        chosen: None before.
        final_hypervolume: of the front, as the finish has logged it; None before.
        ended: what ended the search, as long as nothing was asked after it.
        pace: what candidates took.
        stopped: the log's last word is that somebody stopped the run.
        at: unix time of the last event.
    """

    def __init__(self, started: RunStarted, where: object = "the run") -> None:
        check_started(started, where)
        self.started = started
        self.config = config_of(started, where)
        self._where = where
        self.objectives = Objectives.from_data(started.objectives)
        self.stage_names = stage_names(self.config)
        self.told = self.asked = 0
        self.states: Counter[str] = Counter()
        self.running: dict[int, Running] = {}
        self.waiting: set[int] = set()
        self.infeasible: set[int] = set()
        self.labels: dict[int, str] = {}
        self.values: dict[int, Mapping[str, float]] = {}
        self.errors: dict[int, Mapping[str, float]] = {}
        self.on: dict[Split, dict[int, dict[str, tuple[float, float]]]] = {"selection": {}, "holdout": {}}
        self.best: dict[str, int] = {}
        self.changes: list[int] = []
        self.reasons: Counter[str] = Counter()
        self.incidents: Counter[str] = Counter()
        self.mishaps: deque[Mishap] = deque(maxlen=LATEST)
        self.finalists: tuple[int, ...] = ()
        self.baselines: tuple[int, ...] = ()
        self.opened: tuple[int, ...] = ()
        self.chosen: int | None = None
        self.ended: BudgetSpent | None = None
        self.pace = Pace()
        self.stopped = False
        self.at = 0.0
        self.final_hypervolume: float | None = None
        self._finished = -1
        self._balanced: tuple[int, tuple[int, tuple[float, ...]] | None] = (-1, None)
        self._stages: dict[int, int] = {}
        self._rungs: dict[int, int] = {}
        self._busy: dict[int, float] = {}
        self._with_recipe: dict[str, int] = {}
        self._missed: dict[Split, set[int]] = {"selection": set(), "holdout": set()}
        self._constraints = Constraints.from_data(started.constraints, started.clusters).names
        self._kept = [0] * len(self._constraints)
        self._front = NumberedFront(started.reference)
        self.rung_sizes = self._planned_rungs()
        batch = self.config.search.fidelity.minibatch
        self._each = sum(len(each.get("search", ())[:batch]) for each in started.items.values())

    @property
    def name_of_stage(self) -> str:
        """Of the candidate that was asked last."""
        return self.stage_names[self._stages.get(self.asked - 1, 0)] if self.asked else self.stage_names[0]

    @property
    def finished(self) -> bool:
        """The finals are over, and the budget has not grown since."""
        return self._finished >= self.config.search.budget.candidates

    def state(self, *, held: bool) -> State:
        """What the run is.

        Args:
            held: some process is writing to it.
        """
        return "running" if held else "finished" if self.finished else "interrupted"

    @property
    def phase(self) -> Phase:
        """What the run is doing, or was when it stopped."""
        if self.pending("holdout"):
            return "holdout"
        if self.finished:
            return "finished"
        if self.chosen is not None:
            return "holdout"
        return "selection" if self.finalists else "search"

    def pending(self, split: Split) -> list[int]:
        """Candidates that are named for a split of the finals, and have no scores there yet."""
        named = (*self.finalists, *self.baselines) if split == "selection" else self.opened
        return [id for id in dict.fromkeys(named) if id not in self.on[split] and id not in self._missed[split]]

    @property
    def volume(self) -> float | None:
        """Hypervolume of the front; None where too many objectives make it slow to compute."""
        return self.volume_after(len(self.changes))

    def volume_after(self, changes: int) -> float | None:
        """:attr:`volume` as it was after so many changes of the front."""
        if len(self.objectives.targets) > MOST_FOR_VOLUME:
            return None
        return self._front.hypervolume(changes)

    @property
    def since_gain(self) -> int:
        """Candidates told since the front last changed."""
        return self.told - (self.changes[-1] if self.changes else 0)

    def most_balanced(self) -> tuple[int, tuple[float, ...]] | None:
        """Whom the run would choose if the search split were the last word, and its retention per objective; None
        before there is a front."""
        if self._balanced[0] != self.told:
            self._balanced = (self.told, self._knee())
        return self._balanced[1]

    def _knee(self) -> tuple[int, tuple[float, ...]] | None:
        ids = [id for id in self.front if id in self.values]
        known = {label: id for id, label in reversed(self.labels.items()) if id in self.values}
        base = self.values.get(known.get("base", -1))
        experts = {
            target.expert: self.values[known[f"expert {target.expert}"]]
            for target in self.objectives.targets
            if target.expert is not None and f"expert {target.expert}" in known
        }
        kept = {id: self.objectives.retention(self.values[id], base, experts) for id in ids}
        k = len(self.objectives.targets)
        found = pareto.knee(list(kept.values()), ids, ideal=[1.0] * k, nadir=[0.0] * k) if ids else None
        return None if found is None else (found, kept[found])

    @property
    def front(self) -> list[int]:
        """The non-dominated, complete, feasible candidates so far, on the search split, in the order found."""
        return self._front.ids

    @property
    def front_points(self) -> npt.NDArray[np.float64]:
        """[front, objectives] their utilities."""
        return self._front.points

    def constraints_kept(self) -> dict[str, int]:
        """What each constraint says -> how many of the scored candidates keep it."""
        return dict(zip(self._constraints, self._kept, strict=True))

    def note(self, event: Event, at: float) -> None:
        """One more event.

        Args:
            event: the next of the log; kinds that are not :data:`HEARD` change nothing.
            at: unix time at which it was written.

        Raises:
            SearchError: it contradicts those before it.
        """
        try:
            self._note(event, at)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise contradicts(self._where, f"{event.kind} does not fit what came before it ({error!r})") from error

    def _note(self, event: Event, at: float) -> None:
        self.at = max(self.at, at)
        self.stopped = isinstance(event, Interrupted)
        match event:
            case Asked():
                self._asked(event, at)
            case RungReached():
                self._climbed(event, at)
            case Scored():
                self._scored(event)
            case Failed():
                self._failed(event, at)
            case Settled():
                self._leave(event.candidate)
            case Told():
                self._told(event, at)
            case Incident():
                self.incidents[event.what] += 1
                self.mishaps.append(Mishap(at, event.candidate, event.what, event.detail))
            case Salvaged():
                self.mishaps.append(Mishap(at, None, "salvaged", event.detail))
            case EvaluationStarted():
                self._begin(event.candidate, event.split, at)
            case _:
                self._turned(event)

    def _turned(self, event: Event) -> None:
        """The run enters another phase, or begins again."""
        match event:
            case Resumed():
                self.running.clear()
                self.pace.resume()
                self._enlarge(event.budget)
            case BudgetSpent():
                self.ended = event
            case FinalistsNamed():
                self.finalists, self.baselines = tuple(event.finalists), tuple(event.baselines)
            case Chosen():
                self.chosen = event.candidate
            case Opened():
                self.opened = tuple(dict.fromkeys((*self.opened, *event.candidates)))
            case Finished():
                self._finished, self.final_hypervolume = event.budget, event.hypervolume
            case Interrupted():
                self.running.clear()
            case _:
                pass

    def _enlarge(self, candidates: int) -> None:
        budget = self.config.search.budget.model_copy(update={"candidates": candidates})
        settings = self.config.search.model_copy(update={"budget": budget})
        self.config = self.config.model_copy(update={"search": settings})

    def _asked(self, event: Asked, at: float) -> None:
        id = event.candidate
        self.asked = max(self.asked, id + 1)
        self.ended = None
        self._stages[id] = event.stage
        if event.label:
            self.labels[id] = event.label
        if self._with_recipe.setdefault(event.recipe_hash, id) == id:
            self._begin(id, "search", at)
        else:
            self.waiting.add(id)

    def _begin(self, id: int, split: Split, at: float) -> None:
        staged = split == "search" and self.stage_names[self._stages.get(id, 0)] != "baselines"
        rungs = len(self.rung_sizes) if staged else 1
        self.running[id] = Running(id, split, min(self._rungs.get(id, 0), rungs - 1), rungs, at)
        self.pace.note_running(len(self.running))

    def _climbed(self, event: RungReached, at: float) -> None:
        self._busy[event.candidate] = sum(event.seconds.values())
        self._rungs[event.candidate] = event.rung + 1
        if event.dropped:
            self._leave(event.candidate)
            self.pace.note_scored("search", event.seconds, event.items)
        else:
            self._begin(event.candidate, "search", at)

    def _scored(self, event: Scored) -> None:
        id, split = event.candidate, event.split
        self._leave(id)
        if split == "search":
            self._busy[id] = sum(event.seconds.values())
            self.values[id], self.errors[id] = event.values, event.errors
            items = self.items_of(split) if id in self.labels else self._each
        else:
            items = self.items_of(split)
            self.on[split][id] = {name: (value, event.errors[name]) for name, value in event.values.items()}
        self.pace.note_scored(split, event.seconds, items)

    def _failed(self, event: Failed, at: float) -> None:
        id = event.candidate
        self._leave(id)
        if event.split == "search":
            self._busy[id] = self._busy.get(id, 0.0) + sum(event.seconds.values())
        else:
            self._missed[event.split].add(id)
            self.reasons[event.reason] += 1
            self.mishaps.append(Mishap(at, id, "failed", f"on the {event.split} split: {event.reason}"))

    def _told(self, event: Told, at: float) -> None:
        id, outcome = event.candidate, event.outcome
        self._leave(id)
        self.waiting.discard(id)
        self._rungs.pop(id, None)
        self.told += 1
        self.states[outcome.state] += 1
        # a candidate beyond the finalists' search reopens the question
        self.finalists, self.baselines, self.chosen = (), (), None
        self._finished, self.final_hypervolume = -1, None
        self.pace.note_told(event, self._busy.pop(id, 0.0))
        if outcome.state == "failed":
            self.reasons[outcome.reason if outcome.of is None else REPEATED] += 1
            self.mishaps.append(Mishap(at, id, "failed", outcome.reason))
        elif outcome.state == "complete":
            for place, violation in enumerate(outcome.violations[: len(self._kept)]):
                self._kept[place] += violation <= 0.0
            if not outcome.feasible:
                self.infeasible.add(id)
                self.states["infeasible"] += 1
        if outcome.state == "complete" and outcome.feasible:
            self._lead(id)
            if self._front.add(id, outcome.utilities):
                self.changes.append(self.told)

    def _lead(self, id: int) -> None:
        """It may be the best in some objective."""
        for target in self.objectives.targets:
            value, known = self.values.get(id, {}).get(target.name), self.best.get(target.name)
            if value is None:
                continue
            sign = -1.0 if target.metric.direction == "minimize" else 1.0
            if known is None or sign * value > sign * self.values[known][target.name]:
                self.best[target.name] = id

    def _leave(self, id: int) -> None:
        self.running.pop(id, None)

    def items_of(self, split: Split) -> int:
        """How many items a split has, over all evaluators."""
        return sum(len(splits.get(split, ())) for splits in self.started.items.values())

    def _planned_rungs(self) -> tuple[int, ...]:
        """Items of the evaluator with the most of them that are scored when each rung is done."""
        counts = [len(splits.get("search", ())) for splits in self.started.items.values()]
        fidelity = self.config.search.fidelity
        if fidelity.minibatch is not None:
            return (min(fidelity.minibatch, max(counts, default=0)),)
        return rung_sizes(max(counts, default=0) or 1, fidelity.rungs if self.started.version >= 2 else ())
