"""The hybrid of EvoLLM: a merge of weights, found by the first search, is model A of the second one's paths."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hybrid_projects import RUN, facts, interrupted, labelled, project_maker, scores

from search.cli import run_command
from search.results import Results
from search.store import FIRST

Project = Callable[..., Path]

HYBRID = Path("runs/tiny")
SKILLS = ("string", "language")
PATHS = {"data_flow": {"models": ["evolved", "b"], "repetitions": 2, "depth": 7}}


@pytest.fixture
def project(tiny_project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    make = project_maker(tiny_project, monkeypatch)
    search = {"optimizer": "cma", "budget": {"candidates": 14}, "finalists": 2}
    return lambda **sections: make(**{"space": PATHS, "search": search} | sections)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_is_model_a_of_a_search_over_paths(
    project: Project, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project(models={"base": "base", "experts": {"a": "a", "b": "b"}, "dtype": dtype})
    assert run_command(["check", "config.yaml"]) == 0
    planned = facts(capsys, "plan", "config.yaml", "--no-measure", "--json")
    assert planned["search"]["candidates"]["middle"] == planned["first"]["search"]["candidates"]["middle"] == 14
    assert [each["name"] for each in planned["search"]["stages"]][:2] == ["baselines", "full"]
    assert run_command(RUN) == 0
    first, second = Results.load(HYBRID / FIRST), Results.load(HYBRID)
    assert first.chosen is not None and not first.candidate(first.chosen).label.startswith(("base", "expert"))

    # as a path it has the bits, and the scores, that it had as a merge
    alone = labelled(second, "evolved alone")
    assert scores(HYBRID)[alone][1] == scores(HYBRID / FIRST)[first.chosen][1]
    for run, id, out in ((HYBRID, alone, "alone"), (HYBRID / FIRST, first.chosen, "chosen")):
        assert run_command(["export", str(run), "--candidate", str(id), "--out", out]) == 0
    assert Path("alone/model.safetensors").read_bytes() == Path("chosen/model.safetensors").read_bytes()

    # a path with scales through it scores what it scored, and can be made again from its recipe, where all else is gone
    last = max(
        each.id
        for each in second.candidates
        if second.recipe(each.id).scales is not None and "evolved" in str(second.recipe(each.id).layers)
    )
    assert run_command(["export", "runs/tiny", "--candidate", str(last), "--out", "one", "--rescore"]) == 0
    shutil.rmtree(folder / "cache")
    shutil.rmtree(HYBRID / FIRST)
    assert run_command(["merge", "one/recipe.yaml", "other"]) == 0
    assert Path("one/model.safetensors").read_bytes() == Path("other/model.safetensors").read_bytes()
    recipe = second.recipe(last)
    made_by = recipe.sources["evolved"].made_by
    assert made_by is not None and made_by.hash == first.candidate(first.chosen).recipe_hash


@pytest.mark.slow
def test_on_trained_models_an_exported_path_scores_what_it_scored(
    nano_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Loaded as anybody would, with its scales in its weights; generated answers on all items of all splits."""
    config = {
        "name": "nano",
        "models": {"base": "zoo://skills-nano/base", "experts": {each: f"zoo://skills-nano/{each}" for each in SKILLS}},
        "evaluators": {each: {"type": "exact_match", "data": f"zoo://skills-nano/data/{each}"} for each in SKILLS},
        "objectives": [f"{each}.accuracy" for each in SKILLS],
        "first": {
            "name": "evolved",
            "space": {"granularity": "model"},
            "search": {"optimizer": "cma", "budget": {"candidates": 16}, "finalists": 3},
        },
        "space": {"data_flow": {"models": ["evolved", "string"], "repetitions": 2}},
        "search": {"optimizer": "cma", "budget": {"candidates": 16}, "finalists": 3},
        "engine": {"threads": 1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    monkeypatch.chdir(tmp_path)
    assert run_command(RUN) == 0
    results = Results.load(Path("runs/nano"))
    scaled = [each.id for each in results.candidates if results.recipe(each.id).scales is not None]
    last = max(id for id in scaled if results.candidate(id).state == "complete")
    capsys.readouterr()
    assert run_command(["export", "runs/nano", "--candidate", str(last), "--rescore", "--out", "out"]) == 0
    assert "and 128 item scores are the same" in capsys.readouterr().out


@pytest.mark.slow
def test_killed_among_the_paths_it_ends_as_if_nothing_had_been(project: Project) -> None:
    project()
    assert run_command([*RUN, "--name", "calm"]) == 0
    interrupted("--name", "fire", at="[9/14] candidate 8:")
    assert run_command([*RUN, "--name", "fire"]) == 0
    calm, fire = Path("runs/calm"), Path("runs/fire")
    assert scores(fire) == scores(calm) and scores(fire / FIRST) == scores(calm / FIRST)
    assert Results.load(fire).chosen == Results.load(calm).chosen
