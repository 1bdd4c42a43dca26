"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Nothing is ever loaded from a model hub; without this a missing folder is asked for over the network first.
os.environ["HF_HUB_OFFLINE"] = "1"
# Models of tests are tiny: a second thread only waits, all the more on a busy machine. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def nano_zoo() -> Path:
    """The folder of the family ``skills-nano``, seed 0, in the user's cache: built once a machine, then reused."""
    import zoo

    return zoo.build("skills-nano")


@pytest.fixture
def forked() -> Iterator[Callable[[Callable[[], object]], int]]:
    """Runs something in a child process, and returns its number; a child that is still there at the end is killed."""
    children = []

    def fork(body: Callable[[], object]) -> int:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                body()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(pid)
        return pid

    yield fork
    for pid in children:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
