"""Bounds that a candidate must keep, judged by what its scores allow to say.

A refusal rate of 96 % on 50 prompts does not show that the model refuses 95 % of such prompts. So a constraint is kept
only where the confidence bound of the score keeps it, and the violation that the optimizer hears is the distance of
that bound, so that candidates outside are drawn inside. Violations are in units of the metric's range where it has one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, Literal

import numpy as np

from evaluators.contract import SPLITS, Evaluator, ItemScores, Split, Status, weighted_mean
from search.config import LoadedConfig
from search.minibatch import drawn
from search.objectives import clusters_of
from search.positions import did_you_mean
from search.statistics import bound


@dataclass(frozen=True)
class Constraint:
    """One bound, resolved.

    Attributes:
        name: ``evaluator.metric``.
        side: whether the score must be at least or at most the limit.
        limit: in the metric's units.
        confidence: one-sided, in [0.5, 1).
        low, high: the metric's own range; infinite where it has none.
        clusters: item id -> cluster where items are not independent.
    """

    name: str
    side: Literal["at_least", "at_most"]
    limit: float
    confidence: float
    low: float
    high: float
    clusters: Mapping[str, str] | None = None

    def bound(self, scores: Mapping[str, ItemScores]) -> float:
        """The confidence bound of the score on the side of the limit; nan where no item has a verdict or is known.

        Args:
            scores: evaluator -> item scores.
        """
        evaluator, _, metric = self.name.partition(".")
        found = scores.get(evaluator)
        if found is None:
            return math.nan
        if self.confidence == 0.5:
            return weighted_mean(found, metric)
        return bound(
            found.values[metric],
            found.weights[metric],
            found.statuses,
            None if self.clusters is None else [self.clusters.get(id, id) for id in found.ids],
            confidence=self.confidence,
            side="lower" if self.side == "at_least" else "upper",
            bounds=(self.low, self.high),
        )

    def violation(self, scores: Mapping[str, ItemScores]) -> float:
        """By how much the bound is on the wrong side: > 0 broken, <= 0 kept; inf where it cannot be judged."""
        found = self.bound(scores)
        if math.isnan(found):
            return math.inf
        beyond = self.limit - found if self.side == "at_least" else found - self.limit
        width = self.high - self.low
        return beyond / width if math.isfinite(width) else beyond

    def __str__(self) -> str:
        sign = ">=" if self.side == "at_least" else "<="
        return f"{self.name} {sign} {self.limit:g} (with confidence {self.confidence:g})"


class Constraints:
    """A run's constraints in their order."""

    def __init__(self, constraints: Sequence[Constraint] = ()) -> None:
        self.all = tuple(constraints)

    @staticmethod
    def of(loaded: LoadedConfig, evaluators: Mapping[str, Evaluator]) -> Constraints:
        """Resolve the config's constraints against the evaluators' metrics.

        Raises:
            SearchError: no such metric, or a limit outside its range; points at the line in the config.
        """
        return Constraints([constraint_of(loaded, key, evaluators) for key in loaded.config.constraints])

    @property
    def names(self) -> tuple[str, ...]:
        """What each constraint says, for people."""
        return tuple(str(each) for each in self.all)

    def violations(self, scores: Mapping[str, ItemScores]) -> tuple[float, ...]:
        """[constraints] > 0 where one is broken, by how much."""
        return tuple(each.violation(scores) for each in self.all)

    def as_data(self) -> list[dict[str, Any]]:
        """Plain data for the run's log."""
        return [
            {
                "name": each.name, "side": each.side, "limit": each.limit, "confidence": each.confidence,
                "low": each.low, "high": each.high,
            }
            for each in self.all
        ]  # fmt: skip

    @staticmethod
    def from_data(
        data: Sequence[Mapping[str, Any]], clusters: Mapping[str, Mapping[str, str]] | None = None
    ) -> Constraints:
        """The inverse of :meth:`as_data`; clusters are logged apart, by evaluator."""
        known = clusters or {}
        return Constraints([Constraint(**each, clusters=known.get(each["name"].partition(".")[0])) for each in data])


def constraint_of(loaded: LoadedConfig, key: str, evaluators: Mapping[str, Evaluator]) -> Constraint:
    """One of the config's constraints.

    Raises:
        SearchError: no such metric, a limit outside its range, or one that so few items can never show to be kept;
            points at the line in the config.
    """
    given = loaded.config.constraints[key]
    evaluator, _, name = key.partition(".")
    metrics = {each.name: each for each in evaluators[evaluator].metrics}
    if not name and len(metrics) == 1:
        name = next(iter(metrics))
    if name not in metrics:
        raise loaded.error(
            ("constraints", key),
            f"expected evaluator.metric; evaluator {evaluator!r} has: {', '.join(metrics)}."
            + did_you_mean(name, metrics),
        )
    metric = metrics[name]
    side: Literal["at_least", "at_most"] = "at_least" if given.at_least is not None else "at_most"
    limit = given.at_least if given.at_least is not None else given.at_most
    assert limit is not None  # the schema wants one of both
    if not metric.low <= limit <= metric.high:
        raise loaded.error(
            ("constraints", key),
            f"{evaluator}.{name} lies in [{metric.low:g}, {metric.high:g}], found {side}: {limit:g}",
        )
    clusters = {id: of for split in SPLITS for id, of in (clusters_of(evaluators[evaluator], split) or {}).items()}
    resolved = Constraint(
        f"{evaluator}.{name}", side, limit, given.confidence, metric.low, metric.high, clusters or None
    )
    _check_provable(loaded, key, resolved, evaluators[evaluator])
    return resolved


def _check_provable(loaded: LoadedConfig, key: str, constraint: Constraint, evaluator: Evaluator) -> None:
    """Refuse a limit that not even a perfect score could be shown to keep on so few items."""
    best = constraint.high if constraint.side == "at_least" else constraint.low
    if not math.isfinite(constraint.high - constraint.low):
        return  # without a range, items that are all alike show nothing of the others
    splits: tuple[Split, ...] = ("search", "selection")
    minibatch = loaded.config.search.fidelity.minibatch
    for split in splits:
        items, metric = evaluator.items(split), constraint.name.partition(".")[2]
        seen = np.ones(len(items), dtype=bool)
        if split == "search" and minibatch is not None:
            seen = np.isin(items.ids, drawn(items, minibatch, 0))  # another draw has as many of each stratum
        ok: Status = "ok"
        weights = np.asarray(items.weights.get(metric, np.ones(len(items))), dtype=np.float64)[seen]
        ids = tuple(compress(items.ids, seen))
        scores = ItemScores(ids, {metric: np.full(len(ids), best)}, {metric: weights}, (ok,) * len(ids))
        perfect = {constraint.name.partition(".")[0]: scores}
        if constraint.violation(perfect) > 0.0:
            raise loaded.error(
                ("constraints", key),
                f"with {np.count_nonzero(weights)} {split} items even a perfect score shows only "
                f"{constraint.bound(perfect):.3f} with confidence {constraint.confidence:g}, so no candidate could "
                f"ever keep {constraint.limit:g}; use more items, a lower confidence or another limit",
            )
