"""The store itself: opening a run's database, and appending to its log."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from merging.durable import flush
from search.errors import SearchError
from search.events import Event
from search.store import schema
from search.store.connecting import (
    DATABASE,
    FIRST,
    LEFT_BEHIND,
    SALVAGED,
    WRITE_AHEAD,
    FileIdentity,
    Reported,
    build,
    connect,
    damaged,
    safe_journal,
    set_journal,
    under_way,
)
from search.store.digests import GENESIS, chained, items_text
from search.store.payloads import payload_of
from search.store.reading import Reader
from search.store.tables import derive, insert_event, insert_items, item_rows
from search.store.upgrade import upgrade
from search.store.verify import verify
from search.store.write_ahead import holds_transactions, lost_transactions


class Store(Reader):
    """A run's database, opened for writing by its one driver, or for reading by anybody."""

    def __init__(self, connection: sqlite3.Connection, path: Path, format: int = schema.FORMAT) -> None:
        """Use :meth:`create` or :meth:`open`."""
        super().__init__(connection, path, format)
        self._fence = 0
        self._last = (0, GENESIS)
        self._identity: FileIdentity | None = None

    @staticmethod
    def create(folder: Path) -> Store:
        """A new, empty database in an existing folder.

        Raises:
            SearchError: one is there already, or it cannot be written.
        """
        path = folder / DATABASE
        if path.exists():
            raise SearchError(f"{path}: expected no database, found one; the same `run` command resumes it")
        if holds_transactions(folder / WRITE_AHEAD):
            raise damaged(path, f"it is gone, but {WRITE_AHEAD} is there")
        journal = safe_journal(folder)
        _build(path)
        store = Store(connect(path, read_only=False), path)
        with store._closed_on_error(), Reported(path):
            set_journal(store._connection, path, journal)
            with _transaction(store._connection):
                store._take_over()
            store._identity = FileIdentity(path)
        return store

    @staticmethod
    def open(folder: Path, *, read_only: bool = False) -> Store:
        """An existing database.

        For writing, all of it is verified, what an older version wrote is brought to the present format, and whoever
        had it open for writing before can write no more. For reading, every event and every item score is checked when
        it is read.

        Raises:
            SearchError: there is none, it is damaged, or of another format.
        """
        path = folder / DATABASE
        if not path.is_file():
            if under_way(folder) != folder:
                raise SearchError(
                    f"{folder}: the second search of this run has not begun, so there is nothing to read of it. The "
                    f"first one is a run of its own: {folder / FIRST}"
                )
            raise SearchError(f"{folder}: expected a run directory with {DATABASE}, found none; see `paretomerge run`")
        if path.stat().st_size == 0:  # SQLite would take it for a new one, and remove a log that lies beside it
            raise damaged(path, "the file is empty")
        if not read_only:
            _refuse_half_salvaged(folder)
            _refuse_lost_transactions(folder)
        store = Store(connect(path, read_only=read_only), path)
        with store._closed_on_error(), Reported(path):
            store._format = store._known_format()
            found = schema.differences(store._connection, store._format)
            if found:
                raise damaged(path, "; ".join(found))
            if not read_only:
                store._begin_writing()
        return store

    def append(self, *events: Event) -> None:
        """Log events and derive the tables, in one transaction that is on disk when this returns.

        Raises:
            SearchError: it could not be written (a full disk, a removed folder, another process that has taken over);
                then nothing of it was.
        """
        if self._identity is None:
            raise SearchError(f"{self.path}: readonly: this run was opened for reading only")
        self._identity.check()
        last = self._last
        with Reported(self.path), _transaction(self._connection):
            self._check_fence()
            for event in events:
                last = self._write(event, last)
        # gone meanwhile: then SQLite wrote into a file without a name, and nothing of it is left
        self._identity.check()
        self._last = last

    def _write(self, event: Event, last: tuple[int, bytes]) -> tuple[int, bytes]:
        rows = item_rows(event, self._sets)
        row = chained(
            last[0] + 1,
            time.time(),
            event.kind,
            getattr(event, "candidate", None),
            payload_of(event),
            items_text({each.evaluator: each.digest for each in rows}),
            last[1],
        )
        insert_event(self._connection, row)
        derive(self._connection, event)
        scores = getattr(event, "scores", {})
        for each in rows:
            insert_items(self._connection, each, self._sets.text(scores[each.evaluator].ids))
        return row.seq, row.digest

    def _begin_writing(self) -> None:
        """Verify, upgrade and take over, in one transaction: nobody writes between the look and the fence."""
        set_journal(self._connection, self.path, safe_journal(self.path.parent))
        with _transaction(self._connection):
            if self._format < schema.FORMAT:
                self._upgrade()
            verified = verify(self._connection)
            if verified.problems:
                raise damaged(self.path, str(verified))
            self._last = (verified.events, verified.head)
            self._take_over()
        self._identity = FileIdentity(self.path)

    def _upgrade(self) -> None:
        try:
            upgrade(self._connection)
        except (KeyError, TypeError, ValueError) as error:
            raise SearchError(
                f"{self.path}: this run of an older format cannot be read ({error}). Restore it from a copy, or start "
                "over under another --name."
            ) from error
        self._format = schema.FORMAT

    def _known_format(self) -> int:
        found = schema.format_of(self._connection)
        if found not in schema.READABLE:
            raise SearchError(
                f"{self.path}: expected run format {', '.join(schema.READABLE[:-1])} or {schema.READABLE[-1]}, found "
                f"{found!r}; it was written by another version"
            )
        return int(found)

    def _take_over(self) -> None:
        """Raise the fence: who has a lower one writes no more."""
        self._connection.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'fence'")
        self._fence = int(self._connection.execute("SELECT value FROM meta WHERE key = 'fence'").fetchone()[0])

    def _check_fence(self) -> None:
        """Raises:
        SearchError: the run belongs to somebody else by now.
        """
        fence = self._connection.execute("SELECT value FROM meta WHERE key = 'fence'").fetchone()
        if fence is None or fence[0] != str(self._fence):
            raise SearchError(
                f"{self.path}: another process has taken this run over; this one has stopped writing to it. What both "
                "stored is safe. `paretomerge status` says who has it; this process can end."
            )
        head = self._connection.execute("SELECT seq, digest FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        if (head or (0, GENESIS)) != self._last:
            raise damaged(self.path, f"its last event is not number {self._last[0]}, which this process wrote")

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it, or nothing; a write lock from the start."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _build(path: Path) -> None:
    """An empty database under its name: whole, or not at all.

    Raises:
        SearchError: it cannot be written.
    """
    fresh = path.with_name(f"{path.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        with Reported(path):
            build(fresh)
        for name in LEFT_BEHIND:  # of one that is gone: it would be played into the new one
            (path.parent / name).unlink(missing_ok=True)
        fresh.replace(path)
        flush(path.parent)
    except OSError as error:
        raise SearchError(f"{path}: the database cannot be made: {error.strerror}") from error
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)


def _refuse_half_salvaged(folder: Path) -> None:
    if (folder / SALVAGED).exists():
        raise SearchError(
            f"{folder}: a salvage of this run was interrupted before its end; `paretomerge doctor {folder} --salvage` "
            "ends it"
        )


def _refuse_lost_transactions(folder: Path) -> None:
    """SQLite takes a damaged write-ahead log for one that ends there, and would go on without what lies behind."""
    lost = lost_transactions(folder / WRITE_AHEAD)
    if lost > 1:  # one may be what a power cut interrupted: nobody was told that it is stored
        raise damaged(folder / DATABASE, f"{lost} transactions in {WRITE_AHEAD} cannot be read")
