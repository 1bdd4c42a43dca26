"""Truncated files and flipped bytes, wherever they are: harmless, or found and named; and what is intact comes back."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import Launcher
from searches import Searches, Snapshot, inconsistencies

from evaluators.contract import ItemScores
from search import doctor
from search.cli import run_command
from search.doctor import examine, mend
from search.errors import SearchError
from search.events import Asked, Chosen, Failed, RungReached, RunStarted, Salvaged, Scored, Told
from search.optimizers.contract import Genome, Outcome
from search.store import DATABASE, Store

CANDIDATES = 16
IDS = tuple(f"item {k}" for k in range(100))

Content = tuple[list[str], dict[int, dict[str, bytes]], dict[int, Any], list[Any]]


def scores(seed: int, n: int) -> dict[str, ItemScores]:
    chance = np.random.default_rng(seed)
    return {
        name: ItemScores(IDS[:n], {"accuracy": chance.random(n)}, {"accuracy": np.ones(n)}, ("ok",) * n)
        for name in ("a", "b")
    }


def write(folder: Path) -> Store:
    """A log with rungs, scores on everything, early ends, failures: of pages of every kind, overflow pages too."""
    store = Store.create(folder)
    items = {name: {"search": list(IDS)} for name in ("a", "b")}
    store.append(RunStarted({}, {"base": "sha256:0"}, {}, [], [], {}, "hf", 1, [], [0.0], items))
    for id in range(CANDIDATES):
        store.append(Asked(id, 0, Genome(tuple(np.random.default_rng(id).random(40).tolist())), f"{id:064x}"))
        if id % 5 == 4:
            store.append(Failed(id, "search", "NaN"), Told(id, 0, Outcome("failed", reason="NaN")))
            continue
        rung = RungReached(id, 0, 40, {"a.accuracy": 0.5}, {"evaluate": 0.1}, None, {}, id % 3 == 2, scores(id, 20))
        if id % 3 == 2:
            store.append(rung, Told(id, 0, Outcome("censored", (0.5, 0.5), items=40)))
            continue
        store.append(rung)
        values = {"a.accuracy": 0.5, "b.accuracy": 0.25}
        store.append(
            Scored(id, "search", values, dict.fromkeys(values, 0.1), {"evaluate": 0.5}, scores=scores(id, 100)),
            Told(id, 0, Outcome("complete", (0.5, 0.25), (0.1, 0.1), 200)),
        )
    store.append(Chosen(0, "knee"))
    return store


def content(folder: Path) -> Content:
    """All that a reader gets.

    Raises:
        SearchError: it is refused.
    """
    store = Store.open(folder, read_only=True)
    try:
        candidates = store.candidates()
        items = {
            each.id: {
                name: found.values["accuracy"].tobytes() for name, found in store.item_scores(each.id, "search").items()
            }
            for each in candidates
        }
        log = [json.dumps([each.kind, each.payload()]) for each in store.events()]
        return log, items, store.scores("search"), candidates
    finally:
        store.close()


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a run that ended tidily."""
    folder = tmp_path_factory.mktemp("closed")
    write(folder).close()
    return {each.name: each.read_bytes() for each in folder.iterdir()}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a run that was killed: most of it is still in the write-ahead log."""
    folder = tmp_path_factory.mktemp("killed")
    child = os.fork()
    if child == 0:
        try:
            write(folder)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    return {each.name: each.read_bytes() for each in folder.iterdir() if not each.name.endswith("-shm")}


def place(files: dict[str, bytes], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def strikes(length: int, number: int, seed: int) -> Iterator[tuple[str, bytearray | None, int]]:
    """(what, mask to be XORed at a position, position or length that is left)."""
    chance = random.Random(seed)
    for turn in range(number):
        if turn % 4 == 3:
            yield "cut", None, chance.randrange(length)
            continue
        size = chance.choice((1, 1, 16, 700))
        # the first pages hold the header, the schema and the roots of the tables
        start = chance.randrange(min(length, 6 * 4096) if turn % 4 == 2 else length)
        yield "flip", bytearray(chance.randrange(1, 256) for _ in range(min(size, length - start))), start


def struck(data: bytes, mask: bytearray | None, position: int) -> bytes:
    if mask is None:
        return data[:position]
    changed = bytearray(data)
    for offset, bits in enumerate(mask):
        changed[position + offset] ^= bits
    return bytes(changed)


def opens(folder: Path) -> bool:
    try:
        Store.open(folder).close()
    except SearchError:
        return False
    return True


@pytest.mark.slow
def test_of_a_damaged_database_what_is_intact_comes_back(closed: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    place(closed, folder)
    truth = content(folder)
    assert examine(folder).problems == []
    harmless = salvaged = losses = 0
    for what, mask, position in strikes(len(closed[DATABASE]), 40, seed=1):
        case = f"{what} at {position}, {mask and len(mask)} bytes"
        place({DATABASE: struck(closed[DATABASE], mask, position)}, folder)
        try:
            read = content(folder)  # whoever only reads gets the truth, a paragraph, or tables that the log belies
        except SearchError:
            read = None
        problems = examine(folder).problems
        assert opens(folder) == (problems == []), (case, problems)
        if not problems:
            assert read == content(folder) == truth, case
            harmless += 1
            continue
        try:
            found = mend(folder)
        except SearchError as error:
            assert "begins the run" in str(error) and what == "cut", case
            continue
        assert found is not None
        salvaged += 1
        losses += found.lost.events_lost
        assert_is_part(content(folder), truth, case)
        # a page has few rows, and a row stands on few others
        assert what == "cut" or found.lost.events_lost <= 12, (case, found.lost)
        assert opens(folder), case
    assert harmless >= 4 and salvaged >= 16 and losses > 0


def assert_is_part(found: Content, truth: Content, case: str) -> None:
    """Nothing in it is new or otherwise, and every candidate that is concluded is whole."""
    log, items, aggregates, candidates = found
    true_log, true_items, true_aggregates, true_candidates = truth
    assert [each for each in log if each not in true_log] == log[-1:], case  # that it was salvaged
    assert json.loads(log[-1])[0] == Salvaged.kind
    true = {each.id: each for each in true_candidates}
    for each in candidates:
        if each.state == "running":
            continue
        assert each == true[each.id], case
        assert items[each.id] == true_items[each.id], case
        assert aggregates.get(each.id) == true_aggregates.get(each.id), case


@pytest.mark.slow
def test_of_a_damaged_log_that_was_not_merged_nothing_is_lost(killed: dict[str, bytes], tmp_path: Path) -> None:
    """Each page has several images there, and every row says itself whether it is whole. What SQLite silently takes
    for the end of the log is found; but for the very last transaction, which a power cut may have torn, too."""
    folder, ahead = tmp_path / "run", f"{DATABASE}-wal"
    place(killed, folder)
    truth = content(folder)
    found = salvaged = 0
    for what, mask, position in strikes(len(killed[ahead]), 22, seed=2):
        case = f"{what} at {position}, {mask and len(mask)} bytes"
        place({**killed, ahead: struck(killed[ahead], mask, position)}, folder)
        problems = examine(folder).problems
        assert opens(folder) == (problems == []), (case, problems)
        if not problems:
            log = content(folder)[0]
            assert log == truth[0][: len(log)], case
            # what was cut off leaves no trace; of what was changed at most one transaction is taken for torn
            assert what == "cut" or len(log) >= len(truth[0]) - 2, case
            continue
        found += 1
        mended = mend(folder)
        assert mended is not None
        assert mended.lost.events_lost <= 12, (case, mended.lost)
        salvaged += mended.lost.events_lost == 0
        assert_is_part(content(folder), truth, case)
    assert found >= 3 and salvaged >= found // 2


def test_an_emptied_file_is_damaged_and_its_log_is_kept(killed: dict[str, bytes], tmp_path: Path) -> None:
    """SQLite takes an empty file for a new database, and would remove the log that has all of it."""
    folder = tmp_path / "run"
    place(killed, folder)
    truth = content(folder)
    place({**killed, DATABASE: b""}, folder)
    for _ in range(2):
        assert not opens(folder) and examine(folder).problems == [f"{DATABASE} is empty"]
        with pytest.raises(SearchError, match="the file is empty"):
            content(folder)
    found = mend(folder)
    assert found is not None
    assert_is_part(content(folder), truth, "emptied")
    assert opens(folder)


def test_a_log_whose_database_is_gone_is_not_begun_anew(killed: dict[str, bytes], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    place(killed, folder)
    truth = content(folder)
    place({f"{DATABASE}-wal": killed[f"{DATABASE}-wal"]}, folder)
    with pytest.raises(SearchError, match=r"it is gone, but run.db-wal is there.*doctor"):
        Store.create(folder)
    assert run_command(["doctor", str(folder)]) == 2
    assert run_command(["doctor", str(folder), "--salvage"]) == 0
    assert_is_part(content(folder), truth, "gone")


def test_what_a_database_left_behind_does_not_get_into_the_next(killed: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / f"{DATABASE}-wal").write_bytes(killed[f"{DATABASE}-wal"][:3000])  # no whole transaction
    (tmp_path / f"{DATABASE}-journal").write_bytes(killed[DATABASE])
    Store.create(tmp_path).close()
    assert content(tmp_path)[0] == [] and opens(tmp_path)


@pytest.mark.parametrize("data", [b"", b"x", b"SQLite format 3\0", bytes(5000), b"not a database at all" * 500])
def test_what_is_no_database_is_said_to_be_none(
    data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / DATABASE).write_bytes(data)
    assert not opens(tmp_path)
    for command in (["doctor", str(tmp_path)], ["doctor", str(tmp_path), "--salvage"], ["status", str(tmp_path)]):
        assert run_command(command) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_doctor_says_what_is_intact(
    closed: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    place(closed, folder)
    assert run_command(["doctor", str(folder), "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["intact"] and report["problems"] == [] and report["salvaged"] is None
    assert (report["format"], report["journal"], report["fence"], report["holder"]) == ("3", "wal", 1, None)
    states = {"complete": 9, "censored": 4, "failed": 3}
    assert report["candidates"] == states and report["scores"] == {"search": 9} and report["item_scores"] == 26
    assert report["disk_free"] > 0 and not any(report["files"].values())
    assert run_command(["doctor", str(folder)]) == 0
    assert f"{folder}: intact" in capsys.readouterr().out

    connection = sqlite3.connect(folder / DATABASE)
    with connection:
        connection.execute("UPDATE item_scores SET scores = weights WHERE candidate = 3")
    connection.close()
    assert run_command(["doctor", str(folder)]) == 2
    out = capsys.readouterr().out
    assert "damaged: item scores of candidate 3 (search, a)" in out and "--salvage" in out
    assert run_command(["doctor", str(folder), "--salvage", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    brought = report["salvaged"]
    assert report["intact"] and brought["candidates_lost"] == 1 and "to be evaluated again: 3" in brought["detail"]
    assert report["candidates"] == {**states, "complete": 8, "running": 1}
    assert Path(brought["damaged_file"]).exists()
    assert run_command(["doctor", str(folder), "--salvage"]) == 0
    assert "intact" in capsys.readouterr().out


def test_the_doctor_says_what_it_could_read_before_it_could_not(
    closed: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events can be counted, and then a page of a later table is broken."""
    folder = tmp_path / "run"
    place(closed, folder)
    count = doctor._count

    def broken(connection: sqlite3.Connection, query: str) -> int:
        if "item_scores" in query:
            raise sqlite3.DatabaseError("database disk image is malformed")
        return count(connection, query)

    monkeypatch.setattr("search.doctor._count", broken)
    assert run_command(["doctor", str(folder)]) == 2
    out = capsys.readouterr().out
    assert "damaged: database disk image is malformed" in out and "candidates: " in out and "--salvage" in out


