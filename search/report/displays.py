"""What ``run`` says while it goes on: a picture on a terminal, a line per candidate elsewhere, JSON for machines."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TextIO

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.text import Text

from search.course import HEARD, Course
from search.errors import SearchError
from search.events import (
    BudgetSpent,
    Chosen,
    Event,
    Failed,
    FinalistsNamed,
    Incident,
    Listener,
    Opened,
    Resumed,
    RunStarted,
    Scored,
    Told,
)
from search.first_config import in_place_of_first, name_of
from search.remaining import Remaining, remaining
from search.report.live import (
    balanced_lines,
    best_line,
    head,
    trend_line,
    under_way_lines,
)
from search.report.plain_data import finite
from search.report.terminal import forgiving, visible
from search.schema import Budget
from search.store import CONTROL, DATABASE, Store, is_run

Display = Literal["auto", "rich", "plain", "json", "none"]

ESTIMATE_EVERY = 60.0
"""Seconds between two lines of how long it may still take."""
LEAST_MEASURED = 3
"""Candidates that have to be scored before the first such line."""


def make_display(
    kind: Display, budget: Budget | int, stream: TextIO | None = None, name: str = "search"
) -> Listener | None:
    """The listener that shows a run: rich on a terminal, a plain line per candidate otherwise.

    Args:
        kind: what the user asked for.
        budget: of the search as it is now; a number is of candidates, the rest as the log says.
        stream: where to; standard output if None.
        name: of the run.
    """
    out = forgiving(stream)
    if kind == "none":
        return None
    if kind == "json":
        return JsonDisplay(out)
    console = Console(file=out)
    if kind == "auto":
        kind = "rich" if console.is_terminal and not console.is_dumb_terminal else "plain"
    return PlainDisplay(out, budget) if kind == "plain" else RichDisplay(console, budget, name)


class JsonDisplay:
    """One JSON object a line: every event as it is logged."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def on(self, event: Event) -> None:
        """Print the event."""
        print(json.dumps(finite({"event": event.kind, **event.payload()}), allow_nan=False), file=self._out, flush=True)


