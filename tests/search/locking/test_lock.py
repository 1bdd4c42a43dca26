"""One writer on a local disk: who is refused, who takes over, and how the file is made."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lock_holders import FakeTime, ended, files, foreign, hold_forever, until, write

from search import holders, lock_files
from search.errors import SearchError
from search.holders import Machine
from search.lock import LEASE, RunLock, holder, is_held


def test_a_living_holder_is_named_and_a_killed_one_succeeded_at_once(
    tmp_path: Path, clock: FakeTime, forked: Callable[[Callable[[], object]], int]
) -> None:
    hearing, telling = os.pipe()
    child = forked(lambda: hold_forever(tmp_path, telling))
    assert os.read(hearing, 4) == b"held"
    assert is_held(tmp_path)
    with pytest.raises(SearchError, match=rf"another process is writing .*host .*, pid {child}, since 20"):
        RunLock(tmp_path).__enter__()
    os.kill(child, 9)
    until(lambda: not is_held(tmp_path))
    with RunLock(tmp_path) as after_a_kill:
        assert is_held(tmp_path)
        assert f"pid {os.getpid()}" in holder(tmp_path)
        assert not after_a_kill.was_let_go
    assert not is_held(tmp_path)
    with RunLock(tmp_path) as after_an_end:
        assert after_an_end.was_let_go
    ended(child)
    assert clock.now == 1000.0, "nobody waited"


def test_one_process_holds_it_once(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        with pytest.raises(SearchError, match=f"pid {os.getpid()}"), RunLock(tmp_path):
            pass
        assert is_held(tmp_path)
    for _ in range(3):
        with RunLock(tmp_path):
            pass
    assert files(tmp_path) == ["run.lock.4"], "what came before is swept"


def test_a_child_that_outlives_its_parent_holds_nothing(
    tmp_path: Path, clock: FakeTime, forked: Callable[[Callable[[], object]], int]
) -> None:
    """A forked child keeps the kernel's lock of a driver that was killed: the driver's number tells that it is gone."""
    hearing, telling = os.pipe()

    def driver() -> None:
        with RunLock(tmp_path):
            child = os.fork()
            if child == 0:
                time.sleep(600)
            os.write(telling, f"{child:20d}".encode())
            time.sleep(600)

    parent = forked(driver)
    orphan = int(os.read(hearing, 20))
    os.kill(parent, 9)
    ended(parent)
    try:
        assert lock_files._is_locked(tmp_path / "run.lock.1"), "else this would not test anything"
        with RunLock(tmp_path):
            pass
    finally:
        os.kill(orphan, 9)


def test_a_forked_child_that_unwinds_lets_nothing_go(
    tmp_path: Path, forked: Callable[[Callable[[], object]], int]
) -> None:
    with RunLock(tmp_path) as mine:
        assert ended(forked(lambda: mine.__exit__(None, None, None))) == 0
        assert is_held(tmp_path)
        with pytest.raises(SearchError, match="another process"), RunLock(tmp_path):
            pass
    assert not is_held(tmp_path)


def test_a_holder_in_another_container_is_known_by_the_kernels_lock(
    tmp_path: Path, clock: FakeTime, forked: Callable[[Callable[[], object]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    hearing, telling = os.pipe()
    child = forked(lambda: hold_forever(tmp_path, telling))
    assert os.read(hearing, 4) == b"held"
    machine = holders.this_machine()
    monkeypatch.setattr(holders, "this_machine", lambda: Machine(machine.boot, "pid:[4]"))
    with pytest.raises(SearchError, match=f"pid {child}"), RunLock(tmp_path):
        pass
    assert is_held(tmp_path)
    os.kill(child, 9)
    ended(child)
    assert not is_held(tmp_path)
    with RunLock(tmp_path):
        pass


def test_a_machine_that_was_started_anew_waits_for_nobody(tmp_path: Path, clock: FakeTime) -> None:
    write(tmp_path, foreign(flock=True))
    with RunLock(tmp_path):
        pass


def test_a_holder_that_reached_a_local_disk_through_a_network_is_waited_for(tmp_path: Path, clock: FakeTime) -> None:
    """A server sees its own disk, on which a client's lock is a lease."""
    write(tmp_path, foreign())
    said: list[str] = []
    with RunLock(tmp_path, said.append):
        assert clock.now >= 1000.0 + LEASE
    assert len(said) == 1
    assert "node7" in said[0]
    assert "60 s" in said[0]


