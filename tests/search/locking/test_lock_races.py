"""Many processes that want one run at the same instant: one has it, whoever is killed meanwhile."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import random
import select
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from lock_holders import ended, files, foreign, write

from search import holders, lock, lock_files
from search.errors import SearchError
from search.filesystems import FileSystem
from search.holders import Machine
from search.lock import RunLock

Fork = Callable[[Callable[[], object]], int]

PROCESSES = 6


@dataclass(frozen=True)
class Place:
    """What the processes can rely on.

    Attributes:
        local: the kernel's lock.
        links: link(2).
        neighbours: they see each other's process numbers.
    """

    local: bool
    links: bool
    neighbours: bool

    def enter(self, patch: pytest.MonkeyPatch) -> None:
        """Make this process believe that it is there."""
        kind = "ext4" if self.local else "nfs4"
        patch.setattr(lock, "file_system_of", lambda path: FileSystem(kind, path))
        if not self.links:
            patch.setattr(lock_files.os, "link", refuse_to_link)
        if not self.neighbours:
            boot = str(os.getpid())
            patch.setattr(holders, "this_machine", lambda: Machine(boot, ""))


def refuse_to_link(*paths: Path) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


LOCAL = Place(local=True, links=True, neighbours=True)
LOCAL_UNLINKED = Place(local=True, links=False, neighbours=True)
SHARED = Place(local=False, links=True, neighbours=True)
CONTAINERS = Place(local=True, links=True, neighbours=False)
STRANGERS = Place(local=False, links=True, neighbours=False)


@pytest.mark.slow
@pytest.mark.parametrize("place", [LOCAL, LOCAL_UNLINKED, SHARED, CONTAINERS])
@pytest.mark.parametrize("before", ["nothing", "released", "dead"])
def test_at_one_instant_one_wins(
    before: str, place: Place, tmp_path: Path, forked: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    if before != "nothing":
        write(tmp_path, foreign(released=before == "released"))  # "dead": all wait for its lease, and end it together
    context = multiprocessing.get_context("fork")
    start, finish = context.Barrier(PROCESSES), context.Barrier(PROCESSES)
    hearing, telling = os.pipe()

    def want() -> None:
        place.enter(monkeypatch)
        start.wait(30)
        try:
            with RunLock(tmp_path, lambda line: None, _lease=0.3 if place.neighbours or place.local else 5.0):
                os.write(telling, b"w")
                finish.wait(30)
        except SearchError:
            os.write(telling, b"r")
            finish.wait(30)

    children = [forked(want) for _ in range(PROCESSES)]
    assert [ended(each) for each in children] == [0] * PROCESSES
    assert Counter(os.read(hearing, 100).decode()) == {"w": 1, "r": PROCESSES - 1}
    assert len(files(tmp_path)) == 1


def take_again_and_again(folder: Path, arbiter: Path, telling: int, place: Place, lease: float) -> None:
    """Take the lock and let it go until killed; tell of every time, and of every time that another was inside."""
    with pytest.MonkeyPatch.context() as patch:
        place.enter(patch)
        while True:
            try:
                with RunLock(folder, lambda line: None, _lease=lease):
                    handle = os.open(arbiter, os.O_RDWR | os.O_CREAT)
                    try:
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        os.write(telling, b"V")
                    time.sleep(random.random() * 0.003)
                    os.close(handle)
                    os.write(telling, b"t")
            except SearchError:
                time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("place", [LOCAL, LOCAL_UNLINKED, SHARED])
def test_never_two_inside_whoever_is_killed(place: Place, tmp_path: Path, forked: Fork) -> None:
    run, arbiter = tmp_path / "run", tmp_path / "arbiter"
    run.mkdir()
    hearing, telling = os.pipe()
    chance = random.Random(7)

    def worker() -> None:
        take_again_and_again(run, arbiter, telling, place, 60.0)

    told = ""
    children = [forked(worker) for _ in range(3)]
    for _ in range(25):
        time.sleep(0.02 + 0.02 * chance.random())
        os.kill(children[0], signal.SIGKILL)
        ended(children.pop(0))
        children.append(forked(worker))
        if select.select([hearing], [], [], 0)[0]:
            told += os.read(hearing, 65536).decode()
    for each in children:
        os.kill(each, signal.SIGKILL)
        ended(each)
    assert "V" not in told
    assert told.count("t") >= 10
    with pytest.MonkeyPatch.context() as patch:
        place.enter(patch)
        with RunLock(run):
            assert len(files(run)) == 1


def test_strangers_take_turns(tmp_path: Path, forked: Fork) -> None:
    """Where nobody sees the other's process or kernel: the links alone decide, and what has been let go is free."""
    run, arbiter = tmp_path / "run", tmp_path / "arbiter"
    run.mkdir()
    hearing, telling = os.pipe()

    def worker() -> None:
        take_again_and_again(run, arbiter, telling, STRANGERS, 5.0)

    for _ in range(3):
        forked(worker)
    told = ""
    while len(told) < 30:
        told += os.read(hearing, 1).decode()
    assert set(told) == {"t"}
