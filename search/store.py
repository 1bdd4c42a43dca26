"""The run's database: an append-only event log, and the tables derived from it.

SQLite in WAL mode with ``synchronous=FULL``: what :meth:`Store.append` has returned from survives kill -9, a power cut
and a full disk. One call is one transaction. Item scores lie as float64 arrays in a table of their own, written in the
transaction of the event that announces them. Nothing in the file is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from evaluators.contract import ItemScores, Split, Status
from search.errors import SearchError
from search.events import (
    Asked,
    Event,
    Failed,
    RungReached,
    RunStarted,
    Scored,
    Told,
    from_payload,
)
from search.optimizers.contract import Genome

DATABASE = "run.db"
CONTROL = "control"
"""The folder inside a run directory where its control, a random search with the same budget, has its own run."""
FORMAT = 2
READABLE = ("1", "2")
"""Format 1 had neither rungs nor constraints; it is read as it is, and becomes 2 when it is written to."""

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, candidate INTEGER, payload TEXT NOT NULL
) STRICT;
CREATE TABLE candidates (
    id INTEGER PRIMARY KEY, stage INTEGER NOT NULL, label TEXT NOT NULL, genome TEXT NOT NULL,
    recipe_hash TEXT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', duplicate_of INTEGER
) STRICT;
CREATE INDEX candidates_by_hash ON candidates (recipe_hash);
CREATE TABLE scores (
    candidate INTEGER NOT NULL, split TEXT NOT NULL, metric TEXT NOT NULL, value REAL NOT NULL, error REAL NOT NULL,
    PRIMARY KEY (candidate, split, metric)
) STRICT, WITHOUT ROWID;
CREATE TABLE item_sets (hash TEXT PRIMARY KEY, ids TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE item_scores (
    candidate INTEGER NOT NULL, split TEXT NOT NULL, evaluator TEXT NOT NULL, item_set TEXT NOT NULL,
    metrics TEXT NOT NULL, scores BLOB NOT NULL, weights BLOB NOT NULL, statuses BLOB NOT NULL,
    PRIMARY KEY (candidate, split, evaluator)
) STRICT;
CREATE TABLE timings (
    candidate INTEGER NOT NULL, split TEXT NOT NULL, what TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (candidate, split, what)
) STRICT, WITHOUT ROWID;
"""
_VIOLATIONS = """
CREATE TABLE violations (
    candidate INTEGER NOT NULL, split TEXT NOT NULL, position INTEGER NOT NULL, violation REAL NOT NULL,
    PRIMARY KEY (candidate, split, position)
) STRICT, WITHOUT ROWID;
"""

_STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class Candidate:
    """A row of the candidates table.

    Attributes:
        id: number within the run, from 0, in the order asked.
        stage: index of the stage that proposed it.
        label: what a baseline is called ("base", "expert string", …); "" for proposed ones.
        state: "running" (asked, not scored yet), "complete", "failed", "censored" or "duplicate".
        duplicate_of: the candidate with the same recipe, whose scores it shares.
    """

    id: int
    stage: int
    label: str
    genome: Genome
    recipe_hash: str
    state: str
    reason: str
    duplicate_of: int | None


