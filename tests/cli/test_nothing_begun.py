"""A search that cannot begin leaves no run directory behind, and takes nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hybrid_projects import RUN, hybrid

from search.cli import run_command

BROKEN = ["--set", "models.experts.a=nowhere"]


@pytest.mark.parametrize("two", [False, True], ids=["search", "hybrid"])
def test_what_never_began_leaves_nothing(
    tiny_project: Callable[..., Path], two: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_project("llama")
    if two:
        hybrid(folder)
    assert run_command([*RUN, *BROKEN]) == 2
    assert "nothing at" in capsys.readouterr().err
    assert list(Path("runs").iterdir()) == [], "it came as far as the models"


def test_a_folder_that_was_there_stays(tiny_project: Callable[..., Path]) -> None:
    tiny_project("llama")
    Path("runs/tiny").mkdir(parents=True)
    assert run_command([*RUN, *BROKEN]) == 2
    assert Path("runs/tiny").is_dir()
    Path("runs/other").mkdir()
    (Path("runs/other") / "notes.txt").write_text("mine")
    assert run_command([*RUN, *BROKEN, "--name", "other"]) == 2
    assert (Path("runs/other") / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "key", ["search.budget.candidates", "search.finalists", "search.seed", "space.data_flow.repetitions"]
)
def test_true_is_no_number(tiny_project: Callable[..., Path], key: str, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_project("llama")
    assert run_command(["check", "config.yaml", "--set", f"{key}=true"]) == 2
    assert f"{key}: expected a number, found true" in capsys.readouterr().err
