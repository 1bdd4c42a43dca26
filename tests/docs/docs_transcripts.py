"""Doing what a page shows: its files are written, its commands run, their output compared.

In a fenced block of language ``console``

- ``$ `` begins a command (a backslash at the end of a line continues it, on lines that may begin with ``> ``);
- the lines after it are what it prints, standard error included. No line: anything. ``…`` stands for any text, a number
  for any number (scores differ from machine to machine), white space and the length of ruled lines do not count;
- a command must end with 0, unless ``$ echo $?`` follows and says otherwise;
- a last line ``^C`` says that the reader presses Ctrl-C there, once what stands before it has been printed.

A block of any language that begins with ``# file: NAME`` is a file. Blocks of other languages are not run: what needs
a cluster, a hub or a GPU stands in those.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from docs_pages import Block, Page

PATIENCE = 600  # seconds a command may take
_NUMBER = r"[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
_PIECE = re.compile(rf"(?P<any>…)|(?P<number>{_NUMBER})|(?P<rule>[─━╌┄═—-]{{3,}}|[━╸╺]+)|(?P<space>\s+)")
_SHELL = set("|&;<>$`*?~(){}[]")


@dataclass(frozen=True)
class Command:
    """One command of a page: its words, what it is said to print, and the line of the page where it stands."""

    line: str
    expected: str
    at: int
    interrupted: bool = False
    length: int = 1
    """Lines of the page that the command itself takes."""


@dataclass
class Shell:
    """A folder in which one page's commands run, one after the other."""

    folder: Path
    last: int = 0
    environment: dict[str, str] = field(default_factory=lambda: surroundings())

    def write(self, block: Block) -> Path:
        """The file that a block is, without its first line where that would be no comment of the file's language."""
        path = self.folder / str(block.file)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = block.text
        if path.suffix in {".json", ".jsonl", ".csv"}:
            text = text.partition("\n")[2]
        path.write_text(text, encoding="utf-8")
        return path

    def run(self, command: Command) -> str:
        """What a command prints; its exit code is then ``last``."""
        if command.line == "echo $?":
            return f"{self.last}\n"
        words = plain_words(command.line)
        if words is None or command.interrupted or {"--workers", "watch", "dashboard"} & set(words):
            output, self.last = self._apart(command)
        else:
            output, self.last = self._here(words[1:])
        return output

    def _here(self, arguments: list[str]) -> tuple[str, int]:
        """In this process: torch need not be loaded for every command."""
        from search.cli import run_command

        shown = io.StringIO()
        with (
            changed(self.environment),
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(shown),
            contextlib.redirect_stderr(shown),
        ):
            code = run_command(arguments)
        return shown.getvalue(), code

    def _apart(self, command: Command) -> tuple[str, int]:
        with subprocess.Popen(
            ["bash", "-c", f"exec {command.line}" if command.interrupted else command.line],
            cwd=self.folder,
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            encoding="utf-8",
        ) as process:
            stop = threading.Timer(PATIENCE, os.killpg, (process.pid, signal.SIGKILL))
            stop.start()
            shown, pressed = "", not command.interrupted
            try:
                for line in process.stdout or ():
                    shown += line
                    if not pressed and matches(f"{command.expected} …", shown):
                        time.sleep(1)  # nobody is quicker
                        process.send_signal(signal.SIGINT)
                        pressed = True
                return shown, process.wait()
            finally:
                stop.cancel()
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def surroundings() -> dict[str, str]:
    """What the commands find in their environment: 80 columns, no colours, this installation first on the path."""
    here = str(Path(sys.executable).parent)
    return {
        "PATH": os.pathsep.join([here, os.environ.get("PATH", os.defpath)]),
        "COLUMNS": "80",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


@contextlib.contextmanager
def changed(environment: dict[str, str]):
    """Environment variables of this process, for a while."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def commands(block: Block) -> list[Command]:
    """The commands of a ``console`` block.

    Raises:
        ValueError: the block begins with something else than a command.
    """
    found: list[Command] = []
    lines = block.text.rstrip("\n").split("\n")
    place = 0
    while place < len(lines):
        start = place
        if not lines[start].startswith("$ "):
            raise ValueError(f"line {block.line + start}: expected a command that begins with '$ ': {lines[start]!r}")
        line = lines[place].removeprefix("$ ")
        while line.endswith("\\"):
            place += 1
            line = f"{line[:-1].rstrip()} {lines[place].removeprefix('> ').strip()}"
        place += 1
        length, begin = place - start, place
        while place < len(lines) and not lines[place].startswith("$ "):
            place += 1
        output = lines[begin:place]
        interrupted = bool(output) and output[-1].strip() == "^C"
        expected = "\n".join(output[:-1] if interrupted else output)
        found.append(Command(line.partition("  #")[0].rstrip(), expected, block.line + start, interrupted, length))
    return found


def plain_words(line: str) -> list[str] | None:
    """The words of a line that is one call of ``paretomerge``; None where a shell is needed."""
    try:
        words = shlex.split(line)
    except ValueError:
        return None
    quoted = re.sub(r"'[^']*'", "", line)
    return words if words[:1] == ["paretomerge"] and not _SHELL & set(re.sub(r'"[^"$`]*"', "", quoted)) else None


def matches(expected: str, output: str, *, exactly: bool = False) -> bool:
    """Whether an output is the one that a page shows; ``exactly`` also compares the numbers."""
    pattern, position = [], 0
    expected = expected.strip()
    for piece in _PIECE.finditer(expected):
        pattern.append(re.escape(expected[position : piece.start()]))
        if piece["any"]:
            pattern.append("(?s:.*?)")
        elif piece["number"]:
            pattern.append(re.escape(piece[0]) if exactly else _NUMBER)
        elif piece["rule"]:
            pattern.append(r"[─━╌┄═—╸╺-]+")
        else:
            pattern.append(r"\s+")
        position = piece.end()
    pattern.append(re.escape(expected[position:]))
    # a wildcard may stand for nothing, and then the space beside it does as well
    joined = "".join(pattern).replace(r"\s+(?s:.*?)", r"\s*(?s:.*?)").replace(r"(?s:.*?)\s+", r"(?s:.*?)\s*")
    return re.fullmatch(joined, output.strip()) is not None


def play(page: Page, shell: Shell) -> None:
    """Write the files and run the commands of a page, in order.

    Raises:
        AssertionError: a command ended or printed otherwise than the page says; with place, and both outputs.
    """
    for block in page.blocks:
        if block.file is not None:
            shell.write(block)
        if block.language != "console":
            continue
        shown = commands(block)
        for number, command in enumerate(shown):
            before = shell.last
            output = shell.run(command)
            where = f"{page.name}:{command.at}: $ {command.line}"
            told = number + 1 < len(shown) and shown[number + 1].line == "echo $?"
            if command.line != "echo $?" and not told and shell.last != 0:
                raise AssertionError(f"{where}\nended with {shell.last} and printed\n{output}")
            if command.line == "echo $?" and command.expected.strip() != str(before):
                raise AssertionError(f"{where}\nthe page says {command.expected.strip()}, and it is {before}")
            if command.line != "echo $?" and command.expected and not matches(command.expected, output):
                raise AssertionError(f"{where}\nthe page says\n{command.expected}\nand it printed\n{output}")
