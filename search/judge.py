"""Who is on the front, who may be a finalist, what is chosen, and what a winner has to beat. Reads, writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evaluators.contract import Split
from search import pareto
from search.errors import NothingFeasible
from search.objectives import Objectives
from search.store import Candidate
from search.virtual import ALONE

Scores = Mapping[int, Mapping[str, tuple[float, float]]]
"""candidate -> metric -> (value, standard error)."""
Violations = Mapping[Split, Mapping[int, tuple[float, ...]]]
"""split -> candidate -> [constraints] violation."""

CHOICE_RULE = (
    "knee: the largest smallest retention over the objectives (augmented Tchebycheff, equal weights), on the "
    "selection split"
)
GRID = "task arithmetic "
"""How the labels of the λ grid begin; of the grid only the best one is a baseline."""


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
    """See the module docstring.

    Args:
        objectives: the run's.
        candidates: all of them.
        stage_names: by index.
        violations: of constraints, per split; nothing is violated where a candidate is not named.
    """

    def __init__(
        self,
        objectives: Objectives,
        candidates: Sequence[Candidate],
        stage_names: Sequence[str],
        violations: Violations | None = None,
    ) -> None:
        self.objectives = objectives
        self._candidates = {each.id: each for each in candidates}
        self._stage_names = list(stage_names)
        self._labels = {each.label: each.id for each in reversed(candidates) if each.label}
        self._violations = violations or {}

    def labelled(self, label: str) -> int | None:
        """The baseline candidate with this label."""
        return self._labels.get(label)

    def violation(self, id: int, split: Split) -> float:
        """Total constraint violation of a candidate on a split, >= 0; 0 is feasible."""
        return sum(max(0.0, each) for each in self._violations.get(split, {}).get(id, ()))

    def retention(self, scores: Scores, id: int) -> tuple[float, ...]:
        """[objectives] retention of a candidate, on the split that the scores are of."""
        base = _values(scores, self.labelled("base"))
        experts = {
            target.expert: own
            for target in self.objectives.targets
            if target.expert is not None and (own := _values(scores, self.labelled(f"expert {target.expert}")))
        }
        return self.objectives.retention(_values(scores, id) or {}, base, experts)

    def front(self, scores: Scores, among: Sequence[int] | None = None, split: Split = "search") -> list[int]:
        """Ids of the non-dominated, complete, feasible candidates, ascending. Of equal recipes only the first counts.

        Args:
            scores: on that split.
            among: only these; all that have scores if None.
            split: on which constraints must be kept.
        """
        ids = [id for id in sorted(scores if among is None else among) if id in scores and self._complete(id)]
        if not ids:
            return []
        mask = pareto.nondominated(self.utilities(scores, ids), [self.violation(id, split) for id in ids])
        return [id for id, keep in zip(ids, mask, strict=True) if keep]

    def utilities(self, scores: Scores, ids: Sequence[int]) -> npt.NDArray[np.float64]:
        """[n, objectives] utilities of these candidates."""
        rows = [self.objectives.utilities({name: value for name, (value, _) in scores[id].items()}) for id in ids]
        return np.array(rows, dtype=np.float64).reshape(len(ids), len(self.objectives.targets))

    def hypervolume(self, scores: Scores, ids: Sequence[int]) -> float:
        """Of these candidates' utilities, against the run's fixed reference point."""
        return pareto.hypervolume(self.utilities(scores, ids), self.objectives.reference)

    def knee(self, scores: Scores, ids: Sequence[int], weights: Sequence[float] | None = None) -> int:
        """The choice among ``ids`` by :data:`CHOICE_RULE`, or for another mix.

        Args:
            scores: on the split where the choice is made.
            ids: to choose from.
            weights: [objectives] >= 0, how much each matters; equal if None.
        """
        k = len(self.objectives.targets)
        retained = np.array([self.retention(scores, id) for id in ids])
        chosen = pareto.knee(retained, ids, ideal=[1.0] * k, nadir=[0.0] * k, weights=weights)
        if chosen is None:
            raise NothingFeasible("there is no candidate to choose from")
        return chosen

    def finalists(self, scores: Scores, most: int) -> list[int]:
        """Who is scored on the selection split, ascending: the front on the search split, then what cannot be told from
        it, nearest first.

        A candidate cannot be told from the front where no member of the front is better than it by more than two
        standard errors of the difference in every objective. Errors are taken as independent, which overstates them for
        scores on common items: rather one finalist too many. Where the front alone is longer than ``most``, the part
        with most hypervolume is kept, and the knee in any case.
        """
        front = self.front(scores)
        if not front:
            return []
        if len(front) >= most:
            return self._shortened(scores, front, most)
        others = [
            id
            for id in sorted(scores)
            if id not in set(front) and self._complete(id) and self.violation(id, "search") <= 0.0
        ]
        near = sorted((self._distance(scores, id, front), id) for id in others)
        return sorted([*front, *(id for distance, id in near if distance <= 2.0)][:most])

    def baselines(self, scores: Scores) -> list[Baseline]:
        """Base, experts, average, presets, the best single λ, and the best with one coefficient per expert; the last
        two are chosen by the same rule and the same search scores as everything else."""
        labelled = {each.id: each.label for each in self._candidates.values() if each.id in scores and each.label}
        result = [Baseline(label, id) for id, label in labelled.items() if not label.startswith(GRID)]
        grid = [id for id, label in labelled.items() if label.startswith(GRID) or label == "average"]
        if grid:
            best = self._best(scores, grid)
            result.append(Baseline(f"best single λ ({labelled[best].removeprefix(GRID)})", best))
        if "per-expert" in self._stage_names:
            stage = self._stage_names.index("per-expert")
            found = [id for id in scores if self._candidates[id].stage == stage and self._complete(id)]
            if found:
                known = ("base", "average", "expert ", GRID)
                points = {id for id, label in labelled.items() if label.startswith(known) or label.endswith(ALONE)}
                ids = [*found, *points]
                result.append(Baseline("best per-expert", self._best(scores, sorted(ids))))
        return result

    def _best(self, scores: Scores, ids: Sequence[int]) -> int:
        """The knee of the feasible ones; of all where none is."""
        feasible = [id for id in ids if self.violation(id, "search") <= 0.0]
        return self.knee(scores, feasible or ids)

    def _shortened(self, scores: Scores, front: Sequence[int], most: int) -> list[int]:
        kept = list(front)
        knee = self.knee(scores, front)
        while len(kept) > most:
            lost = pareto.contributions(self.utilities(scores, kept), self.objectives.reference)
            order = sorted(range(len(kept)), key=lambda each: (lost[each], -kept[each]))
            kept.pop(next(each for each in order if kept[each] != knee))
        return kept

    def _distance(self, scores: Scores, id: int, front: Sequence[int]) -> float:
        """By how many standard errors a candidate is beaten in its best objective, by whoever on the front beats it
        most."""
        mine, errors = self.utilities(scores, [id])[0], self._errors(scores, id)
        theirs = self.utilities(scores, front)
        spread = np.sqrt(np.square([self._errors(scores, each) for each in front]) + errors**2)
        behind = (theirs - mine) / np.maximum(spread, 1e-12)
        return float(behind.min(axis=1).max())

    def _errors(self, scores: Scores, id: int) -> npt.NDArray[np.float64]:
        errors = self.objectives.errors({name: error for name, (_, error) in scores[id].items()})
        return np.asarray(errors, dtype=np.float64)

    def _complete(self, id: int) -> bool:
        return id in self._candidates and self._candidates[id].state == "complete"


def _values(scores: Scores, id: int | None) -> dict[str, float] | None:
    """metric -> value of a candidate, None where it has no scores."""
    if id is None or id not in scores:
        return None
    return {name: value for name, (value, _) in scores[id].items()}
