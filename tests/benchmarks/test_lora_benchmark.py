"""The adapters' benchmark runs from end to end and prints what it says. No time is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # subprocesses

ROOT = Path(__file__).parents[2]


def test_adapters_beside_folded_models(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "benchmarks/lora.py",
        "--size",
        "tiny",
        "--adapters",
        "3",
        "--rank",
        "4",
        "--rounds",
        "1",
    ]
    command += ["--workdir", str(tmp_path), "--json", str(tmp_path / "figures.json")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    thin, dense = figures["adapters"], figures["folded"]
    assert thin["seconds"].keys() == dense["seconds"].keys() and min(thin["seconds"].values()) >= 0
    assert figures["on disk"]["adapters"] < figures["on disk"]["folded"] / 5
    assert figures["apart"]["task_arithmetic"] == figures["apart"]["ties"] == 0
    assert 0 < max(figures["apart"].values()) < 1e-5
    for method in ("tsv_m", "knots_ties", "core_ties"):
        assert f"{method}, first, s" in done.stdout and f"{method}, candidate, s" in done.stdout
    assert "the same bits" in done.stdout
