"""Objectives whose range is the user's, and metrics without an upper bound, through the whole path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from search.cli import run_command


@pytest.mark.slow
def test_a_range_narrower_than_the_metric_ends_in_a_claim(
    tiny_project: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Items are 0 or 1, the range that matters is [0.2, 0.9]; a timing has no upper bound at all."""
    folder = tiny_project("llama", candidates=9)
    config = (folder / "config.yaml").read_text()
    speed = "evaluators:\n  speed: {type: throughput, data: data/a, max_new_tokens: 2}\n"
    config = config.replace("evaluators:\n", speed)
    config = config.replace(
        "[a.accuracy, b.accuracy]",
        "[{metric: a.accuracy, bounds: [0.2, 0.9]}, {metric: speed.tokens_per_second, bounds: [0, 1]}]",
    )
    (folder / "config.yaml").write_text(config)
    assert run_command(["run", "config.yaml", "--display", "plain"]) == 0
    capsys.readouterr()
    assert run_command(["status", "runs/tiny", "--json"]) == 0

    def no_such_constant(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    status = json.loads(capsys.readouterr().out, parse_constant=no_such_constant)
    assert status["state"] == "finished"
    assert status["claim"] is not None
    assert status["chosen"]["holdout"]["speed.tokens_per_second"] > 1.0  # beyond the range, and reported as it is
    assert run_command(["report", "runs/tiny"]) == 0


@pytest.mark.slow
def test_a_function_that_exits_fails_the_run(
    tiny_project: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0 in the middle of a search would be taken for its end."""
    folder = tiny_project("llama", candidates=9)
    (folder / "scorer.py").write_text("import sys\n\ndef score(item, answer):\n    sys.exit(0)\n")
    config = (folder / "config.yaml").read_text()
    mine = "evaluators:\n  mine: {type: python, path: 'scorer.py:score', data: data/a, max_new_tokens: 2}\n"
    (folder / "config.yaml").write_text(config.replace("evaluators:\n", mine))
    assert run_command(["run", "config.yaml", "--display", "plain"]) == 2
    assert "scorer.py:score, line 4: SystemExit" in capsys.readouterr().err
