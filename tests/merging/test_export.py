"""Folders that are whole or not there."""

from __future__ import annotations

import errno
import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from merging import export as export_module
from merging.checkpoint import INDEX, SINGLE, Checkpoint
from merging.configs import read_config
from merging.export import export
from merging.materialize import MergeFailed, Sources
from merging.recipe import Assignment, Group, MergingError, Recipe

Build = Callable[..., Recipe]

HALF = Assignment.of("linear", {"a": {"coefficient": 1.0}, "b": {"coefficient": 1.0}})


def nothing_left(folder: Path) -> bool:
    return list(folder.iterdir()) == []


def test_a_folder_has_all_that_loading_needs(families: Callable[..., Any], uniform: Build, tmp_path: Path) -> None:
    family = families("llama")
    base = shutil.copytree(family.base, tmp_path / "base")  # the family is shared by all tests
    sources = Sources.load(base, {"a": family.a, "b": family.b})
    extras = {
        "tokenizer.json": "{}",
        "tokenizer_config.json": "{}",
        "chat_template.jinja": "x",
        "tokenizer_code.py": "1/0",
    }
    for name, text in extras.items():
        (base / name).write_text(text)
    recipe = uniform(sources, HALF)
    folder = export(recipe, sources, tmp_path / "deep" / "out")
    assert {file.name for file in folder.iterdir()} == {
        SINGLE, "config.json", "generation_config.json", "recipe.yaml", "mergekit.yaml",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    assert Recipe.from_yaml((folder / "recipe.yaml").read_text()).hash == recipe.hash
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == "float32" and config["model_type"] == "llama"
    assert (folder.stat().st_mode & 0o077) == ((tmp_path / "deep").stat().st_mode & 0o077)
    (tmp_path / "plain").touch()
    assert {file.stat().st_mode for file in folder.iterdir()} == {(tmp_path / "plain").stat().st_mode}


def test_the_recipe_in_the_folder_makes_the_same_folder(llama: Sources, uniform: Build, tmp_path: Path) -> None:
    first = export(uniform(llama, HALF), llama, tmp_path / "first")
    recipe, sources = read_config(first / "recipe.yaml")
    second = export(recipe, sources, tmp_path / "second", max_shard_size=10_000)
    assert (second / INDEX).is_file()
    assert Checkpoint.open(first).content == Checkpoint.open(second).content


def test_the_equivalent_mergekit_config_stands_beside_the_recipe_where_there_is_one(
    llama: Sources, uniform: Build, tmp_path: Path
) -> None:
    folder = export(uniform(llama, HALF), llama, tmp_path / "linear")
    recipe, sources = read_config(folder / "mergekit.yaml")
    assert Checkpoint.open(export(recipe, sources, tmp_path / "again")).content == Checkpoint.open(folder).content
    paper = Assignment.of("ties", {"a": {"coefficient": 1.0}, "b": {"coefficient": 1.0}})
    assert not (export(uniform(llama, paper), llama, tmp_path / "ties") / "mergekit.yaml").exists()


def test_no_shard_is_larger_than_asked_for(llama: Sources, uniform: Build, tmp_path: Path) -> None:
    folder = export(uniform(llama, HALF), llama, tmp_path / "out", max_shard_size=10_000)
    checkpoint = Checkpoint.open(folder)
    sizes: dict[str, int] = {}
    for info in checkpoint.tensors.values():
        sizes[info.shard] = sizes.get(info.shard, 0) + info.numel * 4
    assert len(sizes) > 5 and max(sizes.values()) <= 10_000
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert {file.name for file in folder.glob("*.safetensors")} == set(sizes)


def test_an_empty_folder_is_used_and_a_full_one_is_not(llama: Sources, uniform: Build, tmp_path: Path) -> None:
    recipe = uniform(llama, HALF)
    (tmp_path / "out").mkdir()
    assert (export(recipe, llama, tmp_path / "out") / SINGLE).is_file()
    before = sorted(file.name for file in (tmp_path / "out").iterdir())
    with pytest.raises(MergingError, match=r"expected .* to be a new or empty folder"):
        export(recipe, llama, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(MergingError, match="new or empty folder"):
        export(recipe, llama, tmp_path / "file")


def test_a_disk_that_fills_up_leaves_nothing(
    llama: Sources, uniform: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    real = export_module.save_file

    def full(tensors: dict[str, torch.Tensor], file: Path, **options: Any) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(file)
        real(tensors, file, **options)

    monkeypatch.setattr(export_module, "save_file", full)
    with pytest.raises(MergingError, match=r"the disk became full while .*/out was written; nothing was left behind"):
        export(uniform(llama, HALF), llama, tmp_path / "out", max_shard_size=10_000)
    assert len(written) == 2 and nothing_left(tmp_path)


def test_a_disk_that_is_too_small_is_noticed_before(
    llama: Sources, uniform: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(export_module.shutil, "disk_usage", lambda _: usage(10, 0, 1000))
    with pytest.raises(MergingError, match=r"needs 0\.07 MB at .* free there"):
        export(uniform(llama, HALF), llama, tmp_path / "out")
    assert nothing_left(tmp_path)


def test_an_interruption_leaves_nothing(
    llama: Sources, uniform: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export_module, "_write_companions", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(uniform(llama, HALF), llama, tmp_path / "out")
    assert nothing_left(tmp_path)


def test_a_result_that_is_not_finite_leaves_nothing(llama: Sources, uniform: Build, tmp_path: Path) -> None:
    wild = Assignment.of("linear", {"a": {"coefficient": 3e38}, "b": {"coefficient": 3e38}}, normalize=False)
    with pytest.raises(MergeFailed, match=r"not finite in 1 of .*, first in model\.norm\.weight"):
        export(uniform(llama, HALF, {Group("norm"): wild}), llama, tmp_path / "out")
    assert nothing_left(tmp_path)


def test_a_folder_that_cannot_be_made_is_a_clear_error(llama: Sources, uniform: Build, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MergingError, match="could not be written"):
        export(uniform(llama, HALF), llama, tmp_path / "file" / "out")


def test_only_one_shard_of_the_result_is_in_memory(
    llama: Sources, uniform: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a shard is saved, the tensors of the one before are gone."""
    import weakref

    alive: list[weakref.ref[torch.Tensor]] = []

    def save(tensors: dict[str, torch.Tensor], file: Path, **_: Any) -> None:
        assert not [each for each in alive if each() is not None]
        alive.extend(weakref.ref(tensor) for tensor in tensors.values())
        file.write_bytes(b"")

    monkeypatch.setattr(export_module, "save_file", save)
    export(uniform(llama, HALF), llama, tmp_path / "out", max_shard_size=10_000)
    assert len(alive) == len(llama.tensors)
