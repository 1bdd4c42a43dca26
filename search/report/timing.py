"""The report's section on time: what it went to, in which phase, what racing saved, and what is not accounted for."""

from __future__ import annotations

from search.ranges import duration, precise
from search.report.facts import Facts
from search.report.figures import Data, Figure, Plot, css
from search.report.markup import Html, count, element, for_plot, join, percent, table
from search.report.section import Section
from search.stages import stage_names

TITLE = "Where the time went"
COLOURS = ("front", "chosen", "reference", "baseline", "muted", "heat-high", "heat-low", "faint")
_SQUARE = "■"
NAMES = {"materialize": "materialise", "optimize": "optimise"}
"""Parts whose keys in the log are spelt otherwise than this report."""

Phases = dict[str, dict[str, float]]


def time_section(facts: Facts) -> Section:
    """Time by part and phase.

    Raises:
        SearchError: the log is damaged.
    """
    phases = by_phase(facts)
    parts = [_totals(facts)]
    figures: tuple[Figure, ...] = ()
    if any(value > 0.0 for each in phases.values() for value in each.values()):
        figures = (_figure(phases),)
        parts.append(figures[0].html())
    parts.append(_account(facts))
    if len(facts.history.rungs) > 0:
        parts.append(_racing(facts))
    return Section(TITLE, join(parts), figures)


def by_phase(facts: Facts) -> Phases:
    """Phase (a stage of the search, then "selection" and "holdout") -> part -> seconds."""
    names = stage_names(facts.results.config)
    found: Phases = {}
    for (id, split), own in facts.results.candidate_seconds.items():
        if split == "search":
            stage = facts.candidates[id].stage if id in facts.candidates else 0
            phase = names[stage] if stage < len(names) else f"stage {stage}"
        else:
            phase = f"finals, {split}"
        into = found.setdefault(phase, {})
        for what, value in own.items():
            into[what] = into.get(what, 0.0) + value
    order = [*names, "finals, selection", "finals, holdout"]
    return {phase: found[phase] for phase in sorted(found, key=lambda each: order.index(each) if each in order else 99)}


def _figure(phases: Phases) -> Figure:
    parts = _parts(phases)
    rows = list(phases)
    traces: list[Data] = [
        {
            "type": "bar", "orientation": "h", "y": rows, "x": [phases[row].get(part, 0.0) for row in rows],
            "marker": {"color": css(COLOURS[index % len(COLOURS)])}, "hoverinfo": "text",
            "hovertext": [for_plot(f"{row}: {_name(part)} {precise(phases[row].get(part, 0.0))}") for row in rows],
        }
        for index, part in enumerate(parts)
    ]  # fmt: skip
    layout: Data = {
        "barmode": "stack", "bargap": 0.35, "xaxis": {"title": {"text": "seconds"}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "type": "category", "showgrid": False},
    }  # fmt: skip
    label = "Stacked bars of the time per phase; its numbers are in the table below it"
    legend = [(_SQUARE, f"--{COLOURS[index % len(COLOURS)]}", _name(part)) for index, part in enumerate(parts)]
    numbers = table(
        "Seconds by phase and part",
        ["phase", *(_name(part) for part in parts), "all"],
        [
            [row, *(precise(phases[row].get(part, 0.0)) for part in parts), precise(sum(phases[row].values()))]
            for row in rows
        ],
    )
    caption = (
        "One bar per phase: the stages of the search, then the finals. Materialise: writing a candidate's weights into "
        "the live model; evaluate: asking and judging it, all evaluators together, since the log has no time of each; "
        "optimise: proposing it, and telling what became of it; store: writing it down."
    )
    plot = Plot(label, traces, layout, height=110 + 44 * len(rows))
    return Figure("time", [plot], caption, numbers, legend)


def _parts(phases: Phases) -> list[str]:
    """All parts, the longest first."""
    whole: dict[str, float] = {}
    for each in phases.values():
        for part, value in each.items():
            whole[part] = whole.get(part, 0.0) + value
    return sorted(whole, key=lambda part: -whole[part])


def _name(part: str) -> str:
    return NAMES.get(part, part)


def _totals(facts: Facts) -> Html:
    seconds = facts.results.seconds
    whole = sum(seconds.values())
    evaluations = max(1, facts.results.evaluations)
    rows = [
        [_name(part), precise(value), percent(value / whole) if whole else "–", precise(value / evaluations)]
        for part, value in sorted(seconds.items(), key=lambda item: -item[1])
    ]
    rows.append(["all", precise(whole), percent(1.0) if whole else "–", precise(whole / evaluations)])
    label = f"Wall time of {count(facts.results.evaluations, 'evaluation')} on all splits"
    return table(label, ["part", "time", "share", "per evaluation"], rows)


def _account(facts: Facts) -> Html:
    """From the parts to the wall clock: one worker waits, several work side by side."""
    history, seconds = facts.history, facts.results.seconds
    wall = 3600.0 * history.hours
    worked = sum(seconds.values())
    text = f"The run was at work for {duration(wall)} by the clock"
    if len(history.starts) > 1:
        text += f", in {count(len(history.starts), 'start')}; the pauses between them do not count"
    if history.finals > 0.0:
        text += f"; {duration(3600.0 * history.finals)} of it went to the finals"
    text += ". "
    if facts.results.config.workers.kind == "inline":
        rest = wall - worked
        text += (
            f"{duration(rest)} ({percent(rest / wall)}) are in none of the parts: choosing the finalists, comparing "
            "them, and waiting. "
            if rest > 0.0
            else "The parts add up to no less than that. "
        )
    elif wall:
        text += (
            f"Workers worked side by side: the parts add up to {worked / wall:.1f} times as much. What is missing to "
            "the number of workers is waiting. "
        )
    text += "Loading the models, and whatever was done before the run's first event, is not in the log."
    return element("p", text, class_="note")


def _racing(facts: Facts) -> Html:
    rungs = facts.history.rungs
    rows = [
        [str(index + 1), str(each.items), str(each.reached), str(each.dropped)] for index, each in sorted(rungs.items())
    ]
    whole = sum(len(splits.get("search", ())) for splits in facts.results.started.items.values())
    saved = _saved(facts, whole)
    spent = facts.history.steps[-1].items if facts.history.steps else 0
    note = (
        f"Without stopping early, all {whole} items would have been scored for each: {saved} items more than the "
        f"{spent} that were."
    )
    return join(
        [
            table(
                "Rungs: who went on, and who was stopped", ["rung", "items so far", "reached it", "stopped there"], rows
            ),
            element("p", note, class_="note"),
        ]
    )


def _saved(facts: Facts, whole: int) -> int:
    """Items that stopped candidates were not asked."""
    before, saved = 0, 0
    for step in facts.history.steps:
        if step.state == "censored":
            saved += max(0, whole - (step.items - before))
        before = step.items
    return saved
