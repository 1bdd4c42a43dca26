"""Fixtures of the attacks: command lines in a fork with bounds, and a trap beside them."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside the tests: importlib mode adds no folder

from attacking import Attack, Outcome, Trap, become
from small_models import small_project


@pytest.fixture(scope="session")
def warmed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], int]:
    """The command line, with all imported that its commands import, so that a fork of this process starts quickly."""
    from search.cli import run_command

    before, folder = Path.cwd(), tmp_path_factory.mktemp("warm")
    os.chdir(folder)
    try:
        small_project()
        with contextlib.redirect_stdout(io.StringIO()):
            assert run_command(["check", "search.yaml"]) == 0
            assert run_command(["merge", "merge.yaml", "out"]) == 0
    finally:
        os.chdir(before)
    return run_command


@pytest.fixture
def attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warmed: Callable[[list[str]], int]) -> Attack:
    """``attack(*arguments)`` runs a command line in a fork of this process, with a bound on its memory and time."""
    project = tmp_path / "project"
    project.mkdir(exist_ok=True)
    monkeypatch.chdir(project)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")

    def attack(*arguments: str) -> Outcome:
        streams = [tmp_path / "stdout", tmp_path / "stderr"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks of processes with threads
            child = os.fork()
        if child == 0:
            become(warmed, list(arguments), streams)
        _, status = os.waitpid(child, 0)
        out, err = (each.read_text(encoding="utf-8", errors="backslashreplace") for each in streams)
        return Outcome(os.waitstatus_to_exitcode(status), out, err)

    return attack


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    (tmp_path / "outside").mkdir()
    return Trap(tmp_path / "outside")
