"""Whether a database is as it was written: its pages, its schema, its chain of events, its item scores, its tables."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest

from search.store import schema
from search.store.connecting import ERRORS
from search.store.digests import GENESIS, EventRow, ItemRow, set_hash
from search.store.payloads import event_of
from search.store.tables import beginning, derive

_TABLES = {
    "candidates": "id",
    "scores": "candidate, split, metric",
    "timings": "candidate, split, what",
    "violations": "candidate, split, position",
}
"""Derived table -> its key."""
_ENOUGH = 20
"""Problems of one sort that are named; then it is clear."""

EVENT_ROWS = "SELECT seq, at, kind, candidate, payload, items, previous, digest FROM events"
ITEM_ROWS = "SELECT candidate, split, evaluator, item_set, metrics, scores, weights, statuses, digest FROM item_scores"


@dataclass
class Verified:
    """What a database is found to be.

    Attributes:
        events: number of the last one.
        head: [16] digest of the last one.
        problems: what is damaged, for people; empty if nothing is.
    """

    events: int = 0
    head: bytes = GENESIS
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        more = len(self.problems) - 3
        return "; ".join(self.problems[:3]) + (f"; and {more} more" if more > 0 else "")


def verify(connection: sqlite3.Connection) -> Verified:
    """Read everything, and compare.

    Args:
        connection: to a database of the present format; in a transaction where somebody may be writing.
    """
    verified = Verified()
    try:
        verified.problems += schema.differences(connection, schema.FORMAT)
        if not verified.problems:
            verified.problems += _pages(connection)
            verified.problems += _beginning(connection)
            _contents(connection, verified)
    except ERRORS as error:
        verified.problems.append(str(error))
    return verified


def _pages(connection: sqlite3.Connection) -> list[str]:
    """What SQLite itself finds wrong."""
    found = [str(row[0]) for row in connection.execute(f"PRAGMA integrity_check({_ENOUGH})")]
    return [] if found == ["ok"] else [line.strip() for each in found for line in each.splitlines() if line.strip()]


def _beginning(connection: sqlite3.Connection) -> Iterator[str]:
    """Whether both copies of the run's beginning are the same."""
    copy = connection.execute("SELECT value FROM meta WHERE key = ?", (schema.BEGINNING,)).fetchone()
    first = connection.execute(f"{EVENT_ROWS} WHERE seq = 1 AND kind = 'run_started'").fetchone()
    try:
        if (None if copy is None else beginning(copy[0])) != (None if first is None else EventRow._make(first)):
            yield "the second copy of the run's beginning is another"
    except (TypeError, ValueError):
        yield "the second copy of the run's beginning cannot be read"


def _contents(connection: sqlite3.Connection, verified: Verified) -> None:
    derived = sqlite3.connect(":memory:", isolation_level=None)
    try:
        for sql in schema.DERIVED:
            derived.execute(sql)
        derived.execute("BEGIN")
        items: dict[tuple[int, str, str], bytes] = {}
        for row in _log(connection, verified):
            try:
                event = event_of(row.kind, row.payload)
                derive(derived, event)
                split = getattr(event, "split", "search")
                items |= {(row.candidate or 0, split, each): digest for each, digest in row.item_digests.items()}
            except (KeyError, TypeError, ValueError, sqlite3.Error) as error:
                verified.problems.append(f"{row} cannot be read ({type(error).__name__}: {error})")
            if len(verified.problems) > _ENOUGH:
                return
        if not verified.problems:  # of damaged events nothing follows
            verified.problems += [found for table in _TABLES for found in _differences(connection, derived, table)]
        verified.problems += _items(connection, items)
    finally:
        derived.close()


def _log(connection: sqlite3.Connection, verified: Verified) -> Iterator[EventRow]:
    """The intact rows, in order; what is not as it was written becomes a problem."""
    for row in map(EventRow._make, connection.execute(f"{EVENT_ROWS} ORDER BY seq")):
        if row.seq != verified.events + 1:
            verified.problems.append(f"events {verified.events + 1} to {row.seq - 1} are not there")
        elif row.previous != verified.head:
            verified.problems.append(f"{row} does not follow the one before")
        verified.events, verified.head = row.seq, row.digest
        if row.intact:
            yield row
        else:
            verified.problems.append(f"{row} is not as it was written")


def _differences(connection: sqlite3.Connection, derived: sqlite3.Connection, table: str) -> Iterator[str]:
    query = f"SELECT * FROM {table} ORDER BY {_TABLES[table]}"
    for found, expected in zip_longest(connection.execute(query), derived.execute(query)):
        if found != expected:
            candidate = min(row[0] for row in (found, expected) if row is not None)
            yield f"table {table} is not what the events say, from candidate {candidate} on"
            return


def _items(connection: sqlite3.Connection, expected: dict[tuple[int, str, str], bytes]) -> Iterator[str]:
    """Item scores: each as it was written, and as its event names it; and the sets of items."""
    sets = dict(connection.execute("SELECT hash, ids FROM item_sets"))
    yield from (
        f"item set {str(each)[:12]} is not what its hash says" for each, ids in sets.items() if set_hash(ids) != each
    )
    copies = "SELECT substr(key, ?), value FROM meta WHERE key LIKE ? || '%'"
    if dict(connection.execute(copies, (len(schema.SET_COPY) + 1, schema.SET_COPY))) != sets:
        yield "the second copies of the item sets are others"
    missing = dict(expected)
    for row in map(ItemRow._make, connection.execute(ITEM_ROWS)):
        digest = missing.pop((row.candidate, row.split, row.evaluator), None)
        if not row.intact:
            yield f"{row} are not as they were written"
        elif row.digest != digest:
            yield f"{row} are not those that their event names"
        elif row.item_set not in sets:
            yield f"{row}: their item set is not there"
    for candidate, split, evaluator in missing:
        yield f"item scores of candidate {candidate} ({split}, {evaluator}) are not there"
