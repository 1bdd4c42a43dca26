"""What moves in a terminal: a search under way, somebody who watches it, questions and their answers."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Open = Callable[..., Any]
HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"
FULL_SCREEN, BACK = b"\x1b[?1049h", b"\x1b[?1049l"


@pytest.mark.parametrize("columns", [80, 200])
def test_a_search_is_shown_while_it_goes_on(
    terminal: Open, fits: Callable[[Any], None], folder: Path, columns: int
) -> None:
    shown = terminal("run", "nano.yaml", "--name", f"live-{columns}", columns=columns, lines=40)
    under_way = shown.until("under way")
    shown.keep("run-under-way")
    assert f"live-{columns}: running" in under_way
    assert re.search(r"\d+/16", under_way) and "candidate" in under_way
    assert all(len(line) <= columns for line in under_way.split("\n"))
    assert shown.end() == 0, shown.text
    shown.keep("run-ended")
    assert shown.raw.count(HIDE) == shown.raw.count(SHOW) > 0
    assert shown.raw.rindex(SHOW) > shown.raw.rindex(HIDE)
    assert "under way" not in shown.text  # the display leaves nothing behind but what counts
    assert "report:" in shown.text and f"live-{columns}/report.html" in shown.text
    fits(shown)


def test_a_search_that_is_stopped_leaves_the_terminal_tidy_and_says_how_to_go_on(terminal: Open, folder: Path) -> None:
    shown = terminal("run", "nano.yaml", "--name", "stopped", "--set", "search.budget.candidates=400", lines=40)
    shown.until("under way")
    shown.write("\x03")
    code = shown.end()
    shown.keep("run-stopped")
    assert code == 130, shown.text
    assert shown.raw.rindex(SHOW) > shown.raw.rindex(HIDE)
    assert "Traceback" not in shown.text and "paretomerge run nano.yaml" in shown.text
    watched = terminal("watch", "runs/stopped", lines=40)
    assert "stopped: interrupted" in watched.until("interrupted")
    watched.resize(120, 30)
    watched.until("last heard")
    watched.resize(40, 12)
    os.kill(watched._process.pid, signal.SIGWINCH)
    watched.resize(80, 40)
    watched.write("\x03")
    assert watched.end() == 0, watched.text
    watched.keep("watch-interrupted")
    assert watched.raw.rindex(SHOW) > watched.raw.rindex(HIDE)
    assert watched.raw.rindex(BACK) > watched.raw.rindex(FULL_SCREEN)
    assert "Traceback" not in watched.text and "stopped: interrupted" in watched.text


def test_watching_touches_nothing(terminal: Open, folder: Path) -> None:
    def logged() -> list[Any]:
        with closing(sqlite3.connect(f"file:{folder}/runs/nano/run.db?mode=ro", uri=True)) as database:
            tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return [(each, database.execute(f"SELECT * FROM {each}").fetchall()) for each in tables]

    before = logged()
    shown = terminal("watch", "runs/nano", lines=40)
    assert shown.end() == 0  # a finished run is shown once
    assert "nano: finished" in shown.text and logged() == before


def test_questions_are_asked_and_their_answers_checked(
    terminal: Open, fits: Callable[[Any], None], folder: Path, nano_zoo: Path
) -> None:
    shown = terminal("init", lines=60)
    shown.until("preset")
    shown.write("two_expert\n")
    shown.until("Error")  # no such preset: asked again
    shown.write("\n")
    shown.until("base model")
    for question, answer in (
        ("base model", "zoo://skills-nano/base"),
        ("expert 1", "string=zoo://skills-nano/string"),
        ("expert 2", "language=zoo://skills-nano/language"),
        ("expert 3", ""),
        ("data for string", "zoo://skills-nano/data/string"),
        ("data for language", "zoo://skills-nano/data/language"),
        ("budget", "16"),
        ("config", "asked.yaml"),
    ):
        shown.until(question)
        shown.write(f"{answer}\n")
    assert shown.end() == 0, shown.text
    shown.keep("init")
    assert "next: paretomerge check asked.yaml" in shown.text
    fits(shown)
    checked = terminal("check", "asked.yaml")
    assert checked.end() == 0 and "asked.yaml: good" in checked.text, checked.text


def test_questions_that_are_not_answered_write_nothing(terminal: Open, folder: Path) -> None:
    shown = terminal("init", "--out", "never.yaml")
    shown.until("preset [")
    shown.write("\x03")
    assert shown.end() != 0
    assert "Traceback" not in shown.text and not (folder / "never.yaml").exists()
