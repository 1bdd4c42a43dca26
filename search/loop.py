"""The loop: ask -> materialise -> evaluate -> tell. It knows no algorithm and no display.

The schedule is *strict*: with one worker, candidate i+1 is proposed after candidate i was told, and every decision is a
function of the config, the sources and what the log holds. So an interrupted search, resumed, proposes and scores what
the undisturbed one would have.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from evaluators.contract import Split
from merging.recipe import Recipe
from search.errors import Interrupted, SearchError
from search.events import Asked, EvaluationStarted, Event, Failed, Scored, Told
from search.events import Interrupted as InterruptedEvent
from search.objectives import Objectives
from search.optimizers.contract import Asked as HistoryAsked
from search.optimizers.contract import Genome, Optimizer, Outcome, Trial, replay
from search.optimizers.contract import Told as HistoryTold
from search.stages import Stage, translate
from search.workers.inline import CandidateFailed, Evaluation

FAILURES_IN_A_ROW = 20
"""So many failed candidates one after the other mean that the setup is wrong, not the candidates."""

Emit = Callable[..., None]


class Worker(Protocol):
    """Turns a recipe into scores."""

    def evaluate(self, recipe: Recipe, split: Split) -> Evaluation:
        """Score on every item of a split, or raise :class:`~search.workers.inline.CandidateFailed`."""
        ...


@dataclass
class _Record:
    """What the loop remembers of a candidate."""

    stage: int
    genome: Genome
    recipe_hash: str
    outcome: Outcome | None = None


class Search:
    """One search over its stages, from wherever its log stands."""

    def __init__(
        self,
        stages: Sequence[Stage],
        make_optimizer: Callable[[Stage], Optimizer],
        worker: Worker,
        objectives: Objectives,
        emit: Emit,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Set up; :meth:`restore` then brings it to where the log stands.

        Args:
            stages: in order; the last one is open-ended.
            make_optimizer: a fresh optimizer for a stage.
            worker: evaluates recipes.
            objectives: from metrics to utilities.
            emit: stores events in one transaction, then shows them to listeners.
            should_stop: asked between candidates.
        """
        self._stages = list(stages)
        self._make_optimizer = make_optimizer
        self._worker = worker
        self._objectives = objectives
        self._emit = emit
        self._should_stop = should_stop
        self._records: dict[int, _Record] = {}
        self._first_with: dict[str, int] = {}
        self._optimizers: dict[int, Optimizer] = {}
        self._spent = {"optimize": 0.0, "store": 0.0}

    def restore(self, events: Iterator[Event]) -> list[int]:
        """Read the log: what was asked and told, and where the stage in progress stands.

        Returns:
            Ids that today's code would have proposed differently: empty unless the code or a library has changed.
        """
        history: dict[int, list[HistoryAsked | HistoryTold]] = {}
        for event in events:
            if isinstance(event, Asked):
                self._remember(event)
                history.setdefault(event.stage, []).append(HistoryAsked(Trial(event.candidate, event.genome)))
            elif isinstance(event, Told):
                self._conclude(event.candidate, event.outcome)
                trial = Trial(event.candidate, self._records[event.candidate].genome)
                history.setdefault(event.stage, []).append(HistoryTold(trial, event.outcome))
        if not self._records:
            return []
        stage = self._stages[max(record.stage for record in self._records.values())]
        if stage.fixed:
            return []
        return replay(self._optimizer(stage), history.get(stage.index, ()))

    def run(self, budget: int) -> None:
        """Evaluate candidates until there are ``budget`` of them.

        Raises:
            Interrupted: ``should_stop`` said so; what was done is stored.
            SearchError: too many failures in a row.
        """
        for id in range(budget):
            record = self._records.get(id)
            if record is not None and record.outcome is not None:
                continue
            if self._should_stop():
                self._emit(InterruptedEvent("stopped by the user"))
                raise Interrupted
            stage = self._stage_of(id)
            if record is None:
                recipe = self._propose(id, stage)
            else:
                recipe = stage.space.decode(record.genome)
                self._emit(EvaluationStarted(id, "search"))
            self._evaluate(id, stage, recipe)
            self._check_failures(id)

    def _stage_of(self, id: int) -> Stage:
        return next(stage for stage in self._stages if stage.end is None or id < stage.end)

    def _propose(self, id: int, stage: Stage) -> Recipe:
        start = time.perf_counter()
        label = ""
        if stage.fixed:
            label, genome = stage.fixed[id]
        else:
            genome = self._optimizer(stage).ask(id, ())
        recipe = stage.space.decode(genome)
        asked = Asked(id, stage.index, genome, recipe.hash, label)
        self._remember(asked)
        self._spent["optimize"] += time.perf_counter() - start
        self._store(asked)
        return recipe

    def _evaluate(self, id: int, stage: Stage, recipe: Recipe) -> None:
        first = self._first_with[self._records[id].recipe_hash]
        if first != id:
            self._tell(id, stage, _repeat(first, self._records[first].outcome))
            return
        try:
            evaluation = self._worker.evaluate(recipe, "search")
        except CandidateFailed as failure:
            outcome = Outcome("failed", reason=failure.reason)
            self._tell(id, stage, outcome, Failed(id, "search", failure.reason, failure.seconds))
            return
        outcome = Outcome(
            "complete",
            utilities=self._objectives.utilities(evaluation.values),
            errors=self._objectives.errors(evaluation.errors),
            items=sum(len(scores) for scores in evaluation.scores.values()),
        )
        self._tell(id, stage, outcome, scored(id, "search", evaluation))

    def _tell(self, id: int, stage: Stage, outcome: Outcome, *events: Event) -> None:
        spent, self._spent = self._spent, {"optimize": 0.0, "store": 0.0}
        self._store(*events, Told(id, stage.index, outcome, spent))
        start = time.perf_counter()
        self._conclude(id, outcome)
        if not stage.fixed:
            self._optimizer(stage).tell(Trial(id, self._records[id].genome), outcome)
        self._spent["optimize"] += time.perf_counter() - start

    def _store(self, *events: Event) -> None:
        start = time.perf_counter()
        self._emit(*events)
        self._spent["store"] += time.perf_counter() - start

    def _remember(self, asked: Asked) -> None:
        self._records[asked.candidate] = _Record(asked.stage, asked.genome, asked.recipe_hash)
        self._first_with.setdefault(asked.recipe_hash, asked.candidate)

    def _conclude(self, id: int, outcome: Outcome) -> None:
        self._records[id].outcome = outcome

    def _optimizer(self, stage: Stage) -> Optimizer:
        """The stage's optimizer; a fresh one first hears everything that earlier stages found."""
        if stage.index not in self._optimizers:
            optimizer = self._make_optimizer(stage)
            for id, record in sorted(self._records.items()):
                if record.stage >= stage.index or record.outcome is None or record.outcome.state != "complete":
                    continue
                genome = translate(record.genome, self._stages[record.stage].space, stage.space)
                if genome is not None:
                    optimizer.tell(Trial(id, genome), record.outcome)
            self._optimizers[stage.index] = optimizer
        return self._optimizers[stage.index]

    def _check_failures(self, id: int) -> None:
        last = [self._records[each].outcome for each in range(max(0, id - FAILURES_IN_A_ROW + 1), id + 1)]
        if len(last) == FAILURES_IN_A_ROW and all(each is not None and each.state == "failed" for each in last):
            reasons = "; ".join(sorted({each.reason for each in last if each is not None})[:3])
            raise SearchError(
                f"the last {FAILURES_IN_A_ROW} candidates failed, so the setup is wrong rather than the candidates. "
                f"Reasons: {reasons}. Everything is stored; the same command goes on once the cause is removed."
            )


def scored(id: int, split: Split, evaluation: Evaluation) -> Scored:
    """The event of an evaluation."""
    return Scored(id, split, evaluation.values, evaluation.errors, evaluation.seconds, scores=evaluation.scores)


def _repeat(first: int, outcome: Outcome | None) -> Outcome:
    """The outcome of a candidate whose recipe is already known."""
    if outcome is None or outcome.state == "failed":
        return Outcome("failed", reason=f"same recipe as candidate {first}, which failed", of=first)
    return Outcome("duplicate", outcome.utilities, outcome.errors, outcome.items, outcome.violations, of=first)
