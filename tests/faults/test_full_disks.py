"""A disk that is full at every write in turn, one that is read-only, and a run directory that is gone."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from disks import small_disk
from launching import Launcher
from searches import COMMAND, Searches, Snapshot, events
from striking import Struck

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

KIB = 1024


def refused(output: str) -> bool:
    """One paragraph for the user; beside it no more than notes of what is done."""
    lines = [line for line in output.splitlines() if not line.startswith("note: ")]
    return len(lines) == 1 and lines[0].startswith("error: ")


def test_a_full_disk_at_every_write(launcher: Launcher, calm: Searches) -> None:
    """The disk grows by a few pages from start to start, so that each start meets its end at another write."""
    struck = Struck(launcher, calm, "full")
    ends = []
    with small_disk(struck.folder, 4 * KIB) as disk:
        size = 4 * KIB
        while True:
            disk.resize(size)
            run = struck.start()
            status = run.wait()
            struck.check(f"a disk of {size} bytes")
            if status == 0:
                break
            assert status == 2, run.output
            assert refused(run.output), run.output
            ends.append((size, struck.concluded, run.output))
            size += (24 if size < 400 * KIB else 4096) * KIB  # the report is the last to be written, and large
        disk.resize(64 * 1024 * KIB)
        struck.finish()
        struck.compare("calm", more=len(ends))
        assert struck.faults == []
    assert len(ends) >= 8, ends
    assert any("full" in output or "No space" in output for *_, output in ends)
    assert any(concluded > 0 for _, concluded, _ in ends), ends


def test_a_limited_file_size_at_every_write(launcher: Launcher, calm: Searches) -> None:
    """As a full disk, where none can be mounted: no file grows beyond a size, which grows from start to start."""
    struck = Struck(launcher, calm, "limited")
    size, ends = 2 * KIB, 0  # what it prints goes into a file too
    while True:
        run = struck.start(("limit_file_size", {"size": size}))
        status = run.wait()
        struck.check(f"files of {size} bytes at most")
        if status == 0:
            break
        assert status == 2, run.output
        assert refused(run.output), run.output
        ends += 1
        size += (16 if size < 192 * KIB else 4096) * KIB
    assert ends >= 8
    struck.finish()
    struck.compare("calm", more=ends)
    assert struck.faults == []


def test_a_read_only_disk(launcher: Launcher, calm: Searches, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64 * 1024 * KIB) as disk:
        searches = Searches.make(disk.folder / "project", candidates=13)
        disk.protect(True)
        run = launcher.start(*COMMAND, folder=searches.folder)
        assert run.wait() == 2, run.output
        assert refused(run.output), run.output
        disk.protect(False)
        run = launcher.start(*COMMAND, folder=searches.folder, faults=[("kill_at_statement", {"number": 20})])
        assert run.wait() == -9, run.output
        before = Snapshot.of(searches.run("faulty"))
        disk.protect(True)
        for command in (COMMAND, ("report", "runs/faulty")):
            run = launcher.start(*command, folder=searches.folder)
            assert run.wait() == 2, run.output
            assert refused(run.output), run.output
        run = launcher.start("status", "runs/faulty", "--json", folder=searches.folder)
        assert run.wait() == 0, run.output
        disk.protect(False)
        assert Snapshot.of(searches.run("faulty")) == before
        assert launcher.start(*COMMAND, folder=searches.folder).wait() == 0


def test_a_run_directory_that_is_removed(launcher: Launcher, calm: Searches) -> None:
    """It ends with a paragraph soon after, and nothing comes back from the dead."""
    for how in ("removed", "moved"):
        struck = Struck(launcher, calm, how)
        run = struck.start()
        while run.status is None and events(struck.folder, "told") < 3:
            time.sleep(0.01)
        assert run.status is None, run.output
        if how == "removed":
            shutil.rmtree(struck.folder)
        else:
            struck.folder.rename(calm.run("elsewhere"))
        assert run.wait() == 2, run.output
        assert refused(run.output), run.output
        assert str(struck.folder.name) in run.output
        assert not (struck.folder / "run.db").exists()
        if how == "moved":  # what was stored is there still, and goes on
            (calm.folder / "moved.calls").rename(calm.folder / "elsewhere.calls")
            moved = Struck(launcher, calm, "elsewhere")
            moved.check("after it was moved")
            assert moved.concluded >= 3
            moved.finish()
            moved.compare("calm", more=1)
            assert moved.faults == []
