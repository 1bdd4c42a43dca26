"""The gap over some predictors, one mark a pair, as a picture for light and for dark pages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.diagnosing.correlate import Pair, correlation
from experiments.diagnosing.predictors import PREDICTORS

SHOWN = ("norm_ratio", "cosine", "alignment", "look_gap")

_MARKS = {"skills": "o", "skills-nano": "s", "digits": "^", "speech": "D", "reward": "P"}
_LIGHT = {"ink": "#24292f", "ground": "#ffffff", "grid": "#d8dee4",
          "colours": ("#0969da", "#54aeff", "#8250df", "#bc4c00", "#57606a")}  # fmt: skip
_DARK = {"ink": "#e6edf3", "ground": "#0d1117", "grid": "#30363d",
         "colours": ("#4493f8", "#a5d6ff", "#bc8cff", "#f0883e", "#9198a1")}  # fmt: skip


def write(pairs: Sequence[Pair], folder: Path) -> list[Path]:
    """Write ``diagnostics.png`` and ``diagnostics-dark.png``.

    Args:
        pairs: that count.
        folder: exists.
    """
    found = []
    for suffix, look in (("", _LIGHT), ("-dark", _DARK)):
        path = folder / f"diagnostics{suffix}.png"
        _draw(pairs, look, path)
        found.append(path)
    return found


def _draw(pairs: Sequence[Pair], look: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.1), dpi=110, facecolor=look["ground"], layout="constrained")
    axes: Sequence[Any] = figure.subplots(1, len(SHOWN), sharey=True)
    families = list(dict.fromkeys(each.family for each in pairs))
    for axis, key in zip(axes, SHOWN, strict=True):
        axis.set_facecolor(look["ground"])
        for family, colour in zip(families, look["colours"], strict=False):
            mine = [each for each in pairs if each.family == family and key in each.values]
            axis.scatter(
                [each.values[key] for each in mine], [each.gap for each in mine],
                s=22, marker=_MARKS[family], color=colour, label=family, alpha=0.85, linewidths=0,
            )  # fmt: skip
        rho = correlation(pairs, key, draws=0).within
        axis.set_title(f"ρ within families {rho:+.2f}".replace("-", "−"), fontsize=9, color=look["ink"])
        axis.set_xlabel(PREDICTORS[key].title, fontsize=8.5, color=look["ink"])
        axis.tick_params(labelsize=8, colors=look["ink"], length=0)
        axis.grid(color=look["grid"], linewidth=0.6)
        axis.set_axisbelow(True)
        for spine in axis.spines.values():
            spine.set_visible(False)
        axis.set_ylim(0.0, 1.0)
    axes[0].set_ylabel("merge gap, best λ", fontsize=8.5, color=look["ink"])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(families), fontsize=8.5, frameon=False,
        labelcolor=look["ink"],
    )  # fmt: skip
    figure.savefig(path, metadata={"Software": None})
