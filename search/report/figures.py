"""Figures as plotly's plain data, and what stands around them: a legend, a caption, the numbers as a table.

Colours are named by CSS variables and long series by columns (``{"css": …}``, ``{"column": …}``, ``{"says": …}``); the
page's script looks them up, so that a figure follows the reader's light or dark setting and no series is stored twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from search.objectives import Target
from search.report.facts import Facts, Named
from search.report.markup import Z95, Html, decimals, details, element, for_plot, join, measured, scrolling, table
from search.stages import stage_names

Data = dict[str, Any]

MARKS = {
    "star": "★", "circle": "●", "square": "■", "diamond": "◆", "triangle-up": "▲", "triangle-down": "▼",
    "pentagon": "⬟", "hexagon": "⬢", "cross": "✚", "x": "✖",
}  # fmt: skip
"""plotly's symbols and the letters that show them in a legend."""

_REFERENCE_MARKS = ("square", "diamond", "pentagon", "hexagon")
_SIDES = (
    "top right", "bottom right", "top left", "bottom left", "middle right", "middle left", "top center",
    "bottom center",
)  # fmt: skip

_Box = tuple[float, float, float, float]

_BASELINE_MARKS = ("triangle-up", "triangle-down", "cross", "x")

NOTHING = Html()

MOST_MARKERS = 12_000
"""Markers for the cloud of candidates in one figure, over all its plots: more makes a browser slow."""


MOST_BARS = 60
"""Members of the front that have bars: more cover each other and everything else."""


@dataclass(frozen=True)
class Plot:
    """One drawing: plotly traces and layout.

    Attributes:
        label: what a screen reader says.
        height: pixels.
        tools: offer zoom, pan and download of the drawing.
    """

    label: str
    traces: list[Data]
    layout: Data
    height: int = 440
    tools: bool = False


@dataclass(frozen=True)
class Figure:
    """Plots that share a legend, a caption and a table.

    Attributes:
        id: unique on the page.
        legend: (letter, CSS variable of its colour, text).
        caption: how to read it.
        numbers: what the plots show, for who cannot see them.
        columns: how many plots stand side by side where there is room.
    """

    id: str
    plots: list[Plot]
    caption: str
    numbers: Html
    legend: list[tuple[str, str, str]] = field(default_factory=list)
    columns: int = 1
    scale: Html = NOTHING

    def html(self) -> Html:
        """The figure's place on the page."""
        boxes = [
            element(
                "div", class_="plot", id=f"{self.id}-{index}", role="img", aria_label=plot.label,
                style=f"height:{plot.height}px",
            )
            for index, plot in enumerate(self.plots)
        ]  # fmt: skip
        keys = [
            element("li", element("span", letter, style=f"color:var({colour})", aria_hidden="true"), " ", text)
            for letter, colour, text in self.legend
        ]
        return element(
            "figure",
            element("ul", keys, class_="legend") if keys else NOTHING,
            self.scale,
            element("div", boxes, class_="plots side" if self.columns > 1 else "plots"),
            element("figcaption", self.caption),
            details("The numbers of this figure", self.numbers),
        )

    def data(self) -> list[Data]:
        """The plots for the page's script."""
        return [
            {"id": f"{self.id}-{index}", "traces": plot.traces, "layout": plot.layout, "tools": plot.tools}
            for index, plot in enumerate(self.plots)
        ]


def css(name: str) -> Data:
    """A colour by the name of its CSS variable."""
    return {"css": f"--{name}"}


def page_data(facts: Facts, figures: Sequence[Figure]) -> Data:
    """What the page's script needs: the figures, and every series that they name.

    ``columns`` holds the search scores of all complete candidates and who they are: id, label, stage; s0, s1, … and
    the half-widths e0, e1, … ``says`` holds what a mark of the front, or with a name, says when it is pointed at.
    """
    return {
        "columns": _columns(facts),
        "names": [each.name for each in facts.targets],
        "decimals": [decimals(each) for each in facts.targets],
        "stages": stage_names(facts.results.config),
        "says": {str(id): _hover(facts, id) for id in [*facts.results.front, *(each.id for each in facts.named)]},
        "figures": [plot for figure in figures for plot in figure.data()],
    }


def _columns(facts: Facts) -> Data:
    candidates = [facts.candidates[id] for id in facts.scored]
    data: Data = {
        "id": facts.scored,
        "label": [each.label for each in candidates],
        "stage": [each.stage for each in candidates],
    }
    for index, target in enumerate(facts.targets):
        scores = [facts.score(id, "search", target) for id in facts.scored]
        data[f"s{index}"] = [None if each is None else _rounded(each[0]) for each in scores]
        data[f"e{index}"] = [None if each is None else _rounded(Z95 * each[1], 3) for each in scores]
    return data


