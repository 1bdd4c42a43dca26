"""Searches over models that are named by their place on the Hub, from its cache on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from search.cli import run_command

Project = Callable[..., Path]

COMMIT = "27d67f1b5f57dc0953326b2601d68371d40ea8da"
BASE, EXPERT = f"hub://me/base@{COMMIT}", "hub://me/a"


@pytest.fixture
def project(tiny_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Base and first expert lie in the Hub's cache, as huggingface_hub keeps them, and nowhere else."""
    from huggingface_hub import constants

    folder, cache = tiny_project(candidates=8), tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("base", "a"):
        home = cache / f"models--me--{name}"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text(COMMIT)
        shutil.move(folder / name, home / "snapshots" / COMMIT)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("base: base", f"base: {BASE}").replace("a: a,", f"a: '{EXPERT}',"))
    return folder


@pytest.mark.slow
def test_a_search_resume_and_export(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run_command(["run", "config.yaml", "--display", "none"]) == 0
    assert run_command(["check", "config.yaml"]) == 0
    assert run_command(["export", "runs/tiny", "--out", "out"]) == 0
    card = Path("out/README.md").read_text()
    assert "me/base" in card and "me/a" in card and COMMIT[:12] in card
    assert str(project.parent) not in card


def test_models_that_are_not_here(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = ["--set", "models.experts.a=hub://me/missing@main"]
    assert run_command(["run", "config.yaml", "--display", "none", *missing]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "error: config.yaml:5" in said and "HF_HUB_OFFLINE is set" in said
    assert "hf download me/missing --revision main" in said
    assert run_command(["check", "config.yaml", *missing]) == 0  # nothing is wrong with the config
    captured = capsys.readouterr()
    said = " ".join((captured.out + captured.err).split())
    assert "warning: config.yaml:5" in said and "hub://me/missing@main is not on this machine" in said
    assert run_command(["plan", "config.yaml", *missing]) == 2
    assert "`paretomerge run` downloads it" in " ".join(capsys.readouterr().err.split())
    assert run_command(["check", "config.yaml", "--set", "models.base=hub://missing"]) == 2
    captured = capsys.readouterr()
    assert "expected hub://OWNER/NAME" in captured.out + captured.err


@pytest.mark.slow
def test_single_merges_scores_and_diagnoses(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merge = f"base: '{BASE}'\nexperts: {{a: '{EXPERT}', b: b}}\nmethod: task_arithmetic\ncoefficients: 0.5\n"
    Path("merge.yaml").write_text(merge)
    assert run_command(["merge", "merge.yaml", "merged"]) == 0
    assert "me/base" in Path("merged/README.md").read_text()
    assert run_command(["evaluate", EXPERT, "--config", "config.yaml"]) == 0
    assert "a.accuracy" in capsys.readouterr().out
    assert run_command(["diagnose", BASE, f"a={EXPERT}", "b", "--spectra", "off"]) == 0
    Path("merge.yaml").write_text(merge.replace("me/a", "me/missing"))
    assert run_command(["merge", "merge.yaml", "other"]) == 2
    assert "hub://me/missing is not on this machine" in " ".join(capsys.readouterr().err.split())
