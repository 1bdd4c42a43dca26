"""The report's section on how the search went: hypervolume and best values, against evaluations, items and hours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from search.errors import SearchError
from search.minibatch import in_words
from search.ranges import duration
from search.report.facts import Facts, without_paths
from search.report.figures import Data
from search.report.history import Start, Step
from search.report.markup import Html, details, element, join, listed, number, table
from search.report.progress import POINTS, Progress, progress
from search.report.section import Section
from search.results import Results
from search.stages import stage_names
from search.store import CONTROL, DATABASE

T = TypeVar("T")

TITLE = "Convergence"
NAME = "convergence"
MOST_ROWS = 200
"""Rows of the table."""
MOST_POINTS = 1500
"""Points of one line."""
AXES = {"evaluations": "candidates evaluated", "items": "items scored", "hours": "hours of searching"}
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SERIES = ("front", "chosen", "reference", "baseline")
_LETTERS = ("━━", "╍╍", "┉┉", "╍┉", "━ ━", "━ ┉")


@dataclass(frozen=True)
class Control:
    """The run's control, as far as it got.

    Attributes:
        progress: its course; None where it cannot be read.
        reason: why not.
        finished: whether it spent its budget.
    """

    progress: Progress | None
    reason: str = ""
    finished: bool = False


def convergence_section(facts: Facts) -> Section | None:
    """Hypervolume and best values; None before the first feasible score.

    Raises:
        SearchError: the log is damaged.
    """
    if facts.pick is None:
        return None
    found = progress(facts)
    if not found.steps:
        return Section(TITLE, element("p", "No candidate kept the constraints so far, so there is no front to follow."))
    control = control_of(facts.results)
    stages = stage_starts(facts)
    before = _before_last_stage(found, stages)
    body = [
        _controls(facts),
        element(
            "figure",
            element("ul", _legend(facts, control, before is not None), class_="legend"),
            element(
                "div",
                _box("convergence-volume", "Line plot of the hypervolume; its numbers are in the table below it"),
                _box("convergence-best", "Line plot of the best values; their numbers are in the table below it"),
                class_="plots side",
            ),
            element("figcaption", _caption(facts, found, control, stages)),
            details("The numbers of this figure", _numbers(facts, found)),
        ),
    ]
    data = {**_data(facts, found, control, stages), "before": before}
    return Section(TITLE, join(body), data={NAME: data}, scripts=(NAME,), styles=("details",))


def control_of(results: Results) -> Control | None:
    """The course of the run's control: a random search of equal budget; None where there is none."""
    folder = results.folder / CONTROL
    if not (folder / DATABASE).is_file():
        return None
    try:
        control = Results.load(folder)
        if control.objectives.as_data() != results.objectives.as_data():
            return Control(None, "it has other objectives than the run")
        return Control(progress(Facts(control)), "", control.state == "finished")
    except SearchError as error:
        return Control(None, without_paths(str(error), results))


def stage_starts(facts: Facts) -> list[tuple[str, Step]]:
    """(name, the last step before it) of every stage that was reached but the first, by candidates told."""
    names = stage_names(facts.results.config)
    found: dict[int, Step] = {}
    last: Step | None = None
    for step in facts.history.steps:
        if step.stage not in found and last is not None and step.stage > max([0, *found]):
            found[step.stage] = last
        last = step
    return [(names[stage] if stage < len(names) else f"stage {stage}", step) for stage, step in sorted(found.items())]


def _controls(facts: Facts) -> Html:
    radios = [
        element(
            "label",
            element("input", type="radio", name="convergence-axis", value=axis, checked=axis == "evaluations"),
            f" {text}",
        )
        for axis, text in AXES.items()
    ]
    return element("div", element("fieldset", element("legend", "Against"), radios), class_="controls")


def _box(id: str, label: str) -> Html:
    return element("div", class_="plot", id=id, role="img", aria_label=label, style="height:320px")


def _legend(facts: Facts, control: Control | None, staged: bool) -> list[Html]:
    rows = [("━━", "front", "hypervolume of this run")]
    if control is not None and control.progress is not None:
        rows.append(("╍╍", "muted", "of its control, a random search"))
    if staged:
        rows.append(("┈┈", "baseline", "what one coefficient per expert had reached"))
    rows += [
        (_LETTERS[index % len(_LETTERS)], SERIES[index % len(SERIES)], f"best {target.name}")
        for index, target in enumerate(facts.targets)
    ]
    return [
        element("li", element("span", letter, style=f"color:var(--{colour})", aria_hidden="true"), f" {text}")
        for letter, colour, text in rows
    ]


def _caption(facts: Facts, found: Progress, control: Control | None, stages: Sequence[tuple[str, Step]]) -> str:
    reference = listed([number(each, each.value(0.0)) for each in facts.targets])
    text = (
        f"Search scores of candidates that keep the constraints. {in_words(facts.results.config.search.fidelity)}"
        "The hypervolume is the share of everything possible that the front dominates: 0 for a merge at "
        f"the worst bounds ({reference}), 1 for a perfect one; its reference point was fixed when the run started. "
        "The best values are each of another candidate, and drawn within their bounds, 1 the best; "
        "a best of many noisy scores is flattered. A flat end says that more candidates of this kind bring little. "
    )
    if not found.exact:
        text += (
            f"With {len(facts.targets)} objectives the hypervolume is estimated from {POINTS} random points: read it "
            "to about ± 0.004. "
        )
    if stages:
        parts = [f"{name} after candidate {step.candidate}" for name, step in stages]
        text += f"Dotted lines: where a stage begins ({listed(parts)}). "
    restarts = facts.history.starts[1:]
    if restarts:
        after = listed([str(each.after) for each in restarts[:8]])
        text += f"Dashed vertical lines: the process was started again (after {after} candidates). "
    text += _control_says(control) + _hours_say(facts)
    return text.strip()


