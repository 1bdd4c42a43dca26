"""How far a diagnosis is: a bar on a terminal, a line now and then elsewhere; on standard error in both cases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console

from search.report.terminal import visible

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

WEIGHTS = "weights"
"""The step that looks at the weights; all others score merges."""

EVERY = 30.0
"""Seconds between two lines where there is no terminal."""


class Bar(Protocol):
    """Is told how far things are."""

    def at(self, what: str, done: int, total: int, detail: str) -> None:
        """So many of so many are done."""
        ...

    def say(self, text: str) -> None:
        """A line."""
        ...


@contextmanager
def bar(console: Console) -> Iterator[Bar]:
    """What shows progress, as long as it lasts."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Drawn(progress)


class _Drawn:
    """A bar for the weights, then one for the merges."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None
        self._step = (False, 0)

    def at(self, what: str, done: int, total: int, detail: str) -> None:
        if self._step != (what == WEIGHTS, total):
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task, self._step = self._progress.add_task("", total=total), (what == WEIGHTS, total)
        if self._task is not None:
            self._progress.update(self._task, completed=done, description=visible(what).replace("[", r"\["))

    def say(self, text: str) -> None:
        self._progress.console.print(visible(text), markup=False, highlight=False)


class _Lines:
    """A line every half minute."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._said = clock()

    def at(self, what: str, done: int, total: int, detail: str) -> None:
        if done < total and self._clock() - self._said >= EVERY:
            self._said = self._clock()
            self.say(f"{what}: {done} of {total}")

    def say(self, text: str) -> None:
        self._console.print(visible(text), markup=False, highlight=False)
