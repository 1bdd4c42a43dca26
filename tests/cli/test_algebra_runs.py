"""Searches over a task vector, an adapter and an expression, with blocks that were placed: the whole way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from merging.checkpoint import Checkpoint
from search.cli import run_command
from search.results import Results

Project = Callable[..., Path]

SPACE = {
    "granularity": {"blocks": "auto"},
    "method_blocks": "auto",
    "expression": "mixed + u*(b - c) + v*a",
    "variables": {"u": [0, 1], "v": [-0.5, 0.5]},
    "methods": ["task_arithmetic", "ties"],
}

RUN = ["run", "config.yaml", "--display", "plain"]


@pytest.fixture
def project(tiny_project: Project, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``project(space)``: ``a`` is a vector of the store, and its model is gone; ``b`` a model; ``c`` an adapter."""

    def make(space: dict[str, Any], **models: Any) -> Path:
        folder = tiny_project("llama", candidates=22)
        monkeypatch.setenv("PARETOMERGE_CACHE", str(folder / "cache"))
        monkeypatch.setenv("PARETOMERGE_VECTORS", str(folder / "vectors"))
        assert run_command(["vector", "extract", "base", "a", "--name", "a-vector"]) == 0
        shutil.rmtree(folder / "a")
        write_adapter(folder / "c", Checkpoint.open(folder / "base"))
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["models"] |= {"experts": {"a": "vector://a-vector", "b": "b", "c": "c"}} | models
        config["objectives"] = ["a.accuracy", {"metric": "b.accuracy", "expert": "mixed"}]
        config["space"] = space
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        return folder

    return make


def write_adapter(folder: Path, base: Checkpoint) -> None:
    """LoRA of rank 4 on queries and on the way up, as PEFT saves it."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for name, info in base.tensors.items():
        if name.endswith(("q_proj.weight", "up_proj.weight")):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = 0.2 * torch.randn(4, info.shape[1], generator=generator)
            tensors[f"{module}.lora_B.weight"] = 0.2 * torch.randn(info.shape[0], 4, generator=generator)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none"}
    settings |= {"target_modules": ["q_proj", "up_proj"], "base_model_name_or_path": "tiny/base"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


@pytest.mark.slow
def test_an_expression_over_a_vector_an_adapter_and_a_model_is_searched_resumed_and_made_again(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = project(SPACE, derived={"mixed": "a + 0.5*(b - c)"})
    assert run_command(["check", "config.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "derived mixed" in shown and "a + 0.5*(b - c)" in shown and "vector://a-vector" in shown
    assert run_command(["plan", "config.yaml", "--no-measure"]) == 0
    assert "Where blocks begin is found when the run starts" in capsys.readouterr().out

    monkeypatch.setattr("search.run.place_borders", lambda *_: {"": [0, 2]})
    assert run_command(RUN) == 0
    results = Results.load(folder / "runs/tiny")
    assert results.started.borders == {"": [0, 2]}
    genes = results.stages[-1].space.genes
    assert {gene.expert for gene in genes if gene.role == "coefficient"} == {"u", "v"}
    assert {gene.depth for gene in genes if gene.role == "method"} == {0, 2}
    labels = [each.label for each in results.candidates if each.label]
    assert labels[:5] == ["base", "expert a", "expert b", "expert c", "expert mixed"]
    assert not (folder / "cache/virtual").exists()  # all of it is coefficients: no model was made
    before = {each.id: each.recipe_hash for each in results.candidates}

    # the code places borders elsewhere now, and the run goes on with those that it began with
    monkeypatch.setattr("search.run.place_borders", lambda *_: pytest.fail("placed again"))
    assert run_command([*RUN, "--set", "search.budget.candidates=25"]) == 0
    results = Results.load(folder / "runs/tiny")
    assert {each.id: each.recipe_hash for each in results.candidates if each.id in before} == before
    assert "blocks: auto" in (report := (folder / "runs/tiny/report.html").read_text())
    assert "2 blocks, from layers 0 and 2" in report and str(folder) not in report

    assert run_command(["export", "runs/tiny", "--candidate", "20", "--out", "first"]) == 0
    recipe = yaml.safe_load(Path("first/recipe.yaml").read_text())
    assert recipe["sources"]["a"]["path"] == "vector://a-vector" and set(recipe["sources"]) == {"base", "a", "b", "c"}
    card = Path("first/README.md").read_text()
    assert "expert, a task vector, exact" in card and "expert, a PEFT adapter" in card
    assert run_command(["merge", "first/recipe.yaml", "again"]) == 0
    name = "model.safetensors"
    assert (Path("first") / name).read_bytes() == (Path("again") / name).read_bytes()

    # another vector of the same name is another expert
    shutil.copytree(folder / "b", folder / "other")
    assert run_command(["vector", "remove", "a-vector"]) == 0
    assert run_command(["vector", "extract", "base", "other", "--name", "a-vector"]) == 0
    capsys.readouterr()
    assert run_command([*RUN, "--set", "search.budget.candidates=26"]) == 2
    assert "model 'a'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_derived_expert_with_coefficients_of_its_own_is_made_once(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a virtual expert may be made of it; a winner comes again from its recipe where the cache is gone."""
    virtual = {"half": {"method": "ties", "parameters": {"density": 0.5}, "of": ["mixed", "b"]}}
    space = {"granularity": "model", "experts": ["mixed", "half", "b"], "methods": ["ties"]}
    folder = project(space, derived={"mixed": "a - 0.5*c", "unused": "base - c"}, virtual=virtual)
    assert run_command(RUN) == 0
    said = capsys.readouterr().err
    assert "derived expert mixed: a - 0.5*c, made in" in said and "virtual expert half: ties of mixed, b" in said
    assert len(list((folder / "cache/virtual").iterdir())) == 2
    results = Results.load(folder / "runs/tiny")
    assert {gene.expert for gene in results.stages[-1].space.genes} >= {"mixed", "half", "b"}
    last = results.candidates[-1].id
    assert run_command(["export", "runs/tiny", "--candidate", str(last), "--out", "first"]) == 0
    shutil.rmtree(folder / "cache")
    assert run_command(["merge", "first/recipe.yaml", "again"]) == 0
    name = "model.safetensors"
    assert (Path("first") / name).read_bytes() == (Path("again") / name).read_bytes()
    assert run_command([*RUN, "--set", "search.budget.candidates=23"]) == 0  # made again, with the same weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"base": "c"}, "found an adapter"),
        ({"base": "vector://a-vector"}, "found a task vector"),
        ({"experts": {"a": "vector://nobody", "b": "b"}}, "models.experts.a"),
        ({"experts": {"a": "vector://../a", "b": "b"}}, "is not a reference to the vector store"),
    ],
)
def test_bad_sources_are_one_clear_paragraph(
    project: Project, capsys: pytest.CaptureFixture[str], change: dict[str, Any], says: str
) -> None:
    folder = project({"granularity": "model"}, derived={})
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["models"] |= change
    config["objectives"] = ["a.accuracy", "b.accuracy"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    for command in (["check", "config.yaml"], RUN):
        capsys.readouterr()
        assert run_command(command) == 2
        said = capsys.readouterr()
        assert says in said.out + said.err and "Traceback" not in said.err
    assert not (folder / "runs/tiny/run.db").exists()
