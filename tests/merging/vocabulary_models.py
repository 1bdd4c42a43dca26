"""Small models with vocabularies of their own, for the tests of their alignment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from merging.sources import Sources

WIDTH = 3
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
BIAS = "lm_head.bias"


def write_tokens(folder: Path, ids: Mapping[str, int], added: Mapping[str, int] | None = None) -> None:
    entries = [
        {"id": n, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True} for t, n in (added or {}).items()
    ]  # fmt: skip
    data = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": entries, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": dict(ids), "unk_token": "<unk>"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(data))


def make(
    folder: Path,
    ids: Mapping[str, int] | None,
    rows: int | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    tied: bool = False,
    bias: bool = True,
    added: Mapping[str, int] | None = None,
    config: Mapping[str, Any] | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> Path:
    """A model of one block. All its numbers are different, so that a row says where it is from."""
    folder.mkdir(parents=True)
    rows = max({**(ids or {}), **(added or {})}.values()) + 1 if rows is None else rows
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    tensors = {
        EMBEDDING: random(rows, WIDTH),
        "model.layers.0.mlp.up_proj.weight": random(WIDTH, WIDTH),
        "model.layers.0.mlp.down_proj.weight": random(WIDTH, WIDTH),
        "model.norm.weight": random(WIDTH),
    }
    if not tied:
        tensors |= {HEAD: random(rows, WIDTH)} | ({BIAS: random(rows)} if bias else {})
    save_file(tensors | dict(extra or {}), folder / "model.safetensors")
    stated = {"model_type": "llama", "vocab_size": rows, "tie_word_embeddings": tied} | dict(config or {})
    (folder / "config.json").write_text(json.dumps(stated))
    if ids is not None:
        write_tokens(folder, ids, added)
    return folder


def numbered(*tokens: str) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def own_row(sources: Sources, alias: str, name: str, number: int) -> Tensor:
    return sources.checkpoints[alias].read(name)[number]


ABC = numbered("a", "b", "c")


# --- Nothing to do ---------------------------------------------------------------------------------------------------
