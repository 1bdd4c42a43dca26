"""Vectors of fine-tunes that have other tokens than their base."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from vocabulary_models import BIAS, EMBEDDING, HEAD, make, numbered, write_tokens

from merging.checkpoint import Checkpoint
from merging.export import export
from merging.recipe import MergingError
from merging.sources import Sources
from merging.tokens import read_vocabulary
from merging.vectors.equip import equip
from merging.vectors.extract import About, Coding, file_facts, write_manifest, write_vector
from merging.vectors.manifest import Manifest
from merging.vectors.source import open_vector
from merging.vectors.store import verify
from merging.verification import same_bits

ABC = numbered("<unk>", "a", "b", "c")
MORE = {**ABC, "<tool>": 4, "</tool>": 5}


def extracted(folder: Path, base: Path, expert: Path, coding: Coding | None = None) -> Path:
    folder.mkdir()
    write_vector(folder, Checkpoint.open(base), Checkpoint.open(expert), About("v"), coding or Coding())
    return folder


@pytest.mark.parametrize("codec", ["exact", "bf16"])
def test_added_tokens_come_back_with_their_tokenizer(tmp_path: Path, codec: str) -> None:
    base, expert = make(tmp_path / "base", ABC), make(tmp_path / "expert", MORE, seed=1)
    folder = extracted(tmp_path / "v", base, expert, Coding(codec))
    manifest = Manifest.read(folder)
    assert {"tokenizer.json", "config.json"} <= manifest.files.keys()  # the config says how many tokens there are
    assert manifest.tensors[EMBEDDING].shape == (6, 3) and manifest.tensors[EMBEDDING].base_shape == (4, 3)
    composed, whole = open_vector(folder, Checkpoint.open(base)), Checkpoint.open(expert)
    assert composed.tensors[EMBEDDING].shape == (6, 3) and composed.config["vocab_size"] == 6
    assert (composed.content == whole.content) == (codec == "exact")
    tokens = read_vocabulary(composed.companions)
    assert tokens is not None and tokens.ids == MORE
    assert verify(folder, Checkpoint.open(base))[1] == []
    ours = Sources.load(base, {"v": folder}, tokenizer="union")
    theirs = Sources.load(base, {"v": expert}, tokenizer="union")
    assert ours.tokenizer == theirs.tokenizer == "union" and ours.config["vocab_size"] == 6
    for name in theirs.tensors:
        if codec == "exact":
            assert same_bits(ours.tensor("v", name), theirs.tensor("v", name))


def test_equipped_alone_the_fine_tune_has_its_own_tokens(tmp_path: Path) -> None:
    base, expert = make(tmp_path / "base", ABC), make(tmp_path / "expert", MORE, seed=1)
    folder = extracted(tmp_path / "v", base, expert)
    work = equip(base, {"v": folder})
    out = export(work.recipe, work.sources, tmp_path / "out")
    assert Checkpoint.open(out).content == Checkpoint.open(expert).content
    tokens = read_vocabulary(out)
    assert tokens is not None and tokens.ids == MORE
    assert Checkpoint.open(out).config["vocab_size"] == 6
    kept = export((work := equip(base, {"v": folder}, tokenizer="base")).recipe, work.sources, tmp_path / "kept")
    assert Checkpoint.open(kept).tensors[HEAD].shape == (4, 3)


def test_fewer_rows_are_no_obstacle(tmp_path: Path) -> None:
    """A base with rows of padding that the fine-tune's maker has cut off."""
    base, expert = make(tmp_path / "base", ABC, rows=8), make(tmp_path / "expert", ABC, seed=1)
    composed = open_vector(extracted(tmp_path / "v", base, expert), Checkpoint.open(base))
    assert composed.content == Checkpoint.open(expert).content


def test_rows_that_were_cut_off_or_are_zero_are_a_change(tmp_path: Path) -> None:
    """Embeddings that were frozen: what is left of the base's tensor is the base's, bit by bit."""
    base = make(tmp_path / "base", ABC, rows=6)
    for rows in (4, 8):
        expert = make(tmp_path / f"expert-{rows}", ABC, rows=rows)
        held = {name: tensor.clone() for name, tensor in load_file(base / "model.safetensors").items()}
        for name in (EMBEDDING, HEAD, BIAS):
            longer = torch.zeros(rows, *held[name].shape[1:])
            longer[: min(rows, 6)] = held[name][:rows]
            held[name] = longer
        save_file(held, expert / "model.safetensors", metadata={"format": "pt"})
        folder = extracted(tmp_path / f"v-{rows}", base, expert)
        assert {each.codec for each in Manifest.read(folder).tensors.values()} == {"equal"}
        composed = open_vector(folder, Checkpoint.open(base))
        assert composed.content == Checkpoint.open(expert).content


def test_a_base_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    base, expert = make(tmp_path / "base", ABC), make(tmp_path / "expert", ABC, seed=1)
    folder = extracted(tmp_path / "v", base, expert)
    assert not [name for name in Manifest.read(folder).files if "tokenizer" in name]  # it is the base's
    other = tmp_path / "other"
    shutil.copytree(base, other)
    write_tokens(other, numbered("<unk>", "c", "b", "a"))
    with pytest.raises(MergingError, match=r"expected the tokenizer of base beside the base .*other numbers"):
        open_vector(folder, Checkpoint.open(other))
    (other / "tokenizer.json").unlink()  # of what is not there nothing is known to be wrong
    open_vector(folder, Checkpoint.open(other))


def test_only_the_chat_template_differs(tmp_path: Path) -> None:
    base, expert = make(tmp_path / "base", ABC), make(tmp_path / "expert", ABC, seed=1)
    (expert / "chat_template.jinja").write_text("{{ messages }}")
    (expert / "generation_config.json").write_text('{"eos_token_id": 3}')
    folder = extracted(tmp_path / "v", base, expert)
    for name in ("chat_template.jinja", "tokenizer.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (expert / name).read_bytes()
    work = equip(base, {"v": folder})
    assert work.tokenizer_from == "v"  # which writes them into the model


@pytest.mark.parametrize("text, said", [
    ("[1]", "expected a JSON object"), ("{", "expected JSON"),
    ('{"model_type": "llama", "num_hidden_layers": 1000000000}', "to be at most"),
])  # fmt: skip
def test_a_config_out_of_a_vector_is_not_believed(tmp_path: Path, text: str, said: str) -> None:
    base, expert = make(tmp_path / "base", ABC), make(tmp_path / "expert", MORE, seed=1)
    folder = extracted(tmp_path / "v", base, expert)
    (folder / "config.json").write_text(text)
    manifest = Manifest.read(folder)
    forged = replace(manifest, files={**manifest.files, "config.json": file_facts(folder / "config.json")})
    write_manifest(folder, forged)
    with pytest.raises(MergingError, match=said):
        open_vector(folder, Checkpoint.open(base))
