"""After the search: finalists are re-scored, one is chosen, and only then is the holdout opened.

The score on which a candidate was selected flatters it: of many noisy scores the best is partly the luckiest. So the
front of the search split goes to items it has not seen (the selection split), the choice is made there, and what is
reported of the chosen candidate comes from a third set (the holdout) that nothing was ever chosen on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluators.contract import Evaluator, Split
from search import pareto
from search.errors import Interrupted, NothingFeasible
from search.events import Chosen, EvaluationStarted, Event, Failed, FinalistsNamed, Finished, Opened
from search.events import Interrupted as InterruptedEvent
from search.loop import Emit, Worker, scored
from search.objectives import Objectives
from search.stages import Stage
from search.store import Candidate, Store
from search.workers.inline import CandidateFailed

CHOICE_RULE = (
    "knee: the largest smallest retention over the objectives (augmented Tchebycheff, equal weights), on the "
    "selection split"
)

Scores = Mapping[int, Mapping[str, tuple[float, float]]]


@dataclass(frozen=True)
class Baseline:
    """A merge that needs no search, or little of it: what a winner has to beat.

    Attributes:
        label: "base", "expert string", "average", "best single λ (0.8)", "best per-expert".
        candidate: its number.
    """

    label: str
    candidate: int


class Judge:
    """Reads scores and says who is on the front, who is chosen, and who the baselines are. Writes nothing."""

    def __init__(self, objectives: Objectives, candidates: Sequence[Candidate], stage_names: Sequence[str]) -> None:
        self.objectives = objectives
        self._candidates = {each.id: each for each in candidates}
        self._stage_names = list(stage_names)
        self._labels = {each.label: each.id for each in reversed(candidates) if each.label}

    def labelled(self, label: str) -> int | None:
        """The baseline candidate with this label."""
        return self._labels.get(label)

    def retention(self, scores: Scores, id: int) -> tuple[float, ...]:
        """[objectives] retention of a candidate, on the split that the scores are of."""
        base = _values(scores, self.labelled("base"))
        experts = {
            target.expert: own
            for target in self.objectives.targets
            if target.expert is not None and (own := _values(scores, self.labelled(f"expert {target.expert}")))
        }
        return self.objectives.retention(_values(scores, id) or {}, base, experts)

    def front(self, scores: Scores, among: Sequence[int] | None = None) -> list[int]:
        """Ids of the non-dominated complete candidates, ascending. Of equal recipes only the first counts."""
        ids = [id for id in sorted(scores if among is None else among) if id in scores and self._complete(id)]
        if not ids:
            return []
        mask = pareto.nondominated(self.utilities(scores, ids))
        return [id for id, keep in zip(ids, mask, strict=True) if keep]

    def utilities(self, scores: Scores, ids: Sequence[int]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """[n, objectives] utilities of these candidates."""
        rows = [self.objectives.utilities({name: value for name, (value, _) in scores[id].items()}) for id in ids]
        return np.array(rows, dtype=np.float64).reshape(len(ids), len(self.objectives.targets))

    def hypervolume(self, scores: Scores, ids: Sequence[int]) -> float:
        """Of these candidates' utilities, against the run's fixed reference point."""
        return pareto.hypervolume(self.utilities(scores, ids), self.objectives.reference)

    def knee(self, scores: Scores, ids: Sequence[int]) -> int:
        """The choice among ``ids`` by :data:`CHOICE_RULE`."""
        k = len(self.objectives.targets)
        retained = np.array([self.retention(scores, id) for id in ids])
        chosen = pareto.knee(retained, ids, ideal=[1.0] * k, nadir=[0.0] * k)
        if chosen is None:
            raise NothingFeasible("there is no candidate to choose from")
        return chosen

    def finalists(self, scores: Scores, most: int) -> list[int]:
        """The front on the search split; where it is longer than ``most``, the part with most hypervolume, and the
        knee, which is kept in any case."""
        front = self.front(scores)
        if not front:
            return []
        kept = list(front)
        knee = self.knee(scores, front)
        while len(kept) > most:
            lost = pareto.contributions(self.utilities(scores, kept), self.objectives.reference)
            order = sorted(range(len(kept)), key=lambda each: (lost[each], -kept[each]))
            kept.pop(next(each for each in order if kept[each] != knee))
        return kept

    def baselines(self, scores: Scores) -> list[Baseline]:
        """Base, experts, average, the best single λ, and the best with one coefficient per expert; the last two are
        chosen by the same rule and the same search scores as everything else."""
        result = [
            Baseline(each.label, each.id)
            for each in self._candidates.values()
            if each.id in scores and (each.label in ("base", "average") or each.label.startswith("expert "))
        ]
        grid = [
            each.id
            for each in self._candidates.values()
            if each.label.startswith("task arithmetic") and each.id in scores
        ]
        average = self.labelled("average")
        grid += [average] if average in scores and average is not None else []
        if grid:
            best = self.knee(scores, grid)
            label = self._candidates[best].label.removeprefix("task arithmetic ")
            result.append(Baseline(f"best single λ ({label})", best))
        if "per-expert" in self._stage_names:
            stage = self._stage_names.index("per-expert")
            ids = [id for id in scores if self._candidates[id].stage <= stage and self._complete(id)]
            if any(self._candidates[id].stage == stage for id in ids):
                result.append(Baseline("best per-expert", self.knee(scores, sorted(ids))))
        return result

    def _complete(self, id: int) -> bool:
        return id in self._candidates and self._candidates[id].state == "complete"


def _values(scores: Scores, id: int | None) -> dict[str, float] | None:
    """metric -> value of a candidate, None where it has no scores."""
    if id is None or id not in scores:
        return None
    return {name: value for name, (value, _) in scores[id].items()}


class Finals:
    """Selection, choice and holdout of one run; each step is stored, and none is done twice."""

    def __init__(
        self,
        store: Store,
        stages: Sequence[Stage],
        worker: Worker,
        evaluators: Mapping[str, Evaluator],
        objectives: Objectives,
        emit: Emit,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store = store
        self._stages = list(stages)
        self._worker = worker
        self._evaluators = evaluators
        self._objectives = objectives
        self._emit = emit
        self._should_stop = should_stop

    def run(self, most: int, budget: int) -> int:
        """Re-score, choose, open.

        Args:
            most: finalists at most.
            budget: of the search that has just ended; logged.

        Returns:
            The chosen candidate.

        Raises:
            NothingFeasible: no candidate is complete.
            Interrupted: the user asked to stop.
        """
        judge = Judge(self._objectives, self._store.candidates(), [stage.name for stage in self._stages])
        search = self._store.scores("search")
        finalists = judge.finalists(search, most)
        if not finalists:
            raise NothingFeasible(
                f"none of {budget} candidates could be scored, so there is nothing to choose; `paretomerge status RUN "
                "--json --candidates` lists the reasons"
            )
        baselines = judge.baselines(search)
        self._emit_once(FinalistsNamed(finalists, [each.candidate for each in baselines]))
        self._evaluate([*finalists, *(each.candidate for each in baselines)], "selection")

        selection = self._store.scores("selection")
        front = judge.front(selection, finalists)
        if not front:
            raise NothingFeasible("none of the finalists could be scored on the selection split")
        chosen = judge.knee(selection, front)
        self._emit_once(Chosen(chosen, CHOICE_RULE))
        opened = list(dict.fromkeys([chosen, *(each.candidate for each in baselines)]))
        self._emit_once(Opened(opened, holdout_hash(self._evaluators)))
        self._evaluate(opened, "holdout")
        self._emit(Finished(budget, judge.hypervolume(search, judge.front(search))))
        return chosen

    def _emit_once(self, event: Event) -> None:
        """Log a decision unless the log's latest of its kind is the same: a resumed run has taken it before."""
        latest = None
        for each in self._store.events(type(event)):
            latest = each
        if latest != event:
            self._emit(event)

    def _evaluate(self, ids: Sequence[int], split: Split) -> None:
        known = {each.id: each for each in self._store.candidates()}
        done = self._store.scores(split)
        for id in dict.fromkeys(ids):
            if id in done:
                continue
            if self._should_stop():
                self._emit(InterruptedEvent("stopped by the user"))
                raise Interrupted
            candidate = known[id]
            self._emit(EvaluationStarted(id, split))
            recipe = self._stages[candidate.stage].space.decode(candidate.genome)
            try:
                self._emit(scored(id, split, self._worker.evaluate(recipe, split)))
            except CandidateFailed as failure:
                self._emit(Failed(id, split, failure.reason, failure.seconds))


def holdout_hash(evaluators: Mapping[str, Evaluator]) -> str:
    """sha256 over the content of all holdout items: the identity under which openings are counted."""
    digest = hashlib.sha256()
    for name in sorted(evaluators):
        for each in sorted(evaluators[name].items("holdout").hashes):
            digest.update(each.encode())
    return digest.hexdigest()
