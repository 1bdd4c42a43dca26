"""The report's section on optimism: what being picked for its scores adds to a candidate's scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evaluators.contract import Split
from search.minibatch import in_words
from search.objectives import Target
from search.report.facts import Facts, gain
from search.report.figures import Data, Figure, Plot, axis, css
from search.report.markup import Html, decimals, element, for_plot, join, listed, number, table
from search.report.section import Section
from search.statistics import Optimism, optimism

TITLE = "Optimism"
_MOST_ROWS = 60


def optimism_section(facts: Facts) -> Section | None:
    """Search scores against later ones; None before any candidate has a selection score."""
    scores = facts.results.scores
    both = [id for id in scores["selection"] if id in scores["search"]]
    picked = [id for id in facts.results.finalists if id in both]
    baselines = [each.id for each in facts.baselines if each.id in both and each.id not in picked]
    if not picked:
        return None
    figure = _figure(facts, picked, baselines)
    body = [chosen_table(facts), figure.html(), _averages(facts, picked, baselines)]
    return Section(TITLE, join(body), (figure,))


def chosen_table(facts: Facts) -> Html:
    """How much the search flattered the chosen merge; empty before its holdout is known."""
    id = facts.results.chosen
    if id is None or id not in facts.results.scores["holdout"]:
        return Html()
    rows = [
        [target.name, *(_said(target, flattered(facts, id, split, target)) for split in ("search", "selection"))]
        for target in facts.targets
    ]
    note = (
        "In the metric's units, signed so that positive means that the first split flattered the merge. It holds the "
        "luck of being picked, and any difference in difficulty between the splits; in brackets the 95 % interval of "
        "the difference."
    )
    header = ["objective", "search − holdout", "selection − holdout"]
    return join([table("Optimism of the chosen merge", header, rows), element("p", note, class_="note")])


def flattered(facts: Facts, id: int, split: Split, target: Target, against: Split = "holdout") -> Optimism | None:
    """By how much a candidate's score on one split is better than on another; None where either is missing."""
    scores = facts.results.scores
    if target.name not in scores[split].get(id, {}) or target.name not in scores[against].get(id, {}):
        return None
    first, last = (facts.results.interval(id, each, target.name) for each in (split, against))
    return optimism(first, last, target.metric.direction)


def _said(target: Target, found: Optimism | None) -> str:
    if found is None or math.isnan(found.value):
        return "–"
    digits = decimals(target)
    if not math.isfinite(found.low + found.high):
        return f"{found.value:+.{digits}f} (unknown)".replace("-", "−")
    return f"{found.value:+.{digits}f} ({found.low:+.{digits}f} to {found.high:+.{digits}f})".replace("-", "−")


def _figure(facts: Facts, picked: Sequence[int], baselines: Sequence[int]) -> Figure:
    plots = [_plot(facts, target, picked, baselines) for target in facts.targets]
    caption = (
        "Each mark is a candidate with scores on both splits; on the line both are the same. Finalists were picked for "
        "their search scores, so they tend to be worse on items that they were not picked on: that is the winner's "
        "curse, and the reason why nothing is chosen on search scores. Baselines were not picked: how far they are off "
        "the line shows how much easier or harder the selection items are. "
        + in_words(facts.results.config.search.fidelity)
    ).strip()
    legend = [("●", "--front", "finalists"), ("▲", "--baseline", "baselines")]
    if facts.results.chosen in picked:
        legend.append(("★", "--chosen", "chosen merge"))
    return Figure("optimism", plots, caption, _numbers(facts, picked, baselines), legend, columns=len(plots))


