"""The page's section on what data say: λ curve, loss barriers, redundancy, activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from search.diagnosis.curve_tables import (
    activation_table,
    barrier_points,
    barrier_table,
    between,
    lambda_table,
    redundancy_points,
    redundancy_table,
    relative_spreads,
)
from search.diagnosis.probing import Curves
from search.diagnosis.tables import Table
from search.report.figures import Data, Figure, Plot, css, rounded
from search.report.markup import Html, element, for_plot, join, percent, table
from search.report.section import Section

if TYPE_CHECKING:
    from merging.diagnose.probes import ActivationCheck

TITLE = "With data"

_HUES = ("front", "chosen", "reference", "baseline", "recommended", "muted")
_DASHES = ("solid", "dash", "dot")
_MARKS = (
    ("●", "circle"),
    ("■", "square"),
    ("▲", "triangle-up"),
    ("◆", "diamond"),
    ("✚", "cross"),
    ("▼", "triangle-down"),
)
_VARIANTS: dict[str, str] = {
    "dare": "dropped at random, the rest made larger (DARE)",
    "drop": "dropped at random",
    "magnitude": "the smallest dropped",
}


class Line(NamedTuple):
    """One line of a plot.

    Attributes:
        name: in the legend.
        x, y: points; nan where there is none.
        spread: half-widths, if any.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()


def section(curves: Curves | None) -> Section | None:
    """The section; None where no data were asked."""
    if curves is None or not (curves.lambdas or curves.barriers or curves.redundancies or curves.activations):
        return None
    figures = [
        *([_lambda_figure(curves)] if curves.lambdas else []),
        *_barrier_figures(curves),
        *([_redundancy_figure(curves)] if curves.redundancies else []),
        *([_activation_figure(curves.activations)] if curves.activations is not None else []),
    ]
    parts: list[Html] = [element("p", curves.says, class_="note")]
    if curves.broken_off:
        parts.append(element("p", "The rest of the curves was broken off.", class_="note"))
    for each in figures:
        parts += [element("h3", each.title), each.figure.html()]
        if each.summary is not None:
            parts.append(table(each.summary.title, each.summary.header, each.summary.rows))
    return Section(TITLE, join(parts), figures=tuple(each.figure for each in figures), styles=("details",))


class _Titled(NamedTuple):
    title: str
    figure: Figure
    summary: Table | None = None


def _lambda_figure(curves: Curves) -> _Titled:
    (curve, skills) = curves.lambdas[0], curves.skills[0]
    lines = [Line(name, curve.lambdas, values) for name, values in skills.items()]
    if len(lines) > 1:
        lines.insert(0, Line("mean", curve.lambdas, curve.scores))
    best = "no λ gave a usable model" if curve.best is None else f"their mean is highest at λ = {curve.best:g}"
    caption = (
        f"Scores of θ0 + λ·(sum of the task vectors of {', '.join(curve.aliases)}): 0 is the base; {best}. The same "
        "data chose that λ and scored it, which flatters it. Where every line rises together and falls late, task "
        "arithmetic has room."
    )
    return _Titled(
        "One coefficient for all, λ",
        _figure("lambda", [("Score over λ", lines, "λ", "score (higher is better)")], caption, lambda_table(curves)),
    )


def _barrier_figures(curves: Curves) -> list[_Titled]:
    if not curves.barriers:
        return []
    from_base = [each for each in curves.barriers if each.first not in curves.own]
    beside = [each for each in curves.barriers if each.first in curves.own]
    plots = []
    for title, some in (("From the base to an expert", from_base), ("From one expert to another", beside)):
        if some:
            lines = [Line(between(each), each.alphas, each.losses) for each in some]
            plots.append((title, lines, "share of the second model", f"{curves.loss_says} (lower is better)"))
    caption = (
        "The loss along the straight line between two models. A hump above both ends is a barrier: models on its two "
        "sides do not average well. Flat or sagging lines are what merging needs."
    )
    figure = _figure("barriers", plots, caption, barrier_points(curves.barriers))
    return [_Titled("Loss barriers", figure, barrier_table(curves.barriers))]


