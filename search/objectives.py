"""From metrics to utilities: what the optimizer sees, and what people compare.

A *utility* is an objective on its declared bounds, turned so that 1 is the best and 0 the worst that it can be; the
hypervolume's reference point is all zeros, known before the first score. *Retention* compares a merge with what it
was made from: (score − base) / (own expert − base), 1 where it is as good as the expert for that skill.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluators.contract import Evaluator, ItemScores, Metric, Split, weighted_mean
from search.config import LoadedConfig
from search.positions import did_you_mean

Aggregates = Mapping[str, float]


@dataclass(frozen=True)
class Target:
    """One objective, resolved.

    Attributes:
        name: ``evaluator.metric``.
        metric: with its direction.
        low: worst or best end of the range that counts, low < high.
        high: the other end.
        expert: alias of the expert whose skill it is, or None.
    """

    name: str
    metric: Metric
    low: float
    high: float
    expert: str | None

    def utility(self, value: float) -> float:
        """The value in [0, 1], larger is better; values beyond the bounds are clipped."""
        scaled = (value - self.low) / (self.high - self.low)
        if self.metric.direction == "minimize":
            scaled = 1.0 - scaled
        return min(1.0, max(0.0, scaled))

    def value(self, utility: float) -> float:
        """The inverse of :meth:`utility` inside the bounds."""
        scaled = 1.0 - utility if self.metric.direction == "minimize" else utility
        return self.low + scaled * (self.high - self.low)


class Objectives:
    """A run's objectives in their order."""

    def __init__(self, targets: Sequence[Target]) -> None:
        self.targets = tuple(targets)

    @staticmethod
    def of(loaded: LoadedConfig, evaluators: Mapping[str, Evaluator]) -> Objectives:
        """Resolve the config's objectives against the evaluators' metrics.

        Raises:
            SearchError: no such metric, or one without bounds; points at the line in the config.
        """
        return Objectives([target_of(loaded, index, evaluators) for index in range(len(loaded.config.objectives))])

    def as_data(self) -> list[dict[str, Any]]:
        """Plain data for the run's log: a status or a report needs no evaluator. :meth:`from_data` reads it back."""
        return [
            {
                "name": each.name, "direction": each.metric.direction, "low": each.low, "high": each.high,
                "expert": each.expert, "unit": each.metric.unit,
                "metric_low": each.metric.low if math.isfinite(each.metric.low) else None,
                "metric_high": each.metric.high if math.isfinite(each.metric.high) else None,
            }
            for each in self.targets
        ]  # fmt: skip

    @staticmethod
    def from_data(data: Sequence[Mapping[str, Any]]) -> Objectives:
        """The inverse of :meth:`as_data`. Logs of old know only one range, and take it for the metric's own."""
        return Objectives(
            [Target(each["name"], _metric(each), each["low"], each["high"], each["expert"]) for each in data]
        )

    @property
    def names(self) -> tuple[str, ...]:
        """``evaluator.metric`` of each objective."""
        return tuple(each.name for each in self.targets)

    @property
    def reference(self) -> tuple[float, ...]:
        """The hypervolume's reference point, in utilities: the worst that each can be."""
        return (0.0,) * len(self.targets)

    def utilities(self, values: Aggregates) -> tuple[float, ...]:
        """[objectives] utilities of one candidate."""
        return tuple(each.utility(values[each.name]) for each in self.targets)

    def errors(self, errors: Aggregates) -> tuple[float, ...]:
        """[objectives] standard errors on the utility scale."""
        return tuple(errors[each.name] / (each.high - each.low) for each in self.targets)

    def retention(
        self, values: Aggregates, base: Aggregates | None, experts: Mapping[str, Aggregates]
    ) -> tuple[float, ...]:
        """[objectives] (score − base) / (own expert − base) where that scale exists, else the utility.

        Args:
            values: of the candidate.
            base: of the base model, on the same split.
            experts: alias -> values of that expert alone, on the same split.
        """
        result = []
        for target in self.targets:
            own = experts.get(target.expert) if target.expert is not None else None
            gain = 0.0 if own is None or base is None else own[target.name] - base[target.name]
            better = gain < 0 if target.metric.direction == "minimize" else gain > 0
            # an expert that is no better than the base gives no scale
            if base is None or not better:
                result.append(target.utility(values[target.name]))
            else:
                result.append((values[target.name] - base[target.name]) / gain)
        return tuple(result)


