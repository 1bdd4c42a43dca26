"""Whole searches with workers of Ray: the same twice, and the same after the driver was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from evaluators.contract import SPLITS
from search.events import Incident, Resumed, Told
from search.results import Results
from search.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

Snapshot = dict[int, tuple[str, str, dict[str, bytes]]]


def command(schedule: str) -> list[str]:
    start = [sys.executable, "-c", "from search.cli import main; main()", "run", "config.yaml", "--display", "none"]
    return [*start, "--workers", "2", "--set", f"workers.schedule={schedule}", "--set", "search.fidelity.rungs=[8,24]"]


def snapshot(run: Path) -> Snapshot:
    """id -> state, recipe hash and item scores of every candidate that is told."""
    if not (run / "run.db").exists():
        return {}
    store = Store.open(run, read_only=True)
    try:
        return {
            each.id: (
                each.state,
                each.recipe_hash,
                {
                    f"{split}/{name}/{metric}": values.tobytes()
                    for split in SPLITS
                    for name, scores in store.item_scores(each.id, split).items()
                    for metric, values in scores.values.items()
                },
            )
            for each in store.candidates()
            if each.state != "running"
        }
    finally:
        store.close()


def is_kept(before: tuple[str, str, dict[str, bytes]], after: tuple[str, str, dict[str, bytes]]) -> bool:
    """The finals add scores; what was there stays."""
    return before[:2] == after[:2] and before[2].items() <= after[2].items()


def run_to_the_end(folder: Path, schedule: str, name: str) -> Snapshot:
    subprocess.run([*command(schedule), "--name", name], cwd=folder, check=True, timeout=1500)
    assert Results.load(folder / "runs" / name).state == "finished"
    return snapshot(folder / "runs" / name)


def kill_after(folder: Path, schedule: str, name: str, candidates: int) -> Snapshot:
    """kill -9 of the driver once so many candidates are told; then nothing of it may live on."""
    with subprocess.Popen([*command(schedule), "--name", name], cwd=folder) as process:
        while len(snapshot(folder / "runs" / name)) < candidates:
            assert process.poll() is None, "it ended before"
            time.sleep(0.2)
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("Scorer" in each.name() for each in family)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    told = snapshot(folder / "runs" / name)
    deadline = time.monotonic() + 180.0
    while any(is_alive(each) for each in family) and time.monotonic() < deadline:
        time.sleep(1.0)
    assert not [each for each in family if is_alive(each)], "processes of a dead driver live on"
    return told


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE  # which whoever adopted it has not looked at yet
    except psutil.NoSuchProcess:
        return False


def test_a_strict_search_is_the_same_whatever_dies(trapped: Path) -> None:
    calm = run_to_the_end(trapped, "strict", "calm")
    assert len(calm) == 24
    (trapped / "traps/die-1.once").touch()  # and a worker of the other one dies
    before = kill_after(trapped, "strict", "fire", 6)
    store = Store.open(trapped / "runs/fire", read_only=True)
    (incident, *_) = [event for event in store.events(Incident) if isinstance(event, Incident)]
    store.close()
    assert incident.what == "worker lost"
    assert all(is_kept(found, calm[id]) for id, found in before.items())
    assert run_to_the_end(trapped, "strict", "fire") == calm
    one, other = (Results.load(trapped / "runs" / name) for name in ("calm", "fire"))
    assert one.front == other.front and one.chosen == other.chosen


def test_a_steady_search_loses_nothing(trapped: Path) -> None:
    before = kill_after(trapped, "steady", "fire", 8)
    after = run_to_the_end(trapped, "steady", "fire")
    assert len(after) == 24
    assert all(is_kept(found, after[id]) for id, found in before.items())
    store = Store.open(trapped / "runs/fire", read_only=True)
    told = [event.candidate for event in store.events(Told) if isinstance(event, Told)]
    assert sorted(told) == list(range(24)), "each is told once"
    resumed = [event for event in store.events(Resumed) if isinstance(event, Resumed)]
    assert [each.different for each in resumed] == [[]], "the log replays exactly"
    store.close()
    front = Results.load(trapped / "runs/fire").front
    assert len(set(front)) == len(front)
