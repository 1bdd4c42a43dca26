"""From a finished run to a merge for another mix, on real models: choose, export, constraints, control, the ledger."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.cli import run_command
from search.events import Picked
from search.ledger import LEDGER, Ledger
from search.results import Results
from search.store import CONTROL, Store

Project = Callable[..., Path]
RUN = ["run", "config.yaml", "--display", "none"]


def facts(capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    capsys.readouterr()
    assert run_command(list(command)) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], code: int, *command: str) -> str:
    """One clear paragraph and this exit code."""
    capsys.readouterr()
    assert run_command(list(command)) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    assert error.count("error: ") == 1
    return error


@pytest.fixture(scope="module")
def kept() -> list[Path]:
    return []


@pytest.fixture
def finished(tiny_project: Project, tmp_path: Path, kept: list[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run ``runs/tiny`` of its own for every test; searched for once, its models shared."""
    if not kept:
        kept.append(tiny_project(candidates=20))
        assert run_command([*RUN, "--set", "search.finalists=12", "--set", "search.reserve=0.9"]) == 0
    mine = tmp_path / "mine"
    mine.mkdir()
    shutil.copytree(kept[0] / "runs", mine / "runs")
    monkeypatch.chdir(mine)
    return mine / "runs/tiny"


def picked(run: Path) -> list[Picked]:
    store = Store.open(run, read_only=True)
    found = [each for each in store.events(Picked) if isinstance(each, Picked)]
    store.close()
    return found


