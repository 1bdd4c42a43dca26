"""The materialising benchmark runs from end to end, measures what it says, and prints its rows. No time is asserted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow  # half a minute of subprocesses

ROOT = Path(__file__).parents[2]
METHODS = ("linear", "task_arithmetic", "model_stock", "ties")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    """(what a run on the tiny family printed, its JSON, its working folder)."""
    folder = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, "benchmarks/materialize.py", "--size", "tiny", "--methods", ",".join(METHODS)]
    command += ["--workdir", str(folder), "--json", str(folder / "figures.json"), "--no-mergekit"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((folder / "figures.json").read_text(encoding="utf-8")), folder


def test_every_method_has_its_row(ran: tuple[str, dict[str, Any], Path]) -> None:
    printed, figures, _ = ran
    cases = figures["candidates"]["2"]["cases"]
    assert tuple(cases) == METHODS
    for title, row in cases.items():
        assert f"│ {title} " in printed
        assert 0.0 < row["best"] <= row["median"] and math.isfinite(row["fraction"])
        assert len(row["times"]) == 2 and row["bandwidth"] > 0.0
    for name in ("Paid once", "Peak memory", "From disk to disk", "content hashes", "ties, 2 experts", "load average"):
        assert name in printed


def test_bytes_are_what_a_candidate_has_to_move(ran: tuple[str, dict[str, Any], Path]) -> None:
    """Two sources, the base where it is read, the result: two bytes an element each."""
    _, figures, folder = ran
    home = next(folder.glob("llama-*"))
    elements = sum(each.numel() for each in load_file(home / "base" / "model.safetensors").values())
    run = figures["candidates"]["2"]
    assert run["parameters"] == elements
    moved = {title: row["bytes"] // (2 * elements) for title, row in run["cases"].items()}
    assert moved == {"linear": 3, "task_arithmetic": 4, "model_stock": 4, "ties": 4}
    assert figures["memory"]["2"]["models"] == 4 * 2 * elements
    assert figures["memory"]["2"]["peak"] >= figures["memory"]["2"]["loaded"] > 0


def test_the_family_is_a_realistic_one(ran: tuple[str, dict[str, Any], Path]) -> None:
    """Task vectors of 1 % of the weights' size, with tails, unrelated to each other; many equal or zero."""
    home = next(ran[2].glob("llama-*"))
    name = "model.layers.0.mlp.gate_proj.weight"
    base, one, two = (
        load_file(home / each / "model.safetensors")[name].double() for each in ("base", "expert0", "expert1")
    )
    delta, other = one - base, two - base
    assert 0.005 < float(delta.norm() / base.norm()) < 0.02
    assert float((delta**4).mean() / (delta**2).mean() ** 2) > 4.0  # 3 for normal numbers
    assert abs(float(torch.nn.functional.cosine_similarity(delta.flatten(), other.flatten(), dim=0))) < 0.05
    assert float((delta == 0).double().mean()) > 0.02


def test_the_same_seed_is_the_same_family(ran: tuple[str, dict[str, Any], Path], tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, 'benchmarks/materializing')\n"
        "from pathlib import Path\nfrom family import SHAPES, build\n"
        "print(build(SHAPES['tiny'], 1, Path(sys.argv[1])).experts[0])"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    again = load_file(Path(done.stdout.splitlines()[-1]) / "model.safetensors")
    first = load_file(next(ran[2].glob("llama-*")) / "expert0" / "model.safetensors")
    assert again.keys() == first.keys()
    assert all(torch.equal(again[name], first[name]) for name in first)


def test_an_unknown_method_is_a_message() -> None:
    command = [sys.executable, "benchmarks/materialize.py", "--methods", "tie"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "found tie" in done.stderr and "Traceback" not in done.stderr
