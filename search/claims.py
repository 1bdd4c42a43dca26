"""What may be said of the chosen candidate, and with which certainty.

On holdout it is compared with every baseline, item by item: per objective, and in the one number that the choice was
made by. It *beats* the best baseline only where that number's adjusted p-value says so. Which baseline is the best is
decided on the selection split, so the holdout decides nothing but whether the claim stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from evaluators.contract import ItemScores, Split
from search import pareto
from search.errors import SearchError
from search.judge import Baseline, Judge
from search.objectives import Objectives, Target
from search.results import Results
from search.statistics import (
    Interval,
    Optimism,
    Paired,
    ScalarDifference,
    adjust,
    holm,
    indistinguishable_by,
    interval,
    optimism,
    paired_scores,
    scalar_difference,
    tabulate,
)
from search.statistics.samples import Table
from search.store import CONTROL, DATABASE, Store

Array = npt.NDArray[np.float64]
ALPHA = 0.05
Items = Mapping[str, ItemScores]


@dataclass(frozen=True)
class Comparison:
    """The chosen candidate against one baseline, on holdout.

    Attributes:
        baseline: label and number; the control's candidate has the number -1.
        objectives: metric -> paired difference, chosen − baseline, in the metric's own unit and direction.
        p: metric -> two-sided p-value, adjusted (Holm) over all baselines and objectives.
        scalar: difference of the number that the choice was made by.
        p_scalar: one-sided p-value of "no better than the baseline" in it, adjusted over all baselines.
    """

    baseline: Baseline
    objectives: dict[str, Paired]
    p: dict[str, float]
    scalar: ScalarDifference
    p_scalar: float

    @property
    def beaten(self) -> bool:
        """Whether the chosen candidate is better by that number, beyond chance."""
        return self.scalar.difference > 0.0 and self.p_scalar <= ALPHA


class Claims:
    """Everything that is inferred about a finished run; computed when it is asked for.

    Args:
        results: of a run whose chosen candidate has holdout scores.
    """

    def __init__(self, results: Results) -> None:
        self._results = results
        if results.chosen is None:
            raise ValueError("a run without a chosen candidate makes no claims")
        self.chosen: int = results.chosen
        self._read: dict[tuple[int, Split], Items] = {}

    @cached_property
    def baselines(self) -> list[Baseline]:
        """All with holdout scores, the chosen candidate itself left out; one that is several of them has all their
        names. The control's choice comes last."""
        held = self._results.scores["holdout"]
        names: dict[int, list[str]] = {}
        for each in self._results.baselines:
            if each.candidate in held and each.candidate != self.chosen:
                names.setdefault(each.candidate, []).append(each.label)
        found = [Baseline(" = ".join(labels), id) for id, labels in names.items()]
        return [*found, Baseline("random search, equal budget", -1)] if self._control is not None else found

    @cached_property
    def is_baseline(self) -> list[str]:
        """Labels of the baselines that the chosen candidate itself is."""
        return [each.label for each in self._results.baselines if each.candidate == self.chosen]

    @cached_property
    def best(self) -> Comparison | None:
        """Against the baseline that the rule would take, by selection scores, among those that keep the constraints if
        any does; None where there is none to compare."""
        if not self.comparisons:
            return None
        scalars = self._scalars("selection")
        judge = self._results.judge
        kept = [each for each in self.comparisons if judge.violation(each.baseline.candidate, "selection") <= 0.0]
        return max(kept or self.comparisons, key=lambda each: scalars.get(each.baseline.candidate, -np.inf))

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """With every baseline, on holdout."""
        if self.chosen not in self._results.scores["holdout"] or not self.baselines:
            return []
        ids = [self.chosen, *(each.candidate for each in self.baselines)]
        tables = [self._table(target, ids, "holdout") for target in self._targets]
        function = self._function(ids, "holdout")
        pairs = [
            {target.name: self._paired(target, each.candidate) for target in self._targets} for each in self.baselines
        ]
        p = adjust({row: {name: each.p for name, each in pair.items()} for row, pair in enumerate(pairs)})
        scalars = [scalar_difference(tables, function, 0, row) for row in range(1, len(ids))]
        p_scalar = holm([each.p_greater for each in scalars])
        return [
            Comparison(each, pairs[row], p[row], scalars[row], float(p_scalar[row]))
            for row, each in enumerate(self.baselines)
        ]

    @cached_property
    def indistinguishable(self) -> list[int]:
        """Finalists that are not significantly worse than the chosen one, on selection scores, by the rule's number;
        the chosen one among them, ascending."""
        selection = self._results.scores["selection"]
        ids = [id for id in self._results.finalists if id in selection]
        if self.chosen not in ids:
            return [self.chosen]
        tables = [self._table(target, ids, "selection") for target in self._targets]
        winner, rivals = ids.index(self.chosen), range(len(ids))
        found = indistinguishable_by(tables, self._function(ids, "selection"), winner, rivals=rivals, alpha=ALPHA)
        return [ids[row] for row in found.members]

    @cached_property
    def finalists(self) -> dict[int, dict[str, dict[str, float]]]:
        """finalist -> objective -> baseline's label -> one-sided p-value of "no better than it", on selection scores.

        Adjusted (Holm) over finalists × objectives × baselines: whichever of them is small stands beside all others
        that were looked at.
        """
        selection = self._results.scores["selection"]
        baselines = [each for each in self.baselines if each.candidate == -1 or each.candidate in selection]
        p = {
            id: {
                target.name: {
                    each.label: self._p_better(target, id, each.candidate) for each in baselines if each.candidate != id
                }
                for target in self._targets
            }
            for id in self._results.finalists
            if id in selection
        }
        return adjust(p)

    @cached_property
    def optimism(self) -> dict[str, Optimism]:
        """metric -> search − holdout of the chosen candidate, positive where the search flattered it."""
        if self.chosen not in self._results.scores["holdout"]:
            return {}
        return {
            target.name: optimism(
                self.interval(self.chosen, "search", target),
                self.interval(self.chosen, "holdout", target),
                target.metric.direction,
            )
            for target in self._targets
        }

    def interval(self, id: int, split: Split, target: Target) -> Interval:
        """95 % interval of one candidate's score."""
        evaluator, _, metric = target.name.partition(".")
        scores = self._items(id, split)[evaluator]
        bounds = (target.metric.low, target.metric.high)
        known = self._clusters(evaluator)
        clusters = None if known is None else [known.get(id, id) for id in scores.ids]
        return interval(scores.values[metric], scores.weights[metric], scores.statuses, clusters, bounds=bounds)

    @property
    def _targets(self) -> tuple[Target, ...]:
        return self._results.objectives.targets

    def _paired(self, target: Target, other: int) -> Paired:
        evaluator, _, metric = target.name.partition(".")
        one, two = self._items(self.chosen, "holdout")[evaluator], self._items(other, "holdout")[evaluator]
        bounds = (target.metric.low, target.metric.high)
        return paired_scores(one, two, metric, clusters=self._clusters(evaluator), bounds=bounds)

    def _p_better(self, target: Target, id: int, other: int) -> float:
        evaluator, _, metric = target.name.partition(".")
        one, two = self._items(id, "selection")[evaluator], self._items(other, "selection")[evaluator]
        found = paired_scores(one, two, metric, clusters=self._clusters(evaluator))
        return found.p_greater if target.metric.direction == "maximize" else found.p_less

    def _table(self, target: Target, ids: Sequence[int], split: Split) -> Table:
        """Rows: the candidates, then those that retention takes its scale from."""
        evaluator, _, metric = target.name.partition(".")
        rows = [*ids, *self._anchors(split).values()]
        scores = [self._items(id, split)[evaluator] for id in rows]
        return tabulate(scores, metric, evaluator=evaluator, clusters=self._clusters(evaluator))

    def _clusters(self, evaluator: str) -> Mapping[str, str] | None:
        return self._results.started.clusters.get(evaluator)

    def _function(self, ids: Sequence[int], split: Split) -> RetentionKnee:
        anchors = {label: len(ids) + place for place, label in enumerate(self._anchors(split))}
        return RetentionKnee(self._results.objectives, anchors, self._results.scores[split], self._results.judge)

    def _anchors(self, split: Split) -> dict[str, int]:
        """ "base" and experts -> candidate, where they have scores on the split."""
        labels = ["base", *(f"expert {each.expert}" for each in self._targets if each.expert is not None)]
        found = {label: self._results.judge.labelled(label) for label in labels}
        return {label: id for label, id in found.items() if id is not None and id in self._results.scores[split]}

    def _scalars(self, split: Split) -> dict[int, float]:
        """candidate -> the number that the choice is made by, of the chosen one and the baselines."""
        ids = [self.chosen, *(each.candidate for each in self.baselines)]
        ids = [id for id in ids if id == -1 or id in self._results.scores[split]]
        tables = [self._table(target, ids, split) for target in self._targets]
        means = np.stack([each.sums()[0].sum(axis=1) / each.sums()[1].sum(axis=1) for each in tables], axis=-1)
        return dict(zip(ids, self._function(ids, split)(means)[: len(ids)].tolist(), strict=True))

    def _items(self, id: int, split: Split) -> Items:
        """Item scores of a candidate; of the control's choice for -1."""
        if (id, split) not in self._read:
            folder, wanted = (self._results.folder, id) if id >= 0 else (self._control_folder, self._control)
            assert wanted is not None
            store = Store.open(folder, read_only=True)
            try:
                found = store.item_scores(wanted, split)
            finally:
                store.close()
            missing = {each.name.partition(".")[0] for each in self._targets} - found.keys()
            if missing:
                raise SearchError(
                    f"{folder}: expected item scores of candidate {wanted} on the {split} split, found none of "
                    f"{', '.join(sorted(missing))}; `paretomerge doctor {folder}` says what the database lacks"
                )
            self._read[id, split] = found
        return self._read[id, split]

    @property
    def _control_folder(self) -> Path:
        return self._results.folder / CONTROL

    @cached_property
    def _control(self) -> int | None:
        """The control's chosen candidate, where it is finished."""
        if not (self._control_folder / DATABASE).is_file():
            return None
        control = Results.load(self._control_folder)
        return control.chosen if control.chosen in control.scores["holdout"] else None


