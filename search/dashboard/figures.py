"""The figures that are pinned in the dashboard: the front, the hypervolume's course, the chosen candidate's recipe.

They are smaller cousins of the report's, which has the captions, the tables and the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from merging.recipe import Group
from search.course import MOST_FOR_VOLUME
from search.errors import SearchError
from search.events import Told
from search.growing_front import Front, GrowingFront
from search.objectives import Target
from search.report.markup import for_plot
from search.results import Results
from search.space import Hop
from search.stages import stage_names
from search.store import Store

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MOST_DOTS = 3000
"""Candidates in the cloud of one figure: of more, every second, third, … one."""
MOST_STEPS = 250
"""Points of the hypervolume's course: with three objectives and more, each takes milliseconds."""
MOST_PAIRS = 6
"""Pairs of objectives that have a plot."""

_MODELS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross")
"""Colours and symbols of the models of a path; more than so many begin again."""

_INK, _FAINT, _FRONT, _CHOSEN, _BASELINE = "#333333", "#9aa0a6", "#0072b2", "#d55e00", "#009e73"


def figures(results: Results) -> Iterator[tuple[str, Figure]]:
    """(name, figure) of each that the run has data for.

    Args:
        results: a snapshot of the run.
    """
    if results.scores["search"]:
        yield "front", front(results)
        if len(results.objectives.targets) <= MOST_FOR_VOLUME:
            yield "convergence", convergence(results)
    if results.front:
        found = recipe(results)
        if found is not None:
            yield "recipe", found