def test_a_mix_is_chosen_shown_opened_and_written_down(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Results.load(finished)
    assert run_command(["choose", str(finished), "--mix", "a=0.9,b=0.1"]) == 0
    out = capsys.readouterr().out
    after = Results.load(finished)
    (pick,) = picked(finished)
    assert out.startswith(f"candidate {pick.candidate}: mix of a 0.9, b 0.1")
    assert "coefficients of a by depth" in out and "holdout, items that neither search nor choice has seen" in out
    assert out.index("coefficients of") < out.index("holdout")  # it is chosen and printed before anything is opened
    assert after.picks == ((pick.candidate, pick.rule),)
    assert pick.candidate in after.scores["holdout"]
    assert after.chosen == before.chosen  # the run's own recommendation stays
    assert after.evaluations - before.evaluations == (pick.candidate not in before.scores["holdout"])
    recipes = Ledger(finished).openings(after.started.holdouts).recipes
    assert recipes == len({after.candidate(id).recipe_hash for id in after.scores["holdout"]})
    # again: nothing is evaluated twice
    assert run_command(["choose", str(finished), "--mix", "a=0.9,b=0.1"]) == 0
    assert Results.load(finished).evaluations == after.evaluations
    assert Results.load(finished).openings == after.openings


def test_closed_means_closed_and_machines_read_the_same(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = (finished / "run.db").read_bytes()
    ledger = (finished.parent / LEDGER).read_bytes()
    results = Results.load(finished)
    ends = {}
    for wish in (["--maximize", "a"], ["--maximize", "b.accuracy"], ["--knee"], []):
        found = facts(capsys, "choose", str(finished), *wish, "--keep-closed", "--json")
        id = ends[" ".join(wish)] = found["candidate"]
        assert found["selection"] == results.values(id, "selection") and found["search"] == results.values(id, "search")
        assert found["holdout"] == results.values(id, "holdout")  # {} unless it was open before
        assert found["recipe_hash"] == results.candidate(id).recipe_hash
        assert set(found["coefficients"]) == {"a", "b"}
    assert ends["--knee"] == ends[""] == results.chosen
    for name in "ab":
        best = ends[f"--maximize {name}" if name == "a" else "--maximize b.accuracy"]
        scores = results.scores["selection"]
        assert scores[best][f"{name}.accuracy"][0] == max(scores[id][f"{name}.accuracy"][0] for id in results.finalists)
    assert (finished / "run.db").read_bytes() == database and picked(finished) == []
    assert (finished.parent / LEDGER).read_bytes() == ledger


def test_a_bound_is_kept_or_nothing_is_chosen(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = Results.load(finished)
    scores = results.scores["selection"]
    reached = sorted(scores[id]["a.accuracy"][0] for id in results.finalists)[len(results.finalists) // 2]
    wish = ["--at-least", f"a={reached}", "--confidence", "0.5", "--maximize", "b", "--keep-closed", "--json"]
    id = facts(capsys, "choose", str(finished), *wish)["candidate"]
    able = [each for each in results.finalists if scores[each]["a.accuracy"][0] >= reached]
    assert id in able and scores[id]["b.accuracy"][0] == max(scores[each]["b.accuracy"][0] for each in able)
    error = refused(capsys, 3, "choose", str(finished), "--at-least", "a=1.0", "--at-least", "b=1")
    assert "is shown to keep" in error and "Ask for less" in error
    assert picked(finished) == []


def test_wishes_that_are_none(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(finished)
    for options, says in (
        (["--mix", "a=1", "--knee"], "found more than one of them"),
        (["--mix", "a=1", "--maximize", "b"], "found both"),
        (["--mix", "a"], "expected NAME=NUMBER"),
        (["--mix", "c=1"], "there is no metric 'c'"),
        (["--at-least", "a=95"], "lies in [0, 1]"),
        (["--at-least", "a=0.5", "--confidence", "0.3"], "--confidence"),
    ):
        assert says in refused(capsys, 2, "choose", run, *options)
    assert "expected a run directory" in refused(capsys, 2, "choose", "runs/none", "--knee")
    for options in (["--knee", "--mix", "a=1"], ["--candidate", "3", "--knee"]):
        assert "expected one of --candidate ID, --knee, or a wish" in refused(
            capsys, 2, "export", run, *options, "--out", "x"
        )
    assert not Path("x").exists()


@pytest.mark.slow
def test_export_takes_the_same_wish(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file

    wish = ["--mix", "a=0.95,b=0.05"]
    id = facts(capsys, "choose", str(finished), *wish, "--keep-closed", "--json")["candidate"]
    assert run_command(["export", str(finished), *wish, "--out", "mixed"]) == 0
    assert run_command(["export", str(finished), "--candidate", str(id), "--out", "same"]) == 0
    one, two = (load_file(f"{name}/model.safetensors") for name in ("mixed", "same"))
    assert one.keys() == two.keys() and all(bool((one[name] == two[name]).all()) for name in one)
    assert picked(finished) == []


def test_a_ledger_that_cannot_be_written_keeps_the_holdout_closed(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results.load(finished)
    closed = next(id for id in results.scores["search"] if id not in results.scores["holdout"])
    from search.run import Run

    (finished.parent / LEDGER).unlink()
    (finished.parent / LEDGER).mkdir()
    from search.errors import SearchError

    with pytest.raises(SearchError, match="ledger"):
        Run.reopen(finished).open_holdout(closed, "by hand")
    after = Results.load(finished)
    assert after.scores["holdout"] == results.scores["holdout"] and after.openings == results.openings


@pytest.mark.slow
def test_a_budget_of_items_ends_a_search_and_may_grow(tiny_project: Project) -> None:
    tiny_project(candidates=20)
    few = ["--set", "search.fidelity=off", "--set", "search.budget.items=780"]  # 48 a candidate, a fifth kept back
    assert run_command([*RUN, *few]) == 0
    results = Results.load(Path("runs/tiny"))
    assert results.items == 624 and results.chosen is not None and len(results.candidates) < 20
    more = [*few[:2], "--set", "search.budget.items=900"]
    assert run_command([*RUN, *more]) == 0
    grown = Results.load(Path("runs/tiny"))
    assert grown.items == 720 and grown.state == "finished" and grown.finalists and grown.chosen is not None


@pytest.mark.slow
def test_constraints_are_kept_reported_and_refused(tiny_project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_project(candidates=15)
    config = (folder / "config.yaml").read_text()

    def constrained(text: str) -> None:
        (folder / "config.yaml").write_text(config.replace("space:", f"constraints:\n{text}space:"))

    constrained("  a: {at_least: 0.95}\n")
    for command in (["check", "config.yaml"], RUN):
        error = refused(capsys, 2, *command)
        assert "config.yaml:11:" in error and "even a perfect score shows only" in error
    assert not (folder / "runs/tiny/run.db").exists()

    constrained("  a: {at_least: 0.85}\n  b: {at_least: 0.85}\n")
    error = refused(capsys, 3, *RUN)
    assert "none of the" in error and "keeps every constraint" in error and "comes nearest" in error
    results = Results.load(folder / "runs/tiny")
    assert results.chosen is None and results.scores["holdout"] == {}
    assert not (folder / "runs" / LEDGER).exists()
    assert "nothing honest to choose on" in refused(capsys, 2, "choose", "runs/tiny", "--knee")

    constrained("  a: {at_least: 0.8}\n")
    assert run_command([*RUN, "--name", "bound"]) == 0
    status = facts(capsys, "status", "runs/bound", "--json", "--candidates")
    chosen = status["chosen"]
    n = 16
    assert n * chosen["selection"]["a.accuracy"] / n >= 0.8
    assert status["constraints"][0]["says"] == "a.accuracy >= 0.8 (with confidence 0.9)"
    assert 0 < status["constraints"][0]["kept_by"] < status["candidates"]["done"]
    assert run_command(["report", "runs/bound"]) == 0


@pytest.mark.slow
def test_a_control_is_a_run_of_its_own_and_a_baseline(
    tiny_project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_project(candidates=14)
    assert run_command(RUN) == 0
    # asked for later: the search itself stands, and is not repeated
    before = Results.load(Path("runs/tiny"))
    assert run_command([*RUN, "--set", "search.control=true"]) == 0
    results, control = Results.load(Path("runs/tiny")), Results.load(Path("runs/tiny") / CONTROL)
    assert results.evaluations == before.evaluations
    assert control.config.search.optimizer.name == "random" and control.state == "finished"
    assert len(control.candidates) == len(results.candidates) == 14
    fixed = [each.id for each in results.candidates if each.label]
    assert [control.candidate(id).recipe_hash for id in fixed] == [results.candidate(id).recipe_hash for id in fixed]
    assert results.claims is not None
    assert "random search, equal budget" in [each.baseline.label for each in results.claims.comparisons]
    assert not (Path("runs/tiny") / LEDGER).exists()
    hashes = {each.candidate(id).recipe_hash for each in (results, control) for id in each.scores["holdout"]}
    openings = Ledger(Path("runs/tiny")).openings(results.started.holdouts)
    assert (openings.runs, openings.recipes) == (1, len(hashes))
    capsys.readouterr()
    assert run_command([*RUN, "--control"]) == 0
    assert "finished before" in capsys.readouterr().out


@pytest.mark.slow
def test_two_evaluators_that_share_an_item_across_splits_are_refused(
    tiny_project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_project(candidates=12)
    leaked = json.loads((folder / "data/a/search.jsonl").read_text().splitlines()[0])
    with (folder / "data/b/holdout.jsonl").open("a") as file:
        file.write(json.dumps({**leaked, "id": "another-id"}) + "\n")
    for command in (["check", "config.yaml"], RUN):
        error = refused(capsys, 2, *command)
        assert "must be different items" in error and "'another-id'" in error and leaked["id"] in error
    assert not (folder / "runs/tiny/run.db").exists()


def test_another_mix_of_a_run_of_the_first_format_gets_as_far_as_its_data(tmp_path: Path) -> None:
    """Its config is the one that it was started with, whatever the defaults are today."""
    from search.errors import SearchError
    from search.run import Run

    old = Path(__file__).parents[1] / "search/data/run_format_1"
    run = Path(shutil.copytree(old, tmp_path / "run"))
    results = Results.load(run)
    closed = next(id for id in results.scores["search"] if id not in results.scores["holdout"])
    (run / "config.yaml").write_text("models: {base: base}\n")
    with pytest.raises(SearchError, match="there is no such folder"):
        Run.reopen(run).open_holdout(closed, "by hand")
    assert Results.load(run).scores["holdout"] == results.scores["holdout"]
