"""``paretomerge watch`` from another shell: on a terminal and without one, and it never touches the run."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyte
import pytest

from search.cli import run_command
from search.store import Store

PROGRAM = [sys.executable, "-c", "from search.cli import main; main()"]
RUN = Path(__file__).parents[1] / "search" / "data" / "run_format_1"
"""A finished run, of the first log format."""


class Terminal:
    """A command in a terminal of its own, whose screen can be read."""

    def __init__(self, arguments: list[str], columns: int, lines: int, **environment: str) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        inside, outside = pty.openpty()
        fcntl.ioctl(outside, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        given = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self._process = subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=outside, stdout=outside, stderr=outside, start_new_session=True,
            env={**given, "TERM": "xterm-256color", **environment},
        )  # fmt: skip
        os.close(outside)
        self._inside = inside

    def until(self, sign: str, seconds: float = 90.0) -> list[str]:
        """The screen as soon as it shows the sign, or has ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and sign not in "\n".join(self.lines) and self._read(1.0):
            pass
        return self.lines

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    def interrupt(self) -> None:
        os.kill(self._process.pid, signal.SIGINT)

    def end(self) -> int:
        """Its exit code, once everything that it wrote was read."""
        while self._read(60.0):
            pass
        os.close(self._inside)
        return self._process.wait(timeout=60)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._inside], [], [], seconds)[0]:
            return self._process.poll() is None
        try:
            data = os.read(self._inside, 65536)
        except OSError:  # nobody is left at the other end
            return False
        self.raw += data
        self._stream.feed(data)
        return bool(data)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of 40 candidates."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.db").write_bytes((RUN / "run.db").read_bytes())
    return folder


def unfinished(run: Path, folder: Path, told: int) -> Path:
    """What the log of a run was when so many candidates were told: a crash since."""
    source = Store.open(run, read_only=True)
    folder.mkdir(exist_ok=True)
    copy = Store.create(folder)
    for event in source.events():
        copy.append(event)
        told -= event.kind == "told"
        if told == 0:
            break
    source.close()
    copy.close()
    return folder


