"""Command lines that may not take much memory or time, run any code, or write anywhere but where they may."""

from __future__ import annotations

import faulthandler
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

MEMORY = 1536 * 1024**2
"""Bytes of address space that an attack may take, beside what the test process has."""

SECONDS = 60
"""CPU seconds after which it is taken to hang; on an idle machine attacks end within two."""

DEFECT = 99


@dataclass(frozen=True)
class Outcome:
    """What became of a command: its exit code, or minus the signal that ended it."""

    code: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """What was said, checked to be a refusal as a user may meet it: one paragraph, and nothing for terminals."""
        assert self.code == 2, f"exit code {self.code}:\n{self.out[-2000:]}\n{self.err[-4000:]}"
        assert "Traceback" not in self.err
        message = self.err.rpartition("error: ")[2]
        assert 0 < len(message) < 6000
        assert_shows_only(self.out + self.err)
        return message


def assert_shows_only(text: str) -> None:
    """Nothing in a text makes a terminal do anything, nor shows it in another order than it stands there."""
    assert {sign for sign in text if not sign.isprintable()} <= {"\n", "\xa0"}


Attack = Callable[..., Outcome]


def cases(table: Iterable[Any], quick: int = 1) -> list[Any]:
    """Parameters of a test, of which only the first ones belong to the quick tests."""
    slow = pytest.mark.slow
    return [pytest.param(each, marks=() if number < quick else slow) for number, each in enumerate(table)]


def become(run: Callable[[list[str]], int], arguments: list[str], streams: list[Path]) -> None:
    """Never returns: whatever happens, the fork ends here."""
    code = DEFECT
    try:
        for number, path in enumerate(streams, start=1):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, number)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="strict", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        faulthandler.disable()
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        import torch

        torch.set_num_threads(1)
        try:
            code = run(arguments)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


class Trap:
    """Code that leaves a mark when it runs, and a folder that nobody may write to."""

    def __init__(self, folder: Path) -> None:
        self.mark = folder / "it-ran"
        self.code = f"open({str(self.mark)!r}, 'w').close()"
        self.secret = folder / "secret.txt"
        self.secret.write_text("nobody's business")

    def assert_untouched(self) -> None:
        """No code ran, and the file outside is what it was."""
        assert not self.mark.exists()
        assert self.secret.read_text() == "nobody's business"


class Payload:
    """A pickle that runs code."""

    def __init__(self, code: str) -> None:
        self._code = code

    def __reduce__(self) -> Any:
        return exec, (self._code,)
