"""The store and the ledger alone, with planted events: a writer that dies at every statement, a disk that is full at
every page and in the midst of a line. No model and no torch, so that each moment can be tried."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import injecting
import numpy as np
import pytest
from searches import Snapshot

from evaluators.contract import ItemScores
from search.errors import SearchError
from search.events import Asked, Event, Scored, Told
from search.ledger import Ledger
from search.optimizers.contract import Genome, Outcome
from search.store import Store

CANDIDATES = 2


def transactions(items: int = 400) -> list[tuple[Event, ...]]:
    """What a search of a few candidates appends, call by call."""
    calls: list[tuple[Event, ...]] = []
    for id in range(CANDIDATES):
        values = np.random.default_rng(id).random(items)
        names = tuple(f"item {k}" for k in range(items))
        scores = ItemScores(names, {"accuracy": values}, {"accuracy": np.ones(items)}, ("ok",) * items)
        calls.append((Asked(id, 0, Genome((id / 10,) * 50), f"{id:064x}"),))
        calls.append(
            (
                Scored(id, "search", {"a.accuracy": 0.5}, {"a.accuracy": 0.1}, {"evaluate": 1.0}, scores={"a": scores}),
                Told(id, 0, Outcome("complete", (0.5,), (0.1,), items)),
            )
        )
    return calls


def go_on(folder: Path) -> None:
    """Append all that is not in the log yet."""
    store = Store.open(folder)
    done = sum(1 for _ in store.events())
    for call in transactions():
        if done < len(call):
            store.append(*call)
        done -= min(done, len(call))
    store.close()


def made(folder: Path) -> Path:
    folder.mkdir()
    Store.create(folder).close()
    return folder


def in_another_process(act: Callable[[], None]) -> int:
    """Its exit status; minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def logged(folder: Path) -> list[tuple[str, int | None]]:
    return [(kind, candidate) for _, kind, candidate, _ in Snapshot.of_copy(folder).log]


EVENTS = [(event.kind, event.candidate) for call in transactions() for event in call]  # type: ignore[attr-defined]
WHOLE = {sum(len(call) for call in transactions()[:count]) for count in range(2 * CANDIDATES + 1)}
"""So many events there can be where none is there without those of its transaction."""


@pytest.mark.slow
def test_a_writer_that_dies_before_every_statement(tmp_path: Path) -> None:
    """Each goes on where the last one died; what was there stays, and transactions are there whole or not at all."""
    undisturbed = made(tmp_path / "calm")
    go_on(undisturbed)
    assert logged(undisturbed) == EVENTS
    folder = made(tmp_path / "run")

    def struck(number: int) -> int:
        def act() -> None:
            injecting.kill_at_statement(number)
            go_on(folder)

        return in_another_process(act)

    before, kills, deepest = Snapshot([], {}, {}), 0, 0
    number = 1
    while struck(number) == -signal.SIGKILL:
        kills += 1
        found = Snapshot.of_copy(folder)
        assert before.lost(found) == []
        assert len(found.log) in WHOLE
        assert logged(folder) == EVENTS[: len(found.log)]
        # a process that dies at its first statements gets nowhere: the next one may do one more
        number = number + 1 if len(found.log) == len(before.log) else 1
        deepest = max(deepest, number)
        before = found
    assert kills > 10 * CANDIDATES
    assert deepest > 8
    assert Snapshot.of_copy(folder) == Snapshot.of_copy(undisturbed)


def test_a_database_that_is_full_at_every_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused transaction has left nothing, and with more room the same command goes on."""
    folder = made(tmp_path / "run")
    connect = sqlite3.connect
    pages, refused, before = 1, 0, Snapshot.of_copy(folder)
    while True:
        monkeypatch.setattr(sqlite3, "connect", connect)
        injecting.limit_pages(pages)
        try:
            go_on(folder)
        except SearchError as error:
            assert "full" in str(error)
            refused += 1
        else:
            break
        finally:
            monkeypatch.setattr(sqlite3, "connect", connect)
        found = Snapshot.of_copy(folder)
        assert before.lost(found) == []
        assert len(found.log) in WHOLE
        before = found
        pages += 1
    assert refused > 8
    assert logged(folder) == EVENTS


def test_a_ledger_of_which_a_part_is_written(tmp_path: Path) -> None:
    """A disk that takes the beginning of a line: refused, so that the holdout stays closed; the next entry is whole."""
    ledger = Ledger(tmp_path / "run")
    ledger.enter({"a": "first"}, ["r1"])
    size = ledger.path.stat().st_size

    def enter() -> None:
        injecting.limit_file_size(size + 20)
        with pytest.raises(SearchError, match="cannot be written"):
            Ledger(tmp_path / "run").enter({"a": "second"}, ["r2"])

    assert in_another_process(enter) == 0
    assert ledger.path.stat().st_size == size + 20
    assert ledger.openings({"a": "second"}).recipes == 0
    ledger.enter({"a": "second"}, ["r2"])
    assert ledger.openings({"a": "second"}).recipes == 1
    assert ledger.openings({"a": "first"}).recipes == 1
