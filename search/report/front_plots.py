"""The drawings of the front: pairs of objectives, one objective as rows, many as parallel lines.

There are two views. The first one has selection scores (search scores until the finals), the other the holdout scores
of those candidates whose holdout was opened; a reader switches between them, so every trace says in its ``meta`` to
which it belongs. ``customdata`` holds the candidates' numbers, and texts are looked up as ``VIEW:NUMBER``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evaluators.contract import Split
from search.objectives import Target
from search.pareto import tchebycheff
from search.report.facts import Facts, Named
from search.report.figures import Data, Plot, axis, css, placed, rounded, steps
from search.report.front_labels import label_sides
from search.report.markup import decimals, for_plot

MARKS = {
    "star": "★", "circle": "●", "square": "■", "diamond": "◆", "pentagon": "⬟", "hexagon": "⬢", "hexagram": "✶",
    "star-diamond": "✦", "triangle-up": "▲", "triangle-down": "▼", "cross": "✚", "x": "✖", "triangle-left": "◀",
    "triangle-right": "▶", "bowtie": "⋈", "circle-x": "⊗",
}  # fmt: skip
"""plotly's symbols and the letters that show them in a legend."""

_REFERENCE_MARKS = ("square", "diamond", "pentagon", "hexagon", "hexagram", "star-diamond")
_BASELINE_MARKS = (
    "triangle-up", "triangle-down", "cross", "x", "triangle-left", "triangle-right", "bowtie", "circle-x",
)  # fmt: skip
_ROLES = ("baseline", "reference", "chosen")
"""What is drawn over what."""

MOST_MARKERS = 12_000
"""Markers for the cloud of candidates in one figure, over all its plots: more makes a browser slow."""
MOST_BARS = 40
"""Members of the front that have bars: more cover each other and everything else."""
MOST_PAIRS = 6
"""Pairs of objectives that are drawn at once; of more, the reader takes one at a time."""
MOST_LINES = 40
"""Members of the front that are drawn as parallel lines: of more, no line can be followed."""
_FAR = 3.0
"""Interquartile ranges beyond the quartiles from which a candidate may lie outside the frame (Tukey's "far out"): a few
broken ones must not shrink the rest."""
_CLOUD = {"size": 5, "color": css("faint"), "opacity": 0.55, "symbol": {"column": "symbol"}}


