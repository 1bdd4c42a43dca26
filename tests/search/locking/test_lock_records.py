"""What a lock file says, and what is made of one that says something else."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lock_holders import FakeTime, ended, files, foreign, until

from search import lock_files
from search.errors import SearchError
from search.holders import RECORD_BYTES, Holder, this_process
from search.lock import LEASE, RunLock, holder, is_held


def test_a_record_is_read_back_and_judged() -> None:
    me = this_process("0" * 32, flock=True)
    assert Holder.from_bytes(me.to_bytes()) == me
    assert len(me.to_bytes()) == RECORD_BYTES
    assert me.process() == "running"
    assert replace(me, start=me.start - 100).process() == "ended", "its number was given to another process"
    assert replace(me, boot="another").process() == "out of sight"
    assert replace(me, namespace="pid:[1]").process() == "out of sight"
    assert str(os.getpid()) in str(me)


def test_the_number_of_a_process_that_ended_is_free_also_before_its_parent_has_noticed(
    forked: Callable[[Callable[[], object]], int],
) -> None:
    child = forked(lambda: None)
    until(lambda: psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    start = psutil.Process(child).create_time() - psutil.boot_time()
    record = replace(this_process("0" * 32, flock=False), pid=child, start=start)
    assert record.process() == "ended"
    ended(child)
    assert record.process() == "ended"


def test_a_process_whose_threads_are_still_leaving_has_not_ended(forked: Callable[[Callable[[], object]], int]) -> None:
    """A killed process is a zombie at once; its files are closed, and its locks freed, when its last thread goes."""

    def leave_a_thread() -> None:
        threading.Thread(target=time.sleep, args=(600,)).start()
        exit_of_one_thread = {"x86_64": 60, "aarch64": 93}[platform.machine()]
        ctypes.CDLL(None).syscall(exit_of_one_thread, 0)

    child = forked(leave_a_thread)
    until(lambda: psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    start = psutil.Process(child).create_time() - psutil.boot_time()
    record = replace(this_process("0" * 32, flock=False), pid=child, start=start)
    assert record.process() == "running"
    os.kill(child, signal.SIGKILL)
    until(lambda: record.process() == "ended")


def test_a_set_clock_ends_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel moves its boot time with the clock; a start is counted from it, and so stays."""
    me = this_process("0" * 32, flock=False)
    booted = psutil.boot_time()
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: booted + 7200)
    monkeypatch.setattr(psutil, "boot_time", lambda: booted + 7200)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert me.process() == "running"


def test_a_process_that_begins_itself_anew_is_not_held_up_by_what_it_was(tmp_path: Path) -> None:
    """exec keeps number and start. Where flock cannot be asked the new program would take itself for the holder."""
    code = """
import os, sys
from pathlib import Path
from search import lock
from search.filesystems import FileSystem
from search.lock import RunLock

folder = Path(sys.argv[1])
lock.file_system_of = lambda path: FileSystem("nfs4", path)
with RunLock(folder):
    if len(sys.argv) == 2:
        os.execv(sys.executable, [*sys.orig_argv, "again"])
    print("taken")
"""
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (ended.stdout, ended.returncode) == ("taken\n", 0), ended.stderr


@given(st.binary(max_size=RECORD_BYTES + 10))
def test_garbage_is_nobody(content: bytes) -> None:
    assert Holder.from_bytes(content) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"host": "a\x1b[2Jb"},
        {"host": 3},
        {"since": "line\nbreak"},
        {"pid": 0},
        {"pid": -1},
        {"pid": 2**40},
        {"pid": "1"},
        {"pid": True},
        {"beat": -1},
        {"start": float("nan")},
        {"released": 0},
        {"token": None},
    ],
)
def test_a_record_from_a_stranger_is_checked(changes: dict[str, Any]) -> None:
    assert Holder.from_bytes(replace(foreign(), **changes).to_bytes()) is None


@pytest.mark.parametrize("content", [b"", b"\0" * 1024, b"[" * 1024, b"{}", b"\xff\xfe", b"x" * 100_000])
def test_a_lock_file_that_says_nothing_is_taken_over(content: bytes, tmp_path: Path, clock: FakeTime) -> None:
    (tmp_path / "run.lock.1").write_bytes(content)
    assert not is_held(tmp_path)
    assert holder(tmp_path) == "its holder is unknown"
    with RunLock(tmp_path):
        assert clock.now == 1000.0


@pytest.mark.parametrize("content", [b"", b"\0" * 1024])
@pytest.mark.usefixtures("shared")
def test_elsewhere_it_is_taken_over_after_a_lease(content: bytes, tmp_path: Path, clock: FakeTime) -> None:
    (tmp_path / "run.lock.1").write_bytes(content)
    with RunLock(tmp_path, lambda line: None):
        assert clock.now >= 1000.0 + LEASE


def test_a_folder_a_link_or_a_pipe_of_that_name_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    for place, make in {
        "folder": Path.mkdir,
        "link": lambda path: path.symlink_to(tmp_path / "victim"),
        "loose link": lambda path: path.symlink_to(tmp_path / "none"),
        "pipe": os.mkfifo,
    }.items():
        run = tmp_path / place
        run.mkdir()
        make(run / "run.lock.3")
        with pytest.raises(SearchError, match=r"run\.lock\.3 is not a lock file"), RunLock(run):
            pass
        assert not is_held(run)
        assert files(run) == ["run.lock.3"]
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EIO])
def test_a_folder_that_takes_no_file_is_a_users_error(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *rest)

    monkeypatch.setattr(lock_files.os, "open", refuse)
    with pytest.raises(SearchError, match="expected a run directory that can be written") as refused, RunLock(tmp_path):
        pass
    assert "\n" not in str(refused.value)
    assert files(tmp_path) == []


def test_a_missing_folder_is_a_users_error(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "none")
    assert holder(tmp_path / "none") == "its holder is unknown"
    with pytest.raises(SearchError, match="No such file"), RunLock(tmp_path / "none"):
        pass


def test_a_read_only_folder_can_be_looked_at_and_not_taken(
    tmp_path: Path, forked: Callable[[Callable[[], object]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the way here may be barred to the user that the child becomes

    def look(held: bool, reason: str) -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        assert is_held(Path()) == held
        assert f"pid {os.getppid()}" in holder(Path())
        with pytest.raises(SearchError, match=reason), RunLock(Path()):
            pass

    try:
        with RunLock(tmp_path):
            tmp_path.chmod(0o555)
            assert ended(forked(lambda: look(True, "another process is writing"))) == 0
        assert ended(forked(lambda: look(False, "not this user's"))) == 0
    finally:
        tmp_path.chmod(0o755)
    assert files(tmp_path) == ["run.lock.1"]
