"""From item scores to the sums that statistics are made of: verdicts only, clusters added up, systems aligned by id."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evaluators.contract import ItemScores, Status
from search.errors import SearchError

Array = npt.NDArray[np.float64]
Clusters = Sequence[Hashable]


class StatisticsError(SearchError):
    """Scores from which nothing can be computed: one paragraph, shown without a traceback."""


@dataclass(frozen=True)
class Sample:
    """The scored items of one system, per unit: an item, or a cluster of items.

    Attributes:
        sums: [units] Σ w·v.
        weights: [units] Σ w, > 0.
        items: how many items are behind them.
        equal: whether every unit is one item and all weights are equal.
    """

    sums: Array
    weights: Array
    items: int
    equal: bool

    @property
    def value(self) -> float:
        """Σ w·v / Σ w; nan where there is no item."""
        return float(self.sums.sum() / self.weights.sum()) if self.items else float("nan")


def sample(
    values: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    statuses: Sequence[Status] | None = None,
    clusters: Clusters | None = None,
) -> Sample:
    """Drop what has no verdict or no weight, and add up clusters.

    Args:
        values: [n] finite where scored.
        weights: [n] >= 0; ones if None.
        statuses: [n] "unscored" items are left out; all are scored if None or empty.
        clusters: [n] label of the cluster of each item; every item is its own if None.

    Raises:
        StatisticsError: shapes that do not fit, a negative weight, a value that is not finite.
    """
    numbers, counts = _checked(values, weights)
    keep = counts > 0.0
    if statuses:
        _same_length(len(statuses), len(numbers), "statuses")
        keep &= np.array([status != "unscored" for status in statuses], dtype=bool)
    if not np.isfinite(numbers[keep]).all():
        raise StatisticsError(
            "expected a finite value for every scored item, found nan or inf; an item without a verdict has the status "
            "'unscored', one without a usable answer the metric's worst bound"
        )
    if clusters is not None:
        _same_length(len(clusters), len(numbers), "clusters")
    numbers, counts = numbers[keep], counts[keep]
    sums = numbers * counts
    items = len(sums)
    if clusters is None:
        return Sample(sums, counts, items, bool(items == 0 or (counts == counts[0]).all()))
    labels = cluster_index([label for label, kept in zip(clusters, keep, strict=True) if kept])
    return Sample(cluster_sums(sums, labels), cluster_sums(counts, labels), items, equal=False)


def cluster_index(labels: Clusters) -> npt.NDArray[np.int64]:
    """[n] number of each label, in the order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in labels], dtype=np.int64)


def cluster_sums(values: Array, labels: npt.NDArray[np.int64]) -> Array:
    """[clusters] sums of values [n] by cluster."""
    if not len(labels):
        return np.zeros(0)
    return np.bincount(labels, weights=values, minlength=int(labels.max()) + 1).astype(np.float64)


@dataclass(frozen=True)
class Table:
    """Scores of several systems on the same items, by one metric.

    Attributes:
        values: [systems, items] every one with a verdict.
        weights: [systems, items] >= 0.
        ids: [items].
        evaluator: whose items they are: metrics of one evaluator are resampled together.
        clusters: [items] label of each item's cluster, or None.
    """

    values: Array
    weights: Array
    ids: tuple[str, ...] = ()
    evaluator: str = ""
    clusters: tuple[Hashable, ...] | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape != self.weights.shape:
            raise StatisticsError(
                f"expected values and weights as [systems, items] each, found {self.values.shape} and "
                f"{self.weights.shape}"
            )
        if not np.isfinite(self.values).all() or not (self.weights >= 0.0).all():
            raise StatisticsError("expected finite values and weights >= 0; leave items without a verdict out")
        if self.clusters is not None:
            _same_length(len(self.clusters), self.values.shape[1], "clusters")

    def sums(self) -> tuple[Array, Array]:
        """[systems, units] Σ w·v and Σ w per item, or per cluster where there are clusters."""
        products, weights = self.values * self.weights, self.weights
        if self.clusters is None or not self.values.shape[1]:
            return products, weights
        labels = cluster_index(self.clusters)
        summed = [np.stack([cluster_sums(row, labels) for row in each]) for each in (products, weights)]
        return summed[0], summed[1]


def tabulate(
    systems: Sequence[ItemScores],
    metric: str,
    *,
    evaluator: str = "",
    clusters: Mapping[str, Hashable] | None = None,
) -> Table:
    """The items that every system has a verdict on, in the first system's order.

    Args:
        systems: their scores, on any items in any order.
        metric: which.
        evaluator: see :class:`Table`.
        clusters: item id -> its cluster; an id that is not named is a cluster of its own. None: no clusters.

    Raises:
        StatisticsError: no system, or one without the metric.
    """
    if not systems:
        raise StatisticsError("expected the scores of at least one system, found none")
    places = [_verdicts(each, metric) for each in systems]
    ids = tuple(id for id in systems[0].ids if all(id in place for place in places))
    order = [[place[id] for id in ids] for place in places]
    return Table(
        np.stack([each.values[metric][rows] for each, rows in zip(systems, order, strict=True)]).astype(np.float64),
        np.stack([each.weights[metric][rows] for each, rows in zip(systems, order, strict=True)]).astype(np.float64),
        ids,
        evaluator,
        None if clusters is None else tuple(clusters.get(id, ("", id)) for id in ids),
    )


def _verdicts(scores: ItemScores, metric: str) -> dict[str, int]:
    if metric not in scores.values:
        raise StatisticsError(f"expected scores by {metric!r}, found {', '.join(scores.values) or 'none'}")
    statuses: Sequence[str] = scores.statuses or ("ok",) * len(scores)
    return {id: row for row, (id, status) in enumerate(zip(scores.ids, statuses, strict=True)) if status != "unscored"}


def _checked(values: npt.ArrayLike, weights: npt.ArrayLike | None) -> tuple[Array, Array]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1:
        raise StatisticsError(f"expected one value per item, found an array of shape {numbers.shape}")
    counts = np.ones(len(numbers)) if weights is None else np.asarray(weights, dtype=np.float64)
    _same_length(len(counts), len(numbers), "weights")
    if not (np.isfinite(counts).all() and (counts >= 0.0).all()):
        raise StatisticsError("expected finite weights >= 0, found others; a weight is what an item counts for")
    return numbers, counts


def _same_length(found: int, expected: int, what: str) -> None:
    if found != expected:
        raise StatisticsError(f"expected {what} for {expected} items, found {found}")