def test_a_copied_run_is_free(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with RunLock(tmp_path / "one"):
        shutil.copytree(tmp_path / "one", tmp_path / "two")
        assert not is_held(tmp_path / "two")
        with RunLock(tmp_path / "two"):
            assert is_held(tmp_path / "one")


def test_readers_disturb_no_writer(tmp_path: Path) -> None:
    done = threading.Event()
    seen = []

    def look() -> None:
        while not done.is_set():
            seen.append(is_held(tmp_path))

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for _ in range(10):
            with RunLock(tmp_path):
                assert is_held(tmp_path)
    finally:
        done.set()
        reader.join()
    assert seen


def test_readers_take_nobody_for_a_holder(tmp_path: Path) -> None:
    path = write(tmp_path, foreign(flock=True))
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as another reader does while it looks
        assert not is_held(tmp_path)
        with RunLock(tmp_path):
            assert is_held(tmp_path)


def test_a_lock_of_an_earlier_version_counts(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    path.write_text('{"host": "here", "pid": 1, "started": "once"}')
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert is_held(tmp_path)
        with pytest.raises(SearchError, match="its holder is unknown"), RunLock(tmp_path):
            pass
    assert not is_held(tmp_path)
    with RunLock(tmp_path):
        assert files(tmp_path) == ["run.lock.1"]


def test_what_killed_processes_left_is_swept(tmp_path: Path) -> None:
    for name in ("run.lock.new-abc", "run.lock.2", "run.lock.7", "run.lock.007", "run.lock.-1", "run.locks"):
        (tmp_path / name).write_bytes(b"")
    with RunLock(tmp_path):
        assert files(tmp_path) == ["run.lock.-1", "run.lock.007", "run.lock.8", "run.locks"]


def test_a_straggler_with_an_old_number_gives_way(tmp_path: Path) -> None:
    """It listed the folder long ago; the number that it goes for was given away, and swept."""
    with RunLock(tmp_path):
        pass
    with RunLock(tmp_path):
        before = files(tmp_path)
        assert lock_files.create(tmp_path, 1, "a" * 32, local=True) is None
        assert lock_files.create(tmp_path, 2, "a" * 32, local=True) is None, "it is there"
        assert files(tmp_path) == before == ["run.lock.2"]


def test_without_hard_links_the_file_is_made_exclusively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*paths: Path) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(lock_files.os, "link", none)
    with RunLock(tmp_path):
        assert files(tmp_path) == ["run.lock.1"]
        assert lock_files._is_locked(tmp_path / "run.lock.1")
        assert lock_files.create(tmp_path, 1, "a" * 32, local=True) is None
        with pytest.raises(SearchError, match="another process"), RunLock(tmp_path):
            pass


def test_a_link_that_was_made_though_the_server_said_no_is_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.link

    def twice(source: Path, target: Path) -> None:
        real(source, target)
        real(source, target)  # the client repeats a request whose answer it has lost

    monkeypatch.setattr(lock_files.os, "link", twice)
    with RunLock(tmp_path):
        assert files(tmp_path) == ["run.lock.1"]


def test_a_draft_that_a_winner_swept_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link
    swept: list[Path] = []

    def sweep_once(source: Path, target: Path) -> None:
        if not swept:
            swept.append(source)
            source.unlink()
        real(source, target)

    monkeypatch.setattr(lock_files.os, "link", sweep_once)
    with RunLock(tmp_path):
        assert swept
        assert files(tmp_path) == ["run.lock.1"]