class Store:
    """A run's database, opened for writing by its one driver, or for reading by anybody."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._format = FORMAT
        self.path = path

    @staticmethod
    def create(folder: Path) -> Store:
        """A new, empty database in an existing folder.

        Raises:
            SearchError: one is there already, or it cannot be written.
        """
        path = folder / DATABASE
        if path.exists():
            raise SearchError(f"{path}: expected no database, found one; the same `run` command resumes it")
        store = Store(_connect(path, read_only=False), path)
        with _reported(path):
            store._connection.execute("PRAGMA journal_mode=WAL")
            made = f"INSERT INTO meta VALUES ('format', '{FORMAT}')"
            store._connection.executescript(f"BEGIN; {_SCHEMA} {_VIOLATIONS} {made}; COMMIT;")
        return store

    @staticmethod
    def open(folder: Path, *, read_only: bool = False) -> Store:
        """An existing database.

        Raises:
            SearchError: there is none, it is damaged, or of another format.
        """
        path = folder / DATABASE
        if not path.is_file():
            raise SearchError(f"{folder}: expected a run directory with {DATABASE}, found none; see `paretomerge run`")
        store = Store(_connect(path, read_only=read_only), path)
        with _reported(path):
            row = store._connection.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
        if row is None or row[0] not in READABLE:
            raise SearchError(
                f"{path}: expected run format {' or '.join(READABLE)}, found {row and row[0]!r}; it was written by "
                "another version"
            )
        store._format = int(row[0])
        if store._format == 1 and not read_only:
            with _reported(path):
                grown = f"UPDATE meta SET value = '{FORMAT}' WHERE key = 'format'"
                store._connection.executescript(f"BEGIN; {_VIOLATIONS} {grown}; COMMIT;")
            store._format = FORMAT
        return store

    def close(self) -> None:
        """Release the file."""
        self._connection.close()

    # -- writing ------------------------------------------------------------------------------------------------------

    def append(self, *events: Event) -> None:
        """Log events and derive the tables, in one transaction that is on disk when this returns.

        Raises:
            SearchError: it could not be written (a full disk, a removed folder); then nothing of it was.
        """
        with _reported(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                for event in events:
                    payload = json.dumps(event.payload(), separators=(",", ":"), allow_nan=True)
                    self._connection.execute(
                        "INSERT INTO events (at, kind, candidate, payload) VALUES (?, ?, ?, ?)",
                        (time.time(), event.kind, getattr(event, "candidate", None), payload),
                    )
                    self._derive(event)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _derive(self, event: Event) -> None:
        execute = self._connection.execute
        if isinstance(event, Asked):
            genome = json.dumps([event.genome.values, event.genome.categories], separators=(",", ":"))
            execute(
                "INSERT INTO candidates (id, stage, label, genome, recipe_hash, state)"
                " VALUES (?, ?, ?, ?, ?, 'running')",
                (event.candidate, event.stage, event.label, genome, event.recipe_hash),
            )
        elif isinstance(event, RungReached):
            self._write_timings(event.candidate, "search", event.seconds)
            self._write_items(event.candidate, "search", event.scores)
        elif isinstance(event, Scored):
            self._write_scores(event)
        elif isinstance(event, Failed):
            self._write_timings(event.candidate, event.split, event.seconds)
        elif isinstance(event, Told):
            self._write_timings(event.candidate, "search", event.seconds)
            execute(
                "UPDATE candidates SET state = ?, reason = ?, duplicate_of = ? WHERE id = ?",
                (event.outcome.state, event.outcome.reason, event.outcome.of, event.candidate),
            )

    def _write_scores(self, event: Scored) -> None:
        execute = self._connection.execute
        for metric, value in event.values.items():
            execute(
                "INSERT INTO scores VALUES (?, ?, ?, ?, ?)",
                (event.candidate, event.split, metric, value, event.errors.get(metric, float("inf"))),
            )
        for position, violation in enumerate(event.violations):
            execute("INSERT INTO violations VALUES (?, ?, ?, ?)", (event.candidate, event.split, position, violation))
        self._write_timings(event.candidate, event.split, event.seconds)
        self._write_items(event.candidate, event.split, event.scores)

    def _write_items(self, candidate: int, split: str, found: Mapping[str, ItemScores]) -> None:
        """All item scores of a candidate on a split; those of its earlier rungs are among them."""
        for evaluator, scores in found.items():
            metrics = sorted(scores.values)
            statuses = np.array([_STATUSES.index(status) for status in scores.statuses], dtype=np.uint8)
            self._connection.execute(
                "INSERT OR REPLACE INTO item_scores VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    candidate,
                    split,
                    evaluator,
                    self._item_set(scores.ids),
                    json.dumps(metrics),
                    np.stack([scores.values[name] for name in metrics]).astype("<f8").tobytes(),
                    np.stack([scores.weights[name] for name in metrics]).astype("<f8").tobytes(),
                    statuses.tobytes(),
                ),
            )

    def _write_timings(self, candidate: int, split: str, seconds: dict[str, float]) -> None:
        self._connection.executemany(
            "INSERT OR REPLACE INTO timings VALUES (?, ?, ?, ?)",
            [(candidate, split, what, value) for what, value in seconds.items()],
        )

    def _item_set(self, ids: Sequence[str]) -> str:
        text = json.dumps(list(ids))
        digest = hashlib.sha256(text.encode()).hexdigest()
        self._connection.execute("INSERT OR IGNORE INTO item_sets VALUES (?, ?)", (digest, text))
        return digest

    # -- reading ------------------------------------------------------------------------------------------------------

    def events(self, *kinds: type[Event]) -> Iterator[Event]:
        """The log, oldest first; only these kinds, if any are named. ``Scored`` comes without its item scores."""
        wanted = [kind.kind for kind in kinds]
        where = f"WHERE kind IN ({','.join('?' * len(wanted))})" if wanted else ""
        for kind, payload in self._query(f"SELECT kind, payload FROM events {where} ORDER BY seq", wanted):
            try:
                yield from_payload(kind, json.loads(payload))
            except (KeyError, TypeError, ValueError) as error:
                raise SearchError(f"{self.path}: an event of kind {kind!r} cannot be read ({error})") from error

    def started(self) -> RunStarted | None:
        """The first event, or None while the run is being set up."""
        first = next(self.events(RunStarted), None)
        return first if isinstance(first, RunStarted) else None

    def times(self) -> list[tuple[float, str]]:
        """(unix time, kind) of every event."""
        return [(at, kind) for at, kind in self._query("SELECT at, kind FROM events ORDER BY seq")]

    def candidates(self) -> list[Candidate]:
        """All candidates by id."""
        rows = self._query(
            "SELECT id, stage, label, genome, recipe_hash, state, reason, duplicate_of FROM candidates ORDER BY id"
        )
        result = []
        for id, stage, label, genome, recipe_hash, state, reason, duplicate_of in rows:
            values, categories = json.loads(genome)
            point = Genome(tuple(values), tuple(categories))
            result.append(Candidate(id, stage, label, point, recipe_hash, state, reason, duplicate_of))
        return result

    def scores(self, split: Split) -> dict[int, dict[str, tuple[float, float]]]:
        """candidate -> metric -> (aggregate, standard error), on one split."""
        result: dict[int, dict[str, tuple[float, float]]] = {}
        query = "SELECT candidate, metric, value, error FROM scores WHERE split = ?"
        for candidate, metric, value, error in self._query(query, [split]):
            result.setdefault(candidate, {})[metric] = (value, error)
        return result

    def violations(self, split: Split) -> dict[int, tuple[float, ...]]:
        """candidate -> [constraints] violation on one split, > 0 where it is broken; empty without constraints."""
        result: dict[int, tuple[float, ...]] = {}
        if self._format == 1:
            return result
        query = "SELECT candidate, violation FROM violations WHERE split = ? ORDER BY candidate, position"
        for candidate, violation in self._query(query, [split]):
            result[candidate] = (*result.get(candidate, ()), violation)
        return result

    def item_scores(self, candidate: int, split: Split) -> dict[str, ItemScores]:
        """evaluator -> item scores of one candidate, as they were written."""
        query = (
            "SELECT evaluator, ids, metrics, scores, weights, statuses"
            " FROM item_scores JOIN item_sets ON hash = item_set WHERE candidate = ? AND split = ? ORDER BY evaluator"
        )
        result = {}
        for evaluator, ids, metrics, scores, weights, statuses in self._query(query, [candidate, split]):
            names = json.loads(metrics)
            values = np.frombuffer(scores, dtype="<f8").reshape(len(names), -1)
            counts = np.frombuffer(weights, dtype="<f8").reshape(len(names), -1)
            result[evaluator] = ItemScores(
                ids=tuple(json.loads(ids)),
                values=dict(zip(names, values, strict=True)),
                weights=dict(zip(names, counts, strict=True)),
                statuses=tuple(_STATUSES[code] for code in np.frombuffer(statuses, dtype=np.uint8)),
            )
        return result

    def seconds(self) -> dict[tuple[int, str], dict[str, float]]:
        """(candidate, split) -> what -> wall seconds."""
        result: dict[tuple[int, str], dict[str, float]] = {}
        for candidate, split, what, value in self._query("SELECT candidate, split, what, seconds FROM timings"):
            result.setdefault((candidate, split), {})[what] = value
        return result

    def _query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with _reported(self.path):
            return self._connection.execute(sql, parameters).fetchall()


class _reported:  # noqa: N801 - reads as a word: with _reported(path)
    """Turns SQLite's errors into one paragraph that names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, sqlite3.Error):
            return
        text = str(error)
        if "full" in text:
            advice = "The disk is full; what was stored before is safe. Free some space, then run the same command."
        elif "readonly" in text or "unable to open" in text:
            advice = "It cannot be written: look at the folder's permissions, and whether it is still there."
        elif "malformed" in text or "not a database" in text:
            advice = "The file is damaged. Restore it from a copy, or start over under another --name."
        else:
            advice = "What was stored before is safe; run the same command again."
        raise SearchError(f"{self._path}: {text}. {advice}") from error


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    with _reported(path):
        uri = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10.0)
        # a database from a stranger must be safe to open: no SQL stored in its schema may have side effects
        connection.execute("PRAGMA trusted_schema=OFF")
        if not read_only:
            connection.execute("PRAGMA synchronous=FULL")
        return connection
