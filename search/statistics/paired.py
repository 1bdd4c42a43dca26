"""Two systems on the same items: how much better is one, how sure is it, and would chance do as well?"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from evaluators.contract import ItemScores
from search.statistics.bootstrap import standard_error, studentized_quantiles
from search.statistics.intervals import Bounds
from search.statistics.samples import Array, Clusters, StatisticsError, Table, tabulate

ENUMERATED = 16
"""Up to so many units that differ, the sign-flip test goes through all 2^n patterns."""

Side = Literal["two-sided", "greater", "less"]


@dataclass(frozen=True)
class Paired:
    """A against B on their common items.

    Attributes:
        difference: aggregate of A − aggregate of B, in the metric's own direction and unit; nan without items.
        low: lower limit of the difference.
        high: upper limit.
        level: confidence of the limits.
        p: two-sided p-value of "no difference"; 1 without items.
        p_greater: one-sided, small where A's aggregate is larger.
        p_less: one-sided, small where A's aggregate is smaller.
        n: common items.
        discordant: items on which they differ.
        wins: items on which A's value is larger.
        losses: items on which B's value is larger.
        method: "mcnemar" (mid-p; Tango's interval), "sign-flip" (bootstrap interval) or "none".
    """

    difference: float
    low: float
    high: float
    level: float
    p: float
    p_greater: float
    p_less: float
    n: int
    discordant: int
    wins: int
    losses: int
    method: str


def paired_scores(
    a: ItemScores,
    b: ItemScores,
    metric: str,
    *,
    clusters: Mapping[str, Hashable] | None = None,
    level: float = 0.95,
    bounds: Bounds | None = None,
) -> Paired:
    """:func:`paired` on the items that both have a verdict on, joined by id.

    Args:
        a: one system.
        b: the other.
        metric: of both.
        clusters: item id -> cluster.
        level: of the interval.
        bounds: the metric's own.
    """
    return paired_rows(tabulate([a, b], metric, clusters=clusters), level=level, bounds=bounds)


def paired_rows(
    table: Table, one: int = 0, other: int = 1, *, level: float = 0.95, bounds: Bounds | None = None
) -> Paired:
    """:func:`paired` of two rows of a table."""
    rows = [one, other]
    return _paired(Table(table.values[rows], table.weights[rows], clusters=table.clusters), level, bounds)


def paired(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    weights_a: npt.ArrayLike | None = None,
    weights_b: npt.ArrayLike | None = None,
    *,
    clusters: Clusters | None = None,
    level: float = 0.95,
    bounds: Bounds | None = None,
) -> Paired:
    """Difference of two ratios of sums over the same items.

    0/1 items of equal weight: McNemar's test, mid-p (Fagerland, Lydersen & Laake, BMC Med. Res. Methodol. 13, 2013: it
    keeps its level where the exact test is needlessly weak), and Tango's score interval (Statist. Med. 17, 1998). All
    others: a sign-flip test on what each item, or cluster of items, contributes to the difference, all patterns for
    few units and else a saddlepoint approximation (Robinson, JRSS B 44, 1982); and a studentised bootstrap interval.

    Args:
        a: [n] values of A, item by item, every one with a verdict.
        b: [n] values of B on the same items.
        weights_a: [n] >= 0; ones if None.
        weights_b: [n] >= 0; those of A if None.
        clusters: [n] labels: items of one cluster are not independent.
        level: of the interval, in (0, 1).
        bounds: the metric's own, for the interval of two systems that differ nowhere. None: 0 and 1 for 0/1 items,
            else unbounded.

    Raises:
        StatisticsError: shapes, values or weights that do not fit.
    """
    rows = [np.asarray(each, dtype=np.float64) for each in (a, b)]
    counts = [np.ones(rows[0].shape) if weights_a is None else np.asarray(weights_a, dtype=np.float64)]
    counts.append(counts[0] if weights_b is None else np.asarray(weights_b, dtype=np.float64))
    if any(each.shape != rows[0].shape or each.ndim != 1 for each in [*rows, *counts]):
        raise StatisticsError(
            "expected values and weights of A and B for the same items, found shapes "
            f"{', '.join(str(each.shape) for each in [*rows, *counts])}; join them by id first"
        )
    table = Table(np.stack(rows), np.stack(counts), clusters=None if clusters is None else tuple(clusters))
    return _paired(table, level, bounds)


def mcnemar(wins: int, losses: int, side: Side = "two-sided") -> float:
    """Mid-p of McNemar's test: P(more extreme) + ½ P(this), wins ~ Binomial(wins + losses, ½)."""
    n = wins + losses
    if not n:
        return 1.0 if side == "two-sided" else 0.5
    this = math.exp(
        special.gammaln(n + 1) - (special.gammaln(wins + 1) + special.gammaln(losses + 1)) - n * math.log(2)
    )
    below = float(special.bdtr(wins, n, 0.5)) - 0.5 * this
    if side == "less":
        return below
    # not 1 − below: that would lose all digits of a small tail
    above = float(special.bdtr(losses, n, 0.5)) - 0.5 * this
    return above if side == "greater" else min(1.0, 2.0 * min(below, above))


