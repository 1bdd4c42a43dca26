"""What goes wrong inside a run, on purpose. Every function is called in the run's own process before it begins.

A target is named ``module:name`` or ``module:Class.method``, as it is looked up when it is called; a target that does
not exist is an error of the harness, so that no fault is silently left out.
"""

from __future__ import annotations

import functools
import importlib
import os
import random
import resource
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

_AT_THE_END: list[Callable[[], None]] = []


def at_the_end() -> None:
    """Called when the command has ended by itself."""
    for each in _AT_THE_END:
        each()


def die() -> NoReturn:
    """``kill -9`` of this very process."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("survived SIGKILL")


def name_modules(to: int) -> None:
    """At the end, write the names of all loaded modules into a pipe."""

    def write() -> None:
        names = [name for name in sys.modules if "__main__" not in name and "plugin" not in name]
        os.write(to, " ".join(names).encode())

    _AT_THE_END.append(write)


def kill_at_call(target: str, number: int = 1, after: bool = False) -> None:
    """Die when a function is called for the ``number``-th time: before it does anything, or when it has returned."""
    calls = 0

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*positional: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == number and not after:
                die()
            result = function(*positional, **named)
            if calls == number:
                die()
            return result

        return wrapped

    _replace(target, wrap)


def kill_at_statement(number: int) -> None:
    """Die inside a transaction, before its ``number``-th statement since the start of the process, COMMITs counted."""
    seen = 0

    def watch(connection: sqlite3.Connection) -> None:
        def on(statement: str) -> None:
            nonlocal seen
            if connection.in_transaction:
                seen += 1
                if seen == number:
                    die()

        connection.set_trace_callback(on)

    _on_connect(watch)


def kill_during_commit(number: int, seconds: float) -> None:
    """Die ``seconds`` after the ``number``-th COMMIT began: while it writes, while it waits for the disk, or after."""
    seen = 0

    def watch(connection: sqlite3.Connection) -> None:
        def on(statement: str) -> None:
            nonlocal seen
            if statement.strip().upper().startswith("COMMIT"):
                seen += 1
                if seen == number:
                    threading.Timer(seconds, die).start()

        connection.set_trace_callback(on)

    _on_connect(watch)


def limit_pages(pages: int) -> None:
    """A database that is full at so many pages: SQLite's own "database or disk is full"."""
    _on_connect(lambda connection: connection.execute(f"PRAGMA max_page_count={pages}"))


def limit_file_size(size: int) -> None:
    """No file may grow beyond ``size`` bytes: every longer write fails in the kernel, whoever writes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def jump_clock(seed: int, days: float) -> None:
    """The time of day jumps to and fro by up to so many days, at every look at it. Monotonic clocks do not."""
    chance, real, real_ns = random.Random(seed), time.time, time.time_ns
    time.time = lambda: real() + chance.uniform(-days, days) * 86400.0
    time.time_ns = lambda: real_ns() + int(chance.uniform(-days, days) * 86400.0 * 1e9)


def scatter_results(slots: int) -> None:
    """So many tasks under way at a time, and their results in an order that nobody can foresee.

    As with that many workers, without their processes: each task is really scored, by the one live model. What is
    under way when the process dies is lost, as it would be with them.
    """
    from search.workers import inline
    from search.workers.contract import Done, Task

    chance = random.SystemRandom()

    class Scattered(inline.InlinePool):
        def __init__(self, *positional: Any, **named: Any) -> None:
            super().__init__(*positional, **named)
            self.slots = slots
            self._waiting: list[Task] = []

        def submit(self, task: Task) -> None:
            if len(self._waiting) == slots:
                raise RuntimeError(f"more than {slots} tasks under way")
            self._waiting.append(task)

        def wait(self, timeout: float | None = None) -> list[Done]:
            done = []
            for _ in range(chance.randint(1, 2)):
                if self._waiting:
                    super().submit(self._waiting.pop(chance.randrange(len(self._waiting))))
                    done += super().wait()
            return done

    inline.InlinePool = Scattered  # type: ignore[misc]


def _replace(target: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    setattr(owner, name, wrap(getattr(owner, name)))


def _on_connect(act: Callable[[sqlite3.Connection], object]) -> None:
    connect = sqlite3.connect

    @functools.wraps(connect)
    def connected(*positional: Any, **named: Any) -> sqlite3.Connection:
        connection = connect(*positional, **named)
        act(connection)
        return connection

    sqlite3.connect = connected  # type: ignore[assignment]
