"""What a search says while it runs, and the tables that end it. rich does the drawing."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal, TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from evaluators.contract import Split
from search.events import (
    Asked,
    BudgetSpent,
    Chosen,
    Event,
    FinalistsNamed,
    Incident,
    Listener,
    Opened,
    Resumed,
    RunStarted,
    Scored,
    Told,
)
from search.growing_front import GrowingFront
from search.objectives import Objectives
from search.report.claim import claim_sentences
from search.report.plain_data import finite
from search.report.terminal import cell, visible
from search.results import Results

Display = Literal["auto", "rich", "plain", "json", "none"]


def make_display(kind: Display, budget: int, stream: TextIO | None = None) -> Listener | None:
    """The listener that shows a run: rich on a terminal, a plain line per candidate otherwise.

    Args:
        kind: what the user asked for.
        budget: candidates in all.
        stream: where to; standard output if None.
    """
    out = stream or sys.stdout
    if kind == "auto":
        kind = "rich" if out.isatty() else "plain"
    if kind == "none":
        return None
    if kind == "json":
        return JsonDisplay(out)
    if kind == "plain":
        return PlainDisplay(out, budget)
    return RichDisplay(Console(file=out), budget)


class JsonDisplay:
    """One JSON object a line: every event as it is logged."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def on(self, event: Event) -> None:
        """Print the event."""
        print(json.dumps(finite({"event": event.kind, **event.payload()}), allow_nan=False), file=self._out, flush=True)


