"""Folders that can be read, what their hash depends on, and folders that must be refused with a clear word."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merging.checkpoint import INDEX, PICKLE, PICKLE_INDEX, SINGLE, Checkpoint
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


def refusal(path: Path, *, allow_pickle: bool = False) -> str:
    with pytest.raises(MergingError) as caught:
        Checkpoint.open(path, allow_pickle=allow_pickle)
    assert "\n" not in str(caught.value)  # one paragraph
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
    assert "paretomerge convert" in refusal(folder)
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


# --- Headers that lie ------------------------------------------------------------------------------------------------

FLOAT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def forge(folder: Path, header: Any, room: int = 16) -> Path:
    """A file whose header says what it likes."""
    write(folder)
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + bytes(room))
    return folder


def at(begin: int, end: int, **changes: Any) -> dict[str, Any]:
    return FLOAT | {"data_offsets": [begin, end]} | changes


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"a": at(0, 8), "b": at(8, 16), "c": at(16, 24)}, "tensor c ends at byte 24 of 16"),
        ({"a": at(2**62, 2**62 + 8)}, "ends at byte 4611686018427387912 of 16"),
        ({"a": at(0, 8), "b": at(4, 12)}, "tensors a and b overlap"),
        ({"a": at(0, 8), "b": at(0, 8)}, "tensors a and b overlap"),
        ({"b": at(8, 16)}, "8 bytes before tensor b belong to none"),
        ({"a": at(0, 8)}, "its tensors end at byte 8 of 16"),
        ({"a": at(0, 8, shape=[3]), "b": at(8, 16)}, r"tensor a of F32 [3] needs 12 bytes, its header gives 8"),
        ({"a": at(8, 0, shape=[0]), "b": at(0, 16, shape=[4])}, "needs 0 bytes, its header gives -8"),
        ({"a": at(0, 16, shape=[-2, -2])}, "gives tensor a sizes that are no sizes"),
        ({"a": at(0, 16, shape=[2.0, 2])}, "gives tensor a sizes that are no sizes"),
        ({"a": at(-8, 0)}, "gives tensor a sizes that are no sizes"),
        ({"a": {"dtype": "F32", "shape": [4]}}, "gives tensor a no dtype, shape and data_offsets"),
        ({"a": 3}, "gives tensor a no dtype, shape and data_offsets"),
        ({"a": at(0, 8, data_offsets=[0, 8, 16])}, "gives tensor a no dtype, shape and data_offsets"),
        ('{"a": ' + json.dumps(at(0, 8)) + ', "a": ' + json.dumps(at(8, 16)) + "}", "'a' stands there twice"),
        ([], "its header is no JSON object"),
        ("[" * 100_000, "its header is no JSON"),
        ('{"a"', "its header is no JSON"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any, why: str) -> None:
    message = refusal(forge(tmp_path, header))
    assert why in message and "truncated or corrupt" in message and "download or save it again" in message


def test_a_header_may_not_be_longer_than_the_file(tmp_path: Path) -> None:
    folder = write(tmp_path)
    for length in (2**63, 10**6):
        (folder / SINGLE).write_bytes(length.to_bytes(8, "little") + b"{}")
        assert "there is no room for its header" in refusal(folder)


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    assert "found dtype F4 in tensor a of" in refusal(forge(tmp_path, {"a": at(0, 16, dtype="F4")}))


def test_empty_tensors_and_padded_headers_are_fine(tmp_path: Path) -> None:
    header = {"a": at(0, 16, shape=[4]), "none": at(16, 16, shape=[0, 3]), "__metadata__": {"format": "pt"}}
    checkpoint = Checkpoint.open(forge(tmp_path, json.dumps(header) + "   "))
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {"a": (4,), "none": (0, 3)}
    checkpoint.read_into("none", torch.empty(0, 3))
    assert checkpoint.content.startswith("sha256:")


def test_a_name_twice_in_the_index_is_refused(tmp_path: Path) -> None:
    folder = shard(tmp_path)
    shards = json.loads((folder / INDEX).read_text())["weight_map"]
    pairs = ", ".join(f"{json.dumps(name)}: {json.dumps(file)}" for name, file in [*shards.items(), *shards.items()])
    (folder / INDEX).write_text('{"weight_map": {' + pairs + "}}")
    assert "stands there twice" in refusal(folder)


# --- Reading by position ---------------------------------------------------------------------------------------------


def test_bytes_are_read_into_memory_that_is_given(tmp_path: Path) -> None:
    for folder in (write(tmp_path / "one"), shard(tmp_path / "two")):
        checkpoint = Checkpoint.open(folder)
        for name, tensor in TENSORS.items():
            out = torch.full_like(tensor, 77)
            checkpoint.read_into(name, out)
            assert torch.equal(out, tensor)
            flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
            checkpoint.read_into(name, flat)
            assert torch.equal(flat, tensor.reshape(-1))
            with checkpoint.reader(name) as read:
                last = torch.empty(1, dtype=tensor.dtype)
                read(last, tensor.numel() - 1)
            assert torch.equal(last, tensor.reshape(-1)[-1:])


@pytest.mark.parametrize(
    "out",
    [torch.empty(11), torch.empty(12, dtype=torch.bfloat16), torch.empty(3, 4).t(), torch.empty(12, device="meta")],
)
def test_memory_that_does_not_fit_is_refused(tmp_path: Path, out: torch.Tensor) -> None:
    with pytest.raises(MergingError, match=r"expected contiguous memory on the CPU for 12 elements of torch\.float32"):
        Checkpoint.open(write(tmp_path)).read_into("model.embed_tokens.weight", out)


@pytest.mark.parametrize("change", ["rewritten", "shorter", "gone"])
def test_a_file_that_changes_underneath_is_noticed(tmp_path: Path, change: str) -> None:
    file = write(tmp_path) / SINGLE
    checkpoint = Checkpoint.open(tmp_path)
    if change == "rewritten":
        save_file({name: tensor + 1 for name, tensor in TENSORS.items()}, file)
        os.utime(file, ns=(0, 0))
    elif change == "shorter":
        file.write_bytes(file.read_bytes()[:-8])
    else:
        file.unlink()
    for read in (
        lambda: checkpoint.read_into("model.embed_tokens.weight", torch.empty(12)),
        lambda: checkpoint.content,
    ):
        with pytest.raises(MergingError, match="could not open it" if change == "gone" else "was changed since"):
            read()
    with pytest.raises(MergingError):
        checkpoint.read("model.embed_tokens.weight")


# --- Pickles, where they are allowed ---------------------------------------------------------------------------------


def pickled(folder: Path, held: Any, name: str = PICKLE, **options: Any) -> Path:
    write(folder)
    (folder / SINGLE).unlink()
    torch.save(held, folder / name, **options)
    return folder


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("it-ran-code",))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_has_the_content_of_its_tensors(tmp_path: Path, zipped: bool) -> None:
    folder = pickled(tmp_path / "pickle", TENSORS, _use_new_zipfile_serialization=zipped)
    checkpoint = Checkpoint.open(folder, allow_pickle=True)
    assert checkpoint.content == Checkpoint.open(write(tmp_path / "safe")).content
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in TENSORS.items())
    assert "Or allow pickles" in refusal(folder)


def test_pickles_may_be_sharded(tmp_path: Path) -> None:
    names = list(TENSORS)
    pickled(tmp_path, {name: TENSORS[name] for name in names[:2]}, "pytorch_model-00001-of-00002.bin")
    torch.save({name: TENSORS[name] for name in names[2:]}, tmp_path / "pytorch_model-00002-of-00002.bin")
    weight_map = {name: f"pytorch_model-0000{1 + (number > 1)}-of-00002.bin" for number, name in enumerate(names)}
    (tmp_path / PICKLE_INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert Checkpoint.open(tmp_path, allow_pickle=True).content == Checkpoint.open(write(tmp_path / "safe")).content


def test_safetensors_win_over_pickles_and_may_not_name_them(tmp_path: Path) -> None:
    pickled(tmp_path / "a", {"other": torch.ones(1)})
    write(tmp_path / "a")
    assert list(Checkpoint.open(tmp_path / "a", allow_pickle=True).tensors) == sorted(TENSORS)
    folder = pickled(tmp_path / "b", TENSORS)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(TENSORS, PICKLE)}))
    assert "only pickled weights" in refusal(folder)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, options in enumerate([{}, {"_use_new_zipfile_serialization": False}]):
        folder = pickled(tmp_path / str(number), TENSORS | {"x": Harmful()}, **options)
        assert "holds more than tensors, or is corrupt" in refusal(folder, allow_pickle=True)
    (folder / PICKLE).write_bytes(pickle.dumps(Harmful()))
    refusal(folder, allow_pickle=True)
    assert not (tmp_path / "it-ran-code").exists()


@pytest.mark.parametrize("held", [[torch.ones(2)], {"a": 3}, {1: torch.ones(2)}, {"a": torch.eye(2).to_sparse()}])
def test_a_pickle_of_anything_else_is_refused(tmp_path: Path, held: Any) -> None:
    assert "expected a dictionary of names to plain tensors" in refusal(pickled(tmp_path, held), allow_pickle=True)


@pytest.mark.parametrize("keep", [0, 5, 300, -10])
def test_a_truncated_pickle_is_refused(tmp_path: Path, keep: int) -> None:
    folder = pickled(tmp_path, TENSORS)
    (folder / PICKLE).write_bytes((folder / PICKLE).read_bytes()[:keep])
    message = refusal(folder, allow_pickle=True)
    assert "truncated or corrupt" in message or "holds more than tensors, or is corrupt" in message