def target_of(loaded: LoadedConfig, index: int, evaluators: Mapping[str, Evaluator]) -> Target:
    """One of the config's objectives.

    Raises:
        SearchError: no such metric, or one without bounds; points at the line in the config.
    """
    objective = loaded.config.objectives[index]
    evaluator, _, name = objective.metric.partition(".")
    metrics = {each.name: each for each in evaluators[evaluator].metrics}
    if name not in metrics:
        raise loaded.error(
            ("objectives", index),
            f"evaluator {evaluator!r} has no metric {name!r}; it has: {', '.join(metrics)}."
            + did_you_mean(name, metrics),
        )
    metric = metrics[name]
    low, high = objective.bounds or (metric.low, metric.high)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise loaded.error(
            ("objectives", index),
            f"{objective.metric} ranges over [{low}, {high}]; give `bounds: [low, high]`, low < high, the range that "
            "matters to you",
        )
    models = loaded.config.models
    expert = objective.expert or (evaluator if evaluator in {**models.experts, **models.derived} else None)
    return Target(objective.metric, metric, low, high, expert)


def _metric(data: Mapping[str, Any]) -> Metric:
    """The metric of a logged objective: the range that matters to the user may be narrower than its own."""
    low, high = data.get("metric_low", data["low"]), data.get("metric_high", data["high"])
    return Metric(
        data["name"].partition(".")[2],
        data["direction"],
        -math.inf if low is None else low,
        math.inf if high is None else high,
        data["unit"],
    )


def aggregate(name: str, evaluator: Evaluator, scores: ItemScores) -> dict[str, float]:
    """``evaluator.metric`` -> corpus-level value."""
    return {f"{name}.{metric}": value for metric, value in evaluator.aggregate(scores).items()}


def clusters_of(evaluator: Evaluator, split: Split) -> dict[str, str] | None:
    """Item id -> its cluster on a split; None where every item stands for itself."""
    items = evaluator.items(split)
    clusters = getattr(items, "clusters", ())
    return dict(zip(items.ids, clusters, strict=True)) if clusters else None


def standard_errors(name: str, scores: ItemScores, clusters: Mapping[str, str] | None = None) -> dict[str, float]:
    """``evaluator.metric`` -> standard error of the weighted mean.

    The linearised variance of a ratio: √(Σ w²(v − m)² · n/(n−1)) / Σ w; for equal weights it is s/√n. Where items come
    in clusters, a cluster's residuals are summed first, and n counts clusters.

    Args:
        name: the evaluator's.
        scores: of one candidate.
        clusters: item id -> cluster; None: items are independent.
    """
    result = {}
    keep = np.array([status != "unscored" for status in scores.statuses], dtype=bool)
    labels = None
    if clusters is not None:
        kept = [clusters.get(id, id) for id, here in zip(scores.ids, keep, strict=True) if here]
        labels = np.unique(kept, return_inverse=True)[1] if kept else None
    for metric, values in scores.values.items():
        weights = scores.weights[metric][keep]
        total = float(weights.sum())
        residuals = weights * (values[keep] - weighted_mean(scores, metric)) if total > 0.0 else np.zeros(0)
        if labels is not None and len(residuals):
            residuals = np.bincount(labels, weights=residuals)
        n = len(residuals)
        if n < 2:
            result[f"{name}.{metric}"] = math.inf
            continue
        result[f"{name}.{metric}"] = float(math.sqrt((residuals**2).sum() * n / (n - 1)) / total)
    return result