def test_without_a_run_there_is_nothing_to_examine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor", str(tmp_path)]) == 2
    assert "expected a run directory" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_run_goes_on_after_its_salvage(launcher: Launcher, calm: Searches) -> None:
    """Bytes are flipped all over a finished run: it is refused, salvaged, and comes to its end again."""
    run = calm.run("damaged")
    shutil.copytree(calm.run("calm"), run)
    data = bytearray((run / DATABASE).read_bytes())
    chance = random.Random(3)
    for position in (chance.randrange(len(data) // 3, len(data)) for _ in range(12)):
        data[position] ^= 0x55
    (run / DATABASE).write_bytes(data)
    again = ("run", "config.yaml", "--display", "none", "--name", "damaged")
    refused = launcher.start(*again, folder=calm.folder, environment=calm.environment("damaged"))
    assert refused.wait() == 2 and "doctor" in refused.output, refused.output
    salvage = launcher.start("doctor", "runs/damaged", "--salvage", folder=calm.folder)
    assert salvage.wait() == 0, salvage.output
    goes_on = launcher.start(*again, folder=calm.folder, environment=calm.environment("damaged"))
    assert goes_on.wait() == 0, goes_on.output
    found, truth = Snapshot.of(run), Snapshot.of(calm.run("calm"))
    assert found.concluded.keys() == truth.concluded.keys()
    assert [fault for fault in inconsistencies(run) if "otherwise" not in fault] == []
