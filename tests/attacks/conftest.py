"""Fixtures of the attacks: command lines in a fork with bounds, and a trap beside them."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside the tests: importlib mode adds no folder

from attacking import Attack, Outcome, Trap, become


@pytest.fixture
def attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attack:
    """``attack(*arguments)`` runs a command line in a fork of this process, with a bound on its memory and time."""
    project = tmp_path / "project"
    project.mkdir(exist_ok=True)
    monkeypatch.chdir(project)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")

    import merging.kernel  # noqa: F401 - what every command would import first is imported once, by the parent
    import search.setup  # noqa: F401
    from search.cli import run_command

    def attack(*arguments: str) -> Outcome:
        streams = [tmp_path / "stdout", tmp_path / "stderr"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks of processes with threads
            child = os.fork()
        if child == 0:
            become(run_command, list(arguments), streams)
        _, status = os.waitpid(child, 0)
        out, err = (each.read_text(encoding="utf-8", errors="backslashreplace") for each in streams)
        return Outcome(os.waitstatus_to_exitcode(status), out, err)

    return attack


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    (tmp_path / "outside").mkdir()
    return Trap(tmp_path / "outside")
