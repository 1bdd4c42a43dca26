"""Reading a run's database: the log, and what follows from it. What is read is checked against its digests."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from evaluators.contract import ItemScores, Split
from search.errors import SearchError
from search.events import EVENTS, Asked, Event, RunStarted
from search.optimizers.contract import Genome
from search.store.connecting import Reported, damaged
from search.store.digests import EventRow, ItemRow
from search.store.payloads import event_of
from search.store.schema import FORMAT
from search.store.tables import ItemSets, item_scores

_BATCH = 500
"""Rows that are read at a time: no statement is left open while the caller works, which would hold back the
write-ahead log."""


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


class Entry(NamedTuple):
    """One event where it stands in the log.

    Attributes:
        seq: its number, from 1.
        at: unix time at which it was written, by the writer's clock.
    """

    seq: int
    at: float
    event: Event


class Reader:
    """The queries on an open database."""

    def __init__(self, connection: sqlite3.Connection, path: Path, format: int) -> None:
        """Args:
        connection: to the database.
        path: of its file.
        format: of what is in it.
        """
        self._connection = connection
        self._format = format
        self._sets = ItemSets()
        self.path = path

    def close(self) -> None:
        """Release the file."""
        self._connection.close()

    def events(self, *kinds: type[Event]) -> Iterator[Event]:
        """The log, oldest first; only these kinds, if any are named. ``Scored`` comes without its item scores.

        Raises:
            SearchError: an event is not as it was written.
        """
        return (each.event for each in self.entries(*kinds))

    def entries(self, *kinds: type[Event], after: int = 0) -> Iterator[Entry]:
        """As :meth:`events`, with place and time; only what stands behind number ``after``, for those who follow a run
        that goes on.

        Raises:
            SearchError: an event is not as it was written.
        """
        wanted = [kind.kind for kind in kinds]
        while rows := self._rows(after, wanted, _BATCH):
            yield from (Entry(row.seq, row.at, self._event(row)) for row in rows)
            after = rows[-1].seq

    def timed(self, *kinds: type[Event]) -> Iterator[tuple[float, Event]]:
        """:meth:`events`, each with the unix time at which it was written.

        Raises:
            SearchError: an event is not as it was written.
        """
        return ((each.at, each.event) for each in self.entries(*kinds))

    def started(self) -> RunStarted | None:
        """The first event, or None while the run is being set up.

        Raises:
            SearchError: it is not as it was written.
        """
        first = next(map(self._event, self._rows(0, [RunStarted.kind], 1)), None)
        return first if isinstance(first, RunStarted) else None

    def times(self) -> list[tuple[float, str]]:
        """(unix time, kind) of every event."""
        return list(self._query("SELECT at, kind FROM events ORDER BY seq"))

    def candidates(self, genomes: Mapping[int, Genome] | None = None) -> list[Candidate]:
        """All candidates by id.

        Args:
            genomes: by candidate, for who has read the log just now; what is missing there is looked up.

        Raises:
            SearchError: one is not as it was written.
        """
        query = "SELECT id, stage, label, recipe_hash, state, reason, duplicate_of FROM candidates ORDER BY id"
        # the table before the log: a candidate that is added meanwhile is then only in the latter
        rows = list(self._query(query))
        if genomes is None or not all(row[0] in genomes for row in rows):
            genomes = {each.candidate: each.genome for each in self.events(Asked) if isinstance(each, Asked)}
        try:
            return [
                Candidate(id, stage, label, genomes[id], recipe_hash, state, reason, of)
                for id, stage, label, recipe_hash, state, reason, of in rows
            ]
        except KeyError as error:
            raise damaged(self.path, f"candidate {error} is in a table, but not in the log") from error

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
        """evaluator -> item scores of one candidate, as they were written.

        Raises:
            SearchError: they are not as they were written.
        """
        digest = "digest" if self._format >= FORMAT else "x''"
        query = (
            "SELECT candidate, split, evaluator, item_set, metrics, scores, weights, statuses,"
            f" {digest} FROM item_scores WHERE candidate = ? AND split = ? ORDER BY evaluator"
        )
        result = {}
        for row in map(ItemRow._make, list(self._query(query, [candidate, split]))):
            if row.digest and not row.intact:
                raise damaged(self.path, f"{row} are not as they were written")
            try:
                result[row.evaluator] = item_scores(row, self._item_set(row.item_set))
            except (ValueError, IndexError) as error:
                raise damaged(self.path, f"{row} cannot be read ({error})") from error
        return result

    def seconds(self) -> dict[tuple[int, str], dict[str, float]]:
        """(candidate, split) -> what -> wall seconds."""
        result: dict[tuple[int, str], dict[str, float]] = {}
        for candidate, split, what, value in self._query("SELECT candidate, split, what, seconds FROM timings"):
            result.setdefault((candidate, split), {})[what] = value
        return result

    def _item_set(self, hash: str) -> tuple[str, ...]:
        if (known := self._sets.known(hash)) is not None:
            return known
        found = next(self._query("SELECT ids FROM item_sets WHERE hash = ?", [hash]), ("",))
        return self._sets.ids(hash, found[0])

    def _rows(self, after: int, kinds: Sequence[str], limit: int) -> list[EventRow]:
        digests = "items, previous, digest" if self._format >= FORMAT else "'', x'', x''"
        where = f"AND kind IN ({','.join('?' * len(kinds))})" if kinds else ""
        query = (
            f"SELECT seq, at, kind, candidate, payload, {digests} FROM events"
            f" WHERE seq > ? {where} ORDER BY seq LIMIT {limit}"
        )
        return [EventRow._make(row) for row in self._query(query, [after, *kinds])]

    def _event(self, row: EventRow) -> Event:
        if row.digest and not row.intact:
            raise damaged(self.path, f"{row} is not as it was written")
        if row.kind not in EVENTS:
            raise SearchError(f"{self.path}: {row} is of a kind that this version does not know; a newer one wrote it")
        try:
            return event_of(row.kind, row.payload)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(self.path, f"{row} cannot be read ({error})") from error

    def _query(self, sql: str, parameters: Sequence[Any] = ()) -> Iterator[Any]:
        with Reported(self.path):
            yield from self._connection.execute(sql, parameters)
