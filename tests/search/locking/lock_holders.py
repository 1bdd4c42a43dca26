"""Holders of a run, made up or forked, and a clock that only sleeping moves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from search.holders import Holder, this_process
from search.lock import RunLock

SHORT = 0.2


class FakeTime:
    """A clock that moves by sleeping only; what happens elsewhere meanwhile is done at its hour."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.plan: list[tuple[float, Callable[[], object]]] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for hour, deed in list(self.plan):
            if self.now - 1000.0 >= hour:
                self.plan.remove((hour, deed))
                deed()

    def time(self) -> float:
        raise AssertionError("taking over must not read a clock that can be set")


def foreign(beat: int = 0, **changes: Any) -> Holder:
    """A holder on another machine, whose number some process here has as well."""
    record = this_process("f" * 32, flock=False)
    since = "2026-01-01 00:00:00 +0000"
    return replace(record, host="node7", boot="another", since=since, beat=beat, **changes)


def write(folder: Path, record: Holder, number: int = 1) -> Path:
    path = folder / f"run.lock.{number}"
    path.write_bytes(record.to_bytes())
    return path


def files(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def hold_forever(folder: Path, telling: int, **options: Any) -> None:
    with RunLock(folder, **options):
        os.write(telling, b"held")
        time.sleep(600)
