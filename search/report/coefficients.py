"""What the pick is made of: a coefficient for every expert, depth and module kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from merging.recipe import Group, Recipe
from search.report.figures import Data, Figure, Plot, css
from search.report.markup import Html, element, for_plot, listed, table

OUTSIDE = "outside"
"""The column of tensors that belong to no block: embeddings, head, final norm."""


def coefficients_figure(
    recipe: Recipe,
    coefficients: Mapping[str, Mapping[Group, float]],
    bounds: tuple[float, float],
    densities: Mapping[str, Mapping[Group, float]] | None = None,
) -> Figure:
    """Heatmaps of a recipe, one per expert: module kinds down, depths across.

    Args:
        recipe: for its groups and methods.
        coefficients: expert -> group -> coefficient, as :meth:`search.space.Space.table` gives them.
        bounds: of the coefficients that were searched; the colours cover at least these, and 0.
        densities: expert -> group -> kept fraction, as :meth:`search.space.Space.densities` gives them. They stand in
            the table, and in what a cell says of itself.
    """
    groups = sorted(recipe.groups, key=lambda each: each.order)
    known = [value for each in coefficients.values() for value in each.values()]
    ends = min([0.0, bounds[0], *known]), max([0.0, bounds[1], *known])
    kept = {expert: each for expert, each in (densities or {}).items() if each}
    numbers = [
        [
            str(group),
            recipe.groups[group].method,
            *(_text(each.get(group)) for each in (*coefficients.values(), *kept.values())),
        ]
        for group in groups
    ]
    caption = (
        "One drawing per expert: its coefficient in every group of tensors, module kinds down, depths across (0 is "
        f"next to the input; “{OUTSIDE}” are tensors outside the blocks). 0 leaves the expert out, 1 takes all of its "
        f"task vector. {_methods(recipe, groups)}{_apart(recipe)}"
    )
    return Figure(
        "coefficients",
        [
            _heatmap(expert, recipe, groups, values, ends, kept.get(expert, {}))
            for expert, values in coefficients.items()
        ],
        caption,
        table(
            f"Coefficient{' and density' if kept else ''} of each expert in each group",
            ["group", "method", *coefficients, *(f"density of {expert}" for expert in kept)],
            numbers,
            tall=True,
        ),
        columns=len(coefficients),
        scale=_scale(*ends),
    )


def _heatmap(
    expert: str,
    recipe: Recipe,
    groups: Sequence[Group],
    values: Mapping[Group, float],
    ends: tuple[float, float],
    densities: Mapping[Group, float],
) -> Plot:
    rows, columns = list(dict.fromkeys(_row(each) for each in groups)), _columns(groups)
    at = {(_row(each), _column(each)): each for each in groups}
    grid = [[at.get((row, column)) for column in columns] for row in rows]
    z = [[None if each is None else values.get(each) for each in line] for line in grid]
    hover = [
        ["" if each is None else _hover(expert, each, recipe, values, densities) for each in line] for line in grid
    ]
    trace: Data = {
        "type": "heatmap", "z": z, "x": list(columns), "y": list(rows), "hovertext": hover, "hoverinfo": "text",
        "hoverongaps": False, "zmin": ends[0], "zmax": ends[1], "showscale": False, "xgap": 2, "ygap": 2,
        "colorscale": _colours(*ends),
    }  # fmt: skip
    if len(columns) <= 14:
        trace |= {
            "text": [[_text(value) if value is not None else "" for value in line] for line in z],
            "texttemplate": "%{text}", "textfont": {"size": 11, "color": css("ink")},
        }  # fmt: skip
    layout = {
        "title": {"text": for_plot(expert), "font": {"size": 14}, "x": 0, "xref": "paper", "xanchor": "left"},
        "margin": {"t": 34},
        "xaxis": {"type": "category", "title": {"text": "depth"}, "showgrid": False},
        "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False},
    }
    return Plot(f"Heatmap of the coefficients of {expert}; its numbers are in the table below it", [trace], layout,
                height=100 + 40 * len(rows))  # fmt: skip


def _hover(
    expert: str, group: Group, recipe: Recipe, values: Mapping[Group, float], densities: Mapping[Group, float]
) -> str:
    kept = f", density {_text(densities[group])}" if group in densities else ""
    return for_plot(f"{expert} in {group}: {_text(values.get(group))} ({recipe.groups[group].method}{kept})")


def _colours(bottom: float, top: float) -> list[list[object]]:
    """From the page's own colour at 0 to one hue above, and to another below."""
    zero = (0.0 - bottom) / (top - bottom) if top > bottom else 0.0
    scale: list[list[object]] = [[0.0, css("heat-low")]] if zero > 0.0 else []
    if zero < 1.0:
        return [*scale, [zero, css("heat-zero")], [1.0, css("heat-high")]]
    return [*scale, [1.0, css("heat-zero")]]


def _scale(bottom: float, top: float) -> Html:
    """The colour scale, drawn once for all heatmaps."""
    stops = ["var(--heat-low)"] if bottom < 0.0 else []
    zero = 100.0 * (0.0 - bottom) / (top - bottom) if top > bottom else 0.0
    stops += [f"var(--heat-zero) {zero:.1f}%", "var(--heat-high)"]
    bar = element("span", class_="bar", style=f"background:linear-gradient(90deg,{','.join(stops)})")
    return element("p", "coefficient ", _text(bottom), " ", bar, " ", _text(top), class_="scale")


def _apart(recipe: Recipe) -> str:
    count = len(recipe.tensors)
    return f" A group's number is the mean of its tensors; set apart from their group: {count}." if count else ""


def _methods(recipe: Recipe, groups: Sequence[Group]) -> str:
    """The method, or where each of several is used."""
    where: dict[str, list[Group]] = {}
    for each in groups:
        where.setdefault(recipe.groups[each].method, []).append(each)
    if len(where) == 1:
        return f"Method: {next(iter(where))}."
    parts = [f"{method} in {_places(inside)}" for method, inside in where.items()]
    return f"Methods: {listed(parts)}."


def _places(groups: Iterable[Group]) -> str:
    """``attention 0–3, mlp 0–3, embedding``."""
    rows: dict[str, list[int | None]] = {}
    for each in groups:
        rows.setdefault(_row(each), []).append(each.depth)
    parts = []
    for row, depths in rows.items():
        inside = sorted(each for each in depths if each is not None)
        runs = _runs(inside)
        parts.append(" ".join([row, *([", ".join(runs)] if runs else [])]))
    return ", ".join(parts)


def _runs(depths: Sequence[int]) -> list[str]:
    runs: list[list[int]] = []
    for each in depths:
        if runs and runs[-1][-1] == each - 1:
            runs[-1].append(each)
        else:
            runs.append([each])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]


def _row(group: Group) -> str:
    return f"{group.stack}/{group.kind}" if group.stack else group.kind


def _column(group: Group) -> str:
    return OUTSIDE if group.depth is None else str(group.depth)


def _columns(groups: Sequence[Group]) -> list[str]:
    depths = sorted({each.depth for each in groups if each.depth is not None})
    outside = [OUTSIDE] if any(each.depth is None for each in groups) else []
    return [*outside, *(str(each) for each in depths)]


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")
