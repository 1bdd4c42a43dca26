"""What commands print in a terminal, 80 and 200 columns wide: nothing too wide, nothing cropped, nothing that a poor
terminal cannot show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Open = Callable[..., Any]
CHOICE = ["choose", "runs/nano", "--mix", "string=3,language=1", "--keep-closed"]
SCREENS = {
    "help": (["--help"], 0, "Searches for Pareto-optimal merges"),
    "run-help": (["run", "--help"], 0, "--dry-run"),
    "status": (["status", "runs/nano"], 0, "Front, re-scored on the selection split"),
    "watch-once": (["watch", "runs/nano", "--once"], 0, "chosen: candidate"),
    "choose": (CHOICE, 0, "candidate"),
    "check": (["check", "nano.yaml"], 0, "nano.yaml: good"),
    "check-wrong": (["check", "wrong.yaml"], 2, "finalist: 6"),
    "plan": (["plan", "nano.yaml", "--no-measure"], 0, "run directory"),
    "ls-methods": (["ls", "methods"], 0, "task_arithmetic"),
    "ls-runs": (["ls", "runs"], 0, "16/16"),
    "explain": (["explain", "exact_match"], 0, "max_new_tokens"),
    "explain-key": (["explain", "search.fidelity"], 0, "halving"),
    "doctor": (["doctor"], 0, "transformers"),
    "doctor-run": (["doctor", "runs/nano"], 0, "intact"),
}
ON_PAPER = ("status", "watch-once", "choose")
"""Drawn with signs of their own: what they do on a terminal without those."""


@pytest.mark.parametrize(
    ("name", "columns"),
    [*((each, 80) for each in SCREENS), *((each, 200) for each in ("help", "status", "watch-once", "explain", "plan"))],
)
def test_a_command_fits_its_terminal(terminal: Open, fits: Callable[[Any], None], name: str, columns: int) -> None:
    arguments, code, sign = SCREENS[name]
    shown = terminal(*arguments, columns=columns)
    ended = shown.end()
    shown.keep(name)
    assert sign in shown.text and "Traceback" not in shown.text
    assert ended == code, shown.text
    fits(shown)


def test_a_wide_terminal_is_used(terminal: Open) -> None:
    shown = terminal("watch", "runs/nano", "--once", columns=200)
    assert shown.end() == 0
    lines = shown.text.split("\n")
    beside = next(line for line in lines if "string.accuracy" in line and "[" in line)
    assert beside.index("string.accuracy") > 80  # the table stands beside the plot, not below it
    assert len(lines) < 45


@pytest.mark.parametrize("name", ON_PAPER)
def test_a_terminal_without_colours_gets_none(terminal: Open, name: str) -> None:
    arguments, code, sign = SCREENS[name]
    shown = terminal(*arguments, NO_COLOR="1")
    assert shown.end() == code and sign in shown.text
    cells = [cell for line in shown.screen.buffer.values() for cell in line.values()]
    assert {(cell.fg, cell.bg) for cell in cells} == {("default", "default")}


@pytest.mark.parametrize("name", ON_PAPER)
def test_a_dumb_terminal_gets_no_escapes(terminal: Open, name: str) -> None:
    arguments, code, sign = SCREENS[name]
    shown = terminal(*arguments, TERM="dumb")
    assert shown.end() == code and sign in shown.text
    assert b"\x1b" not in shown.raw


@pytest.mark.parametrize("name", ON_PAPER)
def test_a_terminal_of_ascii_gets_ascii(terminal: Open, fits: Callable[[Any], None], name: str) -> None:
    arguments, code, sign = SCREENS[name]
    # as on a machine whose locale cannot be set: no UTF-8 mode of Python's comes to help
    shown = terminal(
        *arguments, LANG="C", LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="ascii"
    )
    assert shown.end() == code and sign in shown.text, shown.text
    assert shown.raw.isascii()
    shown.keep(f"{name}-ascii")
    fits(shown)
