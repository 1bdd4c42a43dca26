"""Who has lost a run, or its file, writes no more; and is told so."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from search.errors import SearchError
from search.events import Asked, Chosen, RunStarted
from search.optimizers.contract import Genome
from search.store import DATABASE, Store

STARTED = RunStarted({}, {"base": "sha256:0"}, {}, [], [], {}, "hf", 1, [], [0.0], {})


def asked(id: int) -> Asked:
    return Asked(id, 0, Genome((0.5,)), f"hash {id}")


def fence(folder: Path) -> int:
    connection = sqlite3.connect(folder / DATABASE)
    try:
        return int(connection.execute("SELECT value FROM meta WHERE key = 'fence'").fetchone()[0])
    finally:
        connection.close()


def test_whoever_opens_a_run_for_writing_ends_the_writing_of_the_one_before(tmp_path: Path) -> None:
    first = Store.create(tmp_path)
    first.append(asked(0))
    second = Store.open(tmp_path)
    second.append(asked(1))
    for _ in range(2):
        with pytest.raises(SearchError, match=r"another process has taken this run over; this one has stopped writing"):
            first.append(asked(2))
    third = Store.open(tmp_path)
    third.append(asked(2))
    with pytest.raises(SearchError, match="taken this run over"):
        second.append(asked(3))
    assert [each.id for each in third.candidates()] == [0, 1, 2]
    assert fence(tmp_path) == 3
    for store in (first, second, third):
        store.close()


def test_reading_takes_nothing_over(tmp_path: Path) -> None:
    writer = Store.create(tmp_path)
    reader = Store.open(tmp_path, read_only=True)
    assert fence(tmp_path) == 1
    writer.append(asked(0))
    with pytest.raises(SearchError, match="readonly"):
        reader.append(asked(1))
    assert [each.id for each in reader.candidates()] == [0]
    reader.close()
    writer.close()


def test_a_store_that_was_written_to_past_it_stops(tmp_path: Path) -> None:
    """With its fence, but without its knowledge: a copy that was put back over the file, for instance."""
    store = Store.create(tmp_path)
    store.append(asked(0))
    connection = sqlite3.connect(tmp_path / DATABASE)
    with connection:
        connection.execute("INSERT INTO events VALUES (2, 0.0, 'chosen', NULL, '{}', '', x'', x'')")
    connection.close()
    with pytest.raises(SearchError, match="its last event is not number 1, which this process wrote"):
        store.append(asked(1))
    store.close()


def removed(folder: Path) -> None:
    shutil.rmtree(folder)


def moved(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def deleted(folder: Path) -> None:
    (folder / DATABASE).unlink()


def replaced(folder: Path) -> None:
    shutil.copy(folder / DATABASE, folder / "copy")
    (folder / "copy").replace(folder / DATABASE)


def without_its_log(folder: Path) -> None:
    (folder / f"{DATABASE}-wal").unlink()


@pytest.mark.parametrize("how", [removed, moved, deleted, replaced, without_its_log])
def test_a_file_that_is_gone_takes_no_more(how: Callable[[Path], None], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    store = Store.create(folder)
    store.append(STARTED, asked(0))
    how(folder)
    for _ in range(2):
        with pytest.raises(SearchError, match=r"was (removed|replaced) while the run was writing to it"):
            store.append(asked(1))
    store.close()
    assert how not in (removed, moved) or not folder.exists()
    assert how is not deleted or not (folder / DATABASE).exists()


@pytest.mark.parametrize("how", [removed, deleted, replaced])
def test_a_file_that_goes_in_mid_transaction_is_not_said_to_be_stored(
    how: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    store = Store.create(folder)
    write = Store._write

    def interrupted(self: Store, *arguments: object) -> object:
        result = write(self, *arguments)  # type: ignore[arg-type]
        how(folder)
        return result

    monkeypatch.setattr(Store, "_write", interrupted)
    with pytest.raises(SearchError, match=r"was (removed|replaced)|I/O"):
        store.append(asked(0))
    store.close()


def test_on_a_network_file_system_the_journal_is_rolled_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.filesystems.journal_for", lambda folder: "delete")
    store = Store.create(tmp_path)
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA
    store.append(STARTED, asked(0))
    assert not (tmp_path / f"{DATABASE}-wal").exists()
    reader = Store.open(tmp_path, read_only=True)
    assert len(reader.candidates()) == 1
    reader.close()
    store.close()
    # a run that was copied to a local disk goes on with the faster journal there, and back again
    for mode, synchronous in (("wal", 2), ("delete", 3)):
        monkeypatch.setattr("search.filesystems.journal_for", lambda folder, mode=mode: mode)
        store = Store.open(tmp_path)
        assert store._connection.execute("PRAGMA journal_mode").fetchone() == (mode,)
        assert store._connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
        store.append(Chosen(0, mode))
        store.close()
    store = Store.open(tmp_path, read_only=True)
    assert [each.rule for each in store.events(Chosen) if isinstance(each, Chosen)] == ["wal", "delete"]
    store.close()


def test_a_refused_file_system_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> str:
        raise SearchError("no locks there")

    monkeypatch.setattr("search.filesystems.journal_for", refuse)
    with pytest.raises(SearchError, match="no locks there"):
        Store.create(tmp_path)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    Store.create(tmp_path).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's folder is made by root")
def test_a_run_where_nothing_can_be_written_is_still_read() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        folder.mkdir()
        folder.parent.chmod(0o755)
        store = Store.create(folder)
        store.append(STARTED, asked(0))
        store.close()
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                os.setuid(65534)
                store = Store.open(folder, read_only=True)
                status = 0 if [each.id for each in store.candidates()] == [0] else 2
                store.close()
            os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [each.name for each in folder.iterdir()] == [DATABASE]
