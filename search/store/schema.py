"""The tables of a run's database, and whether those of a file are really these.

The schema of a file is compared with this one, word for word, before anything else is read: a damaged schema is found
there, and so are triggers and views that a stranger's file might carry.
"""

from __future__ import annotations

import sqlite3

FORMAT = 3
READABLE = ("1", "2", "3")
"""Format 1 had neither rungs nor constraints, 2 no digests and no fence. Both are read as they are, and become 3 when
they are written to. Whoever changes what :mod:`search.store.tables` derives needs a new format, too."""

BEGINNING = "beginning"
"""Key in meta of a second copy of the run's first event: without it nobody knows what the scores belong to."""
SET_COPY = "item set "
"""Begins the keys in meta of second copies of item sets, behind it the hash: all candidates have the same few."""

META = "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT"
EVENTS = """CREATE TABLE events (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, candidate INTEGER, payload TEXT NOT NULL,
    items TEXT NOT NULL, previous BLOB NOT NULL, digest BLOB NOT NULL
) STRICT"""
ITEM_SETS = "CREATE TABLE item_sets (hash TEXT PRIMARY KEY, ids TEXT NOT NULL) STRICT"
ITEM_SCORES = """CREATE TABLE item_scores (
    candidate INTEGER NOT NULL, split TEXT NOT NULL, evaluator TEXT NOT NULL, item_set TEXT NOT NULL,
    metrics TEXT NOT NULL, scores BLOB NOT NULL, weights BLOB NOT NULL, statuses BLOB NOT NULL, digest BLOB NOT NULL,
    PRIMARY KEY (candidate, split, evaluator)
) STRICT"""
CANDIDATES = """CREATE TABLE candidates (
    id INTEGER PRIMARY KEY, stage INTEGER NOT NULL, label TEXT NOT NULL, recipe_hash TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', duplicate_of INTEGER
) STRICT"""
BY_HASH = "CREATE INDEX candidates_by_hash ON candidates (recipe_hash)"
SCORES = """CREATE TABLE scores (
    candidate INTEGER NOT NULL, split TEXT NOT NULL, metric TEXT NOT NULL, value REAL NOT NULL, error REAL NOT NULL,
    PRIMARY KEY (candidate, split, metric)
) STRICT, WITHOUT ROWID"""
TIMINGS = """CREATE TABLE timings (
    candidate INTEGER NOT NULL, split TEXT NOT NULL, what TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (candidate, split, what)
) STRICT, WITHOUT ROWID"""
VIOLATIONS = """CREATE TABLE violations (
    candidate INTEGER NOT NULL, split TEXT NOT NULL, position INTEGER NOT NULL, violation REAL NOT NULL,
    PRIMARY KEY (candidate, split, position)
) STRICT, WITHOUT ROWID"""

DERIVED = (CANDIDATES, BY_HASH, SCORES, TIMINGS, VIOLATIONS)
"""What follows from the events alone."""
KEPT = (META, EVENTS, ITEM_SETS, ITEM_SCORES)
"""What does not."""

OLD_EVENTS = """CREATE TABLE events (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, candidate INTEGER, payload TEXT NOT NULL
) STRICT"""
OLD_ITEM_SETS = "CREATE TABLE item_sets (hash TEXT PRIMARY KEY, ids TEXT NOT NULL) STRICT, WITHOUT ROWID"
OLD_ITEM_SCORES = """CREATE TABLE item_scores (
    candidate INTEGER NOT NULL, split TEXT NOT NULL, evaluator TEXT NOT NULL, item_set TEXT NOT NULL,
    metrics TEXT NOT NULL, scores BLOB NOT NULL, weights BLOB NOT NULL, statuses BLOB NOT NULL,
    PRIMARY KEY (candidate, split, evaluator)
) STRICT"""
OLD_CANDIDATES = """CREATE TABLE candidates (
    id INTEGER PRIMARY KEY, stage INTEGER NOT NULL, label TEXT NOT NULL, genome TEXT NOT NULL,
    recipe_hash TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', duplicate_of INTEGER
) STRICT"""
_FORMAT_1 = (META, OLD_EVENTS, OLD_ITEM_SETS, OLD_ITEM_SCORES, OLD_CANDIDATES, BY_HASH, SCORES, TIMINGS)
_OF_FORMAT = {1: _FORMAT_1, 2: (*_FORMAT_1, VIOLATIONS), FORMAT: (*KEPT, *DERIVED)}


def format_of(connection: sqlite3.Connection) -> str | None:
    """What the file says that it is, or None where it does not say.

    Raises:
        sqlite3.Error: not a database of a run, or a damaged one.
    """
    # before anything is asked of it: a view, which a stranger may have put in a table's place, may never end
    view = connection.execute("SELECT name FROM sqlite_master WHERE type = 'view'").fetchone()
    if view is not None:
        raise sqlite3.DatabaseError(f"malformed: view {view[0]!a} does not belong there")
    row = connection.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
    return None if row is None else str(row[0])


def differences(connection: sqlite3.Connection, format: int) -> list[str]:
    """What the file's schema has that a run of this format has not, or has otherwise; for people, empty if nothing.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    expected = {_plain(sql) for sql in _OF_FORMAT[format]}
    # what SQLite makes by itself, the indices behind primary keys, has no SQL
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    found = {_plain(sql): f"{sort} {name}" for sort, name, sql in rows}
    missing = [" ".join(sql.split()[1:3]) for sql in sorted(expected - set(found))]
    return [
        *(f"{each} is not there, or is another" for each in missing),
        *(f"{found[sql]} does not belong there" for sql in sorted(set(found) - expected)),
    ]


def _plain(sql: str) -> str:
    return " ".join(sql.split())
