"""Connections to a run's database, and what SQLite's errors mean for a run."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from search.errors import SearchError
from search.store import schema

DATABASE = "run.db"
CONTROL = "control"
"""The folder inside a run directory where its control, a random search with the same budget, has its own run."""
FIRST = "first"
"""The folder inside a hybrid's run directory where its first search has its own run."""
WRITE_AHEAD = f"{DATABASE}-wal"
JOURNAL = f"{DATABASE}-journal"
LEFT_BEHIND = (WRITE_AHEAD, f"{DATABASE}-shm", JOURNAL)
"""What SQLite keeps beside a database, and would take for that of another one in its place."""
SALVAGED = f"{DATABASE}.salvaged"
"""A salvaged database that is whole, but not yet in its place."""

ERRORS = (sqlite3.Error, UnicodeDecodeError)
"""What a query may raise; the second where even the text of SQLite's own error is damaged."""
_DAMAGE = (
    "malformed", "not a database", "could not decode", "no such table", "no such column", "unsupported file format",
    "datatype mismatch", "cannot store", "file is encrypted", "too big",
)  # fmt: skip


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's directory, begun or not. One of runs, of which one is called ``first``, is none."""
    return (folder / DATABASE).is_file() or any(folder.glob("run.lock.*"))


def under_way(run: Path) -> Path:
    """The folder of the search that a run directory stands for now: that of a hybrid's first one as long as the second
    has not begun, else its own."""
    first = run / FIRST
    waits = (first / DATABASE).is_file() and not (run / DATABASE).is_file() and is_run(run)
    return first if waits else run


class Reported:
    """Turns SQLite's errors into one paragraph that names the file and says what to do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, ERRORS):
            return
        text = str(error)
        if is_damage(error):
            raise damaged(self._path, text) from error
        if "full" in text:
            advice = "The disk is full; what was stored before is safe. Free some space, then run the same command."
        elif "readonly" in text or "unable to open" in text:
            advice = "It cannot be written: look at the folder's permissions, and whether it is still there."
        elif "locked" in text:
            advice = "Another process is writing to it. What was stored before is safe; try again in a moment."
        elif "I/O" in text:
            advice = "Look at the disk, and whether the folder is still there. What was stored before is safe."
        else:
            advice = "What was stored before is safe; run the same command again."
        raise SearchError(f"{self._path}: {text}. {advice}") from error


def is_damage(error: Exception) -> bool:
    """Whether the file is damaged, rather than out of reach for a while."""
    return isinstance(error, UnicodeDecodeError) or any(sign in str(error).lower() for sign in _DAMAGE)


def damaged(path: Path, what: str) -> SearchError:
    """The paragraph for a damaged database."""
    return SearchError(
        f"{path}: the database is damaged: {what}. `paretomerge doctor {path.parent} --salvage` brings back what can "
        "be read; what it does not find is evaluated again."
    )


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """A connection in autocommit mode; transactions are begun by hand.

    Raises:
        SearchError: it cannot be opened.
    """
    with Reported(path):
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}",
            uri=True,
            isolation_level=None,
            timeout=10.0,
        )
        if read_only and _needs_immutable(connection, path):
            connection.close()
            connection = sqlite3.connect(f"{path.absolute().as_uri()}?immutable=1", uri=True, isolation_level=None)
        # a database from a stranger must be safe to open: no SQL stored in its schema may have side effects
        connection.execute("PRAGMA trusted_schema=OFF")
        return connection


def build(path: Path, fill: Callable[[sqlite3.Connection], None] = lambda connection: None) -> None:
    """Write a new database, and have it on disk.

    Args:
        path: of no file yet.
        fill: writes what is to be in it, in the transaction that makes the tables.

    Raises:
        sqlite3.Error: it cannot be written.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=EXTRA")
        connection.execute("BEGIN IMMEDIATE")
        for sql in (*schema.KEPT, *schema.DERIVED):
            connection.execute(sql)
        connection.execute("INSERT INTO meta VALUES ('format', ?), ('fence', '0')", (str(schema.FORMAT),))
        fill(connection)
        connection.execute("COMMIT")


def safe_journal(folder: Path) -> str:
    """The journal that is safe on a folder's file system.

    Raises:
        SearchError: none is.
    """
    from search import filesystems  # asks the system: not for those who only read

    return filesystems.journal_for(folder)


def set_journal(connection: sqlite3.Connection, path: Path, mode: str) -> None:
    """Keep that journal, and what a transaction has returned from survives a power cut.

    Raises:
        SearchError: another process keeps it from being changed.
        sqlite3.Error: it cannot be set.
    """
    found = connection.execute(f"PRAGMA journal_mode={mode}").fetchone()[0]
    if found != mode:
        raise SearchError(
            f"{path}: expected to keep a {mode} journal on this file system, found that SQLite keeps {found!r}. Is "
            "another process reading the run? Wait for it, then run the same command."
        )
    # EXTRA also syncs the folder when a rollback journal is deleted, which is what commits a transaction
    connection.execute(f"PRAGMA synchronous={'FULL' if mode == 'wal' else 'EXTRA'}")


class FileIdentity:
    """Which file a path named when it was opened: a removed or replaced one takes no more writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = {each: _inode(each) for each in (path, path.parent / WRITE_AHEAD)}

    def check(self) -> None:
        """Raises:
        SearchError: it is gone, or another one is there.
        """
        for path, before in self._files.items():
            if before is not None and (now := _inode(path)) != before:
                raise SearchError(
                    f"{path}: this file was {'removed' if now is None else 'replaced'} while the run was writing to "
                    "it, so nothing more is stored there. Bring back the run directory as it was, then run the same "
                    "command; or start over under another --name."
                )


def _needs_immutable(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether it lies where nothing can be written, so that not even a reader's shared memory can be made: a finished
    run on read-only media. Nobody can be writing to it, so it is read as it stands."""
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        ahead = path.parent / WRITE_AHEAD
        pending = ahead.exists() and ahead.stat().st_size > 0
        out_of_reach = "unable to open" in str(error) or "readonly" in str(error)
        return out_of_reach and not pending and not os.access(path.parent, os.W_OK)
    except ERRORS:
        pass  # reported by whoever reads
    return False


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
