"""Models with different tokens through ``paretomerge merge``: what is asked for, said, written and read again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from golden import invoke
from test_vocabulary import ABC, EMBEDDING, make, numbered

from merging.checkpoint import Checkpoint
from merging.configs import read_config
from merging.recipe import MergingError, Recipe

LINEAR = {"merge_method": "linear", "parameters": {"weight": 1.0}}


def merged(tmp_path: Path, data: dict[str, Any], *options: str, name: str = "out") -> Any:
    (tmp_path / f"{name}.yml").write_text(yaml.safe_dump(data))
    return invoke("merge", tmp_path / f"{name}.yml", tmp_path / name, *options)


def models(tmp_path: Path) -> list[dict[str, str]]:
    make(tmp_path / "base", ABC)
    make(tmp_path / "expert", numbered("b", "a", "d", "c"), seed=1)
    return [{"model": "base"}, {"model": "expert"}]


@pytest.mark.parametrize(
    ("stated", "options", "rows", "tokenizer"),
    [
        ({}, (), 3, "base"),
        ({"tokenizer_source": "base"}, (), 3, "base"),
        ({"tokenizer_source": "union"}, (), 4, "union"),
        ({"tokenizer": {"source": "union"}}, (), 4, "union"),
        ({"tokenizer_source": "expert"}, (), 4, "path"),
        ({"tokenizer_source": "base"}, ("--tokenizer", "union"), 4, "union"),
        ({"tokenizer_source": "union"}, ("--tokenizer", "base"), 3, "base"),
    ],
)
def test_the_chosen_tokens_are_written_and_read_again(
    stated: dict[str, Any], options: tuple[str, ...], rows: int, tokenizer: str, tmp_path: Path
) -> None:
    result = merged(tmp_path, LINEAR | {"models": models(tmp_path)} | stated, *options)
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    assert Checkpoint.open(out).tensors[EMBEDDING].shape[0] == rows
    assert json.loads((out / "config.json").read_text())["vocab_size"] == rows
    tokens = json.loads((out / "tokenizer.json").read_text())["model"]["vocab"]
    assert tokens.keys() >= ABC.keys() and ("d" in tokens) == (rows == 4)
    assert ("the rows are left out" in result.output) == (rows == 3)
    recipe = Recipe.from_yaml((out / "recipe.yaml").read_text())
    assert (recipe.tokenizer or "").split(":")[0] == tokenizer
    for file in ("recipe.yaml", "mergekit.yaml"):
        again, _ = read_config(out / file)
        assert again.hash == recipe.hash
    assert invoke("merge", out / "recipe.yaml", tmp_path / "again").exit_code == 0
    assert Checkpoint.open(tmp_path / "again").content == Checkpoint.open(out).content


def test_a_recipe_keeps_its_tokens(tmp_path: Path) -> None:
    merged(tmp_path, LINEAR | {"models": models(tmp_path)})
    recipe = tmp_path / "out" / "recipe.yaml"
    with pytest.raises(MergingError, match=r"made with the vocabulary of 'base', .* with that of 'union'"):
        read_config(recipe, tokenizer="union")
    # One of the time before there was a choice means the base's, and so does its mergekit form.
    silent = replace(Recipe.from_yaml(recipe.read_text()), tokenizer=None)
    (tmp_path / "silent.yaml").write_text(silent.to_yaml())
    assert read_config(tmp_path / "silent.yaml")[1].tokenizer == "base"
    assert invoke("merge", tmp_path / "silent.yaml", tmp_path / "again").exit_code == 0
    assert Checkpoint.open(tmp_path / "again").content == Checkpoint.open(tmp_path / "out").content
    assert yaml.safe_load((tmp_path / "again" / "mergekit.yaml").read_text())["tokenizer_source"] == "base"


def test_the_short_form_asks_in_the_same_words(tmp_path: Path) -> None:
    models(tmp_path)
    data = {"base": "base", "experts": {"e": "expert"}, "method": "task_arithmetic", "vectors": "e"}
    assert merged(tmp_path, data | {"tokenizer": "union"}).exit_code == 0
    assert Checkpoint.open(tmp_path / "out").tensors[EMBEDDING].shape[0] == 4
