"""The EvoLLM-style experiments in small, on models that the zoo really trains: the shipped configs, the whole way."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

import zoo
from search.cli import run_command
from search.results import Results

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

# Fewer candidates where the whole would take minutes: the code and the protocol are the same.
SHORTER = {
    "evollm_jp_ps": [],
    "evollm_jp_a": ["search.budget.candidates=40"],
    "evollm_jp_ps_layerwise": ["search.budget.candidates=42"],
    "lfs_112": ["search.budget.candidates=60"],
    "merge3_lite": ["search.budget.candidates=63"],
    "evollm_jp_dfs": ["search.budget.candidates=229"],
    "evollm_jp_hybrid": ["first.search.budget.candidates=40", "search.budget.candidates=103"],
}


def test_every_mini_config_is_run() -> None:
    assert set(SHORTER) == {path.stem.removesuffix("_mini") for path in CONFIGS.glob("*_mini.yaml")}
    assert all((CONFIGS / f"{name}.yaml").is_file() for name in SHORTER)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", SHORTER)
def test_a_mini_config_goes_the_whole_way(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = yaml.safe_load((CONFIGS / f"{name}_mini.yaml").read_text(encoding="utf-8"))["models"]["base"]
    zoo.build(base.removeprefix("zoo://").partition("/")[0])
    monkeypatch.chdir(tmp_path)
    config = str(CONFIGS / f"{name}_mini.yaml")
    settings = [option for change in SHORTER[name] for option in ("--set", change)]
    assert run_command(["check", config, *settings]) == 0
    assert run_command(["run", config, "--display", "none", *settings]) == 0
    folder = next(Path("runs").iterdir())
    results = Results.load(folder)
    assert results.chosen is not None
    assert not [each.id for each in results.candidates if each.state == "failed"]
    assert (folder / "report.html").stat().st_size < 6e6
    if name == "evollm_jp_ps":
        _is_better_than_what_needs_no_search(results)

    chosen = results.chosen
    assert run_command(["export", str(folder), "--candidate", str(chosen), "--out", "merged"]) == 0
    capsys.readouterr()
    assert run_command(["evaluate", "merged", "--config", config, "--split", "selection", "--json", *settings]) == 0
    again = json.loads(capsys.readouterr().out)["values"]
    for metric, value in results.values(chosen, "selection").items():
        assert math.isclose(again[metric], value, abs_tol=2 / 256), metric
    if results.recipe(chosen).layers is not None:
        _is_an_ordinary_model(results)


def _is_better_than_what_needs_no_search(results: Results) -> None:
    """The acceptance of the preset: the best expert and the method untuned are beaten, on the same items."""
    assert results.claims is not None
    p = {label: each.p_scalar for each in results.claims.comparisons for label in each.baseline.label.split(" = ")}
    assert max(p[label] for label in p if label.startswith("expert ")) < 0.01
    assert p["dare_ties λ=1"] < 0.01


def _is_an_ordinary_model(results: Results) -> None:
    """A path is exported as the Llama that it is: as many layers as it has hops, and the recipe that says which."""
    from transformers import AutoModelForCausalLM

    recipe = results.recipe(results.chosen or 0)
    assert recipe.layers is not None
    model = AutoModelForCausalLM.from_pretrained("merged", local_files_only=True)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert len(model.model.layers) == model.config.num_hidden_layers == len(recipe.layers)
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(12)[None]).logits).all()
    kept = yaml.safe_load(Path("merged/recipe.yaml").read_text(encoding="utf-8"))
    assert sum(end - first for each in kept["layers"] for first, end in each.values()) == len(recipe.layers)
