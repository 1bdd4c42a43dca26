"""The Pareto front as a picture: a small PNG for model cards, READMEs and slides, with the marks of the report.

One objective is drawn as rows, two as a scatter with names beside the marks, more as all pairs of them. Drawn by
matplotlib into memory: no display, no state, none of the reader's own matplotlib settings.
"""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.errors import SearchError
from search.objectives import Target
from search.report.facts import Facts
from search.report.label_boxes import Box, cost, places
from search.report.markup import count
from search.report.scene import Mark, Scene
from search.report.terminal import visible
from search.results import Results
from search.writing import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGEST = 150_000
"""Bytes of a picture: it is loaded with the page that shows it."""

# The report's colours in its light and its dark scheme.
_LIGHT = {
    "paper": "#ffffff", "ink": "#1b1f24", "muted": "#59636e", "grid": "#dde1e6", "faint": "#8c959f", "front": "#0860c4",
    "chosen": "#c2410c", "reference": "#1a7f4b", "baseline": "#8250df", "broken": "#cf222e",
}  # fmt: skip
_DARK = {
    "paper": "#14181d", "ink": "#e6edf3", "muted": "#a5afba", "grid": "#313942", "faint": "#7d8793", "front": "#6cb0ff",
    "chosen": "#ff9457", "reference": "#56d08b", "baseline": "#c4a1ff", "broken": "#ff7b72",
}  # fmt: skip

_DPI = (150, 120, 96, 72, 48)
"""The first that keeps the picture under :data:`LARGEST` is taken."""

_LONGEST_NAME = 40
_NAMED_BESIDE = 14
"""Up to so many names stand beside their marks; more of them go into the legend."""


def write_front_picture(results: Results, path: Path, *, highlight: int | None = None, dark: bool = False) -> Path:
    """Draw the front of a run as a PNG file of at most 150 kB.

    Faint dots are candidates by their search scores; the front, the chosen merge and the baselines stand at their
    selection scores once there are any, with 95 % intervals (:meth:`Results.interval`). The holdout is not drawn.

    Args:
        results: of a run, finished or not, with any number of objectives.
        path: of the file, ending in ``.png``; replaced whole.
        highlight: the candidate with the star; the chosen one, or before the choice the knee so far, if None.
        dark: for a dark page.

    Returns:
        The path.

    Raises:
        SearchError: no candidate has scores yet, there is no such candidate, another ending, or the file cannot be
            written.
    """
    if path.suffix.lower() != ".png":
        raise SearchError(f"{path}: expected a file name that ends in .png for the picture; pictures are PNG files")
    if not path.parent.is_dir():  # before the work of drawing
        raise SearchError(f"{path}: the picture cannot be written: there is no folder {path.parent}; make it first")
    facts = Facts(results)
    if facts.pick is None:
        raise SearchError(
            f"{results.folder}: no candidate has scores yet, so there is no front to draw; resume the run with the "
            "same command"
        )
    write_whole(path, _drawn(Scene(facts, highlight), _DARK if dark else _LIGHT), "the picture")
    return path


def describe_picture(results: Results, highlight: int | None = None) -> str:
    """The picture in one sentence, for those who cannot see it."""
    scene = Scene(Facts(results), highlight)
    names = [each.name for each in scene.targets]
    form = {1: "Dot plot", 2: "Scatter plot"}.get(len(names), "Scatter plots of all pairs")
    marked = [each.label for each in reversed(scene.marks) if each.role != "front"]
    return visible(
        f"{form} of {', '.join(names)} for {count(len(scene.cloud), 'candidate')}; the front has "
        f"{count(len(results.front), 'member')}; marked are {', '.join(marked)}"
    ).replace("\n", " ")


def _drawn(scene: Scene, colours: Mapping[str, str]) -> bytes:
    """The PNG file."""
    import matplotlib

    settings = {
        "font.family": "DejaVu Sans", "font.size": 9, "text.usetex": False, "text.parse_math": False,
        "path.simplify": True, "axes.unicode_minus": True,
    }  # fmt: skip
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **settings}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for what the font lacks
        figure = _Painter(scene, colours).figure()
        for dpi in _DPI:
            content = _png(figure, dpi)
            if len(content) <= LARGEST:
                break
    return content


