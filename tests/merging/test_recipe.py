"""Recipes as data: layers, tokenizers, hashes that last."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.recipe import Assignment, Group, MergingError, Recipe, SourceRef, layers_of, slices_of

TA = Assignment.of("task_arithmetic", {"a": {"coefficient": 0.5}}, normalize=False, scale=1.0)

PLAIN = Recipe(
    base="base",
    sources={"base": SourceRef("models/base", "sha256:0"), "a": SourceRef("models/a", "sha256:1")},
    groups={Group("mlp", 0): TA, Group("embedding"): TA},
    tensors={"x.weight": Assignment.of("linear", {"a": {"coefficient": 1.0}}, normalize=True)},
    dtype="bfloat16",
)


def test_a_recipe_without_the_newer_keys_keeps_its_hash() -> None:
    """As the first version computed it: run directories of old stay valid."""
    assert PLAIN.hash == "6bb77bf1643edad25d4eeb84747373e1dd1c049cdab76436798c6fb55248dd3a"


def test_recipes_without_the_newer_keys_load() -> None:
    text = PLAIN.to_yaml()
    assert "layers" not in text and "tokenizer" not in text and "source_dtype" not in text
    assert Recipe.from_yaml(text) == PLAIN


LAYERS = ({"base": 0, "a": 1}, {"base": 1, "a": 2}, {"a": 2}, {"a": 3}, {"a": 3})


@pytest.mark.parametrize(
    "more",
    [
        {"layers": LAYERS},
        {"layers": LAYERS, "scales": (1.0, 0.83, 1e-05, 1.5, 2.0)},
        {"tokenizer": "union"},
        {"tokenizer": "base"},
        {"tokenizer": "path:sha256:9", "tokenizer_path": "models/tok"},
        {"source_dtype": "float16"},
    ],
)
def test_what_changes_the_result_is_kept_and_enters_the_hash(more: dict[str, Any]) -> None:
    recipe = replace(PLAIN, **more)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert recipe.hash != PLAIN.hash


SCALED = replace(PLAIN, layers=LAYERS, scales=(1.0, 0.83, 1.0, 1.5, 1.0))


def test_scales_stand_in_one_line_behind_the_layers_of_a_recipe_that_older_versions_refuse() -> None:
    text = SCALED.to_yaml()
    assert text.startswith("format: paretomerge-recipe/2\n") and "\nscales: [1.0, 0.83, 1.0, 1.5, 1.0]\n" in text
    assert replace(SCALED, scales=None).to_yaml().startswith("format: paretomerge-recipe/1\n")
    made = replace(PLAIN, sources={**PLAIN.sources, "v": SourceRef("virtual", "sha256:2", SCALED)})
    assert Recipe.from_yaml(made.to_yaml()).sources["v"].made_by == SCALED
    with pytest.raises(MergingError, match="has scales, which a version that reads 'paretomerge-recipe/1' may ignore"):
        Recipe.from_yaml(text.replace("recipe/2", "recipe/1"))


def test_scales_of_one_are_none_to_the_hash_and_others_are_not() -> None:
    plain = replace(SCALED, scales=None)
    assert replace(SCALED, scales=(1.0,) * 5).hash == plain.hash == replace(SCALED, scales=(1, 1, 1, 1, 1)).hash
    assert len({plain.hash, SCALED.hash, replace(SCALED, scales=SCALED.scales[::-1]).hash}) == 3  # type: ignore[index]
    assert replace(SCALED, scales=(2, 1, 1, 1, 1)).hash == replace(SCALED, scales=(2.0, 1.0, 1.0, 1.0, 1.0)).hash


@given(st.lists(st.floats(1e-9, 1e9), min_size=5, max_size=5))
def test_any_scales_go_to_yaml_and_back(scales: list[float]) -> None:
    recipe = replace(SCALED, scales=tuple(scales))
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe and again.hash == recipe.hash


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([1, 2], "a scale for each of the 5 blocks of the layers, found 2"),
        ([1, 2, 3, 4, 0], "scale of block 4 to be a finite number above 0, found 0"),
        ([1, 2, 3, 4, -0.5], "found -0.5: 0 would erase what the blocks before it computed, and the sign"),
        ([1, 2, 3, 4, ".5"], "found '.5'"),
        (0.5, "a list with a number for each block of the layers, found 0.5"),
        ("11111", "found '11111'"),
    ],
)
def test_scales_that_are_none(scales: Any, message: str) -> None:
    data = SCALED.as_data() | {"scales": scales}
    with pytest.raises(MergingError) as caught:
        Recipe.from_data(data)
    assert message in str(caught.value)


def test_scales_need_layers() -> None:
    data = SCALED.as_data()
    del data["layers"]
    with pytest.raises(MergingError, match="scales need layers: list the blocks of the result under layers"):
        Recipe.from_data(data)


def test_where_a_tokenizer_was_found_is_not_hashed() -> None:
    recipes = [replace(PLAIN, tokenizer="path:sha256:9", tokenizer_path=path) for path in ("here", "there")]
    assert recipes[0].hash == recipes[1].hash


def test_layers_enter_by_content_and_not_by_alias() -> None:
    recipe = replace(PLAIN, layers=LAYERS)
    other = Assignment.of(TA.method, {"z": {"coefficient": 0.5}}, normalize=False, scale=1.0)
    renamed = replace(
        recipe,
        sources={"base": recipe.sources["base"], "z": recipe.sources["a"]},
        groups=dict.fromkeys(PLAIN.groups, other),
        tensors={"x.weight": Assignment.of("linear", {"z": {"coefficient": 1.0}}, normalize=True)},
        layers=tuple({{"a": "z"}.get(alias, alias): at for alias, at in block.items()} for block in LAYERS),
    )
    assert renamed.hash == recipe.hash
    assert replace(recipe, layers=(*LAYERS[:-1], {"a": 2})).hash != recipe.hash


def test_one_model_under_two_aliases_gives_two_blocks_that_are_told_apart() -> None:
    sources = {"base": SourceRef("b", "sha256:0"), "x": SourceRef("b", "sha256:0"), "y": SourceRef("b", "sha256:0")}
    mix = Assignment.of("linear", {"x": {"coefficient": 0.3}, "y": {"coefficient": 0.7}})
    one = Recipe("base", sources, {Group("mlp", 0): mix}, layers=({"x": 1, "y": 2},))
    other = replace(one, layers=({"x": 2, "y": 1},))
    assert one.hash != other.hash


def test_layers_are_written_as_slices() -> None:
    assert slices_of(LAYERS) == [{"base": [0, 2], "a": [1, 3]}, {"a": [2, 4]}, {"a": [3, 4]}]
    assert yaml.safe_load(replace(PLAIN, layers=LAYERS).to_yaml())["layers"] == slices_of(LAYERS)


blocks = st.lists(
    st.dictionaries(st.sampled_from(["base", "a", "b"]), st.integers(0, 3), min_size=1), min_size=1, max_size=8
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(blocks)
def test_slices_are_a_spelling_of_any_layers(layers: list[dict[str, int]]) -> None:
    assert layers_of(slices_of(tuple(layers)), ["base", "a", "b"]) == tuple(layers)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "expected layers to be a list of slices"),
        ("ab", "expected layers to be a list of slices"),
        ([[0, 3]], "expected slice 0 of the layers to be a mapping"),
        ([{}], "expected slice 0 of the layers to be a mapping"),
        ([{"c": [0, 1]}], "slice 0 of the layers names the model 'c'; there are a, base"),
        ([{"a": [0, 1]}, {"a": [3, 3]}], "expected [first, last + 1] for a in slice 1"),
        ([{"a": 3}], "expected [first, last + 1] for a"),
        ([{"a": [0, 2], "base": [0, 1]}], "to give as many blocks, found a 2, base 1"),
    ],
)
def test_layers_that_mean_nothing(layers: Any, message: str) -> None:
    text = yaml.safe_dump(yaml.safe_load(PLAIN.to_yaml()) | {"layers": layers})
    with pytest.raises(MergingError) as caught:
        Recipe.from_yaml(text)
    assert message in str(caught.value)