def front(results: Results) -> Figure:
    """Every pair of objectives: all candidates by search scores, the front and the baselines with 95 % intervals."""
    from plotly.subplots import make_subplots

    targets = results.objectives.targets
    pairs = list(itertools.combinations(range(len(targets)), 2))[:MOST_PAIRS] or [(0, 0)]
    columns = min(2, len(pairs))
    rows = math.ceil(len(pairs) / columns)
    figure = make_subplots(rows=rows, cols=columns)
    for place, (x, y) in enumerate(pairs):
        at = {"row": place // columns + 1, "col": place % columns + 1}
        for trace in _traces(results, targets[x], targets[y]):
            figure.add_trace({**trace, "showlegend": place == 0}, **at)
        figure.update_xaxes(title_text=_axis(targets[x]), **at)
        figure.update_yaxes(title_text=_axis(targets[y]) if x != y else "candidate", **at)
    split = results.split
    title = f"Front ({split} scores), baselines, and all candidates (search scores)"
    return figure.update_layout(title=title, height=420 * rows, template="plotly_white", legend={"orientation": "h"})


def convergence(results: Results) -> Figure:
    """The hypervolume of the front so far, by told candidate, with the stages' beginnings."""
    from plotly.graph_objects import Figure, Scatter

    growing = GrowingFront(results.started.reference)
    course: list[Front] = []
    stages: dict[int, int] = {}
    store = Store.open(results.folder, read_only=True)
    try:
        for event in store.events(Told):
            if isinstance(event, Told):
                stages.setdefault(event.stage, len(course) + 1)
                growing.add(event.outcome)
                course.append(growing.now)
    finally:
        store.close()
    told = [*range(0, len(course), 1 + len(course) // MOST_STEPS), len(course) - 1]
    volumes = [course[each].hypervolume for each in told]
    figure = Figure(
        Scatter(x=[each + 1 for each in told], y=volumes, mode="lines", line={"color": _FRONT, "shape": "hv"})
    )
    names = stage_names(results.config)
    for stage, begins in sorted(stages.items()):
        name = names[stage] if stage < len(names) else str(stage)
        figure.add_vline(x=begins, line={"dash": "dot", "color": _FAINT}, annotation_text=for_plot(name))
    return figure.update_layout(
        title="Hypervolume of the front on the search split",
        xaxis_title="candidates",
        yaxis_title="hypervolume, in utilities",
        template="plotly_white",
        showlegend=False,
    )


def recipe(results: Results) -> Figure | None:
    """Coefficients of the chosen candidate, or of the knee before there is one: experts by group; or its path through
    the layers. None where its methods take no coefficients."""
    from plotly.subplots import make_subplots

    id = results.knee()
    try:
        merged = results.recipe(id)
        space = results.stages[-1].space
        if space.is_path:
            return path(space.path(merged), f"Path of candidate {id} ({_who(results, id)})")
        table, methods = space.table(merged), space.chosen_methods(merged)
    except SearchError:  # another version decodes it otherwise
        return None
    table = {expert: cells for expert, cells in table.items() if cells}
    if not table:
        return None
    groups = sorted({group for cells in table.values() for group in cells}, key=lambda group: group.order)
    columns = list(dict.fromkeys(_depth(group) for group in groups))
    kinds = list(dict.fromkeys(group.kind for group in groups))
    most = max(abs(value) for cells in table.values() for value in cells.values()) or 1.0
    figure = make_subplots(rows=len(table), cols=1, subplot_titles=[for_plot(each) for each in table])
    for row, cells in enumerate(table.values(), start=1):
        named = {(group.kind, _depth(group)): (value, methods.get(group, "")) for group, value in cells.items()}
        grid = [[named.get((kind, column), (None, ""))[0] for column in columns] for kind in kinds]
        says = [[for_plot(named.get((kind, column), (None, ""))[1]) for column in columns] for kind in kinds]
        trace: dict[str, Any] = {
            "type": "heatmap", "z": grid, "x": [for_plot(each) for each in columns], "y": kinds, "text": says,
            "colorscale": "RdBu", "zmin": -most, "zmax": most, "showscale": row == 1,
            "hovertemplate": "%{y}, %{x}: %{z:.3f} (%{text})<extra></extra>",
        }  # fmt: skip
        figure.add_trace(trace, row=row, col=1)
    return figure.update_layout(
        title=f"Coefficients of candidate {id} ({_who(results, id)})", height=140 + 130 * len(table),
        template="plotly_white",
    )  # fmt: skip


def path(hops: Sequence[Hop], title: str) -> Figure:
    """The layers of a path, hop by hop, and their scales where any is not 1.

    Args:
        hops: in order.
        title: of the figure.
    """
    from plotly.subplots import make_subplots

    scaled = any(hop.scale != 1.0 for hop in hops)
    figure = make_subplots(rows=1 + scaled, cols=1, shared_xaxes=True, row_heights=[0.7, 0.3] if scaled else None)
    numbers = list(range(len(hops)))
    look = {"type": "scatter", "mode": "lines", "line": {"color": _FAINT, "width": 1}, "hoverinfo": "skip"}
    figure.add_trace({**look, "x": numbers, "y": [hop.layer for hop in hops], "showlegend": False}, row=1, col=1)
    for place, alias in enumerate(dict.fromkeys(hop.alias for hop in hops)):
        own = [number for number in numbers if hops[number].alias == alias]
        name, colour = for_plot(alias), _MODELS[place % len(_MODELS)]
        common = {"x": own, "name": name, "legendgroup": name}
        figure.add_trace(
            {**common, "type": "scatter", "mode": "markers", "y": [hops[number].layer for number in own],
             "hovertemplate": "hop %{x}: layer %{y}<extra>%{fullData.name}</extra>",
             "marker": {"color": colour, "symbol": _SYMBOLS[place % len(_SYMBOLS)], "size": 9}},
            row=1, col=1,
        )  # fmt: skip
        if scaled:
            bars = {"type": "bar", "base": 1.0, "y": [hops[number].scale - 1.0 for number in own], "showlegend": False}
            says = [f"hop {number}: scale {hops[number].scale:.3f}" for number in own]
            bars |= {"marker": {"color": colour}, "hovertext": says, "hovertemplate": "%{hovertext}<extra></extra>"}
            figure.add_trace({**common, **bars}, row=2, col=1)
    figure.update_yaxes(title_text="layer of its model", row=1, col=1)
    if scaled:
        figure.update_yaxes(title_text="scale", row=2, col=1)
    figure.update_xaxes(title_text="hop, and block of the result", row=1 + scaled, col=1)
    return figure.update_layout(title=for_plot(title), height=420, template="plotly_white")


def _who(results: Results, id: int) -> str:
    return "chosen" if id == results.chosen else "the front's knee"


def _traces(results: Results, across: Target, up: Target) -> Iterator[dict[str, Any]]:
    scored = sorted(results.scores["search"])
    some = scored[:: max(1, len(scored) // MOST_DOTS)]
    search = results.scores["search"]
    alone = across is up
    yield {
        "type": "scatter", "mode": "markers", "name": "candidates", "marker": {"color": _FAINT, "size": 5},
        "x": [search[id][across.name][0] for id in some],
        "y": some if alone else [search[id][up.name][0] for id in some],
        "text": [f"candidate {id}" for id in some],
    }  # fmt: skip
    baselines: dict[int, str] = {}
    for each in results.baselines:
        baselines.setdefault(each.candidate, each.label)
    pick = results.chosen
    groups = (
        ("front", [id for id in results.front if id != pick], _FRONT, "circle", 8),
        ("baselines", [id for id in baselines if id != pick], _BASELINE, "triangle-up", 9),
        ("chosen", [] if pick is None else [pick], _CHOSEN, "star", 14),
    )
    for name, ids, colour, symbol, size in groups:
        if ids:
            yield _marked(results, name, ids, (across, up), (colour, symbol, size), baselines)


def _marked(
    results: Results,
    name: str,
    ids: Sequence[int],
    axes: tuple[Target, Target],
    look: tuple[str, str, int],
    baselines: dict[int, str],
) -> dict[str, Any]:
    across, up = axes
    colour, symbol, size = look
    places = [(_place(results, id, across), _place(results, id, up)) for id in ids]
    says = [for_plot(f"candidate {id} {baselines.get(id, '')}".strip()) for id in ids]
    found: dict[str, Any] = {
        "type": "scatter", "mode": "markers", "name": name, "text": says,
        "marker": {"color": colour, "symbol": symbol, "size": size, "line": {"width": 1, "color": "white"}},
        "x": [x[0] for x, _ in places], "error_x": _bars([x for x, _ in places]),
    }  # fmt: skip
    if across is up:
        return found | {"y": list(ids)}
    return found | {"y": [y[0] for _, y in places], "error_y": _bars([y for _, y in places])}


def _place(results: Results, id: int, target: Target) -> tuple[float | None, float, float]:
    """Value, and ends of its 95 % interval, on the split where candidates are compared now."""
    split = results.split if id in results.scores[results.split] else "search"
    if id not in results.scores[split]:
        return None, 0.0, 0.0
    value = results.scores[split][id][target.name][0]
    interval = results.interval(id, split, target.name)
    return value, interval.low, interval.high


def _bars(places: Sequence[tuple[float | None, float, float]]) -> dict[str, Any]:
    return {
        "type": "data", "symmetric": False, "thickness": 1, "width": 2,
        "array": [0.0 if value is None else max(0.0, high - value) for value, _, high in places],
        "arrayminus": [0.0 if value is None else max(0.0, value - low) for value, low, _ in places],
    }  # fmt: skip


def _axis(target: Target) -> str:
    side = "lower" if target.metric.direction == "minimize" else "higher"
    return for_plot(f"{target.name} ({side} is better)")


def _depth(group: Group) -> str:
    if group.depth is None:
        return group.stack or "outside"
    return f"{group.stack} {group.depth}".strip()
