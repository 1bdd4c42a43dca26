"""The studies' outcomes as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.searching.studies import FIDELITIES, Outcome
from benchmarks.searching.tables import Interval
from search.statistics import interval

Array = npt.NDArray[np.float64]
Arm = tuple[str, bool]
REFERENCE: Arm = ("full", True)


def items_markdown(outcomes: Sequence[Outcome]) -> str:
    """Per landscape: every arm's share and items at each budget, and how many items it needs for the reference's."""
    parts = []
    for landscape in sorted({each.study.landscape for each in outcomes}):
        here = [each for each in outcomes if each.study.landscape == landscape]
        lines = [f"### {landscape}", "", "| fidelity | finalists | candidates | seeds | share | items | stopped |"]
        lines.append("|---|---|---|---|---|---|---|")
        for arm in _arms(here):
            for count in sorted({each.study.candidates for each in here}):
                cell = _cell(here, arm, count)
                if cell:
                    share = Interval.of([each.share for each in cell])
                    items = np.mean([each.items for each in cell])
                    stopped = np.mean([each.censored for each in cell]) / count
                    lines.append(
                        f"| {arm[0]} | {'re-scored' if arm[1] else 'none'} | {count} | {len(cell)} | {share.text()} | "
                        f"{items:,.0f} | {stopped:.0%} |"
                    )
        parts.append("\n".join([*lines, "", *_ratios(here)]))
    return "\n\n".join(parts)


def _ratios(outcomes: Sequence[Outcome]) -> list[str]:
    reference = _curve(outcomes, REFERENCE)
    lines = []
    for arm in _arms(outcomes):
        if arm == REFERENCE or len(reference) < 2:
            continue
        curve = _curve(outcomes, arm)
        figures = [
            f"{ratio:.2f} at {items:,.0f}"
            for items, share in reference
            if (ratio := items_needed(curve, share) / items) == ratio
        ]
        name = f"{arm[0]}, finalists {'re-scored' if arm[1] else 'none'}"
        lines.append(f"- {name}: items for the share of {REFERENCE[0]}, re-scored, as a part of its items: "
                     f"{', '.join(figures) or 'beyond what was run'}.")  # fmt: skip
    return lines


def items_needed(curve: Array, share: float) -> float:
    """Items at which a curve reaches a share, linear in the logarithm of items; nan beyond its ends.

    Args:
        curve: [budgets, 2] items and mean share; a share that falls with more items counts as its best so far.
        share: to reach.
    """
    if not len(curve):
        return float("nan")
    items, shares = curve[:, 0], np.maximum.accumulate(curve[:, 1])
    if share < shares[0] or share > shares[-1]:
        return float("nan")
    after = int(np.searchsorted(shares, share))
    if after == 0:
        return float(items[0])
    low, high = np.log(items[after - 1]), np.log(items[after])
    return float(np.exp(low + (high - low) * (share - shares[after - 1]) / (shares[after] - shares[after - 1])))


def _curve(outcomes: Sequence[Outcome], arm: Arm) -> Array:
    counts = sorted({each.study.candidates for each in outcomes})
    cells = [cell for count in counts if (cell := _cell(outcomes, arm, count))]
    return np.array(
        [[np.mean([each.items for each in cell]), np.mean([each.share for each in cell])] for cell in cells]
    ).reshape(-1, 2)


def _arms(outcomes: Sequence[Outcome]) -> list[Arm]:
    there = {(each.study.fidelity, each.study.reserve) for each in outcomes}
    return [(fidelity, reserve) for fidelity in FIDELITIES for reserve in (True, False) if (fidelity, reserve) in there]


def _cell(outcomes: Sequence[Outcome], arm: Arm, count: int) -> list[Outcome]:
    return [
        each for each in outcomes
        if (each.study.fidelity, each.study.reserve) == arm and each.study.candidates == count
    ]  # fmt: skip


def honesty_markdown(outcomes: Sequence[Outcome]) -> str:
    """Optimism, coverage, claimed wins and false drops, by landscape kind and fidelity."""
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for each in outcomes:
        groups.setdefault((each.study.landscape, each.study.kind, each.study.fidelity), []).append(each)
    return "\n\n".join([_optimisms(groups), _coverages(groups), _drops(groups)])


Groups = dict[tuple[str, str, str], list[Outcome]]


def _optimisms(groups: Groups) -> str:
    lines = [
        "### Optimism: reported minus true accuracy, in points, mean over the skills", "",
        "| landscape | kind | fidelity | searches | winner by search scores | chosen: selection | chosen: holdout |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, group in groups.items():
        cells = []
        for split in ("search", "selection", "holdout"):
            found = Interval.of([100.0 * each.optimism[split] for each in group if split in each.optimism])
            cells.append(f"{found.mean:+.2f} ±{found.half:.2f}")
        lines.append(f"| {' | '.join(name)} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _coverages(groups: Groups) -> str:
    lines = [
        "### How many 95 % intervals hold the truth, and claimed wins", "",
        "| landscape | kind | fidelity | chosen: search | chosen: selection | chosen: holdout | baselines: holdout | "
        "wins claimed |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, group in groups.items():
        cells = [
            rate([each.covered[split] for each in group if split in each.covered])
            for split in ("search", "selection", "holdout", "baselines")
        ]
        wins = sum(bool(each.win) for each in group)
        lines.append(f"| {' | '.join(name)} | {' | '.join(cells)} | {wins} of {len(group)} |")
    return "\n".join(lines)


def _drops(groups: Groups) -> str:
    lines = [
        "### Dropped although no opponent is better in every objective", "",
        "| landscape | kind | fidelity | not worse: dropped | exactly equal: dropped |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, group in groups.items():
        if not any(each.nulls for each in group):
            continue
        nulls = rate([(each.false_drops, each.nulls) for each in group])
        equals = rate([(each.equals_dropped, each.equals) for each in group])
        lines.append(f"| {' | '.join(name)} | {nulls} | {equals} |")
    return "\n".join(lines)


def rate(tallies: Sequence[Sequence[int]]) -> str:
    """``95.0 % [91.2, 97.3] of 200``, with the clustered 95 % interval: what happens within one search is not
    independent, its candidates answer the same items.

    Args:
        tallies: per search, how many of how many.
    """
    values = [float(place < count) for count, of in tallies for place in range(of)]
    clusters = [search for search, (_, of) in enumerate(tallies) for _ in range(of)]
    if not values:
        return "none"
    found = interval(values, clusters=clusters, bounds=(0.0, 1.0))
    return f"{100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}] of {len(values)}"
