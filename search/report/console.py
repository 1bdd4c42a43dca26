"""The tables that end a search, and that ``status`` prints. rich does the drawing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from evaluators.contract import Split
from search.errors import SearchError
from search.minibatch import in_words
from search.remaining import remaining
from search.report.claim import claim_sentences
from search.report.hop_texts import hops_in, path_text
from search.report.live import constraint_lines, counted, estimate_lines, mishap_lines, phase_text, under_way_lines
from search.report.plain_data import finite
from search.report.score_tables import Row, score_tables
from search.report.terminal import visible
from search.results import Results
from search.virtual import CHOICE

MOST_ROWS = 40
"""Candidates of a front that a terminal is shown; all of them are in ``--json`` and in the report."""


def print_results(results: Results, console: Console) -> None:
    """Where a run stands, its front as a table, the chosen candidate and the baselines with their holdout scores."""

    def say(text: str = "") -> None:
        console.print(visible(text), markup=False, highlight=False)

    say()
    for line in _state_lines(results):
        say(line)
    now = time.time()
    course, running = results.course, results.state == "running"
    for part in [
        *under_way_lines(course, running, now), *constraint_lines(course), *mishap_lines(course, now),
    ]:  # fmt: skip
        console.print(part)
    _print_front(results, console)
    if results.chosen is not None and results.scores["holdout"]:
        seen = items_shown(results, "holdout")
        say(f"Holdout, items that neither search nor choice has seen ({seen}; 95 % intervals)")
        for table in score_tables("merge (candidate)", results.objectives.names, _holdout_rows(results), console.width):
            console.print(table)
        for sentence in claim_sentences(results):
            say(sentence)


def _state_lines(results: Results) -> list[str]:
    """``quickstart: finished`` and what came of the candidates."""
    course = results.course
    states = [each.state for each in results.candidates]
    doing = "" if results.state == "finished" else f", {phase_text(course)}"
    counts = counted(
        len(states) - states.count("running"), states.count("complete"), states.count("censored"),
        states.count("failed"), states.count("duplicate"), course.states["infeasible"],
    )  # fmt: skip
    budget = results.config.search.budget.candidates
    left = "" if len(states) >= budget or results.state == "finished" else f" of at most {budget}"
    said = [f"{results.name}: {results.state}{doing}", counts.replace(" candidate", f"{left} candidate", 1)]
    first = results.config.first
    if first is not None:
        run = results.first_run
        where = f"a run of its own in {run}" if run is not None else "whose run is not here any more"
        said.append(f"expert {first.name}: {CHOICE}, {where}")
    volume = results.known_hypervolume
    if volume is not None and results.front:
        said.append(f"hypervolume {volume:.4f} on the search split")
    now = time.time() if results.state == "running" else None
    return [*said, *estimate_lines(course, results.state, remaining(course, now))]


def _print_front(results: Results, console: Console) -> None:
    def say(text: str) -> None:
        console.print(visible(text), markup=False, highlight=False)

    if not results.front:
        why = "none of the scored candidates keeps every constraint" if results.course.states["complete"] else (
            "no candidate is scored yet"
        )  # fmt: skip
        say(f"\nThere is no front yet: {why}")
        return
    what = "re-scored on the selection split" if results.split == "selection" else "on the search split"
    say(f"\nFront, {what} (in brackets: kept of the expert's gain over the base)")
    if results.split == "search" and (said := in_words(results.config.search.fidelity)):
        say(said.strip())
    shown = _some(results)
    rows = []
    for id in shown:
        note = [results.candidate(id).label] if results.candidate(id).label else []
        note += ["chosen"] if id == results.chosen else []
        cells = _cells(results, results.split, id, interval=False)
        rows.append(Row(f"{id:>4} {', '.join(note)}".rstrip(), cells, bold=id == results.chosen))
    for table in score_tables("candidate", results.objectives.names, rows, console.width):
        console.print(table)
    if len(shown) < len(results.front):
        say(
            f"{len(shown)} of the {len(results.front)} candidates on the front, evenly over the first objective; all "
            "of them are in the report, and in `paretomerge status RUN --json`"
        )
    _print_path(results, say)


def _print_path(results: Results, say: Callable[[str], None]) -> None:
    """Of a search through paths, that of the chosen candidate, or of the knee before there is one."""
    if results.config.space.data_flow is None:
        return
    id = results.knee()
    try:
        path = hops_in(results.recipe(id))
    except SearchError:  # another version decodes it otherwise: export and report say so
        return
    if path is not None:
        who = "chosen" if id == results.chosen else "the knee so far"
        say(f"Path of candidate {id}, {who}: {path_text(path)}")


def _some(results: Results) -> list[int]:
    """The front from the best of the first objective to the worst; evenly thinned where it is long."""
    first = results.objectives.targets[0]
    scores = results.scores[results.split]
    order = sorted(results.front, key=lambda id: (-first.utility(scores[id][first.name][0]), id))
    if len(order) <= MOST_ROWS:
        return order
    kept = {order[round(place * (len(order) - 1) / (MOST_ROWS - 1))] for place in range(MOST_ROWS)}
    return [id for id in order if id in kept or id == results.chosen]


def _holdout_rows(results: Results) -> list[Row]:
    names: dict[int, list[str]] = {}
    for label, id in [("chosen", results.chosen), *((each.label, each.candidate) for each in results.baselines)]:
        if id is not None and id in results.scores["holdout"]:
            names.setdefault(id, []).append(label)
    return [
        Row(f"{' = '.join(labels)} ({id})", _cells(results, "holdout", id, interval=True), bold=id == results.chosen)
        for id, labels in names.items()
    ]


def _cells(results: Results, split: Split, id: int, *, interval: bool) -> list[str]:
    scores = results.scores[split]
    cells = []
    for name, kept in zip(results.objectives.names, results.judge.retention(scores, id), strict=True):
        shown = score_text(results, id, split, name) if interval else f"{scores[id][name][0]:.3f}"
        cells.append(f"{shown} ({kept:.0%})")
    return cells


def items_shown(results: Results, split: Split) -> str:
    """``string 256, language 256 items``."""
    counts = {name: len(splits[split]) for name, splits in results.started.items.items()}
    return ", ".join(f"{name} {n}" for name, n in counts.items()) + " items"


def score_text(results: Results, id: int, split: Split, name: str) -> str:
    """``0.712 [0.681, 0.741]``."""
    found = results.interval(id, split, name)
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def print_json(data: Any) -> None:
    """Facts for machines: one JSON document on standard output; null where a number is not finite."""
    print(json.dumps(finite(data), indent=2, allow_nan=False))