def front_figure(facts: Facts) -> Figure:
    """All candidates, the front, the pick and the baselines; pairs of objectives where there are more than two."""
    marks = _marks(facts)
    if len(facts.targets) == 1:
        plots = [_strip(facts, marks)]
    else:
        pairs = list(itertools.combinations(range(len(facts.targets)), 2))
        plots = [_pair(facts, marks, x, y, _thinning(facts)) for x, y in pairs]
    legend = [("●", "--faint", "all candidates, search scores")]
    if set(facts.results.front) - {facts.pick}:
        legend.append(("●", "--front", f"front, {facts.results.split} scores"))
    legend += [(MARKS[marks[each.id]], f"--{each.role}", f"{each.name} · candidate {each.id}") for each in facts.named]
    return Figure("front", plots, _front_caption(facts), _front_numbers(facts), legend, columns=len(plots))


def axis(target: Target) -> Data:
    """An axis that says which end is better."""
    unit = f", {target.metric.unit}" if target.metric.unit else ""
    side = "lower" if target.metric.direction == "minimize" else "higher"
    return {"title": {"text": for_plot(f"{target.name}{unit} ({side} is better)")}}


def _pair(facts: Facts, marks: dict[int, str], x: int, y: int, every: int) -> Plot:
    across, up = facts.targets[x], facts.targets[y]
    traces = [
        {
            "type": "scatter", "mode": "markers", "x": {"column": f"s{x}", "every": every},
            "y": {"column": f"s{y}", "every": every}, "hovertext": {"column": "hover", "every": every},
            "hoverinfo": "text", "marker": {"size": 5, "color": css("faint"), "opacity": 0.55},
        }
    ]  # fmt: skip
    front = sorted(facts.results.front, key=lambda id: _place(facts, id, across)[0])
    if front:
        mode: str = "markers"
        line: Data = {}
        if len(facts.targets) == 2:
            # the border of what the front dominates; in more dimensions a pair of axes shows no such border
            shape = "hv" if across.metric.direction == "minimize" else "vh"
            mode, line = "lines+markers", {"line": {"shape": shape, "width": 1, "color": css("front")}}
        bars = len(front) <= MOST_BARS
        traces.append(
            {
                **_points(facts, front, across, up, bars=bars),
                **line,
                "mode": mode,
                "marker": _marker("circle", "front", 8),
            }
        )
    labels = _label_sides(facts, across, up)
    for each in reversed(facts.named):
        size = 16 if each.role == "chosen" else 11
        named: Data = {
            "mode": "markers+text", "text": [for_plot(each.short)], "textposition": labels[each.id],
            "textfont": {"size": 11, "color": css("ink")}, "marker": _marker(marks[each.id], each.role, size),
            "cliponaxis": False,
        }  # fmt: skip
        traces.append(_points(facts, [each.id], across, up) | named)
    layout: Data = {"xaxis": axis(across), "yaxis": axis(up), "margin": {"t": 34}}
    label = f"Scatter plot of {up.name} against {across.name}; its numbers are in the table below it"
    return Plot(label, traces, layout, tools=True)


def _points(facts: Facts, ids: Sequence[int], across: Target, up: Target, *, bars: bool = True) -> Data:
    places = [(_place(facts, id, across), _place(facts, id, up)) for id in ids]
    data: Data = {
        "type": "scatter",
        "x": [x for (x, _), _ in places],
        "y": [y for _, (y, _) in places],
        "hovertext": {"says": list(ids)},
        "hoverinfo": "text",
    }
    if bars:
        data["error_x"] = _bars([error for (_, error), _ in places])
        data["error_y"] = _bars([error for _, (_, error) in places])
    return data


def _strip(facts: Facts, marks: dict[int, str]) -> Plot:
    """One objective: a row for all candidates, spread by their number, and a row for each named one."""
    target = facts.targets[0]
    traces: list[Data] = [
        {
            "type": "scatter", "mode": "markers", "x": {"column": "s0"}, "y": {"column": "spread"},
            "hovertext": {"column": "hover"}, "hoverinfo": "text",
            "marker": {"size": 5, "color": css("faint"), "opacity": 0.55},
        }
    ]  # fmt: skip
    front = [id for id in facts.results.front if id != facts.pick]
    rows = [*facts.named, *(Named(id, f"front ({id})", "reference") for id in front)]
    for row, each in enumerate(rows, start=1):
        value, error = _place(facts, each.id, target)
        colour, mark = (each.role, marks[each.id]) if each.id in marks else ("front", "circle")
        traces.append(
            {
                "type": "scatter", "mode": "markers", "x": [value], "y": [-row], "error_x": _bars([error]),
                "hovertext": {"says": [each.id]}, "hoverinfo": "text", "marker": _marker(mark, colour, 12),
            }
        )  # fmt: skip
    names = ["all candidates", *(for_plot(each.name) for each in rows)]
    ticks: Data = {"tickvals": [-index for index in range(len(names))], "ticktext": names, "zeroline": False}
    layout: Data = {"xaxis": axis(target), "yaxis": ticks, "margin": {"t": 34}}
    label = f"Dot plot of {target.name}; its numbers are in the table below it"
    return Plot(label, traces, layout, height=140 + 36 * len(names), tools=True)


def _marks(facts: Facts) -> dict[int, str]:
    references, baselines = itertools.cycle(_REFERENCE_MARKS), itertools.cycle(_BASELINE_MARKS)
    return {
        each.id: "star" if each.role == "chosen" else next(references if each.role == "reference" else baselines)
        for each in facts.named
    }


