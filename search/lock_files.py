"""The files behind a run's lock: ``run.lock.N``, of which the one with the highest number counts.

Whoever takes the lock links the next number, complete and in one step: link(2) fails if the name is there, on a network
file system as well, so of any number of processes one succeeds. Nobody ever writes into a file of somebody else's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from search.holders import RECORD_BYTES, Holder, this_process

LOCK_FILE = "run.lock"
_DRAFT = f"{LOCK_FILE}.new-"
_NUMBERED = re.compile(rf"{re.escape(LOCK_FILE)}\.([1-9][0-9]{{0,17}})")
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)

State = Literal["free", "held", "unclear"]


@dataclass(frozen=True)
class Found:
    """The lock file that counts now.

    Attributes:
        path: where it lies.
        number: 0 for the unnumbered file of earlier versions.
        content: its first bytes.
    """

    path: Path
    number: int
    content: bytes

    @property
    def holder(self) -> Holder | None:
        """Who wrote it; None if that cannot be read from it."""
        return Holder.from_bytes(self.content)

    def state(self, *, local: bool) -> State:
        """Whether its holder lives, as far as one can ask without waiting.

        Args:
            local: the file system is this machine's alone, so that the kernel knows of every lock.
        """
        holder = self.holder
        if holder is not None and holder.released:
            return "free"
        process = holder.process() if holder is not None else "out of sight"
        if process == "ended":
            return "free"
        # a record that names no lock of the kernel's was written through a network, even if the folder is local here
        blocked = _is_locked(self.path) if local and (holder is None or holder.flock) else None
        if blocked is not None:
            return "held" if blocked else "free"
        return "held" if process == "running" else "unclear"


@dataclass
class LockFile:
    """A lock file of one's own, open as long as one holds it.

    Attributes:
        path: its name; another file may have taken it since.
        number: in it.
        handle: of the file itself, whatever its name is now.
        record: as last written.
    """

    path: Path
    number: int
    handle: int
    record: Holder

    def write(self, record: Holder, *, sync: bool) -> None:
        """Rewrite the record in place.

        Args:
            record: what to write.
            sync: wait until the server, or the disk, has it.
        """
        os.pwrite(self.handle, record.to_bytes(), 0)
        if sync:
            os.fsync(self.handle)
        self.record = record

    def close(self) -> None:
        """Close it: the kernel's lock goes with it."""
        os.close(self.handle)


def numbers(folder: Path) -> list[int]:
    """The numbers of all lock files.

    Raises:
        OSError: the folder cannot be listed.
    """
    found = (_NUMBERED.fullmatch(name) for name in _names(folder))
    return sorted(int(each[1]) for each in found if each)


def latest(folder: Path) -> Found | None:
    """The lock file that counts now; None if there is none.

    Raises:
        OSError: the folder or the file cannot be read.
    """
    while True:
        number = max(numbers(folder), default=0)
        path = folder / (f"{LOCK_FILE}.{number}" if number else LOCK_FILE)
        try:
            return Found(path, number, read(path))
        except FileNotFoundError:
            if not number:
                return None
            time.sleep(0.01)  # swept away by its successor just now; a network's list of names may be older still


def read(path: Path) -> bytes:
    """The first bytes of a lock file. A link or a pipe of that name neither leads elsewhere nor stops the reader.

    Raises:
        OSError: it cannot be read.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise IsADirectoryError(errno.EISDIR, "not a file", str(path))
        return os.read(handle, RECORD_BYTES + 1)
    finally:
        os.close(handle)


def create(folder: Path, number: int, token: str, *, local: bool, alone: bool = False) -> LockFile | None:
    """Make the lock file of a number, and hold it.

    Args:
        folder: the run directory.
        number: one above the latest.
        token: the record's.
        local: take the kernel's lock as well.
        alone: give way to any other lock file, not to higher numbers only.

    Returns:
        None if somebody else was first.

    Raises:
        OSError: the folder cannot be written, or is gone.
    """
    made = _link(folder, number, token, local)
    if made is None:
        return None
    # a process that was slow may link a number that was given away and swept long ago
    if any(each > number or (alone and each != number) for each in numbers(folder)):
        made.path.unlink(missing_ok=True)
        made.close()
        return None
    _sweep(folder, number)
    return made


def _link(folder: Path, number: int, token: str, local: bool) -> LockFile | None:
    """A new lock file, seen by nobody before it is complete; None if the number is taken."""
    path, draft = folder / f"{LOCK_FILE}.{number}", folder / f"{_DRAFT}{token}"
    made = _written(draft, number, token, local)
    won = False
    try:
        os.link(draft, path)
        won = True
    except FileExistsError:
        won = os.fstat(made.handle).st_nlink > 1  # it was made, and a server's answer was lost
    except FileNotFoundError:
        if not folder.is_dir():
            raise
        # else the draft was swept away by a process that has won meanwhile
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return _written_in_place(path, number, token, local)
    finally:
        draft.unlink(missing_ok=True)
        if not won:
            made.close()
    made.path = path
    return made if won else None


def _written_in_place(path: Path, number: int, token: str, local: bool) -> LockFile | None:
    """As :func:`_link` where there are no hard links: for a moment the file is there and empty."""
    try:
        return _written(path, number, token, local)
    except FileExistsError:
        return None


def _written(path: Path, number: int, token: str, local: bool) -> LockFile:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        made = LockFile(path, number, handle, this_process(token, flock=local and _lock(handle)))
        made.write(made.record, sync=True)
    except BaseException:
        os.close(handle)
        with contextlib.suppress(OSError):
            path.unlink()
        raise
    return made


def _sweep(folder: Path, number: int) -> None:
    """Remove what lower numbers, older versions and killed processes have left."""
    for name in _names(folder):
        numbered = _NUMBERED.fullmatch(name)
        if name == LOCK_FILE or name.startswith(_DRAFT) or (numbered and int(numbered[1]) < number):
            with contextlib.suppress(OSError):
                (folder / name).unlink()


def _names(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


def _lock(handle: int, seconds: float = 1.0) -> bool:
    """Take the kernel's lock, waiting a moment for a reader that looks; False where there is none to take."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        except OSError:
            return False
        else:
            return True


def _is_locked(path: Path) -> bool | None:
    """Whether a process holds the kernel's lock; None where that cannot be told. Disturbs nobody else who looks."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False