def test_one_look_changes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert run_command(["watch", str(run), "--once"]) == 0
    text = capsys.readouterr().out
    assert "run: finished" in text and "40/40" in text and "chosen: candidate 24" in text
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_finished_run_is_not_waited_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["watch", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("run: finished, front 8, hypervolume 0.37")
    assert "40 candidates: 40 scored; 8 on the front" in lines


def test_facts_for_machines(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["watch", str(run), "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    data = json.loads(line)
    assert (data["state"], data["phase"], data["chosen"], data["candidates"]["told"]) == (
        "finished",
        "finished",
        24,
        40,
    )
    crashed = unfinished(run, tmp_path / "crashed", 20)
    assert run_command(["watch", str(crashed), "--json", "--once"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["state"], data["candidates"]["told"], data["budget"]) == ("interrupted", 20, 40)
    seconds = data["remaining"]["seconds"]
    assert 0.0 < seconds["low"] <= seconds["middle"] <= seconds["high"] and data["remaining"]["limit"] == "candidates"
    assert run_command(["status", str(crashed), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["remaining"] == data["remaining"]


@pytest.mark.parametrize("interval", ["0", "nan", "1e9"])
def test_what_cannot_be_watched_is_said(
    tmp_path: Path, run: Path, interval: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["watch", str(run), "--interval", interval]) == 2
    assert "expected seconds between 0.1 and 3600" in capsys.readouterr().err
    assert run_command(["watch", str(tmp_path / "nowhere")]) == 2
    assert "expected a run directory" in capsys.readouterr().err


def test_a_run_that_goes_on_gives_a_line_per_change(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Store.open(run, read_only=True)
    events = list(source.events())
    source.close()
    folder = tmp_path / "growing"
    folder.mkdir()
    store = Store.create(folder)
    store.append(*events[:40])
    places = iter([40, 40, 41, 60, len(events)])

    def later(seconds: float) -> None:
        assert seconds == 0.5
        end = next(places)
        known = sum(1 for _ in store.events())
        if end > known:
            store.append(*events[known:end])

    monkeypatch.setattr("search.cli.watch._sleep", later)
    assert run_command(["watch", str(folder), "--interval", "0.5"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("growing: ")]
    store.close()
    # nothing was said where nothing had changed; the picture at the end begins with the name as well
    assert len(lines) == 5 and "interrupted, search" in lines[0] and lines[-1] == "growing: finished"


def test_a_database_that_stays_unreadable_ends_it_with_the_reason(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "run.db").write_bytes(b"SQLite format 3\0" + bytes(5000))
    monkeypatch.setattr("search.cli.watch.PATIENCE", 0.0)
    for more in ([], ["--once"], ["--json"]):
        assert run_command(["watch", str(run), *more]) == 2
        assert "the database is damaged" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 200])
def test_on_a_terminal_it_is_drawn_in_place_until_ctrl_c(run: Path, tmp_path: Path, columns: int) -> None:
    folder = unfinished(run, tmp_path / "crashed", 30)
    terminal = Terminal(["watch", str(folder), "--interval", "0.2"], columns, 30)
    lines = terminal.until("● front")
    text = "\n".join(lines)
    assert lines[0].startswith("crashed: interrupted, search, stage ") and "30/40" in text
    assert "once resumed, time left: " in text and "● front" in text and "string.accuracy" in text
    best = next(line for line in lines if "string.accuracy" in line and "[" in line)
    assert len(best) <= columns and best.index("string.accuracy") == (0 if columns == 80 else best.index("string"))
    if columns == 200:  # table and plot stand side by side
        assert "│" in best
    terminal.interrupt()
    assert terminal.end() == 0
    assert b"\x1b[?1049h" in terminal.raw and terminal.raw.count(b"\x1b[?1049l") == 1  # the screen is given back
    assert b"\x1b[?25h" in terminal.raw[terminal.raw.rindex(b"\x1b[?25l") :]  # and its cursor
    assert b"Traceback" not in terminal.raw and b"30/40" in terminal.raw[terminal.raw.rindex(b"\x1b[?1049l") :]


@pytest.mark.slow
def test_a_search_is_watched_from_its_first_second_to_its_end(tiny_project: Callable[..., Path]) -> None:
    folder = tiny_project(candidates=40)
    environment: dict[str, Any] = {**os.environ, "PYTHONUNBUFFERED": "1"}
    search = subprocess.Popen(
        [*PROGRAM, "run", "config.yaml", "--display", "none"], stdout=subprocess.DEVNULL, env=environment
    )  # fmt: skip
    while not list(Path("runs").glob("tiny/run.lock*")):  # as soon as there is anything to watch
        assert search.poll() is None
        time.sleep(0.02)
    terminal = Terminal(["watch", str(folder / "runs" / "tiny"), "--interval", "0.1"], 80, 24)
    assert terminal.end() == 0
    assert search.wait(timeout=120) == 0
    text = terminal.raw.decode()
    assert "being set up" in text or "under way: " in text
    assert "time left: " in text and "Traceback" not in text
    assert any(line.startswith("tiny: finished") for line in terminal.lines)


@pytest.mark.slow
def test_a_terminal_without_signs_and_colours_gets_lines(run: Path) -> None:
    terminal = Terminal(["watch", str(run)], 80, 24, TERM="dumb", PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert terminal.end() == 0
    assert b"\x1b" not in terminal.raw and b"run: finished" in terminal.raw and terminal.raw.isascii()


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 200])
def test_run_draws_where_it_stands_and_tidies_up(tiny_project: Callable[..., Path], columns: int) -> None:
    tiny_project(candidates=400)
    terminal = Terminal(["run", "config.yaml", "--display", "rich"], columns, 24)
    lines = terminal.until("most balanced so far")
    assert any(line.startswith("tiny: running, search, stage ") for line in lines)
    assert any("/400" in line for line in lines) and any(line.startswith("under way: ") for line in lines)
    assert any(line.startswith("time left: ") for line in lines)
    terminal.interrupt()
    assert terminal.end() == 130
    text = terminal.raw.decode()
    assert "paretomerge run config.yaml" in text.replace("\r\n", " ") and "Traceback" not in text
    assert "\x1b[?25h" in text[text.rindex("\x1b[?25l") :]
