"""Where a Ray that was started here keeps its sockets and logs; whatever dead drivers left there is cleared away."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

# A socket's path has 107 bytes at most, and Ray appends about 70 to the folder that it is given.
_LONGEST = 36

# A folder without a lock, so young, is one that another driver is about to lock.
_YOUNG = 60.0

_LOCK = "driver.lock"


class RayHome:
    """A temporary folder, of this process as long as it lives: not even kill -9 leaves it behind for long.

    Attributes:
        path: the folder, only readable by this user.
    """

    def __init__(self, base: Path | None = None) -> None:
        """Make a folder, and remove those of drivers that are dead.

        Args:
            base: where folders are made; by default one of the user's own in the system's temporary folder.
        """
        base = base or _base()
        _clear(base)
        self.path = Path(tempfile.mkdtemp(prefix="", dir=base))
        self._lock: int | None = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Remove the folder. May be called twice."""
        if self._lock is None:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = None


def _base() -> Path:
    """A folder of this user alone, with a short path: others may write into the system's temporary folder."""
    temporary = tempfile.gettempdir()
    name = f"pmray-{os.getuid()}"
    base = Path(temporary if len(temporary) + len(name) + 10 <= _LONGEST else Path(os.sep, "tmp")) / name
    with contextlib.suppress(FileExistsError):
        base.mkdir(mode=0o700)
    found = base.lstat()
    mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return base if mine else Path(tempfile.mkdtemp(prefix="pmray-", dir=base.parent))


def _clear(base: Path) -> None:
    """Remove every folder whose driver is dead: nobody holds its lock."""
    for folder in base.iterdir():
        with contextlib.suppress(OSError):
            if _is_left(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return time.time() - folder.stat().st_mtime > _YOUNG
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True
