"""The calibration benchmark: projections follow planted powers, and it runs from end to end. No time is asserted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.calibrating.costs import LARGE, Power, show, whole
from benchmarks.materializing.family import SHAPES

ROOT = Path(__file__).parents[2]
METHODS = ("regmean", "tsv_m")


@given(st.floats(0.5, 4.0), st.floats(1e-3, 1e3))
def test_a_planted_power_is_found(exponent: float, factor: float) -> None:
    widths = [256, 512, 1024]
    power = Power.through(widths, [factor * (width / 256) ** exponent for width in widths])
    assert power.exponent == pytest.approx(exponent)
    assert power.at(4096) == pytest.approx(factor * 16**exponent)
    assert power.at(2048, 3.0) == pytest.approx(factor * 4**exponent * 8)


def test_blocks_stand_for_the_model() -> None:
    assert whole(3.0, 2, 24) == 36.0
    assert whole(3.0, None, 24) == 3.0


def test_the_projection_is_of_all_blocks_of_the_large_model() -> None:
    width, blocks = LARGE
    seconds = {"tsv_m: product": [1.0, 8.0, 64.0]}
    text = show(_figures() | {"widths": {"widths": [256, 512, 1024], "seconds": seconds, "tokens": 64}})
    row = next(line for line in text.splitlines() if line.startswith("| tsv_m: product"))
    hours = f"{blocks * 64.0 * (width / 1024) ** 3 / 3600:.1f}"
    assert [cell.strip() for cell in row.split("|")[5:8]] == ["3.00", hours, hours]


@pytest.mark.slow  # a minute of subprocesses
def test_it_measures_what_it_says(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/calibrate.py", "--quick", "--blocks", "1", "--methods", ",".join(METHODS)]
    command += ["--workdir", str(tmp_path), "--json", str(tmp_path / "figures.json")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert tuple(figures["products"]) == METHODS
    for found in figures["products"].values():
        assert found["own"] > 0.0 and found["plain"] > 0.0 and math.isfinite(found["product"])
        assert found["peak"] >= found["loaded"] > 0
    shape, blocks = SHAPES["tiny"], SHAPES["tiny"].layers
    squares = 3 * shape.hidden**2 + shape.intermediate**2  # q, k and v share their inputs, gate and up do
    # One triangle of every matrix at the least, in float64, of each of three experts.
    assert figures["statistics"]["Gram matrices"]["disk"] >= 3 * blocks * 8 * squares // 2
    assert figures["statistics"]["Gram matrices"]["tokens"] == 4 * 16
    assert figures["virtual"]["own"] > 0.0
    for title in ("| regmean ", "| Gram matrices ", "As a virtual expert (regmean)", "load average"):
        assert title in done.stdout


@pytest.mark.slow  # imports torch in a subprocess
def test_an_unknown_method_is_a_message() -> None:
    command = [sys.executable, "benchmarks/calibrate.py", "--methods", "regmeen"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "found regmeen" in done.stderr and "Traceback" not in done.stderr


def _figures() -> dict[str, Any]:
    """What a run says, without any measurement."""
    model = {"title": "1M", "hidden": 64, "layers": 2, "experts": 3, "inputs": 4, "length": 16, "sampled": 1}
    return {
        "command": "python", "machine": {}, "threads": 1, "load before": [0.0], "load after": [0.0], "model": model,
        "statistics": {}, "products": {}, "virtual": {}, "widths": {},
    }  # fmt: skip
