"""Figures as plotly's plain data, and what stands around them: a legend, a caption, the numbers as a table.

Colours are named by CSS variables and long series by columns (``{"css": …}``, ``{"column": …}``, ``{"says": …}``); the
page's script looks them up, so that a figure follows the reader's light or dark setting and no series is stored twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from search.objectives import Target
from search.report.facts import Facts
from search.report.markup import Html, decimals, details, element, for_plot
from search.stages import stage_names

Data = dict[str, Any]

NOTHING = Html()

MOST_INTERVALS = 30_000
"""Search scores whose intervals go into a page: of more, they would take half of the room."""


@dataclass(frozen=True)
class Plot:
    """One drawing: plotly traces and layout.

    Attributes:
        label: what a screen reader says.
        height: pixels.
        tools: offer zoom, pan and download of the drawing.
        hidden: not shown before a script shows it.
    """

    label: str
    traces: list[Data]
    layout: Data
    height: int = 440
    tools: bool = False
    hidden: bool = False


@dataclass(frozen=True)
class Figure:
    """Plots that share a legend, a caption and a table.

    Attributes:
        id: unique on the page.
        legend: (letter, CSS variable of its colour, text).
        caption: how to read it.
        numbers: what the plots show, for who cannot see them.
        columns: how many plots stand side by side where there is room.
        scale: the colour scale, if any.
        controls: what the reader may switch, above the plots.
    """

    id: str
    plots: list[Plot]
    caption: str
    numbers: Html
    legend: list[tuple[str, str, str]] = field(default_factory=list)
    columns: int = 1
    scale: Html = NOTHING
    controls: Html = NOTHING

    def html(self) -> Html:
        """The figure's place on the page."""
        boxes = [
            element(
                "div", class_="plot", id=f"{self.id}-{index}", role="img", aria_label=plot.label,
                style=f"height:{plot.height}px", hidden=plot.hidden,
            )
            for index, plot in enumerate(self.plots)
        ]  # fmt: skip
        keys = [
            element("li", element("span", letter, style=f"color:var({colour})", aria_hidden="true"), " ", text)
            for letter, colour, text in self.legend
        ]
        return element(
            "figure",
            self.controls,
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


def axis(target: Target) -> Data:
    """An axis that says which end is better."""
    unit = f", {target.metric.unit}" if target.metric.unit else ""
    side = "lower" if target.metric.direction == "minimize" else "higher"
    return {"title": {"text": for_plot(f"{target.name}{unit} ({side} is better)")}}


def page_data(facts: Facts, figures: Sequence[Figure]) -> Data:
    """What the page's scripts need: the figures, and every series that they name.

    ``columns`` holds the search scores of all complete candidates and who they are: id, label, stage, whether a
    constraint is broken (1) or none (0); s0, s1, …, and the limits of their 95 % intervals, l0, … and h0, …, in units
    of the last digit shown (left out where there are very many). Scripts fill ``says`` with what marks say when they
    are pointed at.
    """
    return {
        "columns": _columns(facts),
        "names": [each.name for each in facts.targets],
        "decimals": [decimals(each) for each in facts.targets],
        "stages": stage_names(facts.results.config),
        "says": {},
        "figures": [plot for figure in figures for plot in figure.data()],
    }


def has_intervals(facts: Facts) -> bool:
    """Whether there is room for the intervals of all candidates, not only of those with a mark of their own."""
    return len(facts.scored) * len(facts.targets) <= MOST_INTERVALS


def _columns(facts: Facts) -> Data:
    candidates = [facts.candidates[id] for id in facts.scored]
    data: Data = {
        "id": facts.scored,
        "label": [each.label for each in candidates],
        "stage": [each.stage for each in candidates],
        "broken": [int(id in facts.infeasible) for id in facts.scored],
    }
    for index, target in enumerate(facts.targets):
        unit = 10.0 ** -decimals(target)
        found = [facts.interval(id, "search", target) for id in facts.scored]
        known = found if has_intervals(facts) else []
        data[f"s{index}"] = [None if each is None else placed(each.value, decimals(target) + 2) for each in found]
        data[f"l{index}"] = [None if each is None else steps(each.low, unit) for each in known]
        data[f"h{index}"] = [None if each is None else steps(each.high, unit) for each in known]
    return data


def rounded(value: float, digits: int = 6) -> float | None:
    """So many significant digits: what a figure can show, in fewer bytes. None where it is not finite."""
    return float(f"{value:.{digits}g}") if abs(value) < float("inf") else None


def placed(value: float, digits: int) -> float | None:
    """A value to so many digits after the point; None where it is not finite."""
    return round(value, digits) if abs(value) < float("inf") else None


def steps(value: float, unit: float) -> int | None:
    """A value in whole units; None where it is not finite."""
    return round(value / unit) if abs(value) < float("inf") else None
