"""Searches with virtual experts, the whole way: run, resume, refuse, export, rebuild; data-free and calibrated."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.cli import run_command
from search.results import Results

Project = Callable[..., Path]

HALF = {"method": "ties", "parameters": {"density": 0.2}}

RUN = ["run", "config.yaml", "--display", "none"]


@pytest.fixture
def project(tiny_project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``project(virtual, **sections)``: a small search with virtual experts, and a cache of its own."""

    def make(virtual: dict[str, Any], architecture: str = "llama", candidates: int = 14, **sections: Any) -> Path:
        folder = tiny_project(architecture, candidates=candidates)
        monkeypatch.setenv("PARETOMERGE_CACHE", str(folder / "cache"))
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["models"]["virtual"] = virtual
        config["space"] = {"granularity": {"knots": 2}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config | sections, sort_keys=False))
        return folder

    return make


def facts(capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    capsys.readouterr()
    assert run_command(list(command)) == 0
    return json.loads(capsys.readouterr().out)


def same_weights(one: str | Path, other: str | Path) -> bool:
    name = "model.safetensors"
    return (Path(one) / name).read_bytes() == (Path(other) / name).read_bytes()


@pytest.mark.slow
def test_a_merge_that_needs_no_data_goes_the_whole_way(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """TIES as a virtual expert is TIES as a baseline, and after the cache is gone it is made again."""
    folder = project({"half": HALF}, candidates=13)  # the baselines
    assert run_command(["check", "config.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "virtual half" in shown and "ties of a, b" in shown and not (folder / "cache").exists()
    assert run_command(["run", "config.yaml", "--display", "plain"]) == 0
    assert "virtual expert half: ties of a, b, made in" in capsys.readouterr().err
    status = facts(capsys, "status", "runs/tiny", "--json", "--candidates")
    by_label = {each["label"]: each for each in status["baselines"]}
    assert by_label["half alone"]["search"] == by_label["ties λ=1"]["search"]
    assert by_label["half alone"]["holdout"] == by_label["ties λ=1"]["holdout"]
    report = (folder / "runs/tiny/report.html").read_text()
    assert "half alone" in report and "ties of a, b" in report and str(folder) not in report

    alone = str(by_label["half alone"]["id"])
    assert run_command(["export", "runs/tiny", "--candidate", alone, "--out", "first"]) == 0
    shutil.rmtree(folder / "cache")
    assert run_command(["merge", "first/recipe.yaml", "rebuilt"]) == 0
    assert same_weights("first", "rebuilt")
    recipe = yaml.safe_load(Path("first/recipe.yaml").read_text())
    assert {alias: each["path"] for alias, each in recipe["sources"].items()} == {
        "base": "base", "a": "a", "b": "b", "half": "virtual/half",
    }  # fmt: skip
    assert recipe["sources"]["half"]["made_by"]["sources"]["a"]["path"] == "a"
    assert str(folder) not in Path("first/recipe.yaml").read_text()


@pytest.mark.slow
def test_a_resume_makes_it_again_and_refuses_another_one(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    folder = project({"half": HALF})
    assert run_command(RUN) == 0
    for budget in ("15", "16"):  # from the cache, then without it
        assert run_command([*RUN, "--set", f"search.budget.candidates={budget}"]) == 0
        assert facts(capsys, "status", "runs/tiny", "--json")["state"] == "finished"
        assert (folder / "cache/virtual").is_dir()
        shutil.rmtree(folder / "cache")
    assert run_command(["export", "runs/tiny", "--knee", "--out", "out"]) == 0
    # an expert that changed takes the virtual ones with it
    shutil.rmtree(folder / "a")
    shutil.copytree(folder / "b", folder / "a")
    assert run_command([*RUN, "--set", "search.budget.candidates=17"]) == 2
    said = capsys.readouterr().err
    assert "model 'a'" in said and "virtual expert 'half' (what it is made of" in said


@pytest.mark.slow
def test_one_that_comes_out_otherwise_stops_the_run_with_a_reason(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project({"mean": {"method": "linear", "coefficients": 0.5}}, candidates=13)
    assert run_command(RUN) == 0
    shutil.rmtree(folder / "cache")
    from merging import virtual

    export = virtual.export

    def otherwise(recipe: Any, *arguments: Any, **more: Any) -> Path:
        """As a library would that rounds differently."""
        from safetensors.torch import load_file, save_file

        out: Path = export(recipe, *arguments, **more)
        tensors = load_file(out / "model.safetensors")
        tensors["model.norm.weight"].view(-1)[0] += 1e-3
        save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
        return out

    monkeypatch.setattr(virtual, "export", otherwise)
    assert run_command([*RUN, "--set", "search.budget.candidates=14"]) == 2
    said = capsys.readouterr().err
    assert "virtual expert 'mean' (the cache did not have it any more, and made anew it has other weights" in said
    assert run_command(["export", "runs/tiny", "--knee", "--out", "out"]) == 2
    assert "made again by its own recipe it is sha256:" in capsys.readouterr().err


@pytest.mark.slow
def test_weights_that_are_not_finite_are_said_at_the_line(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    endless = {"method": "task_arithmetic", "coefficients": 1e38, "parameters": {"scale": 1e38}}
    project({"endless": endless})
    assert run_command(RUN) == 2
    said = capsys.readouterr().err
    assert "models.virtual.endless: " in said and "config.yaml:" in said and "Traceback" not in said
    assert not Path("runs/tiny/run.db").exists()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["qwen2", "gpt2"])
def test_a_calibrated_one_goes_the_whole_way(
    architecture: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project({"solved": {"method": "regmean"}}, architecture, calibration={"items": 20})
    assert run_command(["run", "config.yaml", "--display", "plain"]) == 0
    said = capsys.readouterr().err
    assert "recording a on 20 items of the evaluator a" in said and "Gram matrices of b" in said
    before = facts(capsys, "status", "runs/tiny", "--json")
    # another run of the same data finds all of it, and no model is run for it
    assert run_command(["run", "config.yaml", "--display", "plain", "--name", "again"]) == 0
    said = capsys.readouterr().err
    assert "recording" not in said and "Gram" not in said and "from the cache" in said
    after = facts(capsys, "status", "runs/again", "--json")
    assert [each["recipe_hash"] for each in after["baselines"]] == [each["recipe_hash"] for each in before["baselines"]]

    id = str(next(each["id"] for each in after["baselines"] if each["label"] == "solved alone"))
    assert run_command(["export", "runs/tiny", "--candidate", id, "--out", "first"]) == 0
    shutil.rmtree(folder / "cache/virtual")
    assert run_command(["merge", "first/recipe.yaml", "rebuilt"]) == 0  # the statistics are still there
    shutil.rmtree(folder / "cache")
    assert run_command(["merge", "first/recipe.yaml", "lost"]) == 2
    said = capsys.readouterr().err
    assert "'solved' is a virtual expert" in said and "not in the cache" in said and "--calibration" in said
    assert run_command(["export", "runs/tiny", "--candidate", id, "--out", "again"]) == 0  # a run has its data
    assert same_weights("first", "rebuilt") and same_weights("first", "again")

    shutil.rmtree(folder / "cache")  # remade from the run's own data: the same content, so that the run goes on
    assert run_command([*RUN, "--set", "search.budget.candidates=15"]) == 0
    # other data are another virtual expert
    lines = (folder / "data/a/search.jsonl").read_text().splitlines()
    (folder / "data/a/search.jsonl").write_text("\n".join(lines[1:]) + "\n")
    assert run_command([*RUN, "--set", "search.budget.candidates=16"]) == 2
    assert "virtual expert 'solved' (what it is made of" in capsys.readouterr().err


@pytest.mark.slow
def test_calibrated_methods_are_searched(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """RegMean with genes for its coefficients, RegMean++ and Fisher, per block; exported as they were scored."""
    folder = project({}, candidates=30, space={
        "granularity": "model", "methods": ["regmean", "fisher", "regmean_plus", "task_arithmetic"], "method_blocks": 2,
    }, calibration={"items": 16})  # fmt: skip
    assert run_command(RUN) == 0
    results = Results.load(folder / "runs/tiny")
    assert results.started.calibration.startswith("sha256:")
    used: dict[str, int] = {}
    for each in results.candidates:
        if each.state == "complete":
            for assignment in results.recipe(each.id).groups.values():
                used.setdefault(assignment.method, each.id)
    assert {"regmean", "fisher", "regmean_plus"} <= used.keys()
    for method, id in used.items():
        out = f"out-{method}"
        assert run_command(["export", "runs/tiny", "--candidate", str(id), "--out", out]) == 0
        again = facts(capsys, "evaluate", out, "--config", "config.yaml", "--split", "search", "--json")
        assert again["values"] == results.values(id, "search")
    shutil.rmtree(folder / "cache")
    id = used["regmean_plus"]
    assert run_command(["export", "runs/tiny", "--candidate", str(id), "--out", "collected-again"]) == 0
    assert same_weights("collected-again", "out-regmean_plus")
    assert run_command([*RUN, "--set", "search.budget.candidates=31"]) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_runs_at_once_make_it_once(project: Project) -> None:
    folder = project({"solved": {"method": "regmean"}}, calibration={"items": 16})
    command = [sys.executable, "-c", "import sys; from search.cli import main; main()", *RUN]
    both = [subprocess.Popen([*command, "--name", name], stderr=subprocess.PIPE, text=True) for name in ("one", "two")]
    errors = [each.communicate()[1] for each in both]
    assert [each.returncode for each in both] == [0, 0], errors
    one, two = (Results.load(folder / "runs" / name).started for name in ("one", "two"))
    assert one.sources == two.sources and one.made_by == two.made_by
    (place,) = (folder / "cache/virtual").iterdir()
    assert {each.name for each in place.iterdir()} == {".lock", "model"}


def rows(folder: Path, alias: str, count: int) -> Path:
    """Prompts alone, as a table of texts."""
    items = [json.loads(line) for line in (folder / f"data/{alias}/search.jsonl").read_text().splitlines()]
    path = folder / f"{alias}-inputs.jsonl"
    path.write_text("".join(json.dumps({"text": each["prompt"]}) + "\n" for each in items[:count]))
    return path


@pytest.mark.slow
def test_a_short_merge_config_and_its_recipe(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    folder = project({})
    inputs = {alias: {"data": rows(folder, alias, 20).name} for alias in ("a", "b")}
    config = {"base": "base", "experts": {"a": "a", "b": "b"}, "method": "regmean", "calibration": {"inputs": inputs}}
    (folder / "merge.yaml").write_text(yaml.safe_dump(config))
    assert run_command(["merge", "merge.yaml", "first"]) == 0
    assert run_command(["merge", "first/recipe.yaml", "second"]) == 0  # from the cache
    remembered = next((folder / "cache").glob("calibration/fingerprints/*.json"))
    written = remembered.stat().st_mtime_ns
    assert run_command(["merge", "merge.yaml", "again"]) == 0
    assert remembered.stat().st_mtime_ns == written  # a cache that has all may be read-only
    shutil.rmtree(folder / "cache")
    assert run_command(["merge", "first/recipe.yaml", "third"]) == 2
    assert "--calibration FILE" in capsys.readouterr().err
    assert run_command(["merge", "first/recipe.yaml", "third", "--calibration", "merge.yaml"]) == 0
    assert same_weights("first", "second") and same_weights("first", "third")

    rows(folder, "a", 19)
    shutil.rmtree(folder / "cache")
    assert run_command(["merge", "first/recipe.yaml", "fourth", "--calibration", "merge.yaml"]) == 2
    assert "made with other calibration data" in capsys.readouterr().err


MERGE: dict[str, Any] = {"base": "base", "experts": {"a": "a", "b": "b"}, "method": "regmean"}

WRONG_MERGES: dict[str, tuple[dict[str, Any], str]] = {
    "no data": ({}, "method regmean needs calibration data"),
    "nothing looks at them": (
        {"method": "linear", "coefficients": 0.5, "calibration": {"inputs": {}}},
        "no method here looks at inputs",
    ),
    "an expert without": (
        {"calibration": {"inputs": {"a": {"data": "x.jsonl"}}}},
        "the expert 'b' needs calibration inputs",
    ),
    "an unknown expert": ({"calibration": {"inputs": {"c": {"data": "x.jsonl"}}}}, "there is no expert 'c'"),
    "an evaluator": (
        {"calibration": {"inputs": {each: {"evaluator": "a"} for each in "ab"}}},
        "a merge has no evaluators",
    ),
    "no such file": (
        {"calibration": {"inputs": {each: {"data": "nowhere.jsonl"} for each in "ab"}}},
        "nowhere.jsonl",
    ),
    "an unknown key": ({"calibration": {"item": 3}}, "calibration.item: unknown key. Known keys: items, seed, inputs."),
    "one model twice, with two kinds of inputs": (
        {
            "experts": {"a": "a", "b": "a"},
            "calibration": {
                "inputs": {each: {"data": f"data/{each}/search.jsonl", "text": "{prompt}"} for each in "ab"}
            },
        },
        "calibration of b: it has the same weights as a, and other inputs",
    ),
    "the wrong modality": (
        {"calibration": {"inputs": {each: {"data": "data/a/search.jsonl", "image": "prompt"} for each in "ab"}}},
        "calibration of a: ",
    ),
}


@pytest.mark.slow
def test_what_a_merge_config_says_wrong_of_its_data(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    folder = project({})
    for changed, says in WRONG_MERGES.values():
        (folder / "merge.yaml").write_text(yaml.safe_dump(MERGE | changed))
        capsys.readouterr()
        assert run_command(["merge", "merge.yaml", "out"]) == 2, says
        assert says in capsys.readouterr().err and not (folder / "out").exists()
    (folder / "merge.yaml").write_text(yaml.safe_dump(MERGE | {"method": "linear", "coefficients": 0.5}))
    assert run_command(["merge", "merge.yaml", "out", "--calibration", "merge.yaml"]) == 2
    assert "a merge config names its data itself); leave it out" in capsys.readouterr().err


@pytest.mark.slow
def test_inputs_from_files_in_a_search(
    project: Project,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows beside the config; rows of a holdout are refused, before anything runs, with the row and the item."""
    folder = project({"solved": {"method": "regmean"}})
    config = yaml.safe_load((folder / "config.yaml").read_text())
    inputs = {alias: {"data": rows(folder, alias, 20).name} for alias in ("a", "b")}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"calibration": {"items": 12, "inputs": inputs}}))
    with monkeypatch.context() as patch:  # an evaluator that does not say what its items are
        patch.setattr("evaluators.calibration.overlap", lambda rows, evaluator, name: False)
        assert run_command(["check", "config.yaml"]) == 0
    assert "inputs of a are in the holdout of b cannot be told" in caplog.text
    caplog.clear()
    assert run_command(["check", "config.yaml"]) == 0
    assert "cannot be told" not in caplog.text
    assert run_command(["run", "config.yaml", "--display", "plain"]) == 0
    assert "reading inputs of a from a-inputs.jsonl" in capsys.readouterr().err

    held = folder / "data/b/holdout.jsonl"
    inputs["a"] = {"data": str(held), "text": "{prompt} {answer}"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"calibration": {"items": 12, "inputs": inputs}}))
    for command in (["check", "config.yaml"], [*RUN, "--name", "other"]):
        assert run_command(command) == 2
        said = capsys.readouterr().err
        assert "calibration.inputs.a: " in said and "holdout" in said and "b-holdout-" in said
    inputs["a"] = {"data": "nowhere.jsonl"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"calibration": {"inputs": inputs}}))
    assert run_command(["check", "config.yaml"]) == 2
    assert "expected a file at" in capsys.readouterr().err