def _redundancy_figure(curves: Curves) -> _Titled:
    plots = []
    for each in curves.redundancies:
        lines = [
            Line(_VARIANTS[variant], each.drops, each.ratios(variant), relative_spreads(each, variant))
            for variant in each.scores
        ]
        plots.append((each.alias, lines, "share of the task vector that is dropped", "score / the expert's own"))
    keep = curves.redundancies[0].keep
    caption = (
        f"How much of a task vector can be left out before the expert's own score suffers; {percent(keep)} of it "
        "counts as kept. Bars are standard deviations over seeds. What can be dropped leaves room for other task "
        "vectors: where lines stay near 1 to the right, merging by trimmed or sparsified task vectors costs little."
    )
    figure = _figure("redundancy", plots, caption, redundancy_points(curves.redundancies))
    return _Titled("Redundancy", figure, redundancy_table(curves.redundancies))


def _activation_figure(check: ActivationCheck) -> _Titled:
    depths = list(range(len(check.blocks)))
    line = Line("variance, merged / parents", depths, [each.variance_ratio for each in check.blocks])
    collapsed = ", ".join(check.collapsed) or "none"
    caption = (
        "How much the activations vary after each block of the merge with equal coefficients, over the mean of the "
        f"experts'. Well below 1, signals have cancelled each other out; collapsed blocks (below 0.7): {collapsed}."
    )
    plots = [("Variance of the activations", [line], "block", "merged / parents")]
    return _Titled("Activations of the plain mean", _figure("activations", plots, caption, activation_table(check)))


def _figure(id: str, plots: Sequence[tuple[str, list[Line], str, str]], caption: str, numbers: Table) -> Figure:
    names = list(dict.fromkeys(line.name for _, lines, _, _ in plots for line in lines))
    legend = [(_style(index)[1], f"--{_style(index)[0]}", name) for index, name in enumerate(names)]
    return Figure(
        id=id,
        plots=[_plot(title, lines, names, x, y, titled=len(plots) > 1) for title, lines, x, y in plots],
        caption=caption,
        numbers=table(numbers.title, numbers.header, numbers.rows, tall=len(numbers.rows) > 14),
        legend=legend if len(names) > 1 else [],
        columns=2 if len(plots) > 1 else 1,
    )


def _style(index: int) -> tuple[str, str, str, str]:
    """(hue, letter, symbol, dash): no two of the first 36 lines look the same, also without colours."""
    letter, symbol = _MARKS[(index + index // len(_HUES)) % len(_MARKS)]
    return _HUES[index % len(_HUES)], letter, symbol, _DASHES[index // len(_HUES) % len(_DASHES)]


def _plot(title: str, lines: Sequence[Line], names: Sequence[str], x: str, y: str, *, titled: bool) -> Plot:
    traces: list[Data] = []
    for line in lines:
        hue, _, symbol, dash = _style(names.index(line.name))
        trace: Data = {
            "type": "scatter", "mode": "lines+markers", "name": for_plot(line.name),
            "x": [rounded(each) for each in line.x], "y": [_drawn(each) for each in line.y],
            "line": {"color": css(hue), "width": 2, "dash": dash},
            "marker": {"color": css(hue), "size": 7, "symbol": symbol},
            "hovertemplate": f"{for_plot(line.name).replace('%{', '% {')}<br>%{{x:.3g}}: %{{y:.4g}}<extra></extra>",
        }  # fmt: skip
        if any(each > 0.0 for each in line.spread):
            trace["error_y"] = {
                "type": "data", "array": [_drawn(each) for each in line.spread], "color": css(hue), "thickness": 1,
                "width": 3,
            }  # fmt: skip
        traces.append(trace)
    layout: Data = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    places = {float(each) for line in lines for each in line.x}
    if max(places) >= 2.0 and len(places) <= 24:  # blocks, which have no halves
        layout["xaxis"]["dtick"] = 1
    if titled:
        layout["title"] = {"text": for_plot(title), "font": {"size": 14}, "x": 0, "xref": "paper", "xanchor": "left"}
        layout["margin"] = {"t": 34}
    return Plot(f"{title}: lines; their numbers are in the table below", traces, layout, height=340)


def _drawn(value: float) -> float | None:
    return rounded(value) if math.isfinite(value) else None
