"""Which tensors have an axis of tokens, and how they are read: ties, biases, dtypes, pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vocabulary_models import ABC, BIAS, EMBEDDING, HEAD, WIDTH, make, numbered

from merging.recipe import MergingError
from merging.sources import Sources


def test_positions_are_no_tokens_even_when_there_are_as_many(tmp_path: Path) -> None:
    positions = {"model.embed_positions.weight": torch.randn(3, WIDTH), "transformer.wpe.weight": torch.randn(3, WIDTH)}
    base = make(tmp_path / "base", ABC, extra=positions)
    expert = make(tmp_path / "e", numbered("b", "c", "a"), seed=1, extra={n: t + 1 for n, t in positions.items()})
    sources = Sources.load(base, {"e": expert})
    for name, tensor in positions.items():
        assert torch.equal(sources.tensor("e", name), tensor + 1)
    assert torch.equal(sources.tensor("e", EMBEDDING), sources.checkpoints["e"].read(EMBEDDING)[[2, 0, 1]])


def test_a_bias_that_is_stored_as_one_row_is_aligned(tmp_path: Path) -> None:
    """As BART and Marian store it."""
    name = "final_logits_bias"
    base = make(tmp_path / "base", ABC, extra={name: torch.tensor([[1.0, 2.0, 3.0]])})
    expert = make(tmp_path / "e", numbered("b", "new", "a", "c"), seed=1, extra={name: torch.arange(4.0)[None]})
    assert Sources.load(base, {"e": expert}).tensor("e", name).tolist() == [[2.0, 0.0, 3.0]]
    united = Sources.load(base, {"e": expert}, tokenizer="union")
    assert united.tensors[name].shape == (1, 4) == united.info("e", name).shape
    assert united.tensor("base", name).tolist() == [[1.0, 2.0, 3.0, 1.0]]
    assert united.tensor("e", name).tolist() == [[2.0, 0.0, 3.0, 1.0]]


def test_tied_models_are_aligned_once(tmp_path: Path) -> None:
    base, tied = make(tmp_path / "base", ABC, tied=True), make(tmp_path / "e", numbered("b", "a"), seed=1, tied=True)
    sources = Sources.load(base, {"e": tied})
    assert HEAD not in sources.tensors
    own, theirs = (sources.checkpoints[alias].read(EMBEDDING) for alias in ("base", "e"))
    assert torch.equal(sources.tensor("e", EMBEDDING), torch.stack([theirs[1], theirs[0], own[2]]))


def test_the_embedding_of_a_tied_expert_stands_in_for_its_head(tmp_path: Path) -> None:
    base = make(tmp_path / "base", ABC, bias=False)
    tied = make(tmp_path / "e", numbered("b", "a"), seed=1, tied=True)
    sources = Sources.load(base, {"e": tied})
    own, theirs = sources.checkpoints["base"].read(HEAD), sources.checkpoints["e"].read(EMBEDDING)
    assert torch.equal(sources.tensor("e", HEAD), torch.stack([theirs[1], theirs[0], own[2]]))


@pytest.mark.parametrize("stated", [True, False])
def test_the_number_of_tokens_may_stand_further_inside(tmp_path: Path, stated: bool) -> None:
    def config(rows: int) -> dict[str, Any]:  # a config leaves out what is the default of its class
        text = {"eos_token_id": 2} | ({"vocab_size": rows} if stated else {})
        return {"model_type": "llava", "vocab_size": None, "text_config": text}

    base = make(tmp_path / "base", ABC, config=config(3))
    expert = make(tmp_path / "e", ABC, seed=1, added={"<x>": 3}, config=config(4))
    sources = Sources.load(base, {"e": expert}, tokenizer="union")
    assert sources.config["text_config"] == {"vocab_size": 4, "eos_token_id": 2}
    assert sources.config["vocab_size"] is None
    assert sources.tensors[EMBEDDING].shape == (4, WIDTH)


def test_models_without_tokens_need_no_tokenizer(tmp_path: Path) -> None:
    def vision(folder: Path, labels: int) -> Path:
        make(folder, None, 3, tied=True, config={"model_type": "vit", "vocab_size": None})
        tensors = {
            "vit.embeddings.position_embeddings": torch.randn(1, 5, WIDTH),
            "vit.encoder.layer.0.output.dense.weight": torch.randn(WIDTH, WIDTH),
            "vit.encoder.layer.0.intermediate.dense.weight": torch.randn(WIDTH, WIDTH),
            "classifier.weight": torch.randn(labels, WIDTH),
        }
        save_file(tensors, folder / "model.safetensors")
        return folder

    base = vision(tmp_path / "base", 4)
    assert Sources.load(base, {"e": vision(tmp_path / "e", 4)}, tokenizer="union").tokenizer is None
    with pytest.raises(MergingError, match=r"classifier\.weight is \[4, 3\] in the base and \[5, 3\] in the expert"):
        Sources.load(base, {"e": vision(tmp_path / "more", 5)})


def test_rows_that_are_borrowed_are_exact_in_any_dtype(tmp_path: Path) -> None:
    """A row that an expert lacks has a task vector of exactly 0, also where the expert's own dtype is too narrow."""
    base = make(tmp_path / "base", ABC)
    narrow = make(tmp_path / "e", numbered("b", "a"), seed=1, dtype=torch.bfloat16)
    sources = Sources.load(base, {"e": narrow})
    info = sources.info("e", EMBEDDING)
    assert info.dtype == torch.float32 == sources.tensor("e", EMBEDDING).dtype
    assert torch.equal(sources.tensor("e", EMBEDDING)[2], sources.tensor("base", EMBEDDING)[2])
    permuted = Sources.load(base, {"e": make(tmp_path / "p", numbered("b", "c", "a"), seed=1, dtype=torch.bfloat16)})
    assert permuted.info("e", EMBEDDING).dtype == torch.bfloat16 == permuted.tensor("e", EMBEDDING).dtype


def test_long_vocabularies_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merging.alignment._AT_ONCE", 2 * WIDTH)
    tokens = [f"t{number}" for number in range(23)]
    base = make(tmp_path / "base", numbered(*tokens))
    expert = make(tmp_path / "e", numbered(*tokens[::-1], "new"), seed=1)
    own = Sources.load(base, {"e": expert}).checkpoints["e"].read(EMBEDDING)
    assert torch.equal(Sources.load(base, {"e": expert}).tensor("e", EMBEDDING), own[:23].flip(0))
    union = Sources.load(base, {"e": expert}, tokenizer="union")
    assert torch.equal(union.tensor("base", EMBEDDING)[23], own[23])


@pytest.mark.parametrize("piece", [1, 2 * WIDTH, 1000])
def test_the_distance_is_that_of_the_aligned_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr("merging.scan._PIECE", piece)
    base = make(tmp_path / "base", ABC)
    tensors = {name: Sources.load(base, {}).tensor("base", name) for name in Sources.load(base, {}).tensors}
    turned = {
        name: tensor.flip(0).contiguous() if tensor.shape[0] == 3 and name in {EMBEDDING, HEAD, BIAS} else tensor
        for name, tensor in tensors.items()
    }
    same = make(tmp_path / "e", numbered("c", "b", "a"))
    save_file(turned, same / "model.safetensors")
    assert Sources.load(base, {"e": same}).distance == {"e": 0.0}