class _Following:
    """Where the run stands, as its events say.

    Args:
        budget: as it is now.

    Attributes:
        course: None before the first event of a run.
    """

    def __init__(self, budget: Budget | int) -> None:
        self.course: Course | None = None
        self._given = budget
        self._first = False

    @property
    def _budget(self) -> Budget | int:
        """Of the search whose events come; that of a hybrid's first one is known from its events."""
        return self.course.config.search.budget if self._first and self.course is not None else self._given

    @property
    def candidates(self) -> int:
        """That the search may have."""
        return self._budget if isinstance(self._budget, int) else self._budget.candidates

    def turn_to(self, folder: Path) -> None:
        """What comes next is of the run in that folder, which may have begun before."""
        self.course, self._first = None, in_place_of_first(folder)
        if not (folder / DATABASE).exists():
            return
        with contextlib.suppress(SearchError):  # the run itself will say what is wrong with its database
            store = Store.open(folder, read_only=True)
            try:
                started = store.started()
                course = Course(started, folder) if started is not None else None
                for entry in store.entries(*HEARD) if course is not None else ():
                    course.note(entry.event, entry.at)  # type: ignore[union-attr]
                self.course = course
            finally:
                store.close()

    def note(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.course = Course(event)
        elif self.course is not None:
            self.course.note(event, time.time())

    def estimate(self) -> Remaining | None:
        if self.course is None:
            return None
        return remaining(self.course, time.time(), None if isinstance(self._budget, int) else self._budget)


class PlainDisplay:
    """One line per candidate, and now and then how long it may still take: for logs, pipes, people without a terminal.

    Args:
        out: where to.
        budget: as it is now; a number is of candidates.
        clock: monotonic seconds.
    """

    def __init__(self, out: TextIO, budget: Budget | int, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._following = _Following(budget)
        self._clock = clock
        self._estimated: float | None = None
        self._after_first = False
        self._scored: dict[int, Scored] = {}

    def turn_to(self, folder: Path) -> None:
        """What comes next is of the run in that folder."""
        self._following.turn_to(folder)
        self._estimated = None
        if folder.name == CONTROL and is_run(folder.parent):
            self._say("now its control, a random search with the same budget")
        first = in_place_of_first(folder)
        if first:
            self._say("the first search of two")
        elif self._after_first:
            self._say("now the second search")
        self._after_first = first

    def on(self, event: Event) -> None:
        """Print what people want to know of it."""
        self._following.note(event)
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
            case Scored(split="search"):
                self._scored[event.candidate] = event
            case Scored():
                self._say(f"{event.split} candidate {event.candidate}: {_scores(event.values)}")
            case Failed(split="selection" | "holdout"):
                self._say(f"{event.split} candidate {event.candidate}: failed: {event.reason}")
            case Told():
                self._say(self._line(event))
                self._say_estimate()
            case Incident():
                self._say(f"candidate {event.candidate}: {event.what}: {event.detail}")
            case BudgetSpent():
                self._say(f"the search ends: {event.detail}")
            case FinalistsNamed():
                self._say(f"{len(event.finalists)} finalists and {len(event.baselines)} baselines go to selection")
                self._say_estimate(always=True)
            case Chosen():
                self._say(f"chosen: candidate {event.candidate} ({event.rule})")
            case Opened():
                self._say(f"holdout opened for {len(event.candidates)} candidates")
            case _:
                pass

    def _line(self, event: Told) -> str:
        course = self._following.course
        label = course.labels.get(event.candidate, "") if course is not None else ""
        scored = self._scored.pop(event.candidate, None)
        told = course.told if course is not None else event.candidate + 1
        head = f"[{told}/{self._following.candidates}] candidate {event.candidate}{label and f' {label}'}:"
        if event.outcome.state == "failed":
            return f"{head} failed: {event.outcome.reason}"
        if event.outcome.state == "censored":
            return f"{head} stopped early: {event.outcome.reason}"
        if event.outcome.state == "duplicate":
            return f"{head} same recipe as candidate {event.outcome.of}"
        values, seconds = (scored.values, scored.seconds) if scored is not None else ({}, {})
        trend = f" | {trend_text(course)}" if course is not None else ""
        return f"{head} {_scores(values)}{trend} | {sum(seconds.values()):.2f} s"

    def _say_estimate(self, *, always: bool = False) -> None:
        estimate = self._following.estimate()
        if estimate is None or estimate.measured < LEAST_MEASURED:
            return
        now = self._clock()
        if not always and self._estimated is not None and now - self._estimated < ESTIMATE_EVERY:
            return
        self._estimated = now
        self._say(f"time left: {estimate.seconds.duration()}")

    def _say(self, text: str) -> None:
        print(visible(text), file=self._out, flush=True)


class RichDisplay:
    """Where the run stands, redrawn in place, and a line for whatever goes wrong.

    Args:
        console: where to.
        budget: as it is now; a number is of candidates.
        name: of the run.
    """

    def __init__(self, console: Console, budget: Budget | int, name: str = "search") -> None:
        self._following = _Following(budget)
        self._name = name
        self._console = console
        # events come from the search's thread, and the clock redraws from another one
        self._lock = threading.Lock()
        self._live: Live | None = None

    def turn_to(self, folder: Path) -> None:
        """What comes next is of the run in that folder."""
        with self._lock:
            self._following.turn_to(folder)
            self._name = name_of(folder, first=in_place_of_first(folder))

    def on(self, event: Event) -> None:
        """Redraw."""
        with self._lock:
            self._following.note(event)
        if self._live is None:
            self._live = Live(self, console=self._console, refresh_per_second=2, transient=True)
            self._live.start()
        match event:
            case Told() if event.outcome.state == "failed":
                self._say(f"candidate {event.candidate} failed: {event.outcome.reason}")
            case Failed(split="selection" | "holdout"):
                self._say(f"candidate {event.candidate} failed on the {event.split} split: {event.reason}")
            case Incident():
                self._say(f"candidate {event.candidate}: {event.what}: {event.detail}")
            case BudgetSpent():
                self._say(f"the search ends: {event.detail}")
            case Chosen():
                self._say(f"chosen: candidate {event.candidate}")
            case _:
                pass

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self._lock:
            course = self._following.course
            if course is None:
                yield Text(visible(f"{self._name}: under way"))
                return
            now = time.time()
            parts: list[RenderableType] = [head(self._name, course, "running", self._following.estimate(), now)]
            if course.phase == "search":
                parts += [best_line(course), trend_line(course, ascii_only=options.ascii_only)]
            parts += [*balanced_lines(course), *under_way_lines(course, True, now, most=2)]
            # drawn while the course stands still
            drawn = console.render_lines(Group(*parts), options.update(height=None), pad=False, new_lines=True)
        for line in drawn:
            yield from line

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _say(self, text: str) -> None:
        self._console.print(visible(text), markup=False, highlight=False)


def trend_text(course: Course) -> str:
    """``front 22, hypervolume 0.7494``."""
    volume = course.volume
    return f"front {len(course.front)}" + ("" if volume is None else f", hypervolume {volume:.4f}")


def _scores(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
