"""Where a hybrid's first search lies: moved, copied, removed, and other runs that are called as its folder is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hybrid_projects import RUN, facts, project_maker

from search.cli import run_command
from search.results import Results
from search.store import FIRST

Project = Callable[..., Path]
RUNS, HYBRID = Path("runs"), Path("runs/tiny")
PLAIN = {"first": None, "space": {"granularity": "model"}}


@pytest.fixture
def project(tiny_project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    return project_maker(tiny_project, monkeypatch)


@pytest.mark.slow
def test_a_first_search_stays_one_wherever_it_is_moved(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project()
    assert run_command(RUN) == 0
    copied = RUNS / "copied"
    shutil.copytree(HYBRID / FIRST, copied)
    for command in (["status", str(copied)], ["watch", str(copied), "--once"]):
        assert run_command(command) == 0
        assert "copied, first search: finished" in capsys.readouterr().out
    assert run_command(["choose", str(copied), "--knee"]) == 0
    assert "stays closed to the first search" in " ".join(capsys.readouterr().out.split())
    assert Results.load(copied).openings == 0
    assert run_command(["export", str(copied), "--out", "one"]) == 0
    assert run_command(["export", str(HYBRID / FIRST), "--out", "other"]) == 0
    assert Path("one/model.safetensors").read_bytes() == Path("other/model.safetensors").read_bytes()
    capsys.readouterr()
    assert run_command([*RUN, "--name", "copied"]) == 2
    assert "put it back there" in capsys.readouterr().err

    # with the whole hybrid, or gone: the second search has all that it needs
    HYBRID.rename(RUNS / "moved")
    shutil.rmtree(RUNS / "moved" / FIRST)
    assert facts(capsys, "status", "runs/moved", "--json")["first"]["run"] is None
    for command in (["status", "runs/moved"], ["report", "runs/moved"], ["doctor", "runs/moved"]):
        assert run_command(command) == 0
    assert "whose run is not here any more" in capsys.readouterr().out
    assert run_command(["export", "runs/moved", "--out", "third"]) == 0
    assert run_command([*RUN, "--name", "moved", "--set", "search.budget.candidates=17"]) == 0
    assert not (RUNS / "moved" / FIRST).exists() and len(Results.load(RUNS / "moved").candidates) == 17


@pytest.mark.slow
def test_a_run_that_is_called_first_is_a_run_like_any_other(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project(**PLAIN)
    closed = ["--set", "search.holdout=false"]
    assert run_command(["run", "config.yaml", "--name", FIRST, "--display", "plain", *closed]) == 0
    assert "first search" not in capsys.readouterr().out
    for command in ("status", "doctor", "report"):
        assert run_command([command, "runs"]) == 2  # a folder of runs is no hybrid
        assert "expected a run directory" in capsys.readouterr().err
    assert run_command(["status", "runs/first"]) == 0
    assert capsys.readouterr().out.lstrip().startswith("first: finished")
    assert run_command(["choose", "runs/first", "--knee"]) == 0
    assert Results.load(RUNS / FIRST).openings == 1
