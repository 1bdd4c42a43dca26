"""Ctrl-C once ends tidily with the resume command; the same command then goes on to the same end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from search.cli import run_command
from search.results import Results
from search.store import Store

COMMAND = [sys.executable, "-c", "from search.cli import main; main()", "run", "config.yaml", "--display", "plain"]


@pytest.mark.slow
def test_ctrl_c_is_tidy_and_the_same_command_goes_on(tiny_project: Callable[..., Path]) -> None:
    tiny_project(candidates=400)
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[12/400]"):
            break
    os.kill(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopping after what is being evaluated" in error
    assert "paretomerge run config.yaml" in error
    assert "Traceback" not in error
    results = Results.load(Path("runs/tiny"))
    assert results.state == "interrupted"
    done = len(results.candidates)
    assert 12 <= done < 400
    assert all(each.state != "running" for each in results.candidates)

    # the printed command goes on where it stopped
    process = subprocess.Popen(COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(Results.load(Path("runs/tiny")).candidates) < done + 3:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(Results.load(Path("runs/tiny")).candidates) >= done + 3


@pytest.mark.slow
def test_interrupted_by_kill_it_ends_as_if_nothing_had_been(tiny_project: Callable[..., Path]) -> None:
    tiny_project(candidates=30)
    assert run_command(["run", "config.yaml", "--name", "calm", "--display", "none"]) == 0
    for wanted in (3, 14):
        process = subprocess.Popen(
            [*COMMAND, "--name", "fire"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"[{wanted}/30]"):
                break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert run_command(["run", "config.yaml", "--name", "fire", "--display", "none"]) == 0
    calm, fire = scores("calm"), scores("fire")
    assert len(calm) == 30
    assert fire == calm
    assert Results.load(Path("runs/fire")).evaluations <= Results.load(Path("runs/calm")).evaluations + 2
    assert Results.load(Path("runs/fire")).chosen == Results.load(Path("runs/calm")).chosen


def scores(name: str) -> list[tuple[str, dict[str, bytes]]]:
    """Recipe hash and item scores of every candidate."""
    store = Store.open(Path("runs") / name, read_only=True)
    found = [
        (
            each.recipe_hash,
            {
                f"{split}/{evaluator}": items.values["accuracy"].tobytes()
                for split in ("search", "selection", "holdout")
                for evaluator, items in store.item_scores(each.id, split).items()  # type: ignore[arg-type]
            },
        )
        for each in store.candidates()
    ]
    store.close()
    return found