def _plot(facts: Facts, target: Target, picked: Sequence[int], baselines: Sequence[int]) -> Plot:
    values = [_pair(facts, id, target) for id in (*picked, *baselines)]
    ends = [value for pair in values for value in pair]
    chosen = [id for id in picked if id == facts.results.chosen]
    others = [id for id in picked if id not in chosen]
    traces = [
        _marks(facts, target, some, symbol, colour, size)
        for some, symbol, colour, size in (
            (others, "circle", "front", 8), (baselines, "triangle-up", "baseline", 10), (chosen, "star", "chosen", 15),
        )
        if some
    ]  # fmt: skip
    diagonal = {
        "type": "line", "x0": min(ends), "y0": min(ends), "x1": max(ends), "y1": max(ends),
        "line": {"width": 1, "dash": "dot", "color": css("muted")},
    }  # fmt: skip
    across, up = axis(target), axis(target)
    up["title"] = {"text": for_plot(f"{target.name} on selection items")}
    across["title"] = {"text": for_plot(f"{target.name} on search items")}
    label = f"Scatter plot of selection against search scores by {target.name}; its numbers are in the table below it"
    return Plot(label, traces, {"xaxis": across, "yaxis": up, "shapes": [diagonal]}, height=340)


def _marks(facts: Facts, target: Target, ids: Sequence[int], symbol: str, colour: str, size: int) -> Data:
    pairs = [_pair(facts, id, target) for id in ids]
    hover = [
        f"candidate {id}: search {number(target, x)}, selection {number(target, y)}"
        for id, (x, y) in zip(ids, pairs, strict=True)
    ]
    return {
        "type": "scatter", "mode": "markers", "x": [x for x, _ in pairs], "y": [y for _, y in pairs],
        "hovertext": hover, "hoverinfo": "text",
        "marker": {"symbol": symbol, "size": size, "color": css(colour), "line": {"width": 1, "color": css("paper")}},
    }  # fmt: skip


def _numbers(facts: Facts, picked: Sequence[int], baselines: Sequence[int]) -> Html:
    shown = [*picked, *baselines][:_MOST_ROWS]
    names = {each.id: each.name for each in facts.named}
    header = ["candidate", *(f"{each.name}, {split}" for each in facts.targets for split in ("search", "selection"))]
    rows = [
        [
            f"{id} {names.get(id, 'finalist')}",
            *(number(target, value) for target in facts.targets for value in _pair(facts, id, target)),
        ]
        for id in shown
    ]
    more = len(picked) + len(baselines) - len(shown)
    return table(f"Scores on both splits{f'; {more} more are left out' if more else ''}", header, rows, tall=True)


def _averages(facts: Facts, picked: Sequence[int], baselines: Sequence[int]) -> Html:
    rows = []
    first = set(facts.results.judge.front(facts.results.scores["search"]))
    front = [id for id in picked if id in first]
    groups = {"finalists": picked, "of them on the search's front": front, "baselines, not picked": baselines}
    for name, ids in groups.items():
        if ids:
            cells = [_signed(target, _mean_gain(facts, ids, target)) for target in facts.targets]
            rows.append([name, str(len(ids)), *cells])
    costs = [
        f"{_signed(target, _mean_gain(facts, front, target) - _mean_gain(facts, baselines, target))} in {target.name}"
        for target in facts.targets
        if baselines and front
    ]
    curse = ""
    if costs:
        curse = (
            " The front's members minus the baselines, which is what being picked added on average once the difficulty "
            f"of the splits is taken off: {listed(costs)}."
        )
    header = ["who", "candidates", *(each.name for each in facts.targets)]
    note = f"Means of search − selection, positive where the search items flattered.{curse}"
    return join([table("Search − selection, on average", header, rows), element("p", note, class_="note")])


def _mean_gain(facts: Facts, ids: Sequence[int], target: Target) -> float:
    return sum(gain(target, *_pair(facts, id, target)) for id in ids) / len(ids)


def _pair(facts: Facts, id: int, target: Target) -> tuple[float, float]:
    """(search, selection) scores."""
    scores = facts.results.scores
    return scores["search"][id][target.name][0], scores["selection"][id][target.name][0]


def _signed(target: Target, value: float) -> str:
    return f"{value:+.{decimals(target)}f}".replace("-", "−")
