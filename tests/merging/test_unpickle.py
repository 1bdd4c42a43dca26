"""Pickled weights become safetensors: the same bits, whole or not at all, and no code is run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from merging.checkpoint import Checkpoint
from merging.recipe import MergingError
from merging.unpickle import convert_pickles
from search.cli import run_command


def model(tied: bool = False, dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


def pickled(folder: Path, held: torch.nn.Module, shards: int = 1) -> Path:
    """A folder as they were written before safetensors."""
    folder.mkdir()
    held.config.save_pretrained(folder)  # type: ignore[union-attr]
    state = held.state_dict()
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        names = list(state)
        weight_map = {}
        for at in range(shards):
            file = f"pytorch_model-{at + 1:05d}-of-{shards:05d}.bin"
            part = {name: state[name] for name in names[at::shards]}
            torch.save(part, folder / file)
            weight_map |= dict.fromkeys(part, file)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "modeling_custom.py").write_text("raise SystemExit")
    (folder / "optimizer.pt").write_bytes(b"not needed")
    return folder


def same(left: torch.nn.Module, folder: Path) -> bool:
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").state_dict()
    state = left.state_dict()
    return loaded.keys() == state.keys() and all(
        loaded[name].dtype == each.dtype and torch.equal(loaded[name], each) for name, each in state.items()
    )


@pytest.mark.parametrize(("shards", "limit", "files"), [(1, 10**9, 1), (2, 10**9, 2), (1, 500, None), (3, 500, None)])
def test_every_bit_arrives(tmp_path: Path, shards: int, limit: int, files: int | None) -> None:
    held = model()
    source = pickled(tmp_path / "old", held, shards)
    said: list[str] = []
    done = convert_pickles(source, tmp_path / "new", max_shard_size=limit, say=said.append)
    assert same(held, done.folder) and done.tensors == len(held.state_dict()) and done.tied == ()
    assert len(said) == len(done.files) and (files is None or len(done.files) == files)
    names = {file.name for file in done.folder.iterdir()}
    beside = {"config.json", "tokenizer.json", "README.md"} | ({"generation_config.json"} & names)
    index = set() if files == 1 else {"model.safetensors.index.json"}
    assert names == beside | set(done.files) | index
    assert Checkpoint.open(done.folder).content == Checkpoint.open(source, allow_pickle=True).content
    for file in done.files:
        tensors = [info for info in Checkpoint.open(done.folder).tensors.values() if info.shard == file]
        size = sum(info.numel * info.dtype.itemsize for info in tensors)
        assert size <= limit or len(tensors) == 1


def test_tied_heads_are_left_out_where_the_config_says_so(tmp_path: Path) -> None:
    held = model(tied=True)
    source = pickled(tmp_path / "old", held)
    assert "lm_head.weight" in Checkpoint.open(source, allow_pickle=True).tensors
    done = convert_pickles(source, tmp_path / "new")
    assert done.tied == ("lm_head.weight",) and same(held, done.folder)


def test_shared_memory_that_is_no_tie_is_written_twice(tmp_path: Path) -> None:
    held = model()
    with torch.no_grad():
        held.lm_head.weight = held.model.embed_tokens.weight  # shared, and the config says that it is not
    whole = torch.arange(64.0).view(8, 8).bfloat16()
    held.model.layers[0].self_attn.q_proj.weight = torch.nn.Parameter(whole.t(), requires_grad=False)
    held.model.layers[1].self_attn.q_proj.weight = torch.nn.Parameter(whole[:, :8], requires_grad=False)
    done = convert_pickles(pickled(tmp_path / "old", held), tmp_path / "new")
    assert done.tied == () and same(held, done.folder)


def test_another_architecture_and_the_format_of_before_2020(tmp_path: Path) -> None:
    torch.manual_seed(0)
    held = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=16))
    source = pickled(tmp_path / "old", held)
    torch.save(held.state_dict(), source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    done = convert_pickles(source, tmp_path / "new")
    assert done.tied == ("lm_head.weight",) and same(held, done.folder)


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch was-run",)


@pytest.mark.parametrize(("held", "said"), [
    ({"a": _Runs()}, "weights-only loader refuses it"),
    ({"state": {"a": torch.ones(2)}}, "dictionary of names to plain tensors"),
    ([1, 2], "dictionary of names to plain tensors"),
])  # fmt: skip
def test_no_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: object, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    source = pickled(tmp_path / "old", model())
    torch.save(held, source / "pytorch_model.bin")
    with pytest.raises(MergingError, match=said):
        convert_pickles(source, tmp_path / "new")
    assert not (tmp_path / "was-run").exists() and sorted(each.name for each in tmp_path.iterdir()) == ["old"]


def test_folders_that_cannot_be_converted(tmp_path: Path) -> None:
    source = pickled(tmp_path / "old", model())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(MergingError, match="found content there"):
        convert_pickles(source, tmp_path / "full")
    done = convert_pickles(source, tmp_path / "new")
    with pytest.raises(MergingError, match="it has safetensors already"):
        convert_pickles(done.folder, tmp_path / "again")
    with pytest.raises(MergingError, match=r"found nothing"):
        convert_pickles(tmp_path / "missing", tmp_path / "again")
    (tmp_path / "bare").mkdir()
    with pytest.raises(MergingError, match=r"expected pytorch_model.bin or .* found neither"):
        convert_pickles(tmp_path / "bare", tmp_path / "again")
    cut = (source / "pytorch_model.bin").read_bytes()
    (source / "pytorch_model.bin").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(MergingError, match="truncated or corrupt"):
        convert_pickles(source, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_disk_that_writes_other_bits_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from merging import unpickle

    real = unpickle.save_file

    def damaging(tensors: dict[str, torch.Tensor], file: Path, **how: object) -> None:
        name = sorted(tensors)[0]
        real({**tensors, name: tensors[name] * 1.5}, file, **how)

    monkeypatch.setattr(unpickle, "save_file", damaging)
    with pytest.raises(MergingError, match=r"the weights of lm_head.weight have other bits.*Nothing was left behind"):
        convert_pickles(pickled(tmp_path / "old", model()), tmp_path / "new")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["old"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = model()
    source, out = pickled(tmp_path / "old", held), tmp_path / "new"
    assert run_command(["convert", str(source), str(out)]) == 2
    assert "add --allow-pickle" in capsys.readouterr().err and not out.exists()
    assert run_command(["convert", str(source), str(out), "--allow-pickle"]) == 0
    assert "every bit compared" in capsys.readouterr().out and same(held, out)
    assert run_command(["convert", str(source), str(tmp_path / "json"), "--allow-pickle", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == len(held.state_dict())
    with pytest.raises(MergingError, match=r"paretomerge convert .*old NEW_FOLDER --allow-pickle"):
        Checkpoint.open(source)
