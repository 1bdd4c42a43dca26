"""Folders that can be read, what their hash depends on, and folders that must be refused with a clear word."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merging.checkpoint import INDEX, SINGLE, Checkpoint, check_compatible
from merging.materialize import Sources
from merging.recipe import MergingError

TENSORS = {
    "model.embed_tokens.weight": torch.arange(12.0).reshape(4, 3),
    "model.layers.0.mlp.up_proj.weight": torch.ones(3, 3, dtype=torch.bfloat16),
    "model.layers.0.mlp.down_proj.weight": torch.ones(3, 3),
    "step": torch.tensor(7),
}


def write(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(TENSORS if tensors is None else tensors, folder / SINGLE)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False} | config))
    return folder


def shard(folder: Path, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """The same tensors in two files with an index."""
    write(folder, tensors)
    held = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    weight_map = {}
    for number, name in enumerate(held):
        weight_map[name] = f"model-0000{number % 2 + 1}-of-00002.safetensors"
    for file in set(weight_map.values()):
        save_file(
            {n: t for n, t in held.items() if weight_map[n] == file}, folder / file, metadata={"anything": "else"}
        )
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


def refusal(path: Path) -> str:
    with pytest.raises(MergingError) as caught:
        Checkpoint.open(path)
    return str(caught.value)


def test_it_says_what_the_headers_say(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write(tmp_path))
    assert list(checkpoint.tensors) == sorted(TENSORS)
    info = checkpoint.tensors["model.layers.0.mlp.up_proj.weight"]
    assert (info.dtype, info.shape, info.shard, info.numel) == (torch.bfloat16, (3, 3), SINGLE, 9)
    assert checkpoint.tensors["step"].shape == ()
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in TENSORS.items())
    assert checkpoint.config["model_type"] == "llama"
    with pytest.raises(MergingError, match="holds no tensor 'nothing'"):
        checkpoint.read("nothing")


def test_content_ignores_how_the_tensors_are_stored(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one"), shard(tmp_path / "other")
    assert Checkpoint.open(one).content == Checkpoint.open(other).content
    assert Checkpoint.open(one).content.startswith("sha256:")


@pytest.mark.parametrize("change", ["bit", "dtype", "shape", "name", "missing"])
def test_content_depends_on_all_that_a_tensor_is(tmp_path: Path, change: str) -> None:
    name = "model.layers.0.mlp.down_proj.weight"
    tensors = dict(TENSORS)
    if change == "bit":
        tensors[name] = TENSORS[name].clone()
        tensors[name].view(torch.int32)[2, 2] ^= 1
    elif change == "dtype":
        tensors[name] = TENSORS[name].view(torch.int32)  # the same bytes
    elif change == "shape":
        tensors[name] = TENSORS[name].reshape(9)
    else:
        del tensors[name]
        if change == "name":
            tensors[f"{name}s"] = TENSORS[name]
    changed = Checkpoint.open(write(tmp_path / "changed", tensors))
    assert changed.content != Checkpoint.open(write(tmp_path / "plain")).content


def test_the_config_is_not_part_of_the_content(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one"), write(tmp_path / "other", rope_theta=1.0)
    assert Checkpoint.open(one).content == Checkpoint.open(other).content


def test_what_is_no_model_folder_is_refused(tmp_path: Path) -> None:
    assert "found nothing there" in refusal(tmp_path / "absent")
    folder = write(tmp_path / "model")
    assert "found a file; give the folder" in refusal(folder / "config.json")
    (folder / "config.json").write_text("{")
    assert "expected JSON in" in refusal(folder)
    (folder / "config.json").unlink()
    assert "expected config.json in the model folder" in refusal(folder)


def test_pickles_and_adapters_are_refused_with_a_way_out(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / SINGLE).unlink()
    assert "found neither" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    assert "only pickled weights (pytorch_model.bin)" in refusal(folder)
    assert "save_pretrained" in refusal(folder)
    (folder / "adapter_config.json").write_text("{}")
    assert "LoRA adapter" in refusal(folder)


@pytest.mark.parametrize("keep", [0, 5, 40, 300])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    folder = write(tmp_path)
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:keep])
    assert f"found {keep} bytes that are truncated or corrupt" in refusal(folder)


def test_an_index_that_promises_too_much_is_refused(tmp_path: Path) -> None:
    folder = shard(tmp_path)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["ghost"] = "model-00001-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    assert "holds ghost, but it does not" in refusal(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "are missing: model-00002-of-00002.safetensors. Was the download complete?" in refusal(folder)
    (folder / INDEX).write_text("{}")
    assert "expected a weight_map" in refusal(folder)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/secret.safetensors", "a/b", "a\\b", "..", "", "c:x", 3]
)
def test_an_index_may_not_point_outside_its_folder(tmp_path: Path, name: object) -> None:
    folder = write(tmp_path / "model")
    shutil.move(folder / SINGLE, tmp_path / "secret.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"step": name}}))
    assert "may not point outside its folder" in refusal(folder)


def test_differences_are_named_five_at_most(tmp_path: Path) -> None:
    base = Checkpoint.open(write(tmp_path / "base"))
    extra = {f"extra.{i}": torch.ones(1) for i in range(7)}
    changed = TENSORS | extra | {"model.layers.0.mlp.down_proj.weight": torch.ones(3, 4)}
    with pytest.raises(MergingError) as caught:
        check_compatible(base, Checkpoint.open(write(tmp_path / "expert", changed)))
    message = str(caught.value)
    assert "found 8 differences" in message and "and 3 more" in message and message.count("extra.") == 5
    with pytest.raises(MergingError, match=r"is \[3, 3\] in the base and \[3, 4\] in the expert"):
        shapes = {name: tensor for name, tensor in changed.items() if not name.startswith("extra")}
        check_compatible(base, Checkpoint.open(write(tmp_path / "shapes", shapes)))
    with pytest.raises(MergingError, match=r"'llama' in .* and 'gpt2' in"):
        check_compatible(base, Checkpoint.open(write(tmp_path / "gpt2", model_type="gpt2")))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_source_that_is_not_finite_is_refused(tmp_path: Path, bad: float) -> None:
    tensors = {name: tensor.clone() for name, tensor in TENSORS.items()}
    tensors["model.layers.0.mlp.up_proj.weight"][1, 2] = bad
    folder = write(tmp_path / "broken", tensors)
    with pytest.raises(MergingError, match=r"1 NaN or infinite of 9 elements in tensor model\.layers\.0\.mlp\.up_proj"):
        Sources.load(write(tmp_path / "base"), {"expert": folder})


def test_quantised_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MergingError, match="found a quantization_config"):
        Sources.load(write(tmp_path / "config", quantization_config={"bits": 4}), {})
    tensors = TENSORS | {"model.layers.0.mlp.up_proj.weight": torch.ones(3, 3).to(torch.float8_e4m3fn)}
    with pytest.raises(MergingError, match=r"torch\.float8_e4m3fn in model\.layers\.0\.mlp\.up_proj\.weight"):
        Sources.load(write(tmp_path / "float8", tensors), {})


def test_an_expert_may_not_take_the_bases_name(families: Callable[..., Any]) -> None:
    family = families("llama")
    with pytest.raises(MergingError, match="may not be called 'base'"):
        Sources.load(family.base, {"base": family.a})