@dataclass(frozen=True)
class Frame:
    """What every drawing of the front shows.

    Attributes:
        facts: of the run; at least one candidate has scores.
    """

    facts: Facts

    @property
    def view(self) -> Split:
        """The split of the first view."""
        return self.facts.results.split

    @cached_property
    def views(self) -> list[Split]:
        """The first view, and the holdout where it was opened."""
        shown = [id for id in self.facts.opened if id in self.facts.candidates]
        return [self.view, "holdout"] if shown and self.view != "holdout" else [self.view]

    @cached_property
    def front(self) -> list[int]:
        """Members of the front, those first that the rule of the choice prefers."""
        ids = self.facts.results.front
        retained = [each for id in ids if (each := self.facts.retention(id, self.view)) is not None]
        if not ids or len(retained) < len(ids):
            return list(ids)
        k = len(self.facts.targets)
        order = tchebycheff(retained, [1.0] * k, [0.0] * k)
        return [id for _, id in sorted(zip(order.tolist(), ids, strict=True))]

    @cached_property
    def marks(self) -> dict[int, str]:
        """Symbols of the named candidates."""
        references, baselines = itertools.cycle(_REFERENCE_MARKS), itertools.cycle(_BASELINE_MARKS)
        return {
            each.id: "star" if each.role == "chosen" else next(references if each.role == "reference" else baselines)
            for each in self.facts.named
        }

    def shown(self, view: Split) -> list[int]:
        """Who has a mark of its own in a view."""
        if view == "holdout":
            return [id for id in self.facts.opened if id in self.facts.candidates]
        named = [each.id for each in self.facts.named]
        return list(dict.fromkeys([*named, *self.front]))

    def split(self, id: int, view: Split) -> Split:
        """On which split a mark stands in a view: one without selection scores stands where it has some."""
        return view if view == "holdout" else self.facts.best_split(id)

    def place(self, id: int, view: Split, target: Target) -> float:
        """Where a mark stands on an objective's axis; NaN where it has no score."""
        found = self.facts.score(id, self.split(id, view), target)
        return math.nan if found is None else found[0]

    @cached_property
    def every(self) -> int:
        """One in how many candidates is drawn as a dot."""
        pairs = min(math.comb(len(self.facts.targets), 2), MOST_PAIRS)
        return max(1, -(-len(self.facts.scored) * pairs // MOST_MARKERS))

    def range(self, target: Target) -> tuple[float, float] | None:
        """Of an objective's axis: all marks, and all candidates but a few far ones; None where nothing is known."""
        values: list[float] = []
        for view in self.views:
            for id in self.shown(view):
                found = self.facts.interval(id, self.split(id, view), target)
                values += [] if found is None else [found.value, found.low, found.high]
        searched = [score[0] for id in self.facts.scored if (score := self.facts.score(id, "search", target))]
        known = [each for each in searched if math.isfinite(each)]
        values = [each for each in values if math.isfinite(each)]
        if known:
            low, high = np.quantile(known, [0.25, 0.75]).tolist()
            reach = _FAR * (high - low)
            values += [each for each in known if low - reach <= each <= high + reach]
        if not values:
            return None
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or 0.05 * (target.high - target.low)
        return low - room, high + room

    def outside(self) -> int:
        """Candidates that lie outside the frame of at least one axis."""
        ranges = {each.name: self.range(each) for each in self.facts.targets}
        scores = self.facts.results.scores["search"]
        return sum(
            any(limits and not limits[0] <= scores[id][name][0] <= limits[1] for name, limits in ranges.items())
            for id in self.facts.scored
        )


def has_bars(frame: Frame) -> bool:
    """Whether the members of the front have bars: not where they would cover each other, or fill the file."""
    pairs = math.comb(len(frame.facts.targets), 2)
    return len(frame.facts.results.front) <= MOST_BARS and pairs <= MOST_PAIRS


def places(frame: Frame) -> Data:
    """Marks for the page's script: candidate -> view -> its split, and (value, low, high) of every objective.

    low and high: the limits of the 95 % interval, in units of the last digit shown.
    """
    found: Data = {}
    for view in frame.views:
        for id in frame.shown(view):
            split = frame.split(id, view)
            found.setdefault(str(id), {})[view] = {
                "split": split,
                "scores": [_triple(frame.facts, id, split, each) for each in frame.facts.targets],
            }
    return found


def pair(frame: Frame, x: int, y: int, *, hidden: bool = False) -> Plot:
    """Two objectives against each other."""
    across, up = frame.facts.targets[x], frame.facts.targets[y]
    traces: list[Data] = [
        {
            "type": "scatter", "mode": "markers", "x": {"column": f"s{x}", "every": frame.every},
            "y": {"column": f"s{y}", "every": frame.every}, "hovertext": {"column": "hover", "every": frame.every},
            "hoverinfo": "text", "customdata": {"column": "id", "every": frame.every},
            "marker": _CLOUD | {"symbol": {"column": "symbol", "every": frame.every}}, "meta": {"view": frame.view},
        }
    ]  # fmt: skip
    front = sorted(frame.facts.results.front, key=lambda id: frame.place(id, frame.view, across))
    if front:
        traces.append(_front(frame, front, across, up))
    for view in frame.views:
        if view == "holdout":
            traces += _opened(frame, across, up)
        traces += _named(frame, view, across, up)
    layout: Data = {
        "xaxis": _framed(frame, across), "yaxis": _framed(frame, up), "margin": {"t": 34}, "meta": {"x": x, "y": y},
    }  # fmt: skip
    label = f"Scatter plot of {up.name} against {across.name}; its numbers are in the table below it"
    return Plot(label, traces, layout, tools=True, hidden=hidden)


def strip(frame: Frame) -> Plot:
    """One objective: a row for all candidates, spread by their number, and a row for each named one."""
    target = frame.facts.targets[0]
    traces: list[Data] = [
        {
            "type": "scatter", "mode": "markers", "x": {"column": "s0"}, "y": {"column": "spread"},
            "hovertext": {"column": "hover"}, "hoverinfo": "text", "customdata": {"column": "id"},
            "marker": _CLOUD, "meta": {"view": frame.view},
        }
    ]  # fmt: skip
    named = [*frame.facts.named]
    known = {each.id for each in named}
    others = [id for view in frame.views for id in frame.shown(view) if id not in known]
    rows = [*named, *(Named(id, f"front ({id})", "reference") for id in dict.fromkeys(others))]
    places = {each.id: -row for row, each in enumerate(rows, start=1)}
    for view in frame.views:
        for id in frame.shown(view):
            colour, mark = _look(frame, id)
            points = _points(frame, [id], view, target, None)
            traces.append(points | {"y": [places[id]], "mode": "markers", "marker": _marker(mark, colour, 12)})
    names = ["all candidates", *(for_plot(each.name) for each in rows)]
    ticks: Data = {"tickvals": [-index for index in range(len(names))], "ticktext": names, "zeroline": False}
    layout: Data = {
        "xaxis": _framed(frame, target), "yaxis": ticks, "margin": {"t": 34},
        "meta": {"x": 0, "rows": {str(id): row for id, row in places.items()}},
    }  # fmt: skip
    label = f"Dot plot of {target.name}; its numbers are in the table below it"
    return Plot(label, traces, layout, height=140 + 36 * len(names), tools=True)


def parallel(frame: Frame) -> Plot:
    """Many objectives: a line for each member of the front and each named candidate, on the objectives' bounds."""
    targets = frame.facts.targets
    traces: list[Data] = []
    for view in frame.views:
        named = {each.id: each for each in frame.facts.named}
        members = frame.front[:MOST_LINES] if view != "holdout" else []
        ids = [*(id for id in members if id not in named), *(id for id in frame.shown(view) if id in named)]
        for id in sorted(ids, key=lambda id: id in named and named[id].role == "chosen"):
            colour, mark = _look(frame, id)
            chosen = colour == "chosen"
            traces.append(
                {
                    "type": "scatter", "mode": "lines+markers", "x": [for_plot(each.name) for each in targets],
                    "y": [_utility(each, frame.place(id, view, each)) for each in targets],
                    "customdata": [id] * len(targets), "hovertext": {"says": [f"{view}:{id}"] * len(targets)},
                    "hoverinfo": "text", "opacity": 1.0 if chosen else 0.55,
                    "line": {"width": 3 if chosen else 1, "color": css(colour)},
                    "marker": _marker(mark, colour, 12 if chosen else 7), **_in(frame, view),
                }
            )  # fmt: skip
    layout: Data = {
        "xaxis": {"type": "category", "tickangle": 0},
        "yaxis": {"title": {"text": "place within the bounds (1 is the best)"}, "range": [-0.04, 1.04]},
        "margin": {"t": 20}, "meta": {},
    }  # fmt: skip
    label = "Parallel lines over all objectives, one for each member of the front; their numbers are in the table below"
    return Plot(label, traces, layout, tools=True)


def _front(frame: Frame, front: Sequence[int], across: Target, up: Target) -> Data:
    mode: str = "markers"
    line: Data = {}
    if len(frame.facts.targets) == 2:
        # the border of what the front dominates; in more dimensions a pair of axes shows no such border
        shape = "hv" if across.metric.direction == "minimize" else "vh"
        mode, line = "lines+markers", {"line": {"shape": shape, "width": 1, "color": css("front")}}
    points = _points(frame, front, frame.view, across, up, bars=has_bars(frame))
    return points | line | {"mode": mode, "marker": _marker("circle", "front", 8)}


def _opened(frame: Frame, across: Target, up: Target) -> list[Data]:
    """Holdout scores of those without a name, and a line from where each candidate stood before."""
    ids = frame.shown("holdout")
    before = [id for id in ids if any(id in frame.facts.results.scores[each] for each in ("search", "selection"))]
    xs, ys = (
        [
            place
            for id in before
            for place in (_number(frame, id, frame.view, target), _number(frame, id, "holdout", target), None)
        ]
        for target in (across, up)
    )
    link: Data = {
        "type": "scatter", "mode": "lines", "x": xs, "y": ys, "hoverinfo": "skip",
        "line": {"width": 1, "dash": "dot", "color": css("muted")}, **_in(frame, "holdout"),
    }  # fmt: skip
    others = [id for id in ids if id not in frame.marks]
    points = _points(frame, others, "holdout", across, up)
    return [link, *([points | {"mode": "markers", "marker": _marker("circle", "front", 9)}] if others else [])]


def _named(frame: Frame, view: Split, across: Target, up: Target) -> list[Data]:
    """One trace for each role, so that bars have its colour."""
    at = {id: (frame.place(id, view, across), frame.place(id, view, up)) for id in frame.shown(view)}
    at = {id: place for id, place in at.items() if all(math.isfinite(each) for each in place)}
    named = [each for each in frame.facts.named if each.id in at]
    width = 560.0 if len(frame.facts.targets) == 2 else 380.0
    sides = label_sides({each.id: each.short for each in named}, at, width)
    found = []
    for role in _ROLES:
        here = [each for each in named if each.role == role]
        if not here:
            continue
        symbols = [frame.marks[each.id] for each in here]
        look = {
            "mode": "markers+text", "cliponaxis": False,
            "marker": _marker(symbols, role, 16 if role == "chosen" else 11),
            "text": [for_plot(each.short) if each.id in sides else "" for each in here],
            "textposition": [sides.get(each.id, "top right") for each in here],
            "textfont": {"size": 11, "color": css("ink")},
        }  # fmt: skip
        found.append(_points(frame, [each.id for each in here], view, across, up) | look)
    return found


def _points(
    frame: Frame, ids: Sequence[int], view: Split, across: Target, up: Target | None, *, bars: bool = True
) -> Data:
    data: Data = {
        "type": "scatter",
        "x": [_number(frame, id, view, across) for id in ids],
        "customdata": list(ids),
        "hovertext": {"says": [f"{view}:{id}" for id in ids]},
        "hoverinfo": "text",
        **_in(frame, view),
    }
    if up is not None:
        data["y"] = [_number(frame, id, view, up) for id in ids]
    if bars:
        data["error_x"] = _bars(frame, ids, view, across)
        if up is not None:
            data["error_y"] = _bars(frame, ids, view, up)
    return data


def _bars(frame: Frame, ids: Sequence[int], view: Split, target: Target) -> Data:
    found = [frame.facts.interval(id, frame.split(id, view), target) for id in ids]
    return {
        "type": "data", "symmetric": False, "thickness": 1, "width": 3,
        "array": [None if each is None else rounded(each.high - each.value, 3) for each in found],
        "arrayminus": [None if each is None else rounded(each.value - each.low, 3) for each in found],
    }  # fmt: skip


def _in(frame: Frame, view: Split) -> Data:
    return {"meta": {"view": view}, "visible": view == frame.view}


def _look(frame: Frame, id: int) -> tuple[str, str]:
    """Colour and symbol of a candidate."""
    role = next((each.role for each in frame.facts.named if each.id == id), None)
    return ("front", "circle") if role is None else (role, frame.marks[id])


def _framed(frame: Frame, target: Target) -> Data:
    limits = frame.range(target)
    return axis(target) | ({} if limits is None else {"range": list(limits)})


def _marker(symbol: str | list[str], colour: str, size: int) -> Data:
    return {"symbol": symbol, "size": size, "color": css(colour), "line": {"width": 1, "color": css("paper")}}


def _triple(facts: Facts, id: int, split: Split, target: Target) -> list[float | int | None] | None:
    found = facts.interval(id, split, target)
    if found is None:
        return None
    unit = 10.0 ** -decimals(target)
    return [rounded(found.value), steps(found.low, unit), steps(found.high, unit)]


def _utility(target: Target, value: float) -> float | None:
    return rounded(target.utility(value), 4) if math.isfinite(value) else None


def _number(frame: Frame, id: int, view: Split, target: Target) -> float | None:
    """Where a mark stands, in no more digits than a drawing shows."""
    return placed(frame.place(id, view, target), decimals(target) + 1)
