"""Commands in a real pseudo-terminal whose screen can be read; screens stay behind as test artefacts."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pyte
import pytest
from wcwidth import wcswidth

ARTEFACTS = Path(__file__).resolve().parents[2] / "test-artifacts"
PROGRAM = [sys.executable, "-c", "import sys; sys.argv[0] = 'paretomerge'; from search.cli import main; main()"]
REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / "configs" / "nano.yaml"
ESCAPES = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_])")
OWN_SETTINGS = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TERM", "LANG", "LC_ALL", "PYTHONUTF8", "CI")
"""Of whoever runs the tests: a terminal here has its own."""


class Terminal:
    """A command in a terminal of its own.

    Attributes:
        screen: what a person sees.
        raw: every byte that was written.
    """

    def __init__(self, arguments: Sequence[str], columns: int, lines: int, folder: Path, **environment: str) -> None:
        self.arguments, self.columns = list(arguments), columns
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self._inside, outside = pty.openpty()
        self.resize(columns, lines)
        given = {name: value for name, value in os.environ.items() if name not in OWN_SETTINGS}
        settings = {"TERM": "xterm-256color", "LANG": "C.UTF-8", "PYTHONPATH": str(REPOSITORY), **environment}
        self._process = subprocess.Popen(
            [*PROGRAM, *self.arguments], stdin=outside, stdout=outside, stderr=outside, start_new_session=True,
            cwd=folder, env={**given, **settings}, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        os.close(outside)

    def until(self, sign: str, seconds: float = 120.0) -> str:
        """The screen as soon as the sign stands on it; fails where it never does."""
        end = time.monotonic() + seconds
        while sign not in self.text and time.monotonic() < end and self._read(1.0):
            pass
        assert sign in self.text, f"{sign!r} never came; the screen:\n{self.text}"
        return self.text

    @property
    def text(self) -> str:
        """The screen."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    @property
    def written(self) -> list[str]:
        """Everything that was written so far as plain lines, also what is no longer on the screen."""
        return ESCAPES.sub(b"", self.raw).decode("utf-8", "replace").replace("\r\n", "\n").split("\n")

    def write(self, text: str) -> None:
        """Type something."""
        os.write(self._inside, text.encode())

    def resize(self, columns: int, lines: int) -> None:
        """As somebody does who pulls at the window."""
        fcntl.ioctl(self._inside, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.columns = columns
        self.screen.resize(lines, columns)

    def end(self) -> int:
        """The exit code, once everything that was written is read."""
        until = time.monotonic() + 200.0
        while self._read(1.0):
            assert time.monotonic() < until, f"it never ended; the screen:\n{self.text}"
        return self._process.wait(timeout=60)

    def kill(self) -> None:
        """Nothing stays behind."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._inside)

    def keep(self, name: str) -> None:
        """The screen, and above it what has scrolled away, as an artefact."""
        ARTEFACTS.mkdir(exist_ok=True)
        path = ARTEFACTS / f"terminal-{name}-{self.columns}.txt"
        path.write_text(f"$ paretomerge {' '.join(self.arguments)}\n{self.text}\n", encoding="utf-8")

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


class OpenTerminal(Protocol):
    """Starts a command in a terminal."""

    def __call__(self, *arguments: str, columns: int = 80, lines: int = 200, **environment: str) -> Terminal: ...


@pytest.fixture
def terminal(folder: Path) -> Iterator[OpenTerminal]:
    """Starts commands in the folder of the tests; what still runs at the end of a test is killed."""
    opened = []

    def start(*arguments: str, columns: int = 80, lines: int = 200, **environment: str) -> Terminal:
        opened.append(Terminal(arguments, columns, lines, folder, **environment))
        return opened[-1]

    yield start
    for each in opened:
        each.kill()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, nano_zoo: Path) -> Path:
    """With the small config, a finished run of it in ``runs/nano``, and a config that is wrong."""
    made = tmp_path_factory.mktemp("terminal")
    config = CONFIG.read_text(encoding="utf-8").replace("candidates: 40", "candidates: 16")
    (made / "nano.yaml").write_text(config, encoding="utf-8")
    wrong = config.replace("sms_emoa", "sms_emao").replace("finalists: 6", "finalist: 6")
    (made / "wrong.yaml").write_text(wrong.replace("/data/language", "/data/langauge"), encoding="utf-8")
    subprocess.run(
        [*PROGRAM, "run", "nano.yaml", "--display", "none"], cwd=made, check=True, stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    return made


@pytest.fixture
def fits() -> Callable[[Terminal], None]:
    """Nothing that a command printed is wider than its terminal, and no border or number is broken."""

    def check(terminal: Terminal) -> None:
        for line in terminal.written:
            assert wcswidth(line.rstrip("\r")) <= terminal.columns, line
        for line in terminal.text.split("\n"):
            assert not re.search(r"\d…|\.…", line), line  # a number that was cropped

    return check
