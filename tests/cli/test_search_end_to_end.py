"""The whole path on models of several architectures: check, run, status, export, reload, evaluate, resume, refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.cli import run_command
from search.results import Results
from search.store import Store

Project = Callable[..., Path]


def facts(capsys: pytest.CaptureFixture[str], *command: str) -> Any:
    capsys.readouterr()
    assert run_command(list(command)) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [
    "qwen2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "llama", "mistral")),
])  # fmt: skip
def test_any_causal_model_goes_the_whole_way(
    architecture: str, tiny_project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = tiny_project(architecture)
    if architecture == "mistral":
        assert len(list((folder / "base").glob("*.safetensors"))) > 1
    assert run_command(["check", "config.yaml"]) == 0
    assert run_command(["run", "config.yaml", "--display", "plain"]) == 0
    status = facts(capsys, "status", "runs/tiny", "--json", "--candidates")
    assert status["state"] == "finished"
    assert status["candidates"]["done"] == 16
    alone = {each["label"]: each for each in status["baselines"]}
    for split in ("search", "selection", "holdout"):
        assert alone["expert a"][split]["a.accuracy"] == 1.0
        assert alone["expert b"][split]["b.accuracy"] == 1.0
        assert alone["base"][split]["a.accuracy"] < 1.0
    chosen = status["chosen"]

    assert run_command(["export", "runs/tiny", "--knee", "--out", "merged"]) == 0
    again = facts(capsys, "evaluate", "merged", "--config", "config.yaml", "--split", "holdout", "--json")
    assert again["values"] == chosen["holdout"]
    reloaded = AutoModelForCausalLM.from_pretrained(folder / "merged").state_dict()
    from search.config import load_config
    from search.setup import set_up

    setup = set_up(load_config(folder / "config.yaml"))
    setup.materializer.apply(Results.load(folder / "runs/tiny").recipe(chosen["id"]))
    live = setup.engine.model
    assert live is not None
    for name, value in live.state_dict().items():
        assert torch.equal(value, reloaded[name]), name


def test_the_same_command_resumes_and_a_finished_run_says_so(
    tiny_project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_project()
    command = ["run", "config.yaml", "--display", "plain"]
    assert run_command(command) == 0
    before = facts(capsys, "status", "runs/tiny", "--json")
    assert run_command(command) == 0
    assert "finished before" in capsys.readouterr().out
    assert facts(capsys, "status", "runs/tiny", "--json") == before
    assert run_command([*command, "--set", "search.budget.candidates=20"]) == 0
    after = facts(capsys, "status", "runs/tiny", "--json")
    assert after["candidates"]["done"] == 20
    assert after["evaluations"] > before["evaluations"]
    assert after["state"] == "finished"


def test_what_changed_is_refused_and_named(tiny_project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_project(candidates=12)
    command = ["run", "config.yaml", "--display", "none"]
    assert run_command(command) == 0
    grown = [*command, "--set", "search.budget.candidates=13"]

    assert run_command([*grown, "--set", "search.seed=5"]) == 2
    error = capsys.readouterr().err
    assert "-  seed: 0" in error and "+  seed: 5" in error and "--name" in error

    shutil.rmtree(folder / "a")
    shutil.copytree(folder / "b", folder / "a")
    assert run_command(grown) == 2
    assert "these have changed: model 'a'" in capsys.readouterr().err

    data = folder / "data/b/search.jsonl"
    lines = data.read_text().splitlines()
    data.write_text("\n".join(lines[:-1]) + "\n")
    assert run_command(grown) == 2
    assert "evaluator 'b' (its data, options or code)" in capsys.readouterr().err


@pytest.mark.slow
def test_equal_seeds_give_equal_runs_and_other_seeds_others(
    tiny_project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_project(candidates=18)
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        assert (
            run_command(["run", "config.yaml", "--name", name, "--set", f"search.seed={seed}", "--display", "none"])
            == 0
        )
    capsys.readouterr()
    hashes = {}
    for name in ("one", "two", "three"):
        store = Store.open(Path("runs") / name, read_only=True)
        hashes[name] = [each.recipe_hash for each in store.candidates()]
        store.close()
    assert hashes["one"] == hashes["two"]
    assert hashes["one"] != hashes["three"]


@pytest.mark.slow
def test_a_second_writer_is_refused(tiny_project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    from search.lock import RunLock

    tiny_project(candidates=12)
    assert run_command(["run", "config.yaml", "--display", "none"]) == 0
    with RunLock(Path("runs/tiny")):
        assert run_command(["run", "config.yaml", "--set", "search.budget.candidates=13"]) == 2
        assert facts(capsys, "status", "runs/tiny", "--json")["state"] == "running"
    assert run_command(["run", "config.yaml", "--set", "search.budget.candidates=13", "--display", "none"]) == 0


def broken_nan(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "a/model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[3] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})


def broken_shape(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "a/model.safetensors"
    tensors = load_file(path)
    name = next(name for name, value in tensors.items() if value.dim() == 2)
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


def truncated(folder: Path) -> None:
    path = folder / "a/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no such expert": (
        lambda folder: shutil.rmtree(folder / "a"),
        "config.yaml:5:16: models.experts.a: expected a folder",
    ),
    "a NaN expert": (broken_nan, "NaN"),
    "another shape": (broken_shape, "shape"),
    "a truncated file": (truncated, "model.safetensors"),
    "no data": (lambda folder: shutil.rmtree(folder / "data/a"), "config.yaml:7:32: evaluators.a.data:"),
    "an empty split": (lambda folder: (folder / "data/a/selection.jsonl").write_text(""), "selection.jsonl"),
    "a split that repeats another": (
        lambda folder: shutil.copy(folder / "data/a/search.jsonl", folder / "data/a/holdout.jsonl"),
        "config.yaml:7:32: evaluators.a.data:",
    ),
    "a line that is no JSON": (
        lambda folder: (folder / "data/a/search.jsonl").write_text("{}\nnonsense\n"),
        "search.jsonl",
    ),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in (folder / "base").glob("tokenizer*")],
        "tokenizer",
    ),
}


# What differs is the message; one of each kind here, the others in the slow tests.
FAST = ("a NaN expert", "no data", "a split that repeats another")


@pytest.mark.parametrize(
    "case", [pytest.param(each, marks=() if each in FAST else pytest.mark.slow) for each in BROKEN]
)
def test_broken_inputs_are_one_paragraph_and_leave_no_run(
    case: str, tiny_project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_project()
    breaks, expected = BROKEN[case]
    breaks(folder)
    capsys.readouterr()
    assert run_command(["run", "config.yaml"]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert not (folder / "runs/tiny/run.db").exists()
    assert run_command(["check", "config.yaml"]) == 2


def test_commands_on_what_is_no_run(tiny_project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_project()
    for command in (["status", "runs/none"], ["report", "runs/none"], ["export", "runs/none", "--knee", "--out", "x"]):
        assert run_command(command) == 2
        assert "expected a run directory" in capsys.readouterr().err
    assert run_command(["run", "config.yaml", "--name", "../escape"]) == 2
    assert "plain name" in capsys.readouterr().err
    assert run_command(["evaluate", "base", "--config", "config.yaml", "--split", "tets"]) == 2
    assert "expected one of search, selection, holdout" in capsys.readouterr().err
    assert run_command(["run", "config.yaml", "--display", "tv"]) == 2
    assert run_command(["nonsense"]) == 2


@pytest.mark.slow
def test_export_refuses_what_it_cannot_promise(tiny_project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_project(candidates=12)
    assert run_command(["run", "config.yaml", "--display", "none"]) == 0
    capsys.readouterr()
    assert run_command(["export", "runs/tiny", "--candidate", "3", "--knee", "--out", "x"]) == 2
    assert "expected one of --candidate ID, --knee" in capsys.readouterr().err
    assert run_command(["export", "runs/tiny", "--candidate", "99", "--out", "x"]) == 2
    assert "numbered 0 to 11" in capsys.readouterr().err
    assert run_command(["export", "runs/tiny", "--candidate", "3", "--out", "x"]) == 0
    assert run_command(["export", "runs/tiny", "--candidate", "3", "--out", "x"]) == 2
    shutil.rmtree(folder / "a")
    shutil.copytree(folder / "b", folder / "a")
    capsys.readouterr()
    assert run_command(["export", "runs/tiny", "--knee", "--out", "y"]) == 2
    assert "model 'a' has changed" in capsys.readouterr().err
    assert not (folder / "y").exists()
