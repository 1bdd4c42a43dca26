"""Two searches in one run: the choice of the first one is an expert of the second. Run, killed, resumed, exported.
Kills in the second search are in ``test_hybrid_paths.py``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hybrid_projects import COMMAND, RUN, facts, interrupted, labelled, project_maker, scores

from merging.checkpoint import Checkpoint
from merging.recipe import Recipe
from search.cli import run_command
from search.errors import SearchError
from search.ledger import LEDGER
from search.results import Results
from search.run import Run
from search.store import CONTROL, DATABASE, FIRST

Project = Callable[..., Path]

HYBRID = Path("runs/tiny")
EVOLVED = HYBRID / FIRST


@pytest.fixture
def project(tiny_project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    return project_maker(tiny_project, monkeypatch)


@pytest.mark.slow
def test_the_choice_of_the_first_is_an_expert_of_the_second(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the very bits that were scored. The holdout is opened by the second search alone."""
    folder = project()
    assert run_command(["check", "config.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "the choice of the first search" in shown and "first, stage full" in shown and "second, stage full" in shown
    assert run_command(RUN) == 0
    first, second = Results.load(EVOLVED), Results.load(HYBRID)
    assert first.state == second.state == "finished" and first.chosen is not None
    assert not first.scores["holdout"] and first.openings == 0 and second.openings == 1
    assert [json.loads(line)["run"] for line in (HYBRID.parent / LEDGER).read_text().splitlines()] == ["tiny"]
    assert not (HYBRID / LEDGER).exists()
    assert not first.candidate(first.chosen).label.startswith(("base", "expert"))

    # in bits: as the first search would export it, as it lies in the cache, and item by item in the second search
    assert run_command(["export", str(EVOLVED), "--out", "chosen"]) == 0
    made = Path(second.started.paths["evolved"])
    assert Checkpoint.open(Path("chosen")).content == second.started.sources["evolved"] == Checkpoint.open(made).content
    assert (made / "model.safetensors").read_bytes() == Path("chosen/model.safetensors").read_bytes()
    alone = labelled(second, "evolved alone")
    assert scores(HYBRID)[alone][1] == scores(EVOLVED)[first.chosen][1]
    assert run_command(["export", "runs/tiny", "--candidate", str(alone), "--out", "alone"]) == 0
    assert Path("alone/model.safetensors").read_bytes() == Path("chosen/model.safetensors").read_bytes()

    # what it was made of stands in every recipe, and nothing of this machine
    own = Recipe.from_yaml(second.started.made_by["evolved"])
    assert own.hash == first.candidate(first.chosen).recipe_hash and own.dtype == "bfloat16"
    assert str(folder) not in second.started.made_by["evolved"]


@pytest.mark.slow
def test_an_export_needs_nothing_but_its_recipe(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the first search merged what was made itself, and an expert is made of what it chose: three deep."""
    half = {"method": "ties", "of": ["a", "b"], "parameters": {"density": 0.5}}
    heir = {"method": "linear", "of": ["evolved", "b"], "coefficients": {"evolved": 0.7, "b": 0.3}}
    models = {"base": "base", "experts": {"a": "a", "b": "b"}, "virtual": {"half": half, "heir": heir}}
    models["derived"] = {"more": "1.5*b"}
    first_space = {"granularity": "model", "coefficient": [0.1, 0.9], "experts": ["half", "more"]}
    settings = {"optimizer": "random", "budget": {"candidates": 14}, "finalists": 1}
    folder = project(
        models=models,
        constraints={},
        first={"name": "evolved", "space": first_space, "search": settings, "objectives": ["b.bits_per_byte"]},
        space={"granularity": "model", "experts": ["heir", "a"]},
    )
    assert run_command(RUN) == 0
    results = Results.load(HYBRID)
    last = max(each.id for each in results.candidates if not each.label)  # a point of the space
    recipe = results.recipe(last)
    heirs = recipe.sources["heir"].made_by
    assert heirs is not None and heirs.sources["evolved"].made_by is not None
    assert run_command(["export", "runs/tiny", "--candidate", str(last), "--out", "one"]) == 0
    assert f"{folder}" not in Path("one/recipe.yaml").read_text()
    shutil.rmtree(folder / "cache")
    shutil.rmtree(EVOLVED)
    assert run_command(["merge", "one/recipe.yaml", "other"]) == 0
    shutil.rmtree(folder / "cache")
    assert run_command(["export", "runs/tiny", "--candidate", str(last), "--rescore", "--out", "third"]) == 0
    weights = [Path(each, "model.safetensors").read_bytes() for each in ("one", "other", "third")]
    assert weights[0] == weights[1] == weights[2]
    assert "evolved" in Path("one/README.md").read_text()


@pytest.mark.slow
def test_killed_in_the_first_search_or_after_it_it_ends_as_if_nothing_had_been(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project()
    assert run_command([*RUN, "--name", "calm"]) == 0
    interrupted("--name", "fire", at="[13/14]")
    fire = Path("runs/fire")
    assert (fire / FIRST / DATABASE).exists() and not (fire / DATABASE).exists()
    # nobody works on it, and its first search is all that there is
    look = facts(capsys, "watch", "runs/fire", "--once", "--json")
    assert look["first"] is True and look["state"] == "interrupted" and look["name"] == "fire, first search"
    assert facts(capsys, "status", "runs/fire", "--json")["budget"] == 14
    assert run_command(["status", "runs/fire"]) == 0
    assert "this is the first of two searches" in capsys.readouterr().out
    assert [each["name"] for each in facts(capsys, "ls", "runs", "--json")][-1] == "fire/first"
    assert run_command(["doctor", "runs/fire"]) == 0
    assert run_command(["report", "runs/fire"]) == 0 and (fire / FIRST / "report.html").exists()
    for command in (["choose", "runs/fire"], ["export", "runs/fire"]):
        capsys.readouterr()
        assert run_command(command) == 2
        assert "the second search of this run has not begun" in capsys.readouterr().err

    interrupted("--name", "fire", at="now the second search")  # nothing of the second is stored yet
    assert not (fire / DATABASE).exists()
    assert run_command([*RUN, "--name", "fire"]) == 0
    assert scores(fire / FIRST) == scores(Path("runs/calm") / FIRST)
    assert scores(fire) == scores(Path("runs/calm"))
    calm, found = Results.load(Path("runs/calm")), Results.load(fire)
    assert found.chosen == calm.chosen and found.started.made_by == calm.started.made_by
    capsys.readouterr()
    assert run_command(["doctor", "runs/fire"]) == 0
    assert capsys.readouterr().out.count(": intact") == 2


@pytest.mark.slow
def test_what_may_change_and_what_may_grow(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project()
    interrupted(at="[13/14]")
    # the second search has not begun: all of it may change still, and the first may grow
    assert run_command([*RUN, "--set", "first.search.seed=7"]) == 2
    assert "runs/tiny/first: this run was started with another config" in capsys.readouterr().err
    grown = ["--set", "first.search.budget.candidates=15", "--set", "search.seed=3"]
    assert run_command([*RUN, *grown]) == 0
    assert len(Results.load(EVOLVED).candidates) == 15
    # from now on the choice is settled, and only the second may grow
    assert run_command([*RUN, *grown, "--set", "first.search.budget.candidates=16"]) == 2
    said = capsys.readouterr().err
    assert "its second search began with what the first one had chosen" in said and "+      candidates: 16" in said
    assert run_command([*RUN, *grown, "--set", "first.name=other", "--set", "space.experts=[other, a]"]) == 2
    assert "nothing under `first` may change any more" in capsys.readouterr().err
    before = Results.load(HYBRID).started.made_by
    shutil.rmtree(EVOLVED)  # no longer needed: the run remembers what it chose
    assert run_command([*RUN, *grown, "--set", "search.budget.candidates=17", "--control"]) == 0
    results, control = Results.load(HYBRID), Results.load(HYBRID / CONTROL)
    assert len(results.candidates) == len(control.candidates) == 17 and results.state == "finished"
    assert results.started.made_by == control.started.made_by == before
    assert not EVOLVED.exists() and not (HYBRID / CONTROL / FIRST).exists()


@pytest.mark.slow
def test_two_at_once_do_not_mix(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever comes second is refused while either search is running, and told by whom."""
    project()
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        for at in ("[2/14]", "[2/15]"):
            assert any(line.startswith(at) for line in process.stdout)
            os.kill(process.pid, signal.SIGSTOP)
            assert run_command(RUN) == 2
            assert "another process is writing to this run" in capsys.readouterr().err
            look = facts(capsys, "watch", "runs/tiny", "--once", "--json")
            assert look["state"] == "running" and look.get("first", False) is (at == "[2/14]")
            os.kill(process.pid, signal.SIGCONT)
        process.communicate(timeout=300)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_first_search_that_finds_nothing_feasible_says_so(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project(constraints={"a": {"at_most": 0.1, "confidence": 0.5}})
    assert run_command(RUN) == 3
    said = capsys.readouterr().err
    assert "the first search, in runs/tiny/first: none of the" in said and not (HYBRID / DATABASE).exists()


@pytest.mark.slow
def test_a_choice_of_the_first_search_leaves_the_holdout_closed(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    project()
    assert run_command(RUN) == 0
    capsys.readouterr()
    assert run_command(["choose", str(EVOLVED), "--mix", "a=1,b=1"]) == 0
    assert "stays closed to the first search" in " ".join(capsys.readouterr().out.split())
    assert Results.load(EVOLVED).openings == 0 and len((HYBRID.parent / LEDGER).read_text().splitlines()) == 1
    with pytest.raises(SearchError, match="leaves its holdout closed"):
        Run.reopen(EVOLVED).open_holdout(0, "by hand")


@pytest.mark.slow
def test_a_holdout_may_be_left_closed_and_opened_by_hand(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project(first=None, space={"granularity": "model"})
    closed = ["--set", "search.holdout=false"]
    assert run_command([*RUN, *closed]) == 0
    results = Results.load(HYBRID)
    assert results.state == "finished" and results.openings == 0 and not (HYBRID.parent / LEDGER).exists()
    assert run_command(["plan", "config.yaml", "--no-measure", *closed]) == 0
    assert "the holdout stays closed" in " ".join(capsys.readouterr().out.split())
    assert run_command([*RUN, *closed]) == 0  # finished: nothing is left to do
    assert Results.load(HYBRID).openings == 0
    assert run_command(["choose", str(HYBRID), "--knee"]) == 0
    assert Results.load(HYBRID).openings == 1 and (HYBRID.parent / LEDGER).exists()


@pytest.mark.slow
def test_workers_of_ray_make_it_too(project: Project) -> None:
    """They are told what the first search chose: made there, it has the bits that it has in the driver."""
    pytest.importorskip("ray")
    project()
    assert run_command([*RUN, "--name", "alone"]) == 0
    workers = ["--set", "workers={kind: ray, count: 2, threads: 1, schedule: strict}"]
    assert run_command([*RUN, "--name", "many", *workers]) == 0
    many = Path("runs/many")
    assert scores(many / FIRST)[:12] == scores(Path("runs/alone") / FIRST)[:12]  # the baselines
    first, second = Results.load(many / FIRST), Results.load(many)
    assert second.state == "finished" and len(second.candidates) == 15 and first.chosen is not None
    assert scores(many)[labelled(second, "evolved alone")][1] == scores(many / FIRST)[first.chosen][1]
