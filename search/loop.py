"""The loop: ask -> materialise -> evaluate -> tell. It knows no algorithm and no display.

Two schedules. *Strict*: candidate i + window is proposed when all candidates up to i, and none after, were told. So
every decision is a function of the config, the sources and what the log holds, whoever finishes first, and an
interrupted search proposes and scores what the undisturbed one would have. With one worker the window is 1. *Steady*:
nobody waits; candidates are told as they arrive, and a replay of the log tells them in that order again.

Candidates climb rungs of items (:mod:`search.racing`). A rung is a task of its own, and stored before the next begins.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from evaluators.contract import Evaluator, Split
from search.constraints import Constraints
from search.errors import Interrupted, SearchError
from search.events import (
    Asked,
    BudgetSpent,
    EvaluationStarted,
    Event,
    Failed,
    Incident,
    OptimizerNoted,
    RungReached,
    Scored,
    Settled,
    Told,
)
from search.events import Interrupted as InterruptedEvent
from search.minibatch import Minibatches
from search.objectives import Objectives
from search.optimizers.contract import Outcome
from search.patience import Patience
from search.proposals import Known, MakeOptimizer, Proposals
from search.racing import Racer
from search.schema import Budget
from search.stages import Stage
from search.standing import FAILURES_IN_A_ROW, ItemReader, Record, Schedule, Standing
from search.workers.contract import Done, Pool, Task
from search.workers.evaluation import CandidateFailed, Evaluation, Items, audible, check_usable, joined

NOTED_EVERY = 50
"""After so many tells it is asked again what an optimizer has to say of itself."""

Emit = Callable[..., None]


class Search:
    """One search over its stages, from wherever its log stands."""

    def __init__(
        self,
        stages: Sequence[Stage],
        make_optimizer: MakeOptimizer,
        pool: Pool,
        objectives: Objectives,
        emit: Emit,
        should_stop: Callable[[], bool] = lambda: False,
        *,
        evaluators: Mapping[str, Evaluator] | None = None,
        racer: Racer | None = None,
        minibatches: Minibatches | None = None,
        constraints: Constraints | None = None,
        schedule: Schedule | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Set up; :meth:`restore` then brings it to where the log stands.

        Args:
            stages: in order; the last one is open-ended.
            make_optimizer: a fresh optimizer for a stage, given what evaluating a candidate costs in seconds.
            pool: evaluates recipes.
            objectives: from metrics to utilities.
            emit: stores events in one transaction, then shows them to listeners.
            should_stop: asked between tasks.
            evaluators: needed with a racer: they know how the items of several rungs become one number.
            racer: rungs and early stopping; None scores every item at once.
            minibatches: some of the items for every candidate but the baselines; not beside a racer.
            constraints: what a candidate must keep; nothing if None.
            schedule: strict, one after the other, if None.
            patience: how long a task may take, and how often a candidate may end its process; without end if None.
        """
        self._stages = list(stages)
        self._pool = pool
        self._objectives = objectives
        self._emit = emit
        self._should_stop = should_stop
        self._evaluators = dict(evaluators or {})
        self._racer = racer
        self._minibatches = minibatches
        self._constraints = constraints or Constraints()
        self._patience = patience or Patience()
        self._proposals = Proposals(stages, make_optimizer, emit)
        self._standing = Standing(
            schedule or Schedule(), self._proposals, racer, objectives, self._patience, len(self._stages) - 1
        )
        self._ready: deque[int] = deque()
        self._repeats: dict[int, list[int]] = {}
        self._under_way: set[int] = set()
        self._noted: dict[str, float | str] = {}
        self._spent = {"optimize": 0.0, "store": 0.0}
        self._clock = time.monotonic()

    @property
    def items(self) -> int:
        """Items scored so far, on the search split."""
        return self._standing.progress.items

    def restore(
        self, events: Iterator[Event], item_scores: ItemReader | None = None, *, let_go: bool = False
    ) -> list[int]:
        """Read the log: what was asked and told, and where the stage in progress stands.

        Args:
            events: all of them, in order.
            item_scores: reads the stored item scores of a candidate on the search split; needed with a racer.
            let_go: the last process ended by itself, see :class:`search.events.Resumed`.

        Returns:
            Ids that today's code would have proposed differently: empty unless the code or a library has changed.
        """
        self._standing.recall(events, item_scores or (lambda id: {}))
        if let_go:
            self._standing.excuse()
        return self._proposals.replay()

    def run(self, budget: Budget, reserve: float = 0.0) -> None:
        """Evaluate candidates until a limit of the budget is reached.

        Args:
            budget: see :class:`search.schema.Budget`.
            reserve: share of ``budget.items`` that is kept for the finals.

        Raises:
            Interrupted: ``should_stop`` said so; what was done is stored.
            SearchError: too many failures in a row.
        """
        self._clock = time.monotonic()
        ended = self._standing.ended
        if ended is not None and ended.budget != _plain(budget):
            self._standing.ended = None
        self._take_up_again()
        stopping = False
        while True:
            stopping = stopping or self._should_stop()
            if not stopping:
                stopping = self._fill(budget, reserve)
            if not self._under_way:
                break
            for done in self._pool.wait():
                self._take(done)
        if stopping and (self._standing.untold or self._may_propose(budget, reserve)):
            self._emit(InterruptedEvent("stopped by the user"))
            raise Interrupted

    def _take_up_again(self) -> None:
        """What was under way when the process ended is begun again, in the order of its proposal."""
        self._tell_ready()
        for id, record in list(self._standing.untold.items()):
            if record.settled is None:
                record.again = True
                self._begin(id, record)

    def _fill(self, budget: Budget, reserve: float) -> bool:
        """Keep every worker busy: next rungs first, then new candidates. True if ``should_stop`` said so meanwhile."""
        while len(self._under_way) < self._pool.slots:
            if self._ready:
                self._submit(self._ready.popleft())
            elif not self._may_propose(budget, reserve):
                return False
            else:
                self._propose()
                # it repeats another: there may be thousands of those in a row, and no task between them
                if not self._ready and self._should_stop():
                    return True
        return False

    def _may_propose(self, budget: Budget, reserve: float) -> bool:
        """Whether the next candidate's turn has come, and the budget has room for it."""
        standing = self._standing
        if standing.ended is not None:
            return False
        if not standing.next_may_be_asked():
            return False
        spent = standing.progress.reached(budget, reserve)
        if standing.next >= budget.candidates:
            spent = BudgetSpent("candidates", f"{standing.next} candidates")
        if spent is None:
            return True
        standing.ended = replace(spent, budget=_plain(budget))
        self._store(standing.ended)
        self._tell_ready()
        return False

    def _propose(self) -> None:
        id = self._standing.next
        stage = self._stage_of(id)
        start = time.perf_counter()
        label, memo = "", None
        if stage.fixed:
            label, genome = stage.fixed[id]
        else:
            genome = self._proposals.ask(id, stage, self._standing.pending)
            memo = self._proposals.remembered(id, stage)
        recipe = stage.space.decode(genome)
        record = self._standing.remember(Known(id, stage.index, genome), recipe.hash)
        record.recipe = recipe
        self._spent["optimize"] += time.perf_counter() - start
        self._store(Asked(id, stage.index, genome, recipe.hash, label, memo))
        self._begin(id, record)
        self._tell_ready()

    def _begin(self, id: int, record: Record) -> None:
        """A candidate waits for a worker, or for the one that has the same recipe."""
        first = self._standing.first_with(record.recipe_hash)
        known = self._standing.records[first].settled
        if first == id and self._patience.is_over(record.starts) and record.again:
            reason = f"its evaluation was begun {record.starts} times, and every time the process ended before it"
            self._settle(id, Outcome("failed", reason=reason), Failed(id, "search", reason))
        elif first == id:
            self._ready.append(id)
        elif known is not None:
            self._settle(id, _repeat(first, known))
        else:
            self._repeats.setdefault(first, []).append(id)

    def _submit(self, id: int) -> None:
        record = self._standing.records[id]
        stage = self._stages[record.known.stage]
        if record.again:
            record.again = False
            self._store(EvaluationStarted(id, "search"))
        record.recipe = record.recipe or stage.space.decode(record.known.genome)
        self._under_way.add(id)
        self._pool.submit(Task(id, record.recipe, "search", self._items(id, record, stage), self._patience.limit()))

    def _items(self, id: int, record: Record, stage: Stage) -> Items | None:
        """What a candidate is scored on next; None is everything. Baselines are what winners are measured against: they
        are always scored on everything."""
        if stage.fixed:
            return None
        if self._racer is not None:
            return self._racer.rungs[record.rung]
        if self._minibatches is not None:
            begin = (self._stages[stage.index - 1].end or 0) if stage.index else 0
            return self._minibatches.of(id - begin)
        return None

    def _take(self, done: Done) -> None:
        """A result has come."""
        id = done.task.candidate
        record = self._standing.records[id]
        self._under_way.discard(id)
        if done.notes:
            self._store(*(Incident(id, note.what, note.detail, note.value) for note in done.notes))
        try:
            if isinstance(done.result, CandidateFailed):
                raise done.result
            self._patience.observe(sum(done.result.seconds.values()))
            if self._racer is None or self._stages[record.known.stage].fixed:
                evaluation = done.result
                if done.task.items is not None:  # of some items a worker does not say whether they suffice
                    check_usable(evaluation, self._objectives.names)
                    evaluation = audible(evaluation)
                self._complete(id, record, evaluation)
            else:
                self._climb(id, record, done.result, self._racer)
        except CandidateFailed as failure:
            record.busy += sum(failure.seconds.values())
            failed = Failed(id, "search", failure.reason, failure.seconds)
            self._settle(id, Outcome("failed", reason=failure.reason), failed)

    def _climb(self, id: int, record: Record, part: Evaluation, racer: Racer) -> None:
        """A rung is done: go on to the next one, or end here."""
        last = record.rung == len(racer.rungs) - 1
        so_far = joined([*record.parts, part], self._evaluators, "search")
        record.busy = 0.0  # what follows, a failure too, counts the rungs before this one again
        check_usable(so_far, None if last else self._objectives.names)
        if last:
            self._complete(id, record, so_far)
            return
        record.busy = sum(so_far.seconds.values())
        utilities = self._objectives.utilities(so_far.values)
        verdict = racer.judge(id, record.rung, so_far.scores, utilities)
        reached = RungReached(
            id, record.rung, so_far.items, so_far.values, so_far.seconds,
            verdict.opponent, verdict.evidence, verdict.dropped, so_far.scores,
        )  # fmt: skip
        if verdict.dropped:
            reason = f"{verdict.reason} after {so_far.items} items"
            errors = self._objectives.errors(so_far.errors)
            self._settle(id, Outcome("censored", utilities, errors, so_far.items, reason=reason), reached)
            return
        record.rung, record.parts = record.rung + 1, [so_far]
        self._store(reached)
        self._ready.appendleft(id)  # its worker is free, and holds its weights

    def _complete(self, id: int, record: Record, evaluation: Evaluation) -> None:
        outcome = Outcome(
            "complete",
            utilities=self._objectives.utilities(evaluation.values),
            errors=self._objectives.errors(evaluation.errors),
            items=evaluation.items,
            violations=self._constraints.violations(evaluation.scores),
        )
        record.busy = sum(evaluation.seconds.values())
        record.scores = evaluation.scores
        self._proposals.note_cost(record.busy)
        self._settle(id, outcome, scored(id, "search", evaluation, self._constraints))

    def _settle(self, id: int, outcome: Outcome, *events: Event) -> None:
        """What became of a candidate is known: it is told, or kept until its turn comes."""
        record = self._standing.records[id]
        record.settled, record.recipe, record.parts = outcome, None, []
        if self._standing.may_be_told(id):
            self._tell(id, record, outcome, *events)
        else:
            self._store(*events, Settled(id, outcome))
        for repeat in self._repeats.pop(id, ()):
            self._settle(repeat, _repeat(id, outcome))
        self._tell_ready()

    def _tell_ready(self) -> None:
        """Tell those that are settled and whose turn has come."""
        for id, record in list(self._standing.untold.items()):
            if record.settled is not None and self._standing.may_be_told(id):
                self._tell(id, record, record.settled)
            elif self._standing.schedule.kind == "strict":
                return

    def _tell(self, id: int, record: Record, outcome: Outcome, *events: Event) -> None:
        spent, self._spent = self._spent, {"optimize": 0.0, "store": 0.0}
        now = time.monotonic()
        told = Told(id, record.known.stage, outcome, spent, now - self._clock, record.busy, self._pool.gpus)
        self._clock = now
        self._store(*events, told)
        start = time.perf_counter()
        self._standing.conclude(told, record.scores)
        self._proposals.tell(record.known, outcome)
        self._note(id, self._stages[record.known.stage])
        self._spent["optimize"] += time.perf_counter() - start
        self._check_failures()

    def _note(self, id: int, stage: Stage) -> None:
        """Log what the optimizer says of itself, now and then and where it is news."""
        before = self._standing.records.get(id - 1)
        if before is not None and before.known.stage == stage.index and id % NOTED_EVERY:
            return
        facts = self._proposals.diagnosis(stage)
        if facts and facts != self._noted:
            self._noted = facts
            self._emit(OptimizerNoted(stage.index, id, facts))

    def _stage_of(self, id: int) -> Stage:
        return next(stage for stage in self._stages if stage.end is None or id < stage.end)

    def _store(self, *events: Event) -> None:
        start = time.perf_counter()
        self._emit(*events)
        self._spent["store"] += time.perf_counter() - start

    def _check_failures(self) -> None:
        if len(self._standing.failures) == FAILURES_IN_A_ROW:
            reasons = "; ".join(sorted(set(self._standing.failures))[:3])
            raise SearchError(
                f"the last {FAILURES_IN_A_ROW} candidates failed, so the setup is wrong rather than the candidates. "
                f"Reasons: {reasons}. Everything is stored; the same command goes on once the cause is removed."
            )


def scored(id: int, split: Split, evaluation: Evaluation, constraints: Constraints) -> Scored:
    """The event of an evaluation."""
    return Scored(
        id, split, evaluation.values, evaluation.errors, evaluation.seconds,
        violations=list(constraints.violations(evaluation.scores)), scores=evaluation.scores,
    )  # fmt: skip


def _repeat(first: int, outcome: Outcome) -> Outcome:
    """The outcome of a candidate whose recipe is already known."""
    if outcome.state == "failed":
        return Outcome("failed", reason=f"same recipe as candidate {first}, which failed", of=first)
    if (
        outcome.state == "censored"
    ):  # partial scores stay partial: an optimizer of a later stage never heard of the first
        reason = f"same recipe as candidate {first}, {outcome.reason}"
        return Outcome("censored", outcome.utilities, outcome.errors, reason=reason, of=first)
    return Outcome("duplicate", outcome.utilities, outcome.errors, outcome.items, outcome.violations, of=first)


def _plain(budget: Budget) -> dict[str, Any]:
    return budget.model_dump(mode="json")
