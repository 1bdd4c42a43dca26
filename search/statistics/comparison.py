"""Who cannot be told apart from the winner, by one metric or by any function of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from search.statistics.bootstrap import MOST_UNITS, RESAMPLES, counts
from search.statistics.paired import paired_rows
from search.statistics.samples import Array, StatisticsError, Table

Function = Callable[[Array], Array]
"""Aggregates [..., systems, objectives] -> one number per system [..., systems], larger is better. It may look at the
other systems: a retention may take its scale from the rows of the base and the experts."""


@dataclass(frozen=True)
class Indistinguishable:
    """The systems that are not significantly worse than the winner.

    Attributes:
        winner: row of the winner, itself a member.
        members: rows, ascending.
        p: [systems] one-sided p-value of "the winner is no better", adjusted; 1 for the winner.
        alpha: the level at which members were kept.
    """

    winner: int
    members: tuple[int, ...]
    p: tuple[float, ...]
    alpha: float


@dataclass(frozen=True)
class ScalarDifference:
    """System A against system B by one number made of several objectives.

    Attributes:
        difference: A − B.
        low: lower limit.
        high: upper limit.
        level: confidence of the limits.
        p: two-sided p-value of "no difference".
        p_greater: one-sided, small where A is larger.
        n: items, by evaluator.
    """

    difference: float
    low: float
    high: float
    level: float
    p: float
    p_greater: float
    n: dict[str, int]


def indistinguishable(
    table: Table,
    winner: int,
    *,
    direction: Literal["maximize", "minimize"] = "maximize",
    alpha: float = 0.05,
) -> Indistinguishable:
    """By one metric, with :func:`search.statistics.paired.paired`.

    Adjusted by Bonferroni over the rivals and not by Holm: also where the winner was picked as the best on these very
    items, the truly best system is then a member with probability 1 − alpha, since it is lost only if one of its
    rivals beats it at alpha / rivals.

    Args:
        table: all systems on the same items.
        winner: its row.
        direction: of the metric.
        alpha: in (0, 1).

    Raises:
        StatisticsError: no such row.
    """
    _check_winner(winner, len(table.values))
    p = np.ones(len(table.values))
    for row in range(len(p)):
        if row != winner:
            test = paired_rows(table, winner, row)
            p[row] = test.p_greater if direction == "maximize" else test.p_less
    return _members(p, winner, alpha)


def indistinguishable_by(
    tables: Sequence[Table],
    function: Function,
    winner: int,
    *,
    rivals: Sequence[int] | None = None,
    alpha: float = 0.05,
    resamples: int = RESAMPLES,
) -> Indistinguishable:
    """By a function of several objectives, such as the negative Tchebycheff distance of retentions.

    Paired bootstrap over items; see :func:`scalar_difference`. Adjusted as in :func:`indistinguishable`.

    Args:
        tables: [objectives] all with the same systems in the same rows.
        function: see :data:`Function`.
        winner: its row.
        rivals: rows to compare with it; all others if None (rows that only set a scale are no rivals).
        alpha: in (0, 1).
        resamples: of the items.

    Raises:
        StatisticsError: tables that do not fit together, or no such row.
    """
    systems = _systems(tables)
    _check_winner(winner, systems)
    others = [row for row in (range(systems) if rivals is None else rivals) if row != winner]
    estimate, drawn = _scalars(tables, function, resamples)
    p = np.full(systems, np.nan)
    p[winner] = 1.0
    for row in others:
        p[row] = _one_sided(estimate[winner] - estimate[row], drawn[:, winner] - drawn[:, row])
    return _members(p, winner, alpha)


def scalar_difference(
    tables: Sequence[Table],
    function: Function,
    one: int = 0,
    other: int = 1,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> ScalarDifference:
    """Difference of two systems by a function of their aggregates; interval and p by paired bootstrap.

    Items (or clusters) are drawn with replacement, the same for all systems and for all metrics of one evaluator,
    independently between evaluators. Percentile interval; p from how often the recentred difference is as large
    (Efron & Tibshirani 1993, §16), never 0.

    Args:
        tables: [objectives] all with the same systems in the same rows, items at least.
        function: see :data:`Function`.
        one: row of A.
        other: row of B.
        level: of the interval.
        resamples: of the items; p is no smaller than 1 / (resamples + 1).

    Raises:
        StatisticsError: tables that do not fit together.
    """
    systems = _systems(tables)
    _check_winner(one, systems)
    _check_winner(other, systems)
    estimate, drawn = _scalars(tables, function, resamples)
    difference = float(estimate[one] - estimate[other])
    spread = drawn[:, one] - drawn[:, other]
    low, high = np.quantile(spread, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    greater = _one_sided(difference, spread)
    two_sided = min(1.0, 2.0 * min(greater, _one_sided(-difference, -spread)))
    items = {table.evaluator: table.values.shape[1] for table in tables}
    return ScalarDifference(difference, float(low), float(high), level, two_sided, greater, items)


def _one_sided(difference: float, drawn: Array) -> float:
    """Share of recentred resamples that reach the difference; ties count half, the observed sample once."""
    rest = drawn - difference
    slack = 1e-12 * max(1.0, float(np.abs(drawn).max()))
    beyond = float((rest > difference + slack).sum()) + 0.5 * float((np.abs(rest - difference) <= slack).sum())
    return min(1.0, (beyond + 0.5) / (len(drawn) + 1))


def _scalars(tables: Sequence[Table], function: Function, resamples: int) -> tuple[Array, Array]:
    """[systems] of the sample and [resamples, systems] of its resamples."""
    whole, drawn = [], []
    streams: dict[tuple[str, int], int] = {}
    for index, table in enumerate(tables):
        sums, weights = (_folded(each) for each in table.sums())
        if not sums.shape[1]:
            raise StatisticsError("expected items that all systems have a verdict on, found none")
        # a metric whose verdicts are on other items, or units, than its evaluator's first cannot share its draw
        key = (table.evaluator or f"#{index}", sums.shape[1])
        times = counts(sums.shape[1], resamples, streams.setdefault(key, len(streams)))
        whole.append(sums.sum(axis=1) / weights.sum(axis=1))
        drawn.append(_ratio(times @ sums.T.astype(np.float32), times @ weights.T.astype(np.float32), whole[-1]))
    estimate = np.asarray(function(np.stack(whole, axis=-1)), dtype=np.float64)
    scalars = np.asarray(function(np.stack(drawn, axis=-1)), dtype=np.float64)
    if estimate.shape != (len(whole[0]),) or scalars.shape != (resamples, len(whole[0])):
        raise StatisticsError(
            "expected a function of aggregates [..., systems, objectives] that gives [..., systems], found shapes "
            f"{estimate.shape} and {scalars.shape}"
        )
    return estimate, scalars


def _folded(sums: Array) -> Array:
    """[systems, units] with units added up by place where there are very many: their mean varies as before, and the
    resampling needs no more memory."""
    systems, units = sums.shape
    if units <= MOST_UNITS:
        return sums
    padded = np.pad(sums, ((0, 0), (0, -units % MOST_UNITS)))
    return np.asarray(padded.reshape(systems, -1, MOST_UNITS).sum(axis=1))


def _ratio(sums: npt.NDArray[np.float32], weights: npt.NDArray[np.float32], otherwise: Array) -> Array:
    """Ratio of resampled sums; the whole sample's where a resample drew no weight."""
    safe = np.where(weights > 0.0, weights, 1.0).astype(np.float64)
    return np.where(weights > 0.0, sums.astype(np.float64) / safe, otherwise)


def _members(p: Array, winner: int, alpha: float) -> Indistinguishable:
    if not 0.0 < alpha < 1.0:
        raise StatisticsError(f"expected alpha between 0 and 1, found {alpha}; 0.05 is usual")
    rivals = int((~np.isnan(p)).sum()) - 1
    adjusted = np.minimum(1.0, p * max(1, rivals))
    adjusted[winner] = 1.0
    return Indistinguishable(
        winner, tuple(int(row) for row in np.flatnonzero(adjusted > alpha)), tuple(adjusted.tolist()), alpha
    )


def _systems(tables: Sequence[Table]) -> int:
    found = {len(table.values) for table in tables}
    if len(found) != 1:
        raise StatisticsError(f"expected one table an objective, all with the same systems, found {sorted(found)}")
    return found.pop()


def _check_winner(row: int, systems: int) -> None:
    if not 0 <= row < systems:
        raise StatisticsError(f"expected a row between 0 and {systems - 1}, found {row}")