class _Trend:
    """The front so far, and how many candidates were told."""

    def __init__(self) -> None:
        self._front: GrowingFront | None = None
        self.told = 0

    def on(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._front = GrowingFront(Objectives.from_data(event.objectives).reference)
        elif isinstance(event, Told):
            self.told += 1
            if self._front is not None:
                self._front.add(event.outcome)

    def __str__(self) -> str:
        size, volume = (len(self._front), self._front.hypervolume) if self._front is not None else (0, 0.0)
        return f"front {size}, hypervolume {volume:.4f}"


class PlainDisplay:
    """One line per candidate: for logs, pipes and people without a terminal."""

    def __init__(self, out: TextIO, budget: int) -> None:
        self._out = out
        self._budget = budget
        self._trend = _Trend()
        self._labels: dict[int, str] = {}
        self._scored: dict[int, Scored] = {}

    def on(self, event: Event) -> None:
        """Print what people want to know of it."""
        self._trend.on(event)
        match event:
            case RunStarted():
                names = ", ".join(each["name"] for each in event.objectives)
                self._say(f"searching for {names}; {event.threads} threads")
            case Resumed():
                self._say(f"resumed; {event.budget} candidates in all")
                if event.different:
                    self._say(
                        f"note: this version would have proposed {len(event.different)} logged candidates differently; "
                        "the logged ones count"
                    )
            case Asked():
                self._labels[event.candidate] = event.label
            case Scored(split="search"):
                self._scored[event.candidate] = event
            case Scored():
                scores = _scores(event.values)
                self._say(f"{event.split} candidate {event.candidate}: {scores}")
            case Told():
                self._say(self._line(event))
            case Incident():
                self._say(f"candidate {event.candidate}: {event.what}: {event.detail}")
            case BudgetSpent():
                self._say(f"the search ends: {event.detail}")
            case FinalistsNamed():
                self._say(f"{len(event.finalists)} finalists and {len(event.baselines)} baselines go to selection")
            case Chosen():
                self._say(f"chosen: candidate {event.candidate} ({event.rule})")
            case Opened():
                self._say(f"holdout opened for {len(event.candidates)} candidates")
            case _:
                pass

    def _line(self, event: Told) -> str:
        label = self._labels.pop(event.candidate, "")
        scored = self._scored.pop(event.candidate, None)
        head = f"[{self._trend.told}/{self._budget}] candidate {event.candidate}{label and f' {label}'}:"
        if event.outcome.state == "failed":
            return f"{head} failed: {event.outcome.reason}"
        if event.outcome.state == "censored":
            return f"{head} stopped early: {event.outcome.reason}"
        if event.outcome.state == "duplicate":
            return f"{head} same recipe as candidate {event.outcome.of}"
        values, seconds = (scored.values, scored.seconds) if scored is not None else ({}, {})
        return f"{head} {_scores(values)} | {self._trend} | {sum(seconds.values()):.2f} s"

    def _say(self, text: str) -> None:
        print(visible(text), file=self._out, flush=True)


class RichDisplay:
    """A progress bar with the front's size and hypervolume, and an estimate of what remains."""

    def __init__(self, console: Console, budget: int) -> None:
        self._trend = _Trend()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._budget = budget
        self._task: TaskID | None = None
        self._done = 0

    def on(self, event: Event) -> None:
        """Move the bar."""
        self._trend.on(event)
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("search", total=self._budget, note="")
        match event:
            case Told():
                if event.outcome.state == "failed":
                    self._progress.console.print(
                        visible(f"candidate {event.candidate} failed: {event.outcome.reason}"),
                        markup=False, highlight=False,
                    )  # fmt: skip
                self._progress.update(self._task, completed=self._trend.told, note=str(self._trend))
            case Incident():
                self._progress.console.print(
                    visible(f"candidate {event.candidate}: {event.what}: {event.detail}"), markup=False, highlight=False
                )
            case BudgetSpent():
                self._progress.console.print(f"the search ends: {event.detail}", markup=False, highlight=False)
            case FinalistsNamed():
                total = len(set(event.finalists) | set(event.baselines))
                self._progress.update(self._task, description="selection", completed=0, total=total, note="")
                self._done = 0
            case Opened():
                self._progress.update(
                    self._task, description="holdout", completed=0, total=len(event.candidates), note=""
                )
                self._done = 0
            case Scored(split="selection" | "holdout"):
                self._done += 1
                self._progress.update(self._task, completed=self._done)
            case _:
                pass

    def close(self) -> None:
        """Leave the terminal tidy."""
        self._progress.stop()


def catch_up(display: Listener | None, results: Results) -> None:
    """Tell a fresh display of a resumed run what the trend was: the first event, and every outcome."""
    if isinstance(display, PlainDisplay | RichDisplay):
        from search.store import Store

        store = Store.open(results.folder, read_only=True)
        try:
            for event in store.events(RunStarted, Told):
                display._trend.on(event)
        finally:
            store.close()


def _scores(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def print_results(results: Results, console: Console) -> None:
    """The front as a table, the chosen candidate and the baselines with their holdout scores."""
    counts = results.status()["candidates"]
    failed = f", {counts['failed']} failed" if counts["failed"] else ""

    def say(text: str) -> None:
        console.print(visible(text), markup=False, highlight=False)

    say(
        f"\n{results.name}: {results.state}; {counts['done']} of {results.config.search.budget.candidates} candidates"
        f"{failed}; hypervolume {results.hypervolume:.4f} (search)"
    )
    what = "re-scored on the selection split" if results.split == "selection" else "on the search split"
    say(f"\nFront, {what} (in brackets: kept of the expert's gain over the base)")
    console.print(_front_table(results))
    if results.chosen is not None and results.scores["holdout"]:
        seen = items_shown(results, "holdout")
        say(f"Holdout, items that neither search nor choice has seen ({seen}; 95 % intervals)")
        console.print(_holdout_table(results))
        for sentence in claim_sentences(results):
            say(sentence)


def _front_table(results: Results) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("candidate", justify="right", no_wrap=True)
    for name in results.objectives.names:
        table.add_column(cell(name), justify="right", no_wrap=True)
    table.add_column("")
    for id in results.front:
        note = [results.candidate(id).label] if results.candidate(id).label else []
        note += ["chosen"] if id == results.chosen else []
        cells = _cells(results, results.split, id, interval=False)
        table.add_row(str(id), *cells, cell(", ".join(note)), style="bold" if id == results.chosen else None)
    return table


def _holdout_table(results: Results) -> Table:
    names: dict[int, list[str]] = {}
    for label, id in [("chosen", results.chosen), *((each.label, each.candidate) for each in results.baselines)]:
        if id is not None and id in results.scores["holdout"]:
            names.setdefault(id, []).append(label)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("merge (candidate)", min_width=12)
    for name in results.objectives.names:
        # two objectives fit side by side on 80 columns; the scores of more are broken into lines
        table.add_column(cell(name), justify="right", no_wrap=len(results.objectives.names) <= 2)
    for id, labels in names.items():
        cells = _cells(results, "holdout", id, interval=True)
        table.add_row(cell(f"{' = '.join(labels)} ({id})"), *cells, style="bold" if id == results.chosen else None)
    return table


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


__all__ = [
    "Display",
    "JsonDisplay",
    "PlainDisplay",
    "RichDisplay",
    "catch_up",
    "items_shown",
    "make_display",
    "print_json",
    "print_results",
    "score_text",
]