class RetentionKnee:
    """The number by which the knee is chosen, larger is better, over arrays of aggregates: minus the augmented
    Tchebycheff distance of the retentions from 1.

    Args:
        objectives: the run's.
        anchors: "base" and "expert …" -> row.
        scores: aggregates of the whole split: they decide, once, which objectives have a scale.
        judge: knows the candidates of the anchors.
    """

    def __init__(
        self,
        objectives: Objectives,
        anchors: Mapping[str, int],
        scores: Mapping[int, Mapping[str, tuple[float, float]]],
        judge: Judge,
    ) -> None:
        self._targets = objectives.targets
        self._anchors = dict(anchors)
        self._scaled = []
        for target in self._targets:
            base, own = judge.labelled("base"), judge.labelled(f"expert {target.expert}")
            known = base in scores and own in scores and f"expert {target.expert}" in anchors
            gain = scores[own][target.name][0] - scores[base][target.name][0] if known else 0.0  # type: ignore[index]
            self._scaled.append(gain < 0.0 if target.metric.direction == "minimize" else gain > 0.0)

    def __call__(self, aggregates: Array) -> Array:
        """[..., systems, objectives] -> [..., systems]."""
        distances = []
        for index, (target, scaled) in enumerate(zip(self._targets, self._scaled, strict=True)):
            values = aggregates[..., index]
            if scaled:
                base = values[..., [self._anchors["base"]]]
                gain = values[..., [self._anchors[f"expert {target.expert}"]]] - base
                # a resample in which the expert gains nothing has no scale: it is given the smallest one
                smallest = 1e-6 * (target.high - target.low) * (1.0 if target.metric.direction == "maximize" else -1.0)
                kept = (values - base) / np.where(gain * smallest > 0.0, gain, smallest)
            else:
                kept = np.clip((values - target.low) / (target.high - target.low), 0.0, 1.0)
                kept = 1.0 - kept if target.metric.direction == "minimize" else kept
            distances.append(1.0 - kept)
        stacked = np.stack(distances, axis=-1)
        return np.asarray(-(stacked.max(axis=-1) + pareto.AUGMENTATION * stacked.sum(axis=-1)))
