"""Heat maps of a diagnosis: module kinds down, depths across; one drawing for every expert or pair of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from merging.layout import block_of
from search.diagnosis.quantities import COSINE, OVERLAP, Quantity, Series, chance_of, named, weighty
from search.diagnosis.tables import numbers_table
from search.report.coefficients import OUTSIDE, column_of, columns_of, row_of
from search.report.figures import Data, Figure, Plot, css, rounded
from search.report.markup import Html, count, details, element, for_plot, join, table

if TYPE_CHECKING:
    from merging.diagnose.results import Diagnosis, Measures
    from merging.recipe import Group

MOST_DRAWN = 6
"""Drawings that stand open; more are behind a fold."""
MOST_MODULES = 40
"""Rows of a map of tensors; a mixture of many experts has more, and is shown by kinds alone."""
_WRITTEN = 14
"""Columns up to which numbers stand in the cells."""


class Grid(NamedTuple):
    """Where every scope stands in a heat map.

    Attributes:
        rows: labels, downwards.
        columns: labels, from the input on.
        cells: scope -> (row, column).
    """

    rows: list[str]
    columns: list[str]
    cells: dict[str, tuple[int, int]]

    def filled(self, values: Mapping[str, float | None]) -> list[list[float | None]]:
        """[rows][columns] the values; None where there is none."""
        found: list[list[float | None]] = [[None] * len(self.columns) for _ in self.rows]
        for name, (row, column) in self.cells.items():
            value = values.get(name)
            found[row][column] = None if value is None else rounded(value, 4)
        return found


def grid_of_groups(diagnosis: Diagnosis) -> Grid:
    """Module kinds × depths."""
    groups = list(diagnosis.groups)
    rows = list(dict.fromkeys(row_of(each) for each in groups))
    columns = columns_of(groups)
    return Grid(
        rows,
        columns,
        {str(each): (rows.index(row_of(each)), columns.index(column_of(each))) for each in groups},
    )


def grid_of_tensors(diagnosis: Diagnosis) -> Grid | None:
    """Modules (``self_attn.q_proj``) × depths, of the tensors in blocks; None where there would be too many rows."""
    places = {name: _place(name, diagnosis.places[name]) for name in diagnosis.tensors}
    inside = {name: place for name, place in places.items() if place is not None}
    rows = list(dict.fromkeys(row for row, _ in inside.values()))
    if not rows or len(rows) > MOST_MODULES:
        return None
    depths = sorted({depth for _, depth in inside.values()})
    return Grid(
        rows,
        [str(each) for each in depths],
        {name: (rows.index(row), depths.index(depth)) for name, (row, depth) in inside.items()},
    )


def _place(name: str, group: Group) -> tuple[str, int] | None:
    if group.depth is None:
        return None
    block = block_of(name)
    inner = name.removeprefix(block).removeprefix(".").removesuffix(".weight") or name
    return (f"{group.stack}/{inner}" if group.stack else inner), group.depth


def heat_figure(
    id: str,
    diagnosis: Diagnosis,
    quantity: Quantity,
    grid: Grid,
    scopes: Mapping[str, Measures],
    *,
    row: int = 40,
    most: int = 36,
) -> list[Figure]:
    """The drawings of a quantity: one figure, and a second one where there are more than stand side by side.

    Args:
        id: unique on the page.
        diagnosis: whose numbers.
        quantity: which.
        grid: where they stand.
        scopes: name -> measures, by the names of the grid.
        row: pixels of a row.
        most: drawings at most; those that are left out are told of.
    """
    series = quantity.series(diagnosis)[:most]
    ends = ends_of(quantity, scopes, series, diagnosis)
    shown = {name: scopes[name] for name in grid.cells}
    parts = [series[:MOST_DRAWN], series[MOST_DRAWN:]]
    figures = []
    for index, some in enumerate(part for part in parts if part):
        plots = [_plot(quantity, each, grid, scopes, ends, row) for each in some]
        numbers = numbers_table(f"{quantity.title}, by group", shown, quantity, some)
        figures.append(
            Figure(
                id=f"{id}-{index}" if index else id,
                plots=plots,
                caption=_caption(quantity, diagnosis, grid, most),
                numbers=table(numbers.title, numbers.header, numbers.rows, tall=True),
                columns=2 if len(plots) > 1 else 1,
                scale=scale_bar(quantity, ends),
            )
        )
    return figures


def figures_html(figures: Sequence[Figure]) -> Html:
    """The first figure, and the others behind a fold."""
    first, *others = figures
    folded = [details(count(len(each.plots), "further drawing"), each.html()) for each in others]
    return join([first.html(), *folded])


def ends_of(
    quantity: Quantity, scopes: Mapping[str, Measures], series: Sequence[Series], diagnosis: Diagnosis
) -> tuple[float, float, float]:
    """(low, middle, high) of the colours: the same for all drawings of a quantity, wide enough that noise looks like
    noise, and as wide as the scopes want that hold nearly all weights; the others may lie beyond."""
    some = weighty(scopes).values()
    values = [value for each in some for one in series if (value := quantity.value(each, one)) is not None]
    if quantity.middle is None:
        return 0.0, 0.0, max([1e-9, *values])
    middle = {"zero": 0.0, "half": 0.5, "chance": _chance(diagnosis, series)}[quantity.middle]
    far = max([0.1, *(abs(each - middle) for each in values)])
    low = middle - far if quantity.middle != "chance" else max(0.0, middle - far)
    return low, middle, middle + far


def _chance(diagnosis: Diagnosis, series: Sequence[Series]) -> float:
    known = [value for each in series if (value := chance_of(diagnosis.whole, each)) is not None]
    return sum(known) / len(known) if known else 0.0


def _hues(quantity: Quantity) -> tuple[str, str]:
    """Colours of the low and the high end: warm is what makes merging hard."""
    return ("heat-high", "heat-low") if quantity.middle in ("half", "chance") else ("heat-low", "heat-high")


def _plot(
    quantity: Quantity,
    series: Series,
    grid: Grid,
    scopes: Mapping[str, Measures],
    ends: tuple[float, float, float],
    row: int,
) -> Plot:
    low, middle, high = ends
    below, above = _hues(quantity)
    zero = (middle - low) / (high - low)
    stops: list[list[object]] = [[zero, css("heat-zero")], [1.0, css(above)]]
    if zero > 0.0:
        stops.insert(0, [0.0, css(below)])
    form = ".0%" if quantity.percent else f".{quantity.digits}f"
    values = {name: quantity.value(scopes[name], series) for name in grid.cells}
    # an alias in a template has no braces: names are plain, and tensors' names come as data
    label = for_plot(named(series)).replace("%{", "% {")
    trace: Data = {
        "type": "heatmap", "x": grid.columns, "y": [for_plot(each) for each in grid.rows], "z": grid.filled(values),
        "zmin": low, "zmax": high, "colorscale": stops, "showscale": False, "hoverongaps": False, "xgap": 2, "ygap": 2,
        "hovertemplate": f"{label}<br>%{{y}}, depth %{{x}}: %{{z:{form}}}<extra></extra>",
    }  # fmt: skip
    if quantity.key == COSINE.key:
        strength = {name: _score(scopes[name], series) for name in grid.cells}
        if any(each is not None for each in strength.values()):
            trace["customdata"] = grid.filled(strength)
            trace["hovertemplate"] = (
                f"{label}<br>%{{y}}, depth %{{x}}: %{{z:{form}}}, z %{{customdata:.0f}}<extra></extra>"
            )
    if len(grid.columns) <= _WRITTEN:
        short = ".0%" if quantity.percent else f".{min(2, quantity.digits)}f" if high >= 0.1 else ".2g"
        trace["texttemplate"] = f"%{{z:{short}}}"
        trace["textfont"] = {"size": 11, "color": css("ink")}
    layout: Data = {
        "title": {"text": for_plot(named(series)), "font": {"size": 14}, "x": 0, "xref": "paper", "xanchor": "left"},
        "margin": {"t": 34},
        "xaxis": {
            "type": "category", "title": {"text": "depth"}, "showgrid": False, "categoryorder": "array",
            "categoryarray": grid.columns, "range": [-0.5, len(grid.columns) - 0.5],
        },
        "yaxis": {
            "type": "category", "showgrid": False, "categoryorder": "array",
            "categoryarray": [for_plot(each) for each in grid.rows], "range": [len(grid.rows) - 0.5, -0.5],
        },
    }  # fmt: skip
    told = f"Heat map of {quantity.title.lower()}, {named(series)}; its numbers are in the table below it"
    return Plot(told, [trace], layout, height=100 + row * len(grid.rows))


def _score(measures: Measures, series: Series) -> float | None:
    """How many standard deviations of chance a cosine is."""
    found = getattr(measures, "z", None)
    value = found.get(series) if isinstance(found, Mapping) else None
    return None if value is None else float(value)


def scale_bar(quantity: Quantity, ends: tuple[float, float, float]) -> Html:
    """The colours and what they stand for, in a line."""
    low, middle, high = ends
    below, above = _hues(quantity)
    at = 100.0 * (middle - low) / (high - low)
    stops = [f"var(--{below})"] if at > 0 else []
    stops += [f"var(--heat-zero) {at:.1f}%", f"var(--{above})"]
    bar = element("span", class_="bar", style=f"background:linear-gradient(90deg,{','.join(stops)})")
    words = {"zero": "", "half": ", pale: a half", "chance": f", pale: chance ({OVERLAP.text(middle)})", None: ""}
    return element(
        "p",
        f"{quantity.text(low)} ",
        bar,
        f" {quantity.text(high)} and beyond{words[quantity.middle]}",
        class_="scale",
    )


def _caption(quantity: Quantity, diagnosis: Diagnosis, grid: Grid, most: int) -> str:
    what = "expert" if quantity.per == "expert" else "pair of experts"
    text = f"{quantity.means} One drawing per {what}: module kinds down, depths across (0 is next to the input"
    text += f"; “{OUTSIDE}” are tensors outside the blocks)." if OUTSIDE in grid.columns else ")."
    if quantity.key == COSINE.key:
        text += " z is the cosine times √n: what it is in standard deviations of chance."
    number = len(quantity.series(diagnosis))
    if number > most:
        text += f" The first {most} of {number} are drawn; all of them are in the command's --json."
    return text
