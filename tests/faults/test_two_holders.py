"""A holder that slept while another process took its run over wakes up: it must not write.

Real processes, stopped and continued by signals. They share this machine, but believe to be on two, with a network file
system between them: neither the other's process number nor the kernel's lock can be asked, only the beat.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from search import holders, lock
from search.errors import SearchError
from search.events import Asked
from search.filesystems import FileSystem
from search.holders import Machine
from search.lock import RunLock, holder, is_held
from search.optimizers.contract import Genome
from search.store import Store

LEASE = 0.5

Fork = Callable[[Callable[[], object]], int]


def stand_on(patch: pytest.MonkeyPatch, machine: str) -> None:
    patch.setattr(holders, "this_machine", lambda: Machine(machine, ""))
    patch.setattr(lock, "file_system_of", lambda path: FileSystem("nfs4", path))
    patch.setattr("search.filesystems.journal_for", lambda folder: "delete")


def asked(id: int, label: str) -> Asked:
    return Asked(id, 0, Genome(()), f"{label} {id}")


def hashes(folder: Path) -> list[str]:
    store = Store.open(folder, read_only=True)
    try:
        return [each.recipe_hash for each in store.candidates()]
    finally:
        store.close()


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)


def wake(pid: int) -> int:
    """Continue it; how it ended."""
    os.kill(pid, signal.SIGCONT)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_one_that_wakes_after_its_lease_was_taken_writes_nothing(
    tmp_path: Path, forked: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    hearing, telling = os.pipe()
    going, go = os.pipe()

    def first() -> None:
        stand_on(monkeypatch, "machine one")
        with RunLock(tmp_path, _lease=LEASE) as mine:
            store = Store.create(tmp_path)
            for id in range(3):
                store.append(asked(id, "first"))
            os.write(telling, b"ready")
            os.read(going, 1)
            # before any beat could tell it: the fence alone stands here
            with pytest.raises(SearchError, match="another process has taken this run over"):
                store.append(asked(3, "first"))
            deadline = time.monotonic() + 30
            while not mine.lost:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with pytest.raises(SearchError, match="no longer holds the run"):
                mine.refuse_if_lost()
            with pytest.raises(SearchError, match="another process has taken this run over"):
                store.append(asked(4, "first"))
            store.close()

    child = forked(first)
    assert os.read(hearing, 5) == b"ready"
    stand_on(monkeypatch, "machine two")
    with pytest.raises(SearchError, match=f"pid {child}"), RunLock(tmp_path, lambda line: None, _lease=LEASE):
        pass  # it beats
    stop(child)
    said: list[str] = []
    with RunLock(tmp_path, said.append, _lease=LEASE):
        assert len(said) == 1, "one is told what is waited for"
        assert f"pid {child}" in said[0]
        store = Store.open(tmp_path)
        store.append(asked(3, "second"))
        os.write(go, b"!")
        assert wake(child) == 0
        assert f"pid {os.getpid()}" in holder(tmp_path), "its record is this process's still"
        assert is_held(tmp_path)
        store.append(asked(4, "second"))
        store.close()
    assert hashes(tmp_path) == ["first 0", "first 1", "first 2", "second 3", "second 4"]
    Store.open(tmp_path).close()  # verifies all of it


def test_one_that_sleeps_inside_a_transaction_is_waited_for_by_the_database(
    tmp_path: Path, forked: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease is taken, the database's own lock is not: what was begun is finished first, or not at all."""
    hearing, telling = os.pipe()

    def first() -> None:
        stand_on(monkeypatch, "machine one")
        with RunLock(tmp_path, _lease=LEASE):
            store = Store.create(tmp_path)
            store.append(asked(0, "first"))

            def sleep(statement: str) -> None:
                if statement == "COMMIT":
                    os.write(telling, b"inside")
                    store._connection.set_trace_callback(None)
                    os.kill(os.getpid(), signal.SIGSTOP)

            store._connection.set_trace_callback(sleep)
            store.append(asked(1, "first"))
            with pytest.raises(SearchError, match="another process has taken this run over"):
                for id in range(2, 10_000):
                    store.append(asked(id, "first"))
                    time.sleep(0.002)
            store.close()

    child = forked(first)
    assert os.read(hearing, 6) == b"inside"
    os.waitpid(child, os.WUNTRACED)
    stand_on(monkeypatch, "machine two")
    with RunLock(tmp_path, lambda line: None, _lease=LEASE):
        with monkeypatch.context() as patch:
            connect = sqlite3.connect
            patch.setattr(sqlite3, "connect", lambda *given, **named: connect(*given, **{**named, "timeout": 0.1}))
            with pytest.raises(SearchError, match="locked"):
                Store.open(tmp_path)
        os.kill(child, signal.SIGCONT)
        store = Store.open(tmp_path)
        count = len(list(store.candidates()))
        store.append(asked(count, "second"))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        store.append(asked(count + 1, "second"))
        store.close()
    assert count >= 2, "the transaction that was begun is there"
    assert hashes(tmp_path) == [f"{'first' if id < count else 'second'} {id}" for id in range(count + 2)]
    Store.open(tmp_path).close()


def test_one_that_sleeps_on_this_machine_is_not_gone(tmp_path: Path, forked: Fork) -> None:
    hearing, telling = os.pipe()

    def first() -> None:
        with RunLock(tmp_path, _lease=LEASE):
            os.write(telling, b"ready")
            time.sleep(0.1)

    child = forked(first)
    assert os.read(hearing, 5) == b"ready"
    stop(child)
    time.sleep(2 * LEASE)
    with pytest.raises(SearchError, match=f"pid {child}"), RunLock(tmp_path, _lease=LEASE):
        pass
    assert wake(child) == 0
    with RunLock(tmp_path):
        pass