def _png(figure: Figure, dpi: int) -> bytes:
    from PIL import Image

    whole = io.BytesIO()
    figure.savefig(whole, format="png", dpi=dpi)
    # 256 colours are plenty for marks and letters, and a third of the bytes
    image = Image.open(whole).convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    small = io.BytesIO()
    image.save(small, format="PNG", optimize=True)
    return small.getvalue()


class _Painter:
    """Draws a scene.

    Args:
        scene: what there is to draw.
        colours: by role.
    """

    def __init__(self, scene: Scene, colours: Mapping[str, str]) -> None:
        self._scene, self._colours = scene, colours
        self._targets = scene.targets
        self._ranges = [scene.range_of(each) for each in self._targets]
        self._beside = len(self._targets) == 2 and len([each for each in scene.marks if each.label]) <= _NAMED_BESIDE

    def figure(self) -> Figure:
        """The whole picture."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(facecolor=self._colours["paper"], layout="constrained")
        FigureCanvasAgg(figure)
        count = len(self._targets)
        if count == 1:
            self._rows(figure)
        elif count == 2:
            figure.set_size_inches(8.0, 5.8)
            self._pair(axes := figure.add_subplot(), 0, 1)
            self._legend(figure, figure, loc="outside lower center", ncols=3 if self._beside else 2)
            self._title(figure)
            self._names(figure, axes)
        else:
            self._pairs(figure, count)
        return figure

    def _pairs(self, figure: Figure, count: int) -> None:
        """The lower triangle of all pairs; the legend stands in the free corner above it."""
        side = count - 1
        size = max(7.0, min(15.0, 2.3 * side + 1.0))
        figure.set_size_inches(size, 0.92 * size + 0.4)
        grid = figure.add_gridspec(side, side)
        for up, across in itertools.combinations(range(count - 1, -1, -1), 2):
            axes = figure.add_subplot(grid[up - 1, across])
            self._pair(axes, across, up, outer=(up == side, across == 0))
        corner = figure.add_subplot(grid[0, 1:]) if side == 2 else figure.add_subplot(grid[: side // 2, -(side // 2) :])
        corner.axis("off")
        self._legend(figure, corner, loc="upper right", ncols=1)
        self._title(figure)

    def _pair(self, axes: Axes, x: int, y: int, outer: tuple[bool, bool] = (True, True)) -> None:
        across, up = self._targets[x], self._targets[y]
        self._frame(axes, across, up, outer)
        axes.set_xlim(*self._ranges[x])
        axes.set_ylim(*self._ranges[y])
        for ids, mark, colour in self._clouds():
            xs = [self._scene.searched(id, across) for id in ids]
            ys = [self._scene.searched(id, up) for id in ids]
            axes.plot(xs, ys, mark, color=colour, markersize=3.2, alpha=0.5, markeredgewidth=0.7, linestyle="none")
        if len(self._targets) == 2 and len(border := self._scene.border(across, up)) > 1:
            # what the front dominates ends here; in more dimensions a pair of axes shows no such border
            steps = "steps-post" if across.metric.direction == "minimize" else "steps-pre"
            axes.plot(*zip(*border, strict=True), color=self._colours["front"], linewidth=0.9, drawstyle=steps)
        for each in self._scene.marks:
            one, other = self._scene.interval(each.id, across), self._scene.interval(each.id, up)
            if one is None or other is None:
                continue
            bars: dict[str, Any] = {}
            if self._scene.with_bars(each):
                bars = {"xerr": [[one.below], [one.above]], "yerr": [[other.below], [other.above]]}
            self._mark(axes, each, one.value, other.value, **bars)

    def _rows(self, figure: Figure) -> None:
        """One objective: a row for all candidates, spread by their number, and one for each mark."""
        target = self._targets[0]
        marks = [each for each in reversed(self._scene.marks) if self._scene.interval(each.id, target) is not None]
        names = ["all candidates", *(_short(each.label or f"front ({each.id})") for each in marks)]
        figure.set_size_inches(8.0, 1.7 + 0.3 * len(names))
        axes = figure.add_subplot()
        self._frame(axes, target, None, (True, True))
        axes.set_xlim(*self._ranges[0])
        for ids, mark, colour in self._clouds():
            values = [self._scene.searched(id, target) for id in ids]
            spread = [0.33 * math.sin(12.9898 * id) for id in ids]
            axes.plot(values, spread, mark, color=colour, markersize=3.2, alpha=0.5, linestyle="none")
        for row, each in enumerate(marks, start=1):
            found = self._scene.interval(each.id, target)
            if found is not None:
                self._mark(axes, each, found.value, -row, xerr=[[found.below], [found.above]])
        axes.set_yticks([-row for row in range(len(names))], names)
        axes.set_ylim(-len(names) + 0.4, 0.7)
        self._legend(figure, figure, loc="outside lower center", ncols=3, named=False)
        self._title(figure)

    def _mark(self, axes: Axes, mark: Mark, x: float, y: float, **bars: Any) -> None:
        colour = self._colours[mark.role]
        axes.errorbar(
            [x], [y], **bars, fmt=mark.symbol, color=colour, markersize=mark.size, markeredgewidth=0.8,
            markeredgecolor=self._colours["paper"], elinewidth=0.8, capsize=0, zorder=mark.layer,
        )  # fmt: skip

    def _clouds(self) -> list[tuple[list[int], str, str]]:
        """(ids, symbol, colour) of the candidates without names."""
        broken = self._scene.infeasible
        kept = [id for id in self._scene.cloud if id not in broken]
        return [(kept, "o", self._colours["faint"]), (sorted(broken), "x", self._colours["broken"])]

    def _frame(self, axes: Axes, across: Target, up: Target | None, outer: tuple[bool, bool]) -> None:
        colours = self._colours
        axes.set_facecolor(colours["paper"])
        axes.grid(color=colours["grid"], linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(colors=colours["muted"], labelbottom=outer[0], labelleft=outer[1], length=2)
        for spine in axes.spines.values():
            spine.set_color(colours["grid"])
        small = 9 if len(self._targets) <= 3 else 7
        if outer[0]:
            axes.set_xlabel(_axis(across, len(self._targets)), color=colours["ink"], fontsize=small)
        if outer[1] and up is not None:
            axes.set_ylabel(_axis(up, len(self._targets)), color=colours["ink"], fontsize=small)

    def _title(self, figure: Figure) -> None:
        figure.suptitle(_short(self._scene.title, 110), x=0.01, ha="left", fontsize=8.5, color=self._colours["muted"])

    def _legend(self, figure: Figure, place: Any, named: bool = True, **where: Any) -> None:
        from matplotlib.lines import Line2D

        def key(symbol: str, colour: str, label: str, size: float) -> Line2D:
            return Line2D(
                [], [], marker=symbol, linestyle="none", color=self._colours[colour], label=_short(label),
                markersize=size, markeredgewidth=0.8,
            )  # fmt: skip

        keys = [key("o", "faint", self._scene.cloud_label, 4)]
        if self._scene.infeasible:
            keys.append(key("x", "broken", "breaks a constraint", 4))
        if self._scene.has_front:
            keys.append(key("o", "front", self._scene.front_label, 6))
            keys[-1].set_linestyle("-" if len(self._targets) == 2 else "none")
            keys[-1].set_linewidth(0.9)
        if named and not self._beside:
            shown = [each for each in reversed(self._scene.marks) if each.label]
            keys += [key(each.symbol, each.role, each.label, 0.8 * each.size) for each in shown]
        legend = place.legend(handles=keys, frameon=False, fontsize=8, **where)
        for text in legend.get_texts():
            text.set_color(self._colours["ink"])

    def _names(self, figure: Figure, axes: Axes) -> None:
        """Names beside their marks, where they cover as little as can be."""
        if not self._beside:
            return
        figure.draw_without_rendering()  # settles the layout: places are reckoned in pixels
        found = {each.id: self._pixels(axes, each) for each in self._scene.marks}
        taken = [box for each in found.values() if each is not None for box in each[1]]
        taken += self._border_boxes(axes)
        window = axes.get_window_extent()
        frame = Box(window.x0, window.y0, window.x1, window.y1)
        for mark in reversed(self._scene.marks):  # the most important first: it has the free choice
            place = found[mark.id]
            if not mark.label or place is None:
                continue
            at, weight = place[0], "bold" if mark.role == "chosen" else "normal"
            width, height = self._size(figure, axes, mark.label, weight)
            best = min(places(*at, width, height), key=lambda box: cost(box, taken, frame, at))
            taken.append(best)
            self._name(axes, mark, at, best, weight)

    def _pixels(self, axes: Axes, mark: Mark) -> tuple[tuple[float, float], list[Box]] | None:
        """Where a mark is, and what it and its bars cover."""
        one, other = (self._scene.interval(mark.id, each) for each in self._targets)
        if one is None or other is None:
            return None
        to = axes.transData.transform
        x, y = to((one.value, other.value))
        boxes = [Box(x - 6, y - 6, x + 6, y + 6)]
        if self._scene.with_bars(mark):
            left, bottom = to((one.value - one.below, other.value - other.below))
            right, top = to((one.value + one.above, other.value + other.above))
            boxes += [Box(left, y - 1, right, y + 1), Box(x - 1, bottom, x + 1, top)]
        return (x, y), boxes

    def _border_boxes(self, axes: Axes) -> list[Box]:
        """What the line of the front covers."""
        across, up = self._targets
        points = [tuple(axes.transData.transform(each)) for each in self._scene.border(across, up)]
        boxes = []
        for (left, before), (right, after) in itertools.pairwise(points):
            level, wall = (before, right) if across.metric.direction == "minimize" else (after, left)
            boxes += [Box(left, level - 1, right, level + 1)]
            boxes += [Box(wall - 1, min(before, after), wall + 1, max(before, after))]
        return boxes

    def _size(self, figure: Figure, axes: Axes, label: str, weight: str) -> tuple[float, float]:
        """Width and height of a name, pixels."""
        text = axes.text(0, 0, _short(label), fontsize=8, fontweight=weight)
        extent = text.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
        text.remove()
        return extent.width, extent.height

    def _name(self, axes: Axes, mark: Mark, at: tuple[float, float], box: Box, weight: str) -> None:
        from matplotlib.patheffects import withStroke

        def back(x: float, y: float) -> tuple[float, float]:
            found = axes.transData.inverted().transform((x, y))
            return float(found[0]), float(found[1])

        arrow = None
        if box.gap(*at) > 16:
            arrow = {"arrowstyle": "-", "color": self._colours["muted"], "linewidth": 0.5}
        axes.annotate(
            _short(mark.label), back(*at), xytext=back(box.left, (box.bottom + box.top) / 2), textcoords="data",
            fontsize=8, va="center", color=self._colours["ink"], fontweight=weight, zorder=30, arrowprops=arrow,
            annotation_clip=False, path_effects=[withStroke(linewidth=2.0, foreground=self._colours["paper"])],
        )  # fmt: skip


def _axis(target: Target, objectives: int) -> str:
    """An axis that says which end is better, in fewer words where there is less room."""
    better = "lower" if target.metric.direction == "minimize" else "higher"
    unit = f", {target.metric.unit}" if target.metric.unit else ""
    if objectives > 3:
        return _short(f"{target.name}{unit} {'↓' if better == 'lower' else '↑'}", 26)
    return _short(f"{target.name}{unit} ({better} is better)", 60)


def _short(text: str, most: int = _LONGEST_NAME) -> str:
    """A stranger's text as one line of so many letters."""
    line = " ".join(visible(text).split())
    return line if len(line) <= most else line[: most - 1] + "…"
