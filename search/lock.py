"""One writer per run directory: a lock that names its holder and dies with it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType

from search.errors import SearchError

LOCK_FILE = "run.lock"


class RunLock:
    """An advisory lock on a run directory, held while a process writes to it.

    The kernel drops it when the holder ends, however it ends; the file's text only names the holder for people.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._handle: int | None = None

    def __enter__(self) -> RunLock:
        """Take the lock.

        Raises:
            SearchError: another process holds it; the message names host, pid and start.
        """
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _flock_within(handle, seconds=1.0):
            os.close(handle)
            raise SearchError(
                f"{self._path.parent}: another process is writing to this run ({holder(self._path.parent)}). Wait for "
                "it, stop it with Ctrl-C, or give this search another --name."
            )
        who = {
            "host": socket.gethostname(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }  # fmt: skip
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(who).encode(), 0)
        self._handle = handle
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _flock_within(handle: int, seconds: float) -> bool:
    """Take the exclusive lock; wait a moment, since `status` holds a shared one while it looks."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        else:
            return True


def is_held(folder: Path) -> bool:
    """Whether some process is writing to the run now."""
    try:
        handle = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def holder(folder: Path) -> str:
    """Host, pid and start of the process that took the lock last."""
    try:
        who = json.loads((folder / LOCK_FILE).read_text())
        return f"host {who['host']}, pid {who['pid']}, since {who['started']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its holder is unknown"
