"""The report's section on what candidates are made of: heatmaps of any candidate, alone or against another one."""

from __future__ import annotations

from collections.abc import Sequence

from merging.recipe import Group
from search.report.coefficients import (
    ROOM,
    Layers,
    column_of,
    columns_of,
    foreign_methods,
    kept,
    layers_of,
    row_of,
)
from search.report.facts import Facts, without_paths
from search.report.figures import Data
from search.report.markup import Html, element, join, listed, table
from search.report.section import Section
from search.report.shown_candidate import heading, missing_text, offered

TITLE = "Coefficients by layer"
NAME = "layers"
_ROW = 40
"""Pixels of a heatmap's row."""


def layers_section(facts: Facts) -> Section | None:
    """Heatmaps of the pick, which the reader may exchange for another candidate; None before the first score, and where
    the run searches paths, which have no coefficients.

    Raises:
        SearchError: this version cannot build the run's spaces.
    """
    if facts.pick is None or facts.results.config.space.data_flow is not None:
        return None
    foreign = foreign_methods(facts)
    if foreign:
        text = (
            f"They are not drawn, since that would run the code of {listed(foreign)}, which a report does not do; the "
            "report that the search itself writes has them."
        )
        return Section(TITLE, element("p", text))
    layers = kept(facts, NAME, lambda: layers_of(facts, ROOM))
    if layers is None or not layers.candidates:
        reasons = [] if layers is None else list(layers.unreadable.values())
        return Section(
            TITLE, element("p", without_paths(reasons[0], facts.results) if reasons else "No recipe is known.")
        )
    shown = facts.pick if facts.pick in layers.candidates else next(iter(layers.candidates))
    body = [
        *(element("p", without_paths(layers.unreadable[id], facts.results), class_="note") for id in [facts.pick]
          if id in layers.unreadable),
        _controls(facts, layers, shown),
        element("p", heading(facts, shown), id="layers-says", role="status", class_="note"),
        _figure(facts, layers, shown),
    ]  # fmt: skip
    return Section(TITLE, join(body), data={NAME: _data(facts, layers, shown)}, scripts=(NAME,), styles=("details",))


def _controls(facts: Facts, layers: Layers, shown: int) -> Html:
    """Select boxes; without a script they have nothing to offer but what is shown."""
    first = element("option", heading(facts, shown), value=str(shown))
    views = ["coefficient", *(["density"] if layers.has_densities else [])]
    return element(
        "div",
        element("label", "Candidate ", element("select", first, id="layers-candidate")),
        element("label", "Compare with ", element("select", element("option", "nothing", value=""), id="layers-other")),
        element(
            "label", "Show ", element("select", [element("option", each) for each in views], id="layers-view")
        ) if len(views) > 1 else Html(),
        class_="controls",
    )  # fmt: skip


def _figure(facts: Facts, layers: Layers, shown: int) -> Html:
    rows = len(dict.fromkeys(row_of(each) for each in layers.groups))
    boxes = [
        _box(f"layers-{index}", f"Heatmap of the coefficients of {expert}; its numbers are in the table below it", rows)
        for index, expert in enumerate(layers.experts)
    ]
    if len(layers.methods) > 1:
        boxes.append(_box("layers-methods", "Heatmap of the methods; they are in the table below it", rows))
    return element(
        "figure",
        element("p", id="layers-scale", class_="scale"),
        element("div", boxes, class_="plots side" if len(boxes) > 1 else "plots"),
        element("ul", id="layers-letters", class_="legend") if len(layers.methods) > 1 else Html(),
        element("figcaption", _caption(facts, layers)),
        element(
            "details",
            element("summary", "The numbers of this figure"),
            element("div", _numbers(layers, shown), id="layers-table"),
        ),
    )


def _box(id: str, label: str, rows: int) -> Html:
    return element("div", class_="plot", id=id, role="img", aria_label=label, style=f"height:{100 + _ROW * rows}px")


def _caption(facts: Facts, layers: Layers) -> str:
    text = (
        "One drawing per expert: its coefficient in every group of tensors, module kinds down, depths across (0 is "
        "next to the input; “outside” are tensors outside the blocks). 0 leaves the expert out, 1 takes all of its "
        "task vector; an empty cell is a group that is not there, or whose method takes no coefficient. "
        "A candidate that is picked anywhere on this page is shown here too. "
    )
    if len(layers.methods) > 1:
        text += "The last drawing has the method of every group, by letter. "
    if any("t" in each for each in layers.candidates.values()):
        text += "Where tensors are set apart from their group, its number is the mean of its tensors. "
    return (text + missing_text(facts, layers)).strip()


def _numbers(layers: Layers, id: int) -> Html:
    """The table of one candidate; the script writes that of another one in the same way."""
    coefficients, densities = layers.values(id, "c"), layers.values(id, "d")
    dense = [index for index, each in enumerate(densities) if any(value is not None for value in each)]
    header = ["group", "method", *layers.experts, *(f"density of {layers.experts[index]}" for index in dense)]
    rows = [
        [
            str(group),
            method,
            *(_text(each[place]) for each in coefficients),
            *(_text(densities[index][place]) for index in dense),
        ]
        for place, (group, method) in enumerate(zip(layers.groups, layers.methods_of(id), strict=True))
    ]
    return table(f"Coefficient{' and density' if dense else ''} of each expert in each group", header, rows, tall=True)


def _data(facts: Facts, layers: Layers, shown: int) -> Data:
    rows = list(dict.fromkeys(row_of(each) for each in layers.groups))
    columns = columns_of(layers.groups)
    low, high = facts.results.config.space.coefficient
    ends = layers.ends
    return {
        "experts": list(layers.experts),
        "groups": [str(each) for each in layers.groups],
        "places": _places(layers.groups, rows, columns),
        "rows": rows,
        "columns": columns,
        "methods": [[name, letter] for name, letter in letters(layers.methods).items()],
        "ends": [min(ends[0], low), max(ends[1], high)],
        "candidates": {str(id): each for id, each in layers.candidates.items()},
        **offered(facts, layers.candidates, shown),
    }


def _places(groups: Sequence[Group], rows: Sequence[str], columns: Sequence[str]) -> list[list[int]]:
    """[groups] (row, column) of each."""
    return [[rows.index(row_of(each)), columns.index(column_of(each))] for each in groups]


def letters(methods: Sequence[str]) -> dict[str, str]:
    """A letter for every method, one of its own name where that is free."""
    found: dict[str, str] = {}
    for name in methods:
        own = [each.upper() for each in name if each.isalnum()]
        free = [each for each in [*own, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"] if each not in found.values()]
        found[name] = free[0] if free else "?"
    return found


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")
