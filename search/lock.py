"""One writer per run directory: a lock that names its holder, dies with it, and is a lease where nobody can be asked.

Whether the last holder still lives is asked of its process, where that can be seen from here, and of the kernel's lock
on its file, where the file system is local and both sides use it. Elsewhere its beat is watched for a whole lease, by
the watcher's own monotonic clock: the clocks of two machines are not compared. A holder that was merely cut off or
asleep may come back later. It cannot overwrite its successor's record, since each writes in a file of its own
(search/lock_files.py), and the store's fence refuses its transactions.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from search.errors import Interrupted, SearchError
from search.filesystems import file_system_of
from search.lock_files import Found, LockFile, create, latest, numbers, read

LEASE = 60.0
"""Seconds without a beat after which a holder that cannot be asked counts as gone; it beats four times as often."""


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class RunLock:
    """The right to write to a run directory, held by one process at a time."""

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None] = _to_stderr,
        should_stop: Callable[[], bool] = lambda: False,
        *,
        _lease: float = LEASE,
    ) -> None:
        """Args:
        folder: the run directory; exists.
        say: told one line when a holder that cannot be asked has to be waited for.
        should_stop: asked about once a second while waiting.
        _lease: seconds; for tests, and then the same for all who take one lock.
        """
        self._folder = folder
        self._place = folder.absolute()  # the renewal goes on where another thread changes the working directory
        self._say = say
        self._should_stop = should_stop
        self._lease = _lease
        self._local = False
        self._file: LockFile | None = None
        self._lost = False
        self._was_let_go = False
        self._done = threading.Event()
        self._renewal: threading.Thread | None = None

    @property
    def lost(self) -> bool:
        """Whether another process has taken the run over, or its directory is gone; noticed within a quarter lease."""
        return self._lost

    @property
    def was_let_go(self) -> bool:
        """Whether the last holder let go by itself; False after a kill, and where there was none."""
        return self._was_let_go

    def refuse_if_lost(self) -> None:
        """Stop a process that should no longer write.

        Raises:
            SearchError: the lock is :attr:`lost`.
        """
        if self._lost:
            raise SearchError(
                f"{self._folder}: this process no longer holds the run (now: {holder(self._folder)}): it slept or was "
                "cut off for too long, or the directory was removed or replaced. It has stopped writing. What it had "
                "stored is kept; the same command resumes where the directory is."
            )

    def __enter__(self) -> RunLock:
        """Take the lock; wait, where its last holder cannot be asked, until its lease has run out.

        Raises:
            SearchError: another process holds it (the message names host, pid and start), or the directory cannot be
                written.
            Interrupted: ``should_stop`` said so while it waited.
        """
        token = secrets.token_hex(16)
        with _reported(self._folder):
            self._local = file_system_of(self._folder).local
            while self._file is None:
                number = self._wait_until_free() + 1
                self._file = create(self._place, number, token, local=self._local)
        self._lost = False
        self._done.clear()
        self._renewal = threading.Thread(target=self._renew, args=(self._file,), name="run lock", daemon=True)
        self._renewal.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if self._file.record.pid == os.getpid():  # a forked child that unwinds lets nothing go
            self._done.set()
            if self._renewal is not None:
                self._renewal.join(timeout=self._lease / 4)
            with contextlib.suppress(OSError):
                self._file.write(replace(self._file.record, released=True), sync=not self._local)
        self._file.close()
        self._file = None

    def _wait_until_free(self) -> int:
        """The number of the latest lock file, 0 for none, once its holder is gone.

        Raises:
            SearchError, Interrupted, OSError: as for :meth:`__enter__`.
        """
        watched: Found | None = None
        until = 0.0
        while True:
            found = latest(self._folder)
            state = "free" if found is None else found.state(local=self._local)
            if found is None or state == "free":
                self._was_let_go = found is not None and found.holder is not None and found.holder.released
                return 0 if found is None else found.number
            if state == "held" or _has_beaten(watched, found):
                raise SearchError(
                    f"{self._folder}: another process is writing to this run ({_name(found)}). Wait for it, stop it "
                    "with Ctrl-C, or give this search another --name."
                )
            if watched is None or not _is_same_taking(watched, found):
                watched, until = found, time.monotonic() + self._lease
                self._say(
                    f"{self._folder}: the last process that wrote to this run cannot be asked from here "
                    f"({_name(found)}). It is taken over if it gives no sign of life for {self._lease:.0f} s; waiting"
                )
            if time.monotonic() >= until:
                self._was_let_go = False
                return found.number
            if self._should_stop():
                raise Interrupted
            time.sleep(min(1.0, self._lease / 20))

    def _renew(self, file: LockFile) -> None:
        """Beat until the lock is let go or lost."""
        while not self._done.wait(self._lease / 4):
            try:
                if not self._is_still_mine(file):
                    self._lost = True
                    return
                file.write(file.record.beaten(), sync=not self._local)
            except FileNotFoundError:  # of the folder
                self._lost = True
                return
            except OSError as error:
                if error.errno == errno.ESTALE:  # the server no longer has the file
                    self._lost = True
                    return
                # else a beat is missed: nothing says that anybody else has the lock

    def _is_still_mine(self, file: LockFile) -> bool:
        """Whether this process's file is the one that counts; puts it back if somebody deleted it by hand.

        Raises:
            OSError: it cannot be told.
        """
        token = file.record.token
        while present := numbers(self._place):
            if present[-1] != file.number:
                return False
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                holder = Found(file.path, file.number, read(file.path)).holder
                return holder is not None and holder.token == token
            time.sleep(0.01)
        back = create(self._place, file.number + 1, token, local=self._local, alone=True)
        if back is None:
            return False
        file.close()
        file.path, file.number, file.handle, file.record = back.path, back.number, back.handle, back.record
        return True


def is_held(folder: Path) -> bool:
    """Whether some process is writing to the run now, as far as a reader can tell without waiting or writing.

    Of a holder that cannot be asked, a beat within the last lease counts as life: a guess for displays (it compares the
    file server's clock with this machine's), on which no taking over rests.
    """
    try:
        found = latest(folder)
        if found is None:
            return False
        state = found.state(local=file_system_of(folder).local)
        return state == "held" or (state == "unclear" and time.time() - found.path.stat().st_mtime < LEASE)
    except OSError:
        return False


def holder(folder: Path) -> str:
    """Host, pid and start of the process that took the lock last."""
    try:
        return _name(latest(folder))
    except OSError:
        return _name(None)


def _name(found: Found | None) -> str:
    return str(found.holder) if found is not None and found.holder is not None else "its holder is unknown"


def _is_same_taking(one: Found, other: Found) -> bool:
    """Whether two readings are of one holder, or of one file whose holder cannot be read."""
    tokens = [each.holder.token if each.holder else None for each in (one, other)]
    return one.number == other.number and tokens[0] == tokens[1]


def _has_beaten(watched: Found | None, found: Found) -> bool:
    return watched is not None and _is_same_taking(watched, found) and watched.content != found.content


@contextlib.contextmanager
def _reported(folder: Path) -> Iterator[None]:
    """Name what keeps a lock from being taken."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            reason = f"it, or {Path(error.filename or folder).name} in it, is not this user's to read and write"
        elif error.errno in (errno.EISDIR, errno.ELOOP):
            reason = f"{error.filename or 'its lock'} is not a lock file; remove it if no search is running"
        else:
            reason = f"its lock cannot be taken: {error.strerror}"
        raise SearchError(f"{folder}: expected a run directory that can be written, found that {reason}") from error
