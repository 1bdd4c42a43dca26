"""Searches of paths through layers, the whole way: run, killed, resumed, grown, refused, chosen, exported, loaded."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.cli import run_command
from search.rescoring import Rescored, SplitScores
from search.results import Results
from search.space import path_of

Project = Callable[..., Path]

COMMAND = [sys.executable, "-c", "from search.cli import main; main()", "run", "config.yaml", "--display", "none"]
RUN = ["run", "config.yaml", "--display", "none"]


@pytest.fixture
def project(tiny_project: Project) -> Callable[..., Path]:
    """``project(optimizer, **flow)``: a small search of paths."""

    def make(optimizer: str | dict[str, Any] = "auto", candidates: int = 24, **flow: Any) -> Path:
        folder = tiny_project("llama", candidates=candidates)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["space"] = {"data_flow": {"repetitions": 2, **flow}}
        config["search"]["optimizer"] = optimizer
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return folder

    return make


def hashes(name: str) -> list[str]:
    return [each.recipe_hash for each in Results.load(Path("runs") / name).candidates]


def killed_after(scored: int, name: str) -> None:
    """Run in a process of its own, and kill it when so many candidates were scored."""
    process = subprocess.Popen([*COMMAND, "--name", name], env={**os.environ, "OMP_NUM_THREADS": "1"})
    database = Path("runs") / name / "run.db"
    try:
        while process.poll() is None:
            time.sleep(0.02)
            if told(database) >= scored:
                break
        assert process.poll() is None, "it came to its end before it could be killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def told(database: Path) -> int:
    """Candidates that a run has stored scores of."""
    if not database.exists() or not database.stat().st_size:
        return 0
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        return int(connection.execute("SELECT count(DISTINCT candidate) FROM scores").fetchone()[0])
    except sqlite3.OperationalError:  # its tables are not there yet
        return 0
    finally:
        connection.close()


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["auto", {"name": "cma", "popsize": 6}])
def test_a_killed_search_goes_on_to_where_it_would_have_come(
    project: Project, optimizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    project(optimizer)
    killed_after(10, "killed")
    assert run_command([*RUN, "--name", "killed"]) == 0
    assert run_command([*RUN, "--name", "whole"]) == 0
    assert hashes("killed") == hashes("whole")
    assert Results.load(Path("runs/killed")).chosen == Results.load(Path("runs/whole")).chosen
    # a larger budget goes on; another space does not
    assert run_command([*RUN, "--name", "whole", "--set", "search.budget.candidates=30"]) == 0
    assert hashes("whole")[:24] == hashes("killed")
    capsys.readouterr()
    assert run_command([*RUN, "--name", "whole", "--set", "space.data_flow.repetitions=3"]) == 2
    assert "-    repetitions: 2\n+    repetitions: 3" in capsys.readouterr().err


@pytest.mark.slow
def test_what_was_found_is_an_ordinary_model_which_its_recipe_makes_again(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    project("sms_emoa")
    assert run_command(RUN) == 0
    results = Results.load(Path("runs/tiny"))
    paths = {each.id: path_of(results.recipe(each.id)) for each in results.candidates}
    odd = next(id for id, path in paths.items() if len(path) != 3 and any(hop.scale != 1.0 for hop in path))
    assert run_command(["export", "runs/tiny", "--candidate", str(odd), "--out", "out"]) == 0
    model = AutoModelForCausalLM.from_pretrained("out")
    assert (
        len(model.model.layers)
        == len(paths[odd])
        == json.loads(Path("out/config.json").read_text())["num_hidden_layers"]
    )
    with torch.inference_mode():
        assert torch.isfinite(model(torch.tensor([[5, 6, 7]])).logits).all()
    capsys.readouterr()
    assert run_command(["merge", "out/recipe.yaml", "again"]) == 0
    assert f"merged {9 * len(paths[odd]) + 3} tensors of 3 models by passthrough" in capsys.readouterr().out
    assert Path("out/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()
    assert run_command(["choose", "runs/tiny", "--mix", "a=0.2,b=0.8"]) == 0
    # where a score differs, and no tensor, it is said what may be why
    differing = Rescored(30, (), (SplitScores("search", "a", 24, 1, {"accuracy": 0.5}),))
    monkeypatch.setattr("search.rescoring.rescore", lambda *_: differing)
    assert run_command(["export", "runs/tiny", "--candidate", str(odd), "--out", "other", "--rescore"]) == 2
    assert "0 of 30 tensors and 1 of 24 scores of a on search differ" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_layers_of_a_made_expert_and_of_the_base_take_part(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project("catcma", candidates=16, models=["half", "base"], shift=2, scales="off", arrangement="layers")
    monkeypatch.setenv("PARETOMERGE_CACHE", str(folder / "cache"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["models"]["virtual"] = {"half": {"method": "linear", "coefficients": 0.5}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert run_command(["plan", "config.yaml"]) == 0
    assert "Paths have 6 layers at most, and the models 3" in " ".join(capsys.readouterr().out.split())
    assert run_command(RUN) == 0
    results = Results.load(Path("runs/tiny"))
    labels = [label for label, _ in results.stages[0].fixed]
    assert labels == ["base", "expert a", "expert b", "half alone", "half up-scaled", "half|base stacked halves"]
    searched = [path_of(results.recipe(each.id)) for each in results.candidates if each.stage == 1]
    assert {hop.alias for path in searched for hop in path} == {"half", "base"}
    assert all(hop.scale == 1.0 for path in searched for hop in path)