def _control_says(control: Control | None) -> str:
    if control is None:
        return "There is no control; `search: {control: true}` adds a random search of equal budget to compare with. "
    if control.progress is None:
        return f"The control cannot be drawn: {control.reason}. "
    if not control.progress.steps:
        return "The control has no feasible candidate yet. "
    unfinished = "" if control.finished else ", which is not finished"
    return (
        f"The control is a random search over the same space with the same budget{unfinished}; what the search is "
        "worth is the gap between the two lines, not the height of one. "
    )


def _hours_say(facts: Facts) -> str:
    """How the hours were told."""
    text = "Hours are those of searching, without the pauses between two starts of the process and without the finals."
    if not facts.history.exact:
        text += (
            " This log, or a part of it, is of a version that did not keep them: there they are told from the times at "
            "which events were written."
        )
    return text


def _numbers(facts: Facts, found: Progress) -> Html:
    search = facts.results.scores["search"]
    every = max(1, -(-len(found.steps) // MOST_ROWS))
    places = [place for place in range(len(found.steps)) if place % every == 0 or place == len(found.steps) - 1]
    rows = []
    for place in places:
        step = found.steps[place]
        leaders = [
            f"{number(target, search[each][target.name][0])} ({each})"
            for target, each in zip(facts.targets, found.best[place], strict=True)
        ]
        hours = duration(3600.0 * step.hours)
        rows.append(
            [
                str(step.candidate), str(step.evaluations), str(step.items), hours, f"{found.hypervolume[place]:.4f}",
                *leaders,
            ]
        )  # fmt: skip
    header = ["after candidate", "evaluated", "items", "time", "hypervolume"]
    header += [f"best {each.name} (of candidate)" for each in facts.targets]
    note = f"; one row in {every}" if every > 1 else ""
    label = f"The candidates after which something was better than ever, and the last one{note}"
    return table(label, header, rows, tall=True)


def _data(facts: Facts, found: Progress, control: Control | None, stages: Sequence[tuple[str, Step]]) -> Data:
    search = facts.results.scores["search"]
    best = []
    for index, target in enumerate(facts.targets):
        values = [search[each[index]][target.name][0] for each in found.best]
        best.append(
            {
                "name": target.name,
                "value": [_rounded(target.utility(each)) for each in _thinned(values)],
                "says": [f"{number(target, each)}, candidate {leaders[index]}"
                         for each, leaders in zip(_thinned(values), _thinned(found.best), strict=True)],
                "dash": DASHES[index % len(DASHES)],
                "colour": SERIES[index % len(SERIES)],
            }
        )  # fmt: skip
    other = control.progress if control is not None else None
    last = facts.history.steps[-1]
    return {
        "axes": AXES,
        "run": _line(found),
        "end": _place(last),
        "control": _line(other) if other is not None and other.steps else None,
        "best": best,
        "stages": [{"name": name, **_place(step)} for name, step in stages],
        "restarts": [_restart(each, facts.history.steps) for each in facts.history.starts[1:]],
    }


def _before_last_stage(found: Progress, stages: Sequence[tuple[str, Step]]) -> Data | None:
    """The hypervolume that one coefficient per expert had reached: what a search that stops there would have."""
    names = [name for name, _ in stages]
    if "full" not in names or "per-expert" not in names:
        return None
    end = stages[names.index("full")][1]
    reached = [
        volume
        for step, volume in zip(found.steps, found.hypervolume, strict=True)
        if step.evaluations <= end.evaluations
    ]
    return {"value": _rounded(reached[-1]), **_place(end)} if reached else None


def _line(found: Progress) -> Data:
    return {
        "id": [each.candidate for each in _thinned(found.steps)],
        "value": [_rounded(each) for each in _thinned(found.hypervolume)],
        **{axis: [_place(each)[axis] for each in _thinned(found.steps)] for axis in AXES},
    }


def _restart(start: Start, steps: Sequence[Step]) -> Data:
    before = steps[min(start.after, len(steps)) - 1] if start.after else None
    return {
        "evaluations": before.evaluations if before else 0,
        "items": before.items if before else 0,
        "hours": _rounded(start.hours),
        "different": start.different,
    }


def _place(step: Step) -> Data:
    """Where a step stands on every axis."""
    return {"evaluations": step.evaluations, "items": step.items, "hours": _rounded(step.hours)}


def _thinned(values: Sequence[T]) -> list[T]:
    """At most so many, the last one among them; the same places for sequences of one length."""
    every = max(1, -(-len(values) // MOST_POINTS))
    return [each for place, each in enumerate(values) if place % every == 0 or place == len(values) - 1]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
