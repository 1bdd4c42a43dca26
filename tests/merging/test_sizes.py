"""What headers tell of memory is what models take."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM, MixtralConfig, Qwen2Config

from merging import arena, shared, sizes
from merging.arena import hold, size_of
from merging.materialize import load_model
from merging.sizes import sizes_of, widths_of


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama", torch.bfloat16),
        ("llama-tied", torch.float32),
        ("qwen2", torch.bfloat16),
        ("gpt2", torch.float32),
        ("mistral-sharded", torch.bfloat16),
    ],
)
def test_sizes_are_those_of_the_loaded_models(families: Callable[..., Any], name: str, dtype: torch.dtype) -> None:
    family = families(name, dtype)
    found = sizes_of(family.base, {"a": family.a, "b": family.b})
    sources, model = family.load(), load_model(family.base)
    for alias in sources.checkpoints:
        assert found.sources[alias] == sum(size_of(sources.info(alias, each)) for each in sources.tensors)
    weights = {each.data_ptr(): each for each in model.parameters()}.values()
    assert found.parameters == sum(each.numel() for each in weights)
    assert found.live == sum(each.numel() * each.itemsize for each in weights)
    assert found.tensor == max(each.numel() * each.itemsize for each in weights)
    assert found.itemsize == dtype.itemsize and found.widths is not None


def test_a_live_dtype_changes_the_live_model_alone(families: Callable[..., Any]) -> None:
    family = families("llama", torch.float32)
    stored, half = sizes_of(family.base, {"a": family.a}), sizes_of(family.base, {"a": family.a}, "bfloat16")
    assert half.live * 2 == stored.live and half.sources == stored.sources and half.itemsize == 2


def test_the_largest_piece_is_a_block_or_a_tensor(families: Callable[..., Any]) -> None:
    family = families("llama", torch.float32)
    blocks = LlamaForCausalLM(LlamaConfig.from_pretrained(family.base)).model.layers
    assert sizes_of(family.base, {}).piece == sum(each.numel() for each in blocks[0].parameters()) * 4


@pytest.mark.parametrize("home", ["auto", "shared"])
@pytest.mark.parametrize("share", [0.99, 1.01])
def test_a_run_decides_by_the_sizes_that_headers_tell(
    families: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Any, share: float
) -> None:
    monkeypatch.setenv("PARETOMERGE_CACHE", str(tmp_path))
    monkeypatch.setattr(shared, "_NAME", f"paretomerge-{tmp_path.name}-{os.getpid()}-")  # what others hold is not found
    family = families("mistral-sharded", torch.bfloat16)
    needed = sum(sizes_of(family.base, {"a": family.a, "b": family.b}).sources.values())
    monkeypatch.setattr(arena, "free_memory", lambda: int(needed / arena.SHARE * share))
    expected = arena.choose(home, needed, arena.free_memory())
    assert hold(family.load(), torch.device("cpu"), home) == expected
    assert (expected == "files") == (share < 1)


def test_no_weight_is_read(families: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    family = families("llama-tied")

    def refuse(*_: Any) -> None:
        raise AssertionError("a weight was read")

    for method in ("read", "reader"):
        monkeypatch.setattr(sizes.Checkpoint, method, refuse)
    assert sizes_of(family.base, {"a": family.a}).parameters


def test_widths_of_several_classes_of_config() -> None:
    llama = LlamaConfig(hidden_size=64, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2)
    assert (widths_of(llama).keys, widths_of(llama).intermediate) == (32, 96)
    qwen = Qwen2Config(hidden_size=64, num_attention_heads=4, num_key_value_heads=4)
    assert widths_of(qwen).keys == 64
    gpt2 = GPT2Config(n_embd=48, n_layer=5, n_head=4, vocab_size=71)
    found = widths_of(gpt2)
    assert (found.layers, found.keys, found.hidden, found.intermediate, found.vocabulary) == (5, 48, 48, 192, 71)
    wide = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=1, head_dim=32)
    assert widths_of(wide).keys == 32
    assert widths_of(MixtralConfig(intermediate_size=100, num_experts_per_tok=2)).intermediate == 200


def test_an_architecture_that_is_not_known_has_no_widths(families: Callable[..., Any], tmp_path: Path) -> None:
    import json
    import shutil

    shutil.copytree(families("llama").base, tmp_path / "odd")
    config = json.loads((tmp_path / "odd/config.json").read_text())
    (tmp_path / "odd/config.json").write_text(json.dumps({**config, "model_type": "nobody-knows"}))
    found = sizes_of(tmp_path / "odd", {})
    assert found.widths is None and found.live > 0
