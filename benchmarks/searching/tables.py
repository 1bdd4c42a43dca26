"""Results as Markdown: per landscape and budget, each contender's share, paired difference to ``auto``, and cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats

from benchmarks.searching.trials import STOPPED, Result

Array = npt.NDArray[np.float64]

LEVEL = 0.95
FAVOURITE = "auto"

Cell = tuple[str, int]
Shares = dict[int, tuple[float, float]]


class Interval(NamedTuple):
    """A mean and the half width of its 95 % interval (Student's t); infinite below two values."""

    mean: float
    half: float

    @staticmethod
    def of(values: Sequence[float] | Array) -> Interval:
        """Of independent values."""
        array = np.asarray(values, dtype=np.float64)
        if len(array) < 2:
            return Interval(float(array.mean()) if len(array) else math.nan, math.inf)
        quantile = float(stats.t.ppf(0.5 + LEVEL / 2.0, len(array) - 1))
        return Interval(float(array.mean()), quantile * float(array.std(ddof=1)) / math.sqrt(len(array)))

    def text(self, sign: str = "") -> str:
        """``0.812 ±0.010``"""
        half = "?" if math.isinf(self.half) else f"{self.half:.3f}"
        return f"{self.mean:{sign}.3f} ±{half}"


class Row(NamedTuple):
    """One contender in one cell.

    Attributes:
        share: hypervolume share over the seeds.
        ahead: the favourite's share minus this one's, over the seeds that both have; None for itself or without any.
        cpu_ms: mean CPU milliseconds an evaluation.
        seeds: how many.
    """

    contender: str
    share: Interval
    ahead: Interval | None
    cpu_ms: float
    seeds: int


def cells(results: Iterable[Result]) -> dict[Cell, dict[str, Shares]]:
    """(landscape, evaluations) -> contender -> seed -> (share, CPU milliseconds)."""
    found: dict[Cell, dict[str, Shares]] = {}
    for each in results:
        for at, value in each.shares.items():
            cell = found.setdefault((each.landscape, int(at)), {})
            cell.setdefault(each.contender, {})[each.seed] = (value, each.cpu_ms[at])
    return dict(sorted(found.items()))


def rows(contenders: Mapping[str, Shares], favourite: str = FAVOURITE) -> list[Row]:
    """The contenders of a cell, best first."""
    own = contenders.get(favourite, {})
    found = []
    for name, seeds in contenders.items():
        both = sorted(own.keys() & seeds.keys())
        ahead = None
        if name != favourite and both:
            ahead = Interval.of([own[seed][0] - seeds[seed][0] for seed in both])
        figures = np.asarray(list(seeds.values()))
        found.append(Row(name, Interval.of(figures[:, 0]), ahead, float(figures[:, 1].mean()), len(seeds)))
    return sorted(found, key=lambda row: -row.share.mean)


def markdown(results: Sequence[Result], favourite: str = FAVOURITE) -> str:
    """All cells, what was left out, and the verdict on the favourite."""
    parts = []
    of_cells = {cell: rows(contenders, favourite) for cell, contenders in cells(results).items()}
    for (landscape, at), ranked in of_cells.items():
        lines = [f"### {landscape}, {at} evaluations", "", f"| contender | seeds | share | {favourite} − it | CPU ms |"]
        lines.append("|---|---|---|---|---|")
        for row in ranked:
            ahead = "" if row.ahead is None else row.ahead.text("+")
            lines.append(f"| {row.contender} | {row.seeds} | {row.share.text()} | {ahead} | {row.cpu_ms:.1f} |")
        parts.append("\n".join(lines))
    missing = sorted({(each.landscape, each.contender, each.budget, _kind(each)) for each in results if each.left_out})
    if missing:
        lines = ["### Left out", ""]
        lines += [f"- {where}, {who}, {budget} evaluations: {why}" for where, who, budget, why in missing]
        parts.append("\n".join(lines))
    parts.append("\n".join(["### Verdict", "", *verdict(of_cells, favourite)]))
    return "\n\n".join(parts)


def verdict(of_cells: Mapping[Cell, Sequence[Row]], favourite: str = FAVOURITE) -> list[str]:
    """Where the favourite loses by more than the interval, and how often it has the best mean."""
    compared = {cell: ranked for cell, ranked in of_cells.items() if any(row.ahead is not None for row in ranked)}
    if not compared:
        return [f"No cell has both {favourite} and another contender."]
    # over the seeds that both have: a contender that was stopped on some seeds is not compared on the others
    first = sum(all(row.ahead is None or row.ahead.mean >= 0.0 for row in ranked) for ranked in compared.values())
    lines = [f"- {favourite} has the best mean in {first} of {len(compared)} cells."]
    lines += [
        f"- It loses to {row.contender} on {landscape} at {at}: {row.ahead.text('+')}."
        for (landscape, at), ranked in compared.items()
        for row in ranked
        if row.ahead is not None and row.ahead.mean + row.ahead.half < 0.0
    ]
    if len(lines) == 1:
        lines.append("- It loses to none by more than the paired 95 % interval, in any cell.")
    return lines


def _kind(result: Result) -> str:
    """Why, without what differs from seed to seed."""
    return result.left_out.partition(": ")[2] if result.left_out.startswith(STOPPED) else result.left_out
