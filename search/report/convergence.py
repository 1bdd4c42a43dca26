"""How the search went: the front's hypervolume and the best of each objective, against candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search import pareto
from search.report.facts import Facts, better
from search.report.figures import Data, Figure, Plot, css
from search.report.markup import count, for_plot, listed, number, table
from search.stages import stage_names

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SERIES = ("front", "chosen", "reference", "baseline")


@dataclass(frozen=True)
class Progress:
    """The candidates after which something was better than ever, and the last one.

    Attributes:
        ids: [m] candidate numbers, ascending.
        hypervolume: [m] of the front of all candidates up to that one, in utilities.
        best: [m][objectives] number of the candidate with the best value so far.
    """

    ids: list[int]
    hypervolume: list[float]
    best: list[tuple[int, ...]]


def progress(facts: Facts) -> Progress:
    """Follow the front through the candidates, in the order of their numbers.

    Only what enters the front changes the hypervolume, so it is computed once per entry and not once per candidate.
    """
    judge, scores = facts.results.judge, facts.results.scores["search"]
    utilities = judge.utilities(scores, facts.scored)
    front: npt.NDArray[np.float64] = np.empty((0, len(facts.targets)))
    result = Progress([], [], [])
    volume, best = 0.0, tuple(facts.scored[:1]) * len(facts.targets)
    for id, point in zip(facts.scored, utilities, strict=True):
        leaders = tuple(
            id if better(target, scores[id][target.name][0], scores[leader][target.name][0]) else leader
            for target, leader in zip(facts.targets, best, strict=True)
        )
        entered = not (front >= point).all(axis=1).any()
        if entered:
            front = np.vstack([front[~(point >= front).all(axis=1)], point])
            volume = pareto.hypervolume(front, facts.results.objectives.reference)
        if entered or leaders != best or id == facts.scored[-1]:
            best = leaders
            result.ids.append(id)
            result.hypervolume.append(volume)
            result.best.append(best)
    return result


def convergence_figure(facts: Facts) -> Figure:
    """Hypervolume above, best values below; stages marked. Needs at least one scored candidate."""
    found = progress(facts)
    search = facts.results.scores["search"]
    stages = _stage_starts(facts)
    last = max(facts.candidates)
    marks = [
        {
            "type": "line", "xref": "x", "yref": "paper", "x0": start - 0.5, "x1": start - 0.5, "y0": 0, "y1": 1,
            "line": {"width": 1, "dash": "dot", "color": css("muted")},
        }
        for start, _ in stages[1:]
    ]  # fmt: skip
    volume = Plot(
        "Line plot of the hypervolume against candidates; its numbers are in the table below it",
        [_steps(found.ids, found.hypervolume, [f"hypervolume {each:.4f}" for each in found.hypervolume], 0, last)],
        {
            "xaxis": {"title": {"text": "candidate"}, "range": [-0.5, last + 0.5]},
            "yaxis": {"title": {"text": "hypervolume"}, "rangemode": "tozero"},
            "shapes": marks,
        },
        height=300,
    )
    lines = []
    for index, target in enumerate(facts.targets):
        values = [search[best[index]][target.name][0] for best in found.best]
        texts = [
            f"{target.name} {number(target, value)}, candidate {best[index]}"
            for value, best in zip(values, found.best, strict=True)
        ]
        lines.append(_steps(found.ids, [target.utility(value) for value in values], texts, index, last))
    best = Plot(
        "Line plot of the best value of each objective against candidates; its numbers are in the table below it",
        lines,
        {
            "xaxis": {"title": {"text": "candidate"}, "range": [-0.5, last + 0.5]},
            "yaxis": {"title": {"text": "best so far, within bounds"}, "rangemode": "tozero"},
            "shapes": marks,
        },
        height=300,
    )
    rows = [
        [
            str(id), f"{volume_:.4f}",
            *(
                f"{number(target, search[each][target.name][0])} ({each})"
                for target, each in zip(facts.targets, leaders, strict=True)
            ),
        ]
        for id, volume_, leaders in zip(found.ids, found.hypervolume, found.best, strict=True)
    ]  # fmt: skip
    header = ["after candidate", "hypervolume", *(f"best {each.name} (of candidate)" for each in facts.targets)]
    legend = [
        (_letter(index), f"--{SERIES[index % len(SERIES)]}", f"best {target.name}")
        for index, target in enumerate(facts.targets)
    ]
    numbers = table(
        "The candidates after which something was better than ever, and the last one", header, rows, tall=True
    )
    return Figure("convergence", [volume, best], _caption(facts, stages), numbers, legend, columns=2)


def _steps(ids: list[int], values: list[float], texts: list[str], index: int, last: int) -> Data:
    hover = [for_plot(f"after candidate {id}: {text}") for id, text in zip(ids, texts, strict=True)]
    return {
        "type": "scatter", "mode": "lines", "x": [*ids, last], "y": [*values, values[-1]],
        "hovertext": [*hover, for_plot(f"after candidate {last}: {texts[-1]}")],
        "hoverinfo": "text",
        "line": {
            "shape": "hv", "width": 2, "dash": DASHES[index % len(DASHES)], "color": css(SERIES[index % len(SERIES)]),
        },
    }  # fmt: skip


def _letter(index: int) -> str:
    return ("━━", "╍╍", "┉┉", "╍┉", "━ ━", "━ ┉")[index % len(DASHES)]


def _stage_starts(facts: Facts) -> list[tuple[int, str]]:
    """(first candidate, name) of every stage that has one."""
    starts: dict[int, int] = {}
    for each in facts.results.candidates:
        starts.setdefault(each.stage, each.id)
    names = stage_names(facts.results.config)
    return [(first, names[stage]) for stage, first in sorted(starts.items())]


def _caption(facts: Facts, stages: list[tuple[int, str]]) -> str:
    reference = listed([number(each, each.value(0.0)) for each in facts.targets])
    text = (
        "Search scores. The hypervolume is the share of everything possible that the front dominates: 0 for a merge at "
        f"the worst bounds ({reference}), 1 for a perfect one; its reference point was fixed when the run started. "
        "The best values are each of another candidate, and drawn within their bounds, 1 the best; "
        "a best of many noisy scores is flattered. A flat end says that more candidates of this kind bring little. "
    )
    parts = [f"{name} from candidate {first}" for first, name in stages]
    return text + f"Dotted lines: where a stage begins ({count(len(stages), 'stage')}: {listed(parts)})."