def _thinning(facts: Facts) -> int:
    """One in how many candidates is drawn as a dot."""
    pairs = math.comb(len(facts.targets), 2)
    return max(1, -(-len(facts.scored) * pairs // MOST_MARKERS))


def _marker(symbol: str, colour: str, size: int) -> Data:
    return {"symbol": symbol, "size": size, "color": css(colour), "line": {"width": 1, "color": css("paper")}}


def _bars(errors: Sequence[float | None]) -> Data:
    return {"type": "data", "array": list(errors), "thickness": 1, "width": 3}


def _place(facts: Facts, id: int, target: Target) -> tuple[float, float | None]:
    """(value, 95 % half-width or None) where a front member or a named candidate is drawn."""
    score = facts.score(id, facts.best_split(id), target)
    if score is None:
        return float("nan"), None
    return _rounded(score[0]) or 0.0, _rounded(Z95 * score[1])


def _hover(facts: Facts, id: int) -> str:
    split = facts.best_split(id)
    names = [each.name for each in facts.named if each.id == id] or [facts.candidates[id].label]
    lines = [f"candidate {id}" + (f" · {names[0]}" if names[0] else ""), f"{split} scores, 95 % intervals"]
    lines += [f"{each.name}: {measured(each, facts.score(id, split, each))}" for each in facts.targets]
    return "<br>".join(for_plot(line) for line in lines)


def _label_sides(facts: Facts, across: Target, up: Target) -> dict[int, str]:
    """Where each name stands beside its mark so that few names cover each other, or a mark: the best free side, the
    pick first. Reckoned in the pixels of a plot of middling size; an estimate is enough."""
    ids = sorted({*(each.id for each in facts.named), *facts.results.front})
    xs = _stretched([_place(facts, id, across)[0] for id in ids], 560.0)
    ys = _stretched([_place(facts, id, up)[0] for id in ids], 320.0)
    places = dict(zip(ids, zip(xs, ys, strict=True), strict=True))
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in places.values()]
    found = {}
    for each in facts.named:
        boxes = [_label_box(*places[each.id], 6.5 * len(each.short), side) for side in _SIDES]
        costs = [
            sum(_overlap(box, other) for other in taken) + 20 * (max(0.0, -30 - box[0]) + max(0.0, box[2] - 620))
            for box in boxes
        ]
        best = costs.index(min(costs))
        found[each.id] = _SIDES[best]
        taken.append(boxes[best])
    return found


def _stretched(values: Sequence[float], length: float) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / ((high - low) or 1.0) * length for value in values]


def _label_box(x: float, y: float, length: float, side: str) -> _Box:
    left = x + 8 if "right" in side else x - 8 - length if "left" in side else x - length / 2
    bottom = y + 8 if "top" in side else y - 22 if "bottom" in side else y - 7
    return (left, bottom, left + length, bottom + 14)


def _overlap(one: _Box, other: _Box) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    up = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, up)


def _front_caption(facts: Facts) -> str:
    text = (
        "Each faint dot is a candidate, placed by its search scores. A candidate is on the front when no other one is "
        "at least as good on every objective and better on one. "
    )
    if facts.results.split == "selection":
        text += (
            "The front, the chosen merge and the baselines are placed by their selection scores: the front's members "
            "were picked for their search scores, which flatter them. "
        )
    else:
        text += (
            "Everything is placed by search scores, also the front: its members were picked for these very scores, so "
            "they are somewhat worse than they look. "
        )
    text += "Bars are 95 % intervals for the choice of items. Point at a mark for its number and scores."
    if len(facts.targets) > 1 and len(facts.results.front) > MOST_BARS:
        text += " The front is too long for bars of its own; they are in the table."
    every = _thinning(facts)
    if every > 1:
        text += f" To keep the page quick, one faint dot in {every} is drawn; the table has all."
    if len(facts.targets) > 2:
        text += " The front is taken over all objectives at once; in one pair of them a member may look dominated."
    return text


def _front_numbers(facts: Facts) -> Html:
    names = {each.id: each.name for each in facts.named}
    ids = [*names, *(id for id in facts.results.front if id not in names)]
    header = ["candidate", "split", *(each.name for each in facts.targets)]
    rows = []
    for id in ids:
        split = facts.best_split(id)
        first = f"{id} {names.get(id, 'front')}"
        rows.append([first, split, *(measured(each, facts.score(id, split, each)) for each in facts.targets)])
    own = table("The front and the named candidates, with 95 % intervals", header, rows, tall=True)
    every = element(
        "details",
        element("summary", f"All {len(facts.scored)} scored candidates"),
        scrolling(element("table", id="all-candidates"), "all scored candidates, search scores", tall=True),
        class_="fill",
    )
    return join([own, every])


def _rounded(value: float, digits: int = 6) -> float | None:
    """So many significant digits: what a figure can show, in fewer bytes. None where it is not finite."""
    return float(f"{value:.{digits}g}") if abs(value) < float("inf") else None
