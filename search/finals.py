"""After the search: finalists are re-scored, one is chosen, and only then is the holdout opened.

The score on which a candidate was selected flatters it: of many noisy scores the best is partly the luckiest. So the
front of the search split, and what cannot be told from it, goes to items it has not seen (the selection split), the
choice is made there, and what is reported of the chosen candidate comes from a third set (the holdout) that nothing was
ever chosen on.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence

from evaluators.contract import Evaluator, Split
from search.constraints import Constraints
from search.errors import Interrupted, NothingFeasible
from search.events import (
    Chosen,
    EvaluationStarted,
    Event,
    Failed,
    FinalistsNamed,
    Finished,
    Incident,
    Opened,
    Resumed,
    Told,
)
from search.events import Interrupted as InterruptedEvent
from search.judge import CHOICE_RULE, Baseline, Judge, Scores
from search.ledger import Ledger
from search.levelling import levelled
from search.loop import Emit, scored
from search.objectives import Objectives
from search.patience import Patience
from search.schema import SearchSettings
from search.stages import Stage
from search.store import Store
from search.workers.contract import Done, Pool, Task
from search.workers.evaluation import CandidateFailed

LEAST_FINALISTS = 4
"""However small the reserve: fewer leave nothing to choose from."""


class Finals:
    """Selection, choice and holdout of one run; each step is stored, and none is done twice."""

    def __init__(
        self,
        store: Store,
        stages: Sequence[Stage],
        pool: Pool,
        evaluators: Mapping[str, Evaluator],
        objectives: Objectives,
        emit: Emit,
        should_stop: Callable[[], bool] = lambda: False,
        *,
        constraints: Constraints | None = None,
        ledger: Ledger | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._store = store
        self._stages = list(stages)
        self._pool = pool
        self._evaluators = evaluators
        self._objectives = objectives
        self._emit = emit
        self._should_stop = should_stop
        self._constraints = constraints or Constraints()
        self._ledger = ledger
        self._patience = patience or Patience()

    def run(self, settings: SearchSettings, items: int) -> int:
        """Re-score, choose, open.

        Args:
            settings: how many finalists, and the reserve that pays for them.
            items: scored by the search so far.

        Returns:
            The chosen candidate.

        Raises:
            NothingFeasible: no candidate is complete, or none keeps the constraints.
            Interrupted: the user asked to stop.
        """
        search = self._store.scores("search")
        judge = self._judge()
        baselines = judge.baselines(search)
        most = self._affordable(settings, items, len({each.candidate for each in baselines}))
        finalists = self._with_baselines(settings, judge.finalists(self._comparable(settings, search), most), baselines)
        if not finalists:
            raise NothingFeasible(self._nothing(judge, "search"))
        self._emit_once(FinalistsNamed(finalists, [each.candidate for each in baselines]))
        self._evaluate([*finalists, *(each.candidate for each in baselines)], "selection")

        selection = self._store.scores("selection")
        judge = self._judge()
        front = judge.front(selection, finalists, "selection")
        if not front:
            raise NothingFeasible(self._nothing(judge, "selection"))
        chosen = judge.knee(selection, front)
        self._emit_once(Chosen(chosen, CHOICE_RULE))
        if settings.holdout:
            self.open([chosen, *(each.candidate for each in baselines)])
        self._emit(Finished(settings.budget.candidates, judge.hypervolume(search, judge.front(search))))
        return chosen

    def open(self, ids: Sequence[int]) -> None:
        """Look at the holdout for these candidates: logged, entered in the ledger, and only then scored.

        Raises:
            Interrupted: the user asked to stop.
        """
        opened = list(dict.fromkeys(ids))
        if self._ledger is not None:
            known = {each.id: each.recipe_hash for each in self._store.candidates()}
            self._ledger.enter(holdout_hashes(self._evaluators), [known[id] for id in opened])
        self._emit_once(Opened(opened, holdout_hash(self._evaluators)))
        self._evaluate(opened, "holdout")

    @staticmethod
    def _with_baselines(settings: SearchSettings, named: list[int], baselines: Sequence[Baseline]) -> list[int]:
        """Of minibatches the luckiest of hundreds look better than a baseline that is the best: it is scored on the
        selection split anyhow, and may be chosen there."""
        if settings.fidelity.minibatch is None or not named:
            return named
        return sorted({*named, *(each.candidate for each in baselines)})

    def _comparable(self, settings: SearchSettings, search: Scores) -> Scores:
        """Scores on the search split that finalists are named by."""
        if settings.fidelity.minibatch is None:
            return search
        whole = [each.id for each in self._store.candidates() if self._stages[each.stage].fixed]
        return levelled(self._store, self._evaluators, self._objectives, whole, search)

    def _judge(self) -> Judge:
        violations = {split: self._store.violations(split) for split in _SPLITS}
        return Judge(self._objectives, self._store.candidates(), [stage.name for stage in self._stages], violations)

    def _affordable(self, settings: SearchSettings, items: int, baselines: int) -> int:
        """How many finalists the reserve pays for, beside the baselines."""
        each = sum(len(evaluator.items("selection")) for evaluator in self._evaluators.values())
        reserved = items * settings.reserve / (1.0 - settings.reserve)
        most = max(LEAST_FINALISTS, int(reserved / max(1, each)) - baselines)
        return most if settings.finalists is None else min(most, settings.finalists)

    def _nothing(self, judge: Judge, split: Split) -> str:
        """Why nothing can be chosen: the constraint that is hardest to keep, and the candidate that comes nearest."""
        scores = self._store.scores(split)
        complete = [each.id for each in self._store.candidates() if each.state == "complete" and each.id in scores]
        if not complete:
            return (
                f"no candidate could be scored on the {split} split, so there is nothing to choose; `paretomerge "
                "status RUN --json --candidates` lists the reasons"
            )
        nearest = min(complete, key=lambda id: (judge.violation(id, split), id))
        found = self._store.violations(split).get(nearest, ())
        broken = [name for name, by in zip(self._constraints.names, found, strict=True) if by > 0.0]
        return (
            f"none of the {len(complete)} candidates that were scored on the {split} split keeps every constraint. "
            f"Candidate {nearest} comes nearest and breaks {'; '.join(broken)}, by "
            f"{judge.violation(nearest, split):.3g}. A larger split proves more with the same score; a larger budget, "
            "other bounds of the space, or a weaker constraint in a new run."
        )

    def _emit_once(self, event: Event) -> None:
        """Log a decision unless the log's latest of its kind is the same: a resumed run has taken it before."""
        latest = None
        # what was named or chosen before more candidates came no longer stands; what was opened stays open
        reopens = () if isinstance(event, Opened) else (Told,)
        for each in self._store.events(type(event), *reopens):
            latest = None if isinstance(each, Told) else each
        if latest != event:
            self._emit(event)

    def _evaluate(self, ids: Sequence[int], split: Split) -> None:
        """Score every one that has no scores on the split yet, on as many workers as there are."""
        known = {each.id: each for each in self._store.candidates()}
        done = self._store.scores(split)
        starts = self._starts(split)
        waiting = deque(id for id in dict.fromkeys(ids) if id not in done)
        size = self._size(split)
        under_way, stopping = 0, False
        while True:
            stopping = stopping or (bool(waiting) and self._should_stop())
            while waiting and not stopping and under_way < self._pool.slots:
                id = waiting.popleft()
                if self._patience.is_over(starts[id]):
                    reason = f"its evaluation was begun {starts[id]} times, and every time the process ended before it"
                    self._emit(Failed(id, split, reason))
                    continue
                self._emit(EvaluationStarted(id, split))
                recipe = self._stages[known[id].stage].space.decode(known[id].genome)
                self._pool.submit(Task(id, recipe, split, timeout=self._patience.limit(size)))
                under_way += 1
            if not under_way:
                break
            for each in self._pool.wait():
                under_way -= 1
                self._record(each)
        if waiting:
            self._emit(InterruptedEvent("stopped by the user"))
            raise Interrupted

    def _starts(self, split: Split) -> Counter[int]:
        """How often each was begun, but for what was begun by processes that ended by themselves."""
        counted, latest = Counter[int](), Counter[int]()
        for event in self._store.events(EvaluationStarted, Resumed):
            if isinstance(event, EvaluationStarted) and event.split == split:
                latest[event.candidate] += 1
            elif isinstance(event, Resumed):
                counted += Counter() if event.let_go else latest
                latest = Counter()
        return counted + latest

    def _record(self, done: Done) -> None:
        id, split, result = done.task.candidate, done.task.split, done.result
        notes = [Incident(id, note.what, note.detail, note.value) for note in done.notes]
        if isinstance(result, CandidateFailed):
            self._emit(*notes, Failed(id, split, result.reason, result.seconds))
        else:
            self._emit(*notes, scored(id, split, result, self._constraints))

    def _size(self, split: Split) -> float:
        """How many times as many items as the search split has."""
        counts = [
            (len(evaluator.items(split)), max(1, len(evaluator.items("search"))))
            for evaluator in self._evaluators.values()
        ]
        return max([1.0, *(here / there for here, there in counts)])


_SPLITS: tuple[Split, ...] = ("search", "selection")


def holdout_hashes(evaluators: Mapping[str, Evaluator]) -> dict[str, str]:
    """evaluator -> sha256 over the content of its holdout items, in no order: under which openings are counted."""
    found = {}
    for name, evaluator in evaluators.items():
        digest = hashlib.sha256()
        for each in sorted(evaluator.items("holdout").hashes):
            digest.update(each.encode())
        found[name] = digest.hexdigest()
    return found


def holdout_hash(evaluators: Mapping[str, Evaluator]) -> str:
    """One sha256 over the content of all holdout items."""
    digest = hashlib.sha256()
    for name in sorted(evaluators):
        for each in sorted(evaluators[name].items("holdout").hashes):
            digest.update(each.encode())
    return digest.hexdigest()
