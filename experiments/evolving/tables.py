"""Rows as tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from experiments.evolving.rows import CHOSEN, Row


def summary(rows: Sequence[Row]) -> str:
    """Arms as lines: every metric and their mean, over training seeds."""
    metrics = list(rows[0].held[CHOSEN])
    heads = [*metrics, "mean"] if len(metrics) > 1 else metrics
    lines = [f"| holdout | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    common = [arm for arm in rows[0].held if all(arm in row.held for row in rows)]
    for arm in [*(arm for arm in common if arm != CHOSEN), CHOSEN]:
        cells = [over_seeds(rows, lambda row, m=metric, a=arm: row.held[a][m]) for metric in metrics]  # type: ignore[misc]
        if len(metrics) > 1:
            cells.append(over_seeds(rows, lambda row, a=arm: row.mean(a)))  # type: ignore[misc]
        name = arm.replace("|", "\\|")  # stacked halves of two models
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def paired(rows: Sequence[Row]) -> str:
    """The chosen candidate against its rivals, run by run; and how much of the spread is the search's own."""
    lines = []
    for what, rival in (("the best expert", _expert), ("the best baseline", _baseline)):
        gains = [row.mean(CHOSEN) - row.mean(rival(row)) for row in rows]
        better = sum(gain > 0 for gain in gains)
        shown = ", ".join(f"{100 * gain:+.1f}" for gain in gains)
        significant = sum(_p(row, rival(row)) < 0.01 for row in rows)
        lines.append(
            f"- against {what} (by selection): {shown}; better in {better} of {len(rows)}; by the number that the "
            f"choice is made by, p < 0.01 in {significant}"
        )
    lines.append(f"- optimism, search minus holdout: {over_seeds(rows, lambda row: row.optimism)}")
    lines.append(f"- standard deviation over search seeds of one training seed: {search_spread(rows)}")
    lines.append(f"- candidates {_range(row.candidates for row in rows)}, items {_range(row.items for row in rows)}")
    return "\n".join(lines)


def over_seeds(rows: Sequence[Row], value: Callable[[Row], float]) -> str:
    """Mean ± standard deviation over training seeds, in per cent; search seeds are averaged first."""
    means = [fmean(value(row) for row in each) for each in by_training(rows)]
    return f"{100 * fmean(means):.1f}" + (f" ± {100 * stdev(means):.1f}" if len(means) > 1 else "")


def search_spread(rows: Sequence[Row]) -> str:
    """Root mean square of the standard deviations over the search seeds of each training seed, in points."""
    spreads = [stdev(row.mean(CHOSEN) for row in each) for each in by_training(rows) if len(each) > 1]
    return f"{100 * math.sqrt(fmean(each**2 for each in spreads)):.1f} points" if spreads else "one search seed only"


def by_training(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows of each training seed."""
    seeds = sorted({row.training for row in rows})
    return [[row for row in rows if row.training == seed] for seed in seeds]


def _expert(row: Row) -> str:
    return row.best_expert


def _baseline(row: Row) -> str:
    return row.best_baseline


def _p(row: Row, arm: str) -> float:
    """Of the comparison; 1 where the chosen candidate is that baseline itself."""
    return row.p.get(arm, 1.0)


def _range(values: object) -> str:
    found = sorted(values)  # type: ignore[call-overload]
    return f"{found[0]}" if found[0] == found[-1] else f"{found[0]} to {found[-1]}"
