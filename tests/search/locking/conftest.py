"""Folders on a network file system, a clock for the lease, and child processes that end with their test."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside the tests: importlib mode adds no folder

from lock_holders import FakeTime

from search import lock
from search.filesystems import FileSystem


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder seems to lie on a network file system."""
    monkeypatch.setattr(lock, "file_system_of", lambda path: FileSystem("nfs4", path))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(lock, "time", fake)
    return fake


@pytest.fixture
def forked() -> Iterator[Callable[[Callable[[], object]], int]]:
    """Runs something in a child process; a child that is still there at the end is killed."""
    children = []

    def fork(body: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                body()
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
        return pid

    yield fork
    for pid in children:
        try:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
