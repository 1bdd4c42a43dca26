"""Adapters read as models, against peft's own merge_and_unload."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_models import adapt, save_base

from merging.checkpoint import Checkpoint
from merging.lora.source import open_adapter

CASES = {
    "llama": ("llama", {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "lora_alpha": 6}),
    "rank-stabilised": ("llama", {"r": 4, "target_modules": ["q_proj", "up_proj"], "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "r": 2,
            "target_modules": ["q_proj", "k_proj", "up_proj"],
            "rank_pattern": {"q_proj": 5, r"layers\.1\.self_attn\.k_proj": 3},
            "alpha_pattern": {"up_proj": 11, "layers.0.self_attn.q_proj": 2},
        },
    ),
    "dora": ("llama", {"r": 3, "target_modules": ["q_proj", "down_proj"], "use_dora": True}),
    "embeddings": ("llama", {"r": 3, "target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "dora-embeddings": ("llama", {"r": 3, "target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "saved-modules": ("llama", {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["norm", "lm_head"]}),
    "trained-tokens": ("llama", {"r": 2, "target_modules": ["q_proj"], "trainable_token_indices": [4, 1]}),
    "tied-tokens": ("llama-tied", {"r": 2, "target_modules": ["q_proj"], "trainable_token_indices": [4, 1]}),
    "tied-embedding": ("llama-tied", {"r": 2, "target_modules": ["q_proj", "embed_tokens"]}),
    "tied-head": ("llama-tied", {"r": 2, "target_modules": ["q_proj", "lm_head"]}),
    "conv1d": ("gpt2", {"r": 3, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "conv1d-dora": ("gpt2", {"r": 3, "target_modules": ["c_attn", "c_proj"], "use_dora": True}),
    "biases": ("gpt2", {"r": 3, "target_modules": ["c_attn"], "bias": "all"}),
    "bias-of-lora": ("gpt2", {"r": 3, "target_modules": ["c_attn"], "lora_bias": True, "bias": "none"}),
    "encoder-decoder": ("t5", {"r": 3, "target_modules": ["q", "v", "wo"]}),
    "mixtral": ("mixtral", {"r": 2, "target_modules": ["q_proj", "o_proj"], "modules_to_save": ["gate"]}),
    "experts": (
        "mixtral",
        {
            "r": 2,
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
            "rank_pattern": {"experts.down_proj": 3},
        },
    ),
    "one-parameter": ("qwen-moe", {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]}),
    "qwen-moe": ("qwen-moe", {"r": 2, "target_modules": ["q_proj", "shared_expert.up_proj"]}),
    "classifier": ("bert", {"r": 2, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
    "vision": ("vit", {"r": 2, "target_modules": ["q_proj", "projection"], "modules_to_save": ["classifier"]}),
    "convolution-dora": ("vit", {"r": 2, "target_modules": ["projection"], "use_dora": True}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_peft(case: str, tmp_path: Path) -> None:
    """Every tensor of the composed model is that of peft's merged one."""
    name, options = CASES[case]
    made = adapt(name, save_base(name, tmp_path / "base"), tmp_path, **options)
    base, merged = Checkpoint.open(made.base), Checkpoint.open(made.merged)
    composed = open_adapter(made.adapter, base)
    assert composed.changes.keys() <= base.tensors.keys()
    changed = 0
    for tensor in merged.tensors:
        expected, found, before = merged.read(tensor), composed.read(tensor), base.read(tensor)
        scale = expected.abs().max()
        assert torch.allclose(found, expected, rtol=0, atol=1e-6 * float(scale)), tensor
        changed += not torch.equal(expected, before)
        assert (tensor in composed.changes) == (not torch.equal(expected, before)), tensor
        factors = composed.factors(tensor)
        if factors is not None:
            delta = factors.dense().reshape(before.shape)
            assert torch.allclose(before + delta, expected, rtol=0, atol=1e-6 * float(scale)), tensor
    assert changed
