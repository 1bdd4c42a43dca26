"""Where nobody can be asked: who waits, and what a holder does while it holds."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from lock_holders import SHORT, FakeTime, ended, files, foreign, hold_forever, until, write

from search import lock_files
from search.errors import Interrupted, SearchError
from search.holders import Holder
from search.lock import LEASE, RunLock, holder, is_held


@pytest.mark.usefixtures("shared")
def test_a_silent_holder_elsewhere_is_succeeded_after_its_whole_lease(tmp_path: Path, clock: FakeTime) -> None:
    write(tmp_path, foreign(beat=17))
    said: list[str] = []
    with RunLock(tmp_path, said.append):
        assert LEASE <= clock.now - 1000.0 < LEASE + 2
        assert f"pid {os.getpid()}" in holder(tmp_path)
    assert len(said) == 1
    assert f"host node7, pid {os.getpid()}" in said[0]


@pytest.mark.parametrize("beats_at", [0.0, 14.0, 44.0, 58.0])
@pytest.mark.usefixtures("shared")
def test_one_beat_within_the_lease_refuses(beats_at: float, tmp_path: Path, clock: FakeTime) -> None:
    path = write(tmp_path, foreign(beat=17))
    clock.plan.append((beats_at, lambda: path.write_bytes(foreign(beat=18).to_bytes())))
    with pytest.raises(SearchError, match=r"another process is writing .*node7"), RunLock(tmp_path, lambda line: None):
        pass
    assert clock.now - 1000.0 <= beats_at + 2
    assert files(tmp_path) == ["run.lock.1"]


@pytest.mark.usefixtures("shared")
def test_a_holder_that_lets_go_while_it_is_watched_is_succeeded_at_once(tmp_path: Path, clock: FakeTime) -> None:
    path = write(tmp_path, foreign(beat=17))
    clock.plan.append((5.0, lambda: path.write_bytes(foreign(beat=17, released=True).to_bytes())))
    with RunLock(tmp_path, lambda line: None):
        assert clock.now - 1000.0 < 7


@pytest.mark.usefixtures("shared")
def test_somebody_else_who_takes_over_first_is_watched_from_then_on(tmp_path: Path, clock: FakeTime) -> None:
    write(tmp_path, foreign())
    other = replace(foreign(), token="e" * 32, host="node8")
    clock.plan.append((50.0, lambda: write(tmp_path, other, 2)))
    said: list[str] = []
    with RunLock(tmp_path, said.append):
        assert clock.now - 1000.0 >= 50.0 + LEASE
    assert ["node7" in said[0], "node8" in said[1]] == [True, True]


@pytest.mark.usefixtures("shared")
def test_waiting_can_be_stopped(tmp_path: Path, clock: FakeTime) -> None:
    write(tmp_path, foreign())
    asked = iter([False, False, True])
    with pytest.raises(Interrupted), RunLock(tmp_path, lambda line: None, lambda: next(asked)):
        pass
    assert clock.now < 1000.0 + 5
    assert files(tmp_path) == ["run.lock.1"]


@pytest.mark.usefixtures("shared")
def test_on_one_machine_a_lease_waits_for_nobody(
    tmp_path: Path, clock: FakeTime, forked: Callable[[Callable[[], object]], int]
) -> None:
    hearing, telling = os.pipe()
    child = forked(lambda: hold_forever(tmp_path, telling))
    assert os.read(hearing, 4) == b"held"
    assert not lock_files._is_locked(tmp_path / "run.lock.1"), "else the kernel's lock would answer"
    assert is_held(tmp_path)
    with pytest.raises(SearchError, match=f"pid {child}"), RunLock(tmp_path):
        pass
    os.kill(child, 9)
    ended(child)
    assert not is_held(tmp_path)
    with RunLock(tmp_path):
        assert clock.now == 1000.0


@pytest.mark.usefixtures("shared")
def test_a_display_guesses_by_the_last_beat(tmp_path: Path) -> None:
    path = write(tmp_path, foreign())
    assert is_held(tmp_path)
    os.utime(path, (time.time() - 2 * LEASE,) * 2)
    assert not is_held(tmp_path)
    write(tmp_path, foreign(released=True))
    assert not is_held(tmp_path)


def test_a_holder_beats_in_place(tmp_path: Path) -> None:
    with RunLock(tmp_path, _lease=SHORT):
        path = tmp_path / "run.lock.1"
        inode = path.stat().st_ino

        def beat() -> int:
            record = Holder.from_bytes(path.read_bytes())
            return record.beat if record else -1

        until(lambda: beat() > 3)
        assert path.stat().st_ino == inode
    last = beat()
    time.sleep(SHORT)
    assert beat() == last, "after it let go it is silent"


def test_a_successor_is_noticed_and_left_alone(tmp_path: Path) -> None:
    with RunLock(tmp_path, _lease=SHORT) as mine:
        assert not mine.lost
        mine.refuse_if_lost()
        theirs = write(tmp_path, foreign(), 2)
        (tmp_path / "run.lock.1").unlink()
        until(lambda: mine.lost)
        with pytest.raises(SearchError, match=r"no longer holds the run .*node7.*same command resumes"):
            mine.refuse_if_lost()
    assert theirs.read_bytes() == foreign().to_bytes()
    assert files(tmp_path) == ["run.lock.2"]


def test_a_file_of_the_same_number_that_is_not_ones_own_is_a_loss(tmp_path: Path) -> None:
    with RunLock(tmp_path, _lease=SHORT) as mine:
        (tmp_path / "run.lock.1").unlink()
        theirs = write(tmp_path, foreign(), 1)
        until(lambda: mine.lost)
    assert theirs.read_bytes() == foreign().to_bytes()


def test_a_lock_file_deleted_by_hand_is_put_back(tmp_path: Path) -> None:
    with RunLock(tmp_path, _lease=SHORT) as mine:
        (tmp_path / "run.lock.1").unlink()
        until(lambda: files(tmp_path) == ["run.lock.2"])
        assert is_held(tmp_path)
        with pytest.raises(SearchError, match="another process"), RunLock(tmp_path, _lease=SHORT):
            pass
        assert not mine.lost
    assert not is_held(tmp_path)


def test_a_run_directory_that_is_removed_is_a_loss(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with RunLock(run, _lease=SHORT) as mine:
        shutil.rmtree(run)
        until(lambda: mine.lost)
        with pytest.raises(SearchError, match="directory was removed"):
            mine.refuse_if_lost()
    assert not run.exists()


def test_a_beat_that_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = []
    real = os.pwrite

    def full(handle: int, content: bytes, offset: int) -> int:
        if len(failures) < 3:
            failures.append(1)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(handle, content, offset)

    with RunLock(tmp_path, _lease=SHORT) as mine:
        monkeypatch.setattr(lock_files.os, "pwrite", full)
        found = lock_files.latest(tmp_path)
        assert found is not None
        until(lambda: lock_files.latest(tmp_path) != found)
        assert len(failures) == 3
        assert not mine.lost
    assert not is_held(tmp_path)
