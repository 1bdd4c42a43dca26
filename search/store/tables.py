"""From events to tables: what people query follows from the log, and item scores lie beside it as arrays."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import get_args

import numpy as np

from evaluators.contract import ItemScores, Status
from merging.bounded import parse_json
from search.events import Asked, Event, Failed, RungReached, RunStarted, Scored, Told
from search.store.digests import GENESIS, EventRow, ItemRow, chained, sealed, set_hash
from search.store.schema import BEGINNING, SET_COPY

_STATUSES: tuple[Status, ...] = get_args(Status)
_CODES = {status: code for code, status in enumerate(_STATUSES)}


def derive(connection: sqlite3.Connection, event: Event) -> None:
    """Bring the derived tables to where they are after an event; a pure function of the events so far.

    Raises:
        sqlite3.Error: it contradicts the events before it, or it cannot be written.
    """
    execute = connection.execute
    match event:
        case Asked():
            # its genome, the bulk of the log, stays there
            execute(
                "INSERT INTO candidates (id, stage, label, recipe_hash, state) VALUES (?, ?, ?, ?, 'running')",
                (event.candidate, event.stage, event.label, event.recipe_hash),
            )
        case RungReached():
            _timings(connection, event.candidate, "search", event.seconds)
        case Scored():
            _scores(connection, event)
        case Failed():
            _timings(connection, event.candidate, event.split, event.seconds)
        case Told():
            _timings(connection, event.candidate, "search", event.seconds)
            execute(
                "UPDATE candidates SET state = ?, reason = ?, duplicate_of = ? WHERE id = ?",
                (event.outcome.state, event.outcome.reason, event.outcome.of, event.candidate),
            )
        case _:
            pass


def _scores(connection: sqlite3.Connection, event: Scored) -> None:
    connection.executemany(
        "INSERT INTO scores VALUES (?, ?, ?, ?, ?)",
        [
            (event.candidate, event.split, metric, value, event.errors.get(metric, float("inf")))
            for metric, value in event.values.items()
        ],
    )
    connection.executemany(
        "INSERT INTO violations VALUES (?, ?, ?, ?)",
        [(event.candidate, event.split, position, value) for position, value in enumerate(event.violations)],
    )
    _timings(connection, event.candidate, event.split, event.seconds)


def _timings(connection: sqlite3.Connection, candidate: int, split: str, seconds: Mapping[str, float]) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO timings VALUES (?, ?, ?, ?)",
        [(candidate, split, what, value) for what, value in seconds.items()],
    )


def item_rows(event: Event, sets: ItemSets) -> list[ItemRow]:
    """The item scores that come with an event: all of a candidate on a split, those of its earlier rungs among them."""
    if not isinstance(event, RungReached | Scored):
        return []
    split = event.split if isinstance(event, Scored) else "search"
    rows = []
    for evaluator, found in event.scores.items():
        metrics = sorted(found.values)
        rows.append(
            sealed(
                event.candidate,
                split,
                evaluator,
                sets.hash(found.ids),
                json.dumps(metrics),
                np.stack([found.values[name] for name in metrics]).astype("<f8").tobytes(),
                np.stack([found.weights[name] for name in metrics]).astype("<f8").tobytes(),
                bytes(map(_CODES.__getitem__, found.statuses)),
            )
        )
    return rows


def insert_event(connection: sqlite3.Connection, row: EventRow) -> None:
    """Add a row to the log; of the run's beginning there are two copies."""
    connection.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
    if row.kind == RunStarted.kind and row.seq == 1:
        copy = json.dumps([row.at, row.payload, row.digest.hex()])
        connection.execute("INSERT INTO meta VALUES (?, ?)", (BEGINNING, copy))


def beginning(copy: str) -> EventRow:
    """The row of a run's beginning, from the second copy.

    Raises:
        ValueError, TypeError: it is not as it was written.
    """
    at, payload, digest = parse_json(copy)
    row = chained(1, float(at), RunStarted.kind, None, str(payload), "", GENESIS)
    if row.digest.hex() != digest:
        raise ValueError("it is not what its digest says")
    return row


def insert_items(connection: sqlite3.Connection, row: ItemRow, ids: str) -> None:
    """Add item scores, or replace those of the rung before.

    Args:
        connection: in a transaction.
        row: the scores.
        ids: JSON list of the items' ids.
    """
    if connection.execute("SELECT 1 FROM item_sets WHERE hash = ?", (row.item_set,)).fetchone() is None:
        connection.execute("INSERT INTO item_sets VALUES (?, ?)", (row.item_set, ids))
        connection.execute("INSERT INTO meta VALUES (?, ?)", (SET_COPY + row.item_set, ids))
    connection.execute("INSERT OR REPLACE INTO item_scores VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)


def item_scores(row: ItemRow, ids: tuple[str, ...]) -> ItemScores:
    """The record of a row.

    Raises:
        ValueError, IndexError: its arrays do not belong together.
    """
    names = parse_json(row.metrics)
    values = np.frombuffer(row.scores, dtype="<f8").reshape(len(names), len(ids))
    weights = np.frombuffer(row.weights, dtype="<f8").reshape(len(names), len(ids))
    return ItemScores(
        ids=ids,
        values=dict(zip(names, values, strict=True)),
        weights=dict(zip(names, weights, strict=True)),
        statuses=_statuses(row.statuses),
    )


@lru_cache(maxsize=256)
def _statuses(codes: bytes) -> tuple[Status, ...]:
    """Most candidates have the same: one tuple for all of them."""
    return tuple(map(_STATUSES.__getitem__, codes))


class ItemSets:
    """Item sets by hash and back. Every candidate has the same few, so the last ones are kept."""

    KEPT = 64

    def __init__(self) -> None:
        self._texts: dict[tuple[str, ...], tuple[str, str]] = {}
        self._ids: dict[str, tuple[str, ...]] = {}

    def hash(self, ids: Sequence[str]) -> str:
        """Hash of a set."""
        return self._entry(ids)[0]

    def text(self, ids: Sequence[str]) -> str:
        """A set as it is stored: a JSON list."""
        return self._entry(ids)[1]

    def known(self, hash: str) -> tuple[str, ...] | None:
        """A stored set, where it was read before."""
        return self._ids.get(hash)

    def ids(self, hash: str, text: str) -> tuple[str, ...]:
        """A stored set, now read.

        Raises:
            ValueError: it is not what its hash says.
        """
        if set_hash(text) != hash:
            raise ValueError("the item set is not what its hash says")
        _make_room(self._ids)
        self._ids[hash] = tuple(parse_json(text))
        return self._ids[hash]

    def _entry(self, ids: Sequence[str]) -> tuple[str, str]:
        key = tuple(ids)
        if key not in self._texts:
            text = json.dumps(list(key))
            _make_room(self._texts)
            self._texts[key] = (set_hash(text), text)
        return self._texts[key]


def _make_room(kept: dict[str, tuple[str, ...]] | dict[tuple[str, ...], tuple[str, str]]) -> None:
    while len(kept) >= ItemSets.KEPT:
        kept.pop(next(iter(kept)))  # type: ignore[call-overload]
