"""Paths with scales as people write them: through the command, from short configs, and out to mergekit's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from golden import GOLDEN, invoke
from hop_reference import load, logits, path_model, with_epsilons
from torch import Tensor, arange

from merging.checkpoint import Checkpoint
from merging.configs import read_config
from merging.dataflow import folded
from merging.export import export
from merging.live import load_model
from merging.materialize import Materializer
from merging.mergekit_export import to_mergekit
from merging.methods.registry import canonical_recipe
from merging.recipe import Group, MergingError, Recipe
from merging.restack import for_recipe

INPUTS = GOLDEN / "inputs"
TOKENS = arange(3, 23)[None]
CONFIG: dict[str, Any] = {
    "base": str(INPUTS / "base"),
    "experts": {name: str(INPUTS / name) for name in ("ft1", "ft2")},
    "method": "passthrough",
    "dtype": "float32",
    "layers": [{"ft1": [0, 2]}, {"ft2": [1, 3]}, {"base": [2, 3]}, {"ft1": [3, 4]}],
    "scales": [1, 0.8, 1.25, 1, 0.6, 1.5],
}
HOPS = [("ft1", 0, 1.0), ("ft1", 1, 0.8), ("ft2", 1, 1.25), ("ft2", 2, 1.0), ("base", 2, 0.6), ("ft1", 3, 1.5)]


def written(tmp_path: Path, **more: Any) -> Path:
    path = tmp_path / "merge.yaml"
    path.write_text(yaml.safe_dump({key: each for key, each in (CONFIG | more).items() if each is not None}))
    return path


def of(recipe: Recipe, group: str) -> list[str]:
    return [alias for alias, _ in recipe.groups[Group.parse(group)].sources]


def close(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max()) <= 2e-5 * max(1.0, float(expected.abs().max()))


def test_a_short_config_of_hops_through_the_command(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert invoke("merge", path, tmp_path / "out").exit_code == 0
    folders = {name: INPUTS / name for name in ("base", "ft1", "ft2")}
    expected = logits(with_epsilons(path_model(folders, HOPS, "ft1"), HOPS), TOKENS)
    assert close(logits(load(tmp_path / "out"), TOKENS), expected)
    again = export(*read_config(tmp_path / "out" / "recipe.yaml"), tmp_path / "again")
    assert Checkpoint.open(again).content == Checkpoint.open(tmp_path / "out").content
    # mergekit's config of the same has no word for scales: it multiplies the writers.
    data = yaml.safe_load((tmp_path / "out" / "mergekit.yaml").read_text())
    assert [each["sources"][0]["layer_range"] for each in data["slices"]] == [[0, 2], [1, 3], [2, 3], [3, 4]]
    assert data["slices"][2]["sources"][0]["parameters"]["scale"] == [
        {"filter": "o_proj", "value": 1 / (0.8 * 1.25 * 0.6)},
        {"filter": "down_proj", "value": 1 / (0.8 * 1.25 * 0.6)},
        {"value": 1.0},
    ]
    theirs = export(*read_config(tmp_path / "out" / "mergekit.yaml"), tmp_path / "theirs")
    assert Checkpoint.open(theirs).content == Checkpoint.open(tmp_path / "out").content


def test_what_a_short_config_of_layers_means(tmp_path: Path) -> None:
    recipe, sources = read_config(written(tmp_path))
    assert recipe.scales == (1.0, 0.8, 1.25, 1.0, 0.6, 1.5)
    assert recipe.layers == tuple({alias: at} for alias, at, _ in HOPS)
    assert [of(recipe, f"mlp.{at}") for at in range(6)] == [[alias] for alias, _, _ in HOPS]
    assert of(recipe, "embedding") == of(recipe, "norm") == ["ft1"]
    plain, _ = read_config(written(tmp_path, scales=[1] * 6))
    assert plain.scales is None and plain.hash == read_config(written(tmp_path, scales=None))[0].hash
    # Another model around the blocks, and other methods within them.
    other, _ = read_config(written(tmp_path, groups={"embedding": {"coefficients": {"ft2": 1}}}))
    assert of(other, "embedding") == ["ft2"] and of(other, "norm") == ["ft1"]
    merged, _ = read_config(
        written(tmp_path, method="linear", coefficients=0.5, scales=None, layers=[{"ft1": [0, 2], "ft2": [1, 3]}])
    )
    assert of(merged, "attention.1") == ["ft1", "ft2"] and merged.layers == ({"ft1": 0, "ft2": 1}, {"ft1": 1, "ft2": 2})
    assert for_recipe(sources, merged).layout.depth() == 2


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no layers": ({"layers": None}, "merge.yaml, scales: scales need layers: list the blocks of the result"),
    "too few": ({"scales": [1, 2]}, "merge.yaml, scales: expected a scale for each of the 6 blocks of the layers"),
    "zero": ({"scales": [1, 1, 0, 1, 1, 1]}, "scale of block 2 to be a finite number above 0, found 0: 0 would erase"),
    "negative": ({"scales": [1, 1, 1, 1, 1, -1]}, "found -1: 0 would erase"),
    "an unknown model": ({"layers": [{"ft9": [0, 2]}]}, "merge.yaml, layers: slice 0 of the layers names the model 'f"),
    "a block that is not there": ({"layers": [{"ft1": [0, 9]}], "scales": None}, "block 4 of 'ft1', which has 4"),
    "two models where one is copied": ({"layers": [{"ft1": [0, 1], "ft2": [0, 1]}], "scales": None}, "passthrough"),
    "derived": ({"derived": {"x": "ft1 + ft2"}}, "expected layers or derived, found both"),
    "merged blocks": (
        {"method": "linear", "coefficients": 0.5, "layers": [{"ft1": [0, 2], "ft2": [0, 2]}], "scales": [1, 0.5]},
        "which is merged by linear; scales need blocks that are copied from one model each",
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_paths_are_one_paragraph(wrong: str, tmp_path: Path) -> None:
    changed, says = WRONG[wrong]
    result = invoke("merge", written(tmp_path, **changed), tmp_path / "out")
    assert isinstance(result.exception, MergingError) and says in str(result.exception), result.exception
    assert not (tmp_path / "out").exists()


def test_an_adapter_has_no_layers_of_its_own(tmp_path: Path) -> None:
    result = invoke("merge", written(tmp_path), tmp_path / "out", "--lora", "4")
    assert isinstance(result.exception, MergingError)
    assert "an adapter changes weights and adds none" in str(result.exception)


def test_a_mergekit_config_names_the_original_recipe(tmp_path: Path) -> None:
    recipe, sources = read_config(written(tmp_path))
    text = to_mergekit(recipe, sources)
    assert f"from the paretomerge recipe {recipe.hash[:12]}." in text
    (tmp_path / "mergekit.yaml").write_text(text)
    again, _ = read_config(tmp_path / "mergekit.yaml")
    assert again.scales is None and again.hash == canonical_recipe(folded(recipe, sources)).hash


def test_a_model_whose_blocks_stay_in_place_has_a_mergekit_config_too(tmp_path: Path) -> None:
    recipe, sources = read_config(written(tmp_path, layers=[{"ft1": [0, 4]}], scales=[1, 0.5, 1, 1.5]))
    assert recipe.layers == tuple({"ft1": at} for at in range(4))
    out = export(recipe, sources, tmp_path / "out")
    theirs = export(*read_config(out / "mergekit.yaml"), tmp_path / "theirs")
    assert Checkpoint.open(theirs).content == Checkpoint.open(out).content


def test_a_live_model_of_the_same_blocks_holds_what_is_exported(tmp_path: Path) -> None:
    """The materializer of a restacked model writes the folded weights; without scales again, the plain ones."""
    path = written(tmp_path, layers=[{"base": [0, 2]}, {"base": [1, 3]}], scales=[1, 0.5, 1.5, 1.2], experts={})
    recipe, sources = read_config(path)
    plain = replace(recipe, scales=None)
    model = load_model(export(plain, sources, tmp_path / "plain"))
    live = Materializer(for_recipe(sources, plain), model)
    assert {str(group) for group in live.apply(recipe).changed_groups} >= {"attention.1", "mlp.3"}
    assert live.digest() == Checkpoint.open(export(recipe, sources, tmp_path / "scaled")).content
    live.apply(plain)
    assert live.digest() == Checkpoint.open(tmp_path / "plain").content
