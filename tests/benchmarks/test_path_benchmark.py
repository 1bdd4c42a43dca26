"""The paths' benchmark runs from end to end and prints what it says. No time is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # subprocesses

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "benchmarks/path.py", "--size", "tiny", "--candidates", "4", "--exports", "1"]


def run(*more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([*COMMAND, *more], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_path_in_memory_and_by_disk(tmp_path: Path) -> None:
    done = run("--workdir", str(tmp_path), "--json", str(tmp_path / "figures.json"))
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert figures["hops"] == 3 * figures["layers"] == 9
    seconds, held = figures["seconds"], figures["memory"]
    assert seconds["export and load"] == pytest.approx(seconds["export"] + seconds["load"])
    assert held["copies beside the sources"] == 0
    block = held["a copy for every hop"] / figures["hops"]
    assert held["once each"] == pytest.approx(block * held["different layers"])
    assert 0 < held["scaled"] < held["a copy for every hop"]
    assert figures["unequal"] == 0 and figures["apart"] < 0.05
    for said in ("Export and load over apply, again:", "0 weights of live paths and their exports are not the same"):
        assert said in done.stdout
    bad = run("--hops", "99", "--workdir", str(tmp_path))
    assert bad.returncode == 2 and "expected 1 to 18 hops" in bad.stderr
