"""Confidence intervals of one aggregate: every number that is reported has one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from evaluators.contract import Status
from search.statistics.bootstrap import FEWEST_UNITS, MOST_UNITS, standard_error, studentized_quantiles
from search.statistics.samples import Clusters, Sample, StatisticsError, sample

Bounds = tuple[float, float]


@dataclass(frozen=True)
class Interval:
    """An estimate and what it may be off by.

    Attributes:
        value: Σ w·v / Σ w; nan where there are no items.
        low: lower limit, never below the metric's bounds.
        high: upper limit, never above the metric's bounds.
        level: confidence, 0.95 for 95 %.
        n: items with a verdict.
        method: "wilson", "bootstrap" (studentised), "t", "constant" (all items alike) or "none" (no items).
    """

    value: float
    low: float
    high: float
    level: float
    n: int
    method: str


def interval(
    values: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    statuses: Sequence[Status] | None = None,
    clusters: Clusters | None = None,
    *,
    level: float = 0.95,
    bounds: Bounds | None = None,
) -> Interval:
    """Two-sided interval of Σ w·v / Σ w.

    Wilson's where every item is one of two values with equal weight (Wilson, JASA 22, 1927). Otherwise the studentised
    bootstrap over items, or over clusters. It and Wilson's cover 92-98 % at 95 % where others (percentile, BCa, t)
    covered 73-93 % in the same simulations of small skewed samples. Items that are all alike have no variance to
    learn from: the share of items that may still be otherwise is at most 1 − (α/2)^(1/n), the rule of three, and those
    may lie anywhere in the bounds.

    Args:
        values: [n] per item.
        weights: [n] >= 0, what each counts for; ones if None.
        statuses: [n] "unscored" ones are left out.
        clusters: [n] labels: items of one cluster are not independent.
        level: in (0, 1).
        bounds: the metric's own smallest and largest value, ±inf where it has none. None: 0 and 1 if all values are 0
            or 1, else unbounded. A constant sample of an unbounded metric has an unbounded interval.

    Raises:
        StatisticsError: shapes, weights, level or bounds that do not fit.
    """
    if not 0.0 < level < 1.0:
        raise StatisticsError(f"expected a confidence level between 0 and 1, found {level}; 0.95 is usual")
    given = sample(values, weights, statuses, clusters)
    low, high = _bounds(given, bounds)
    return _interval(given, level, low, high)


def bound(
    values: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    statuses: Sequence[Status] | None = None,
    clusters: Clusters | None = None,
    *,
    confidence: float = 0.9,
    side: Literal["lower", "upper"] = "lower",
    bounds: Bounds | None = None,
) -> float:
    """One-sided confidence bound: with probability ``confidence`` the truth is not beyond it.

    Arguments and errors as for :func:`interval`. Without items it is the metric's own bound: nothing is known.
    """
    if not 0.5 < confidence < 1.0:
        raise StatisticsError(f"expected a one-sided confidence between 0.5 and 1, found {confidence}; 0.9 is usual")
    both = interval(values, weights, statuses, clusters, level=2.0 * confidence - 1.0, bounds=bounds)
    return both.low if side == "lower" else both.high


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion. ``n`` > 0."""
    z = float(special.ndtri(0.5 + level / 2.0))
    share = successes / n
    middle = (share + z * z / (2.0 * n)) / (1.0 + z * z / n)
    half = z * math.sqrt(share * (1.0 - share) / n + z * z / (4.0 * n * n)) / (1.0 + z * z / n)
    # at the ends rounding alone would be left of the exact 0 and 1
    return (0.0 if successes <= 0 else middle - half), (1.0 if successes >= n else middle + half)


def _interval(given: Sample, level: float, low: float, high: float) -> Interval:
    if not given.items:
        return Interval(math.nan, low, high, level, 0, "none")
    value, n = given.value, given.items
    if given.equal and _two_valued(given, low, high):
        width = high - low
        ends = wilson((value - low) / width * n, n, level)
        return Interval(value, low + width * ends[0], low + width * ends[1], level, n, "wilson")
    residuals = given.sums - value * given.weights
    alike = np.abs(residuals).max() <= 1e-12 * max(np.abs(given.sums).max(), np.finfo(np.float64).tiny)
    if len(residuals) == 1 or alike:
        effective = float(given.weights.sum() ** 2 / (given.weights**2).sum())
        other = 1.0 - ((1.0 - level) / 2.0) ** (1.0 / effective)
        below, above = (0.0 if value == end else other * abs(end - value) for end in (low, high))
        return Interval(value, value - below, value + above, level, n, "constant")
    error = standard_error(residuals, given.weights)
    tail = (1.0 - level) / 2.0
    left, right = studentized_quantiles(residuals, given.weights, (tail, 1.0 - tail))
    method = "bootstrap" if FEWEST_UNITS <= len(residuals) <= MOST_UNITS else "t"
    # the estimate stays inside its own interval even where a skewed sample would push both ends to one side
    ends = (min(value, max(low, value - right * error)), max(value, min(high, value - left * error)))
    return Interval(value, *ends, level, n, method)


def _bounds(given: Sample, bounds: Bounds | None) -> Bounds:
    if bounds is None:
        zero_or_one = given.equal and _two_valued(given, 0.0, 1.0)
        return (0.0, 1.0) if zero_or_one else (-math.inf, math.inf)
    low, high = bounds
    if not low < high:
        raise StatisticsError(f"expected bounds [low, high] with low < high, found [{low}, {high}]")
    values = given.sums / given.weights
    slack = 1e-9 * max(1.0, abs(low) if math.isfinite(low) else 0.0, abs(high) if math.isfinite(high) else 0.0)
    if len(values) and (values.min() < low - slack or values.max() > high + slack):
        raise StatisticsError(
            f"expected values within the metric's bounds [{low}, {high}], found {values.min():g} to "
            f"{values.max():g}; pass the metric's own bounds, or correct what it declares"
        )
    return low, high


def _two_valued(given: Sample, low: float, high: float) -> bool:
    """Whether every item is at one of the bounds."""
    values = given.sums / given.weights
    return math.isfinite(high - low) and bool(((values == low) | (values == high)).all())
