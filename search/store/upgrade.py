"""Databases of older formats become the present one when they are written to."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from merging.bounded import parse_json
from search.events import RungReached, Scored
from search.store import schema
from search.store.digests import GENESIS, chained, items_text, sealed
from search.store.payloads import event_of
from search.store.tables import derive, insert_event, insert_items


def upgrade(connection: sqlite3.Connection) -> None:
    """Write every table anew, with digests, from what an older version wrote without them.

    Args:
        connection: to a database of format 1 or 2, in a transaction.

    Raises:
        sqlite3.Error, KeyError, TypeError, ValueError: what is there cannot be read.
    """
    execute = connection.execute
    for name in ("candidates", "scores", "timings", "violations"):
        execute(f"DROP TABLE IF EXISTS {name}")
    for name in ("events", "item_sets", "item_scores"):
        execute(f"ALTER TABLE {name} RENAME TO old_{name}")
    for sql in (*schema.KEPT, *schema.DERIVED):
        if sql != schema.META:
            execute(sql)
    digests = _items(connection)
    _events(connection, digests)
    for name in ("events", "item_sets", "item_scores"):
        execute(f"DROP TABLE old_{name}")
    execute("UPDATE meta SET value = ? WHERE key = 'format'", (str(schema.FORMAT),))
    execute("INSERT INTO meta VALUES ('fence', '0')")


def _items(connection: sqlite3.Connection) -> dict[tuple[int, str], dict[str, bytes]]:
    """Item scores, sealed: (candidate, split) -> evaluator -> digest."""
    found: dict[tuple[int, str], dict[str, bytes]] = {}
    query = (
        "SELECT candidate, split, evaluator, item_set, metrics, scores, weights, statuses, ids"
        " FROM old_item_scores JOIN old_item_sets ON hash = item_set"
    )
    for *columns, ids in connection.execute(query):
        row = sealed(*columns)
        insert_items(connection, row, ids)
        found.setdefault((row.candidate, row.split), {})[row.evaluator] = row.digest
    return found


def _events(connection: sqlite3.Connection, digests: dict[tuple[int, str], dict[str, bytes]]) -> None:
    """The log, chained. The item scores of a candidate are those of its last event that brought some."""
    bringing = {key: seq for seq, key in _bringing(connection)}
    last = {seq: digests[key] for key, seq in bringing.items() if key in digests}
    previous = GENESIS
    rows = connection.execute("SELECT seq, at, kind, candidate, payload FROM old_events ORDER BY seq")
    for place, (seq, at, kind, candidate, payload) in enumerate(rows, 1):
        row = chained(place, at, kind, candidate, payload, items_text(last.get(seq, {})), previous)
        insert_event(connection, row)
        derive(connection, event_of(kind, payload))
        previous = row.digest


def _bringing(connection: sqlite3.Connection) -> Iterator[tuple[int, tuple[int, str]]]:
    """(number, (candidate, split)) of every event that came with item scores, oldest first."""
    query = "SELECT seq, candidate, payload FROM old_events WHERE kind IN (?, ?) ORDER BY seq"
    for seq, candidate, payload in connection.execute(query, (RungReached.kind, Scored.kind)):
        yield seq, (candidate, parse_json(payload).get("split", "search"))
