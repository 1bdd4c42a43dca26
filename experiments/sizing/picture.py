"""Retention over the size of the model, seed by seed, as a picture for light and for dark pages."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.sizing.cells import Cell
from experiments.sizing.plan import MERGES, ONE_LAMBDA, PER_EXPERT_TITLE, title, width

Value = Callable[[Cell], float]

_LIGHT = {"ink": "#24292f", "ground": "#ffffff", "grid": "#d8dee4",
          "colours": ("#0969da", "#8250df", "#bc4c00")}  # fmt: skip
_DARK = {"ink": "#e6edf3", "ground": "#0d1117", "grid": "#30363d",
         "colours": ("#4493f8", "#bc8cff", "#f0883e")}  # fmt: skip


def write(cells: Sequence[Cell], folder: Path) -> list[Path]:
    """Write ``size_effect.png`` and ``size_effect-dark.png``.

    Args:
        cells: what was measured.
        folder: exists.
    """
    found = []
    for suffix, look in (("", _LIGHT), ("-dark", _DARK)):
        path = folder / f"size_effect{suffix}.png"
        _draw(cells, look, path)
        found.append(path)
    return found


def _draw(cells: Sequence[Cell], look: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.1), dpi=110, facecolor=look["ground"], layout="constrained")
    panels: Sequence[Any] = figure.subplots(1, 4)
    for axis, experts, colour in zip(panels, MERGES, look["colours"], strict=False):
        _lines(axis, cells, lambda cell, experts=experts: 100 * cell.mean(experts, ONE_LAMBDA), colour, ONE_LAMBDA)
        best: Value = lambda cell, experts=experts: 100 * cell.mean(experts, PER_EXPERT_TITLE)  # noqa: E731
        axis.plot(*_means(cells, best), color=look["ink"], linewidth=1.2, linestyle="--", label=PER_EXPERT_TITLE)
        axis.set_title(title(experts), fontsize=8.5, color=look["ink"])
        axis.set_ylim(0, 105)
    panels[0].set_ylabel("mean retention on the holdout, %", fontsize=8.5, color=look["ink"])
    _lines(panels[3], cells, lambda cell: 100 * cell.norm_ratio(), look["ink"], "")
    panels[3].set_title("‖τ‖/‖θ0‖, %, mean of the experts", fontsize=8.5, color=look["ink"])
    panels[3].set_ylim(bottom=0)
    widths = sorted({width(cell.name) for cell in cells})
    for axis in panels:
        axis.set_facecolor(look["ground"])
        axis.set_xscale("log", base=2)
        axis.set_xticks(widths, [str(each) for each in widths])
        axis.minorticks_off()
        axis.set_xlabel("width of the model", fontsize=8.5, color=look["ink"])
        axis.tick_params(labelsize=8, colors=look["ink"], length=0)
        axis.grid(color=look["grid"], linewidth=0.6)
        axis.set_axisbelow(True)
        for spine in axis.spines.values():
            spine.set_visible(False)
    panels[0].legend(fontsize=8, frameon=False, labelcolor=look["ink"], loc="lower right")
    figure.savefig(path, metadata={"Software": None})


def _lines(axis: Any, cells: Sequence[Cell], value: Value, colour: str, label: str) -> None:
    """A thin line for every seed, a thick one for the mean of those that each size has."""
    for seed in sorted({cell.seed for cell in cells}):
        own = [(width(cell.name), value(cell)) for cell in cells if cell.seed == seed]
        axis.plot(*zip(*sorted(own), strict=True), color=colour, linewidth=0.8, alpha=0.5, marker="o", markersize=2.5)
    axis.plot(*_means(cells, value), color=colour, linewidth=2.2, marker="o", markersize=5, label=label)


def _means(cells: Sequence[Cell], value: Value) -> tuple[list[int], list[float]]:
    widths = sorted({width(cell.name) for cell in cells})
    return widths, [statistics.fmean(value(cell) for cell in cells if width(cell.name) == each) for each in widths]