def sign_flip(contributions: Array, side: Side = "two-sided") -> float:
    """P-value of Σ d against random signs of every d, mid-p (half of what ties with the observed sum counts).

    Args:
        contributions: [units] d, symmetric around 0 where there is no difference.
        side: "greater": small where Σ d is large.

    Returns:
        In (0, 1]; exact for up to :data:`ENUMERATED` units that are not 0, else Lugannani and Rice's saddlepoint
        approximation with the cumulant function Σ log cosh(t d): off by a few per cent of p, at any size of p; by ten
        where one unit outweighs all others together.
    """
    units = contributions[contributions != 0.0]
    if not len(units):
        return 1.0 if side == "two-sided" else 0.5
    units = units / np.abs(units).max()
    positive = bool(units.sum() > 0.0)
    units = units if positive else -units
    tail = _enumerated_tail(units) if len(units) <= ENUMERATED else _saddlepoint_tail(units)
    if side == "two-sided":
        return min(1.0, 2.0 * tail)
    return tail if positive == (side == "greater") else 1.0 - tail


def tango(wins: int, losses: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Tango's score interval of the paired difference (wins − losses) / n. ``n`` > 0."""
    z = float(special.ndtri(0.5 + level / 2.0))

    def score(difference: float) -> float:
        linear = -wins - losses + (2.0 * n - wins + losses) * difference
        constant = -losses * difference * (1.0 - difference)
        rarer = (math.sqrt(max(0.0, linear**2 - 8.0 * n * constant)) - linear) / (4.0 * n)
        variance = n * (2.0 * rarer + difference * (1.0 - difference))
        gap = wins - losses - n * difference
        return gap / math.sqrt(variance) if variance > 0.0 else math.copysign(math.inf, gap) if gap else 0.0

    estimate = (wins - losses) / n
    low = _root(lambda each: min(score(each), 1e9) - z, -1.0, estimate, if_none=-1.0)
    high = _root(lambda each: max(score(each), -1e9) + z, estimate, 1.0, if_none=1.0)
    return low, high


def contributions(table: Table, one: int = 0, other: int = 1) -> Array:
    """[units] what each unit adds to the difference of two rows' aggregates: they sum to it exactly.

    With weights of their own, w_a (v_a − R) / Σ w_a − w_b (v_b − R) / Σ w_b, where R is the aggregate of both: what
    a unit weighs must not look like a difference.
    """
    sums, weights = table.sums()
    pooled = (sums[one].sum() + sums[other].sum()) / (weights[one].sum() + weights[other].sum())
    shares = [(sums[row] - pooled * weights[row]) / weights[row].sum() for row in (one, other)]
    return np.asarray(shares[0] - shares[1])


def _paired(table: Table, level: float, bounds: Bounds | None) -> Paired:
    n = table.values.shape[1]
    a, b = table.values
    if not n or (table.weights.sum(axis=1) <= 0.0).any():
        return Paired(math.nan, -math.inf, math.inf, level, 1.0, 0.5, 0.5, 0, 0, 0, 0, "none")
    wins, losses = int((a > b).sum()), int((a < b).sum())
    plain = table.clusters is None and bool((table.weights == table.weights[0, 0]).all())
    if plain and bool(((table.values == 0.0) | (table.values == 1.0)).all()) and bounds in (None, (0.0, 1.0)):
        return Paired(
            (wins - losses) / n, *tango(wins, losses, n, level), level,
            mcnemar(wins, losses), mcnemar(wins, losses, "greater"), mcnemar(wins, losses, "less"),
            n, wins + losses, wins, losses, "mcnemar",
        )  # fmt: skip
    units = contributions(table)
    difference = float(units.sum())
    if np.abs(units).max() <= 1e-14 * max(1.0, np.abs(table.values).max()):
        units = np.zeros_like(units)  # what is left of equal systems after rounding is no difference
    low, high = _limits(table, difference, level, bounds)
    greater = sign_flip(units, "greater")
    less = 1.0 - greater if greater > 0.5 else sign_flip(units, "less")
    return Paired(
        difference, low, high, level, min(1.0, 2.0 * min(greater, less)), greater, less,
        n, wins + losses, wins, losses, "sign-flip",
    )  # fmt: skip


def _limits(table: Table, difference: float, level: float, bounds: Bounds | None) -> tuple[float, float]:
    width = math.inf if bounds is None else bounds[1] - bounds[0]
    sums, weights = table.sums()
    totals = weights.sum(axis=1)
    influence = sums / totals[:, None] - sums.sum(axis=1)[:, None] / totals[:, None] ** 2 * weights
    residuals = influence[0] - influence[1]
    size = np.abs(sums / totals[:, None]).max()
    tail = (1.0 - level) / 2.0
    if len(residuals) < 2 or np.abs(residuals).max() <= 1e-12 * max(size, np.finfo(np.float64).tiny):
        share = weights.mean(axis=0)
        effective = float(share.sum() ** 2 / (share**2).sum())
        other = (1.0 - tail ** (1.0 / effective)) * width
        return max(-width, difference - other), min(width, difference + other)
    ones = np.ones(len(residuals))
    error = standard_error(residuals, ones) * len(residuals)
    left, right = studentized_quantiles(residuals, ones, (tail, 1.0 - tail))
    return max(-width, difference - right * error), min(width, difference - left * error)


def _enumerated_tail(units: Array) -> float:
    signs = 1.0 - 2.0 * ((np.arange(2 ** len(units))[:, None] >> np.arange(len(units))) & 1)
    sums, observed = signs @ units, units.sum()
    slack = 1e-9 * np.abs(units).sum()
    above, ties = (sums > observed + slack).sum(), (np.abs(sums - observed) <= slack).sum()
    return float((above + 0.5 * ties) / len(sums))


def _saddlepoint_tail(units: Array) -> float:
    """P(Σ ±d >= Σ d) for Σ d >= 0, Lugannani & Rice, Adv. Appl. Prob. 12, 1980."""
    observed, largest = float(units.sum()), float(np.abs(units).sum())
    if observed <= 1e-7 * math.sqrt(float((units**2).sum())):
        return 0.5  # the formula is 0 / 0 at the mean
    if largest - observed <= 1e-9 * largest:
        return 0.5 ** (len(units) + 1)  # every unit has the one sign: the most extreme pattern, half of it
    tilt = _root(lambda t: float((units * np.tanh(t * units)).sum()) - observed, 0.0, _bracket(units, observed))
    scaled = np.abs(tilt * units)
    cumulant = float((scaled + np.log1p(np.exp(-2.0 * scaled)) - math.log(2.0)).sum())
    curvature = float((units**2 / np.cosh(np.minimum(scaled, 350.0)) ** 2).sum())
    root = math.sqrt(2.0 * max(0.0, tilt * observed - cumulant))
    slope = tilt * math.sqrt(curvature)
    if root < 1e-4:
        return 0.5 - root / math.sqrt(2.0 * math.pi)
    density = math.exp(-0.5 * root * root) / math.sqrt(2.0 * math.pi)
    tail = float(special.ndtr(-root)) + density * (_lattice(units, tilt) / slope - 1.0 / root)
    return min(0.5, max(tail, 0.5 ** (len(units) + 1)))


def _lattice(units: Array, tilt: float) -> float:
    """Daniels' correction (Int. Statist. Rev. 55, 1987) for sums that lie on a lattice, turned to mid-p: x coth x, x
    half the lattice's span times the tilt. Counts of errors are multiples of one; 1 where nothing is."""
    smallest = float(np.abs(units).min())
    multiples = units / smallest
    if np.abs(multiples).max() > 1e4 or np.abs(multiples - np.round(multiples)).max() > 1e-6:
        return 1.0
    half = tilt * smallest  # flipping a sign moves the sum by twice the unit
    return half / math.tanh(half) if half > 1e-8 else 1.0


def _bracket(units: Array, observed: float) -> float:
    """A tilt beyond the saddlepoint."""
    tilt = 1.0
    while float((units * np.tanh(tilt * units)).sum()) < observed and tilt < 1e12:
        tilt *= 4.0
    return tilt


def _root(function: Callable[[float], float], low: float, high: float, if_none: float = math.nan) -> float:
    left, right = function(low), function(high)
    if left == 0.0 or right == 0.0:
        return low if left == 0.0 else high
    if (left > 0.0) == (right > 0.0):
        return if_none if not math.isnan(if_none) else (low if abs(left) < abs(right) else high)
    return float(optimize.brentq(function, low, high, xtol=1e-13, rtol=1e-12, maxiter=500))
