"""What commands print in a terminal, 80 and 200 columns wide: nothing too wide, nothing cropped, nothing that a poor
terminal cannot show."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Open = Callable[..., Any]
COMMANDS = {
    "help": (["--help"], 0, "Searches for Pareto-optimal merges"),
    "run-help": (["run", "--help"], 0, "--dry-run"),
    "status": (["status", "runs/nano"], 0, "chosen"),
    "watch-once": (["watch", "runs/nano", "--once"], 0, "chosen: candidate"),
    "choose": (["choose", "runs/nano", "--mix", "string=3,language=1", "--no-holdout"], 0, "candidate"),
    "check": (["check", "nano.yaml"], 0, "string"),
    "check-wrong": (["check", "wrong.yaml"], 2, "did you mean"),
    "plan": (["plan", "nano.yaml", "--no-measure"], 0, "candidates"),
    "ls-methods": (["ls", "methods"], 0, "task_arithmetic"),
    "ls-runs": (["ls", "runs"], 0, "nano"),
    "explain": (["explain", "exact_match"], 0, "max_new_tokens"),
    "explain-key": (["explain", "search.fidelity"], 0, "fidelity"),
    "doctor": (["doctor"], None, "torch"),
    "doctor-run": (["doctor", "runs/nano"], 0, "nano"),
}
BORDERS = "─━│┃╭╮╰╯┌┐└┘├┤═║"


@pytest.mark.parametrize("columns", [80, 200])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_fits_its_terminal(terminal: Open, fits: Callable[[Any], None], name: str, columns: int) -> None:
    arguments, code, sign = COMMANDS[name]
    shown = terminal(*arguments, columns=columns)
    ended = shown.end()
    shown.keep(name)
    assert sign in " ".join(shown.written)
    if code is not None:
        assert ended == code, shown.text
    assert "Traceback" not in shown.text
    fits(shown)
