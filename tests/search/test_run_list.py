"""``ls runs``: what a line says of a run is what its results say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from search.cli import run_command
from search.errors import SearchError
from search.results import Results
from search.run_list import runs_in

SyntheticRun = Callable[..., Results]


@pytest.fixture
def runs(tmp_path: Path, synthetic_run: SyntheticRun) -> Path:
    """One finished, one interrupted, one that cannot be read, and what is no run."""
    folder = tmp_path / "runs"
    synthetic_run(folder / "one", candidates=24)
    synthetic_run(folder / "two", objectives=3, candidates=24, finished=False)
    (folder / "broken").mkdir()
    (folder / "broken/run.db").write_bytes(b"no database at all, and long enough to be looked into")
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("mine")
    return folder


def test_every_line_says_what_the_results_say(runs: Path) -> None:
    rows = {row["name"]: row for row in runs_in(runs)}
    assert set(rows) == {"one", "two", "broken"}
    for name in ("one", "two"):
        results = Results.load(runs / name)
        assert rows[name]["state"] == results.state and rows[name]["chosen"] == results.chosen
        assert rows[name]["candidates"] == len(results.candidates)
        assert rows[name]["budget"] == results.config.search.budget.candidates
        assert rows[name]["objectives"] == list(results.objectives.names)
        assert rows[name]["began"] <= rows[name]["latest"]
    assert (rows["one"]["state"], rows["two"]["state"]) == ("finished", "interrupted")
    assert rows["one"]["chosen"] is not None and rows["two"]["chosen"] is None
    assert "run.db" in rows["broken"]["error"]


def test_the_command_prints_them(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(runs.parent)
    assert run_command(["ls", "runs"]) == 0
    text = capsys.readouterr().out
    assert "interrupted" in text and max(map(len, text.splitlines())) <= 80
    assert run_command(["ls", "runs", str(runs), "--json"]) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} == {"one", "two", "broken"}


def test_no_runs_are_no_error_and_no_folder_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["ls", "runs", str(tmp_path)]) == 0
    assert "no runs here" in capsys.readouterr().out
    with pytest.raises(SearchError, match="nothing there"):
        runs_in(tmp_path / "nowhere")
