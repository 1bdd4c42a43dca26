"""Adapters read as models, against peft's own merge_and_unload."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from adapter_models import adapt, save_base
from safetensors.torch import load_file, save_file
from transformers import LlamaModel

from merging.checkpoint import Checkpoint
from merging.lora.source import open_adapter
from merging.recipe import MergingError

WHOLE = {"modules_to_save", "trainable_token_indices", "bias", "task_type"}

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
    "bias-of-lora": ("gpt2", {"r": 3, "target_modules": ["c_attn"], "lora_bias": True}),
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
    "renamed": ("llava", {"r": 2, "target_modules": ["q_proj", "linear_1"]}),
    "split": ("hrm", {"r": 2, "target_modules": ["q_proj", "gate_proj", "o_proj"]}),
    "split-dora": ("hrm", {"r": 2, "target_modules": ["k_proj"], "use_dora": True}),
    "convolutions": ("whisper", {"r": 2, "target_modules": ["conv1", "conv2", "fc1"]}),
    "stacks": (
        "gpt-oss",
        {"r": 2, "target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "classifier": ("bert", {"r": 2, "target_modules": ["query", "value"], "task_type": "SEQ_CLS"}),
    "vision": ("vit", {"r": 2, "target_modules": ["q_proj", "projection"], "modules_to_save": ["classifier"]}),
    "convolution-dora": ("vit", {"r": 2, "target_modules": ["projection"], "use_dora": True}),
}  # fmt: skip


# The others cost a model each, and say the same about other architectures and settings.
FAST = {"patterns", "dora", "conv1d", "experts", "saved-modules"}

DENSE = {"split-dora", "stacks", "dora", "dora-embeddings", "conv1d-dora", "convolution-dora"}


@pytest.mark.parametrize("case", [pytest.param(case, marks=() if case in FAST else pytest.mark.slow) for case in CASES])
def test_agrees_with_peft(case: str, tmp_path: Path) -> None:
    """Every tensor of the composed model is that of peft's merged one; LoRA stays factored, nothing else changes."""
    name, options = CASES[case]
    made = adapt(name, save_base(name, tmp_path / "base"), tmp_path, **options)
    base, merged = Checkpoint.open(made.base), Checkpoint.open(made.merged)
    composed = open_adapter(made.adapter, base)
    changed = 0
    for tensor in merged.tensors:
        expected, found, before = merged.read(tensor), composed.read(tensor), base.read(tensor)
        tolerance = 1e-6 * float(expected.abs().max())
        assert torch.allclose(found, expected, rtol=0, atol=tolerance), tensor
        differs = not torch.equal(expected, before)
        changed += differs
        assert (tensor in composed.changes) == differs, tensor
        factors = composed.factors(tensor)
        assert factors is not None or case in DENSE or options.keys() & WHOLE, tensor
        if factors is not None:
            delta = factors.dense().reshape(before.shape)
            assert torch.allclose(before + delta, expected, rtol=0, atol=tolerance), tensor
    assert changed
    assert not composed.notes or case.startswith("tied-")


@pytest.mark.slow
def test_head_and_embedding_that_share_a_product_change_once(tmp_path: Path) -> None:
    """What peft trained with ensure_weight_tying is W + Δ in both places; its merge adds Δ twice to the one tensor."""
    options = {"r": 2, "target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
    made = adapt("llama-tied", save_base("llama-tied", tmp_path / "base"), tmp_path, **options)
    base, twice = Checkpoint.open(made.base), Checkpoint.open(made.merged)
    composed = open_adapter(made.adapter, base)
    name = "model.embed_tokens.weight"
    once = composed.read(name) - base.read(name)
    assert torch.allclose(2 * once, twice.read(name) - base.read(name), atol=1e-5)
    assert composed.factors(name).rank == 2  # type: ignore[union-attr]
    assert composed.notes == ()


@pytest.mark.slow
def test_an_adapter_of_the_headless_model(tmp_path: Path) -> None:
    """Trained on AutoModel, whose names lack the prefix that the base has on disk; and the other way round."""
    whole = adapt("llama", save_base("llama", tmp_path / "base"), tmp_path, r=2, target_modules=["q_proj"])
    base = Checkpoint.open(whole.base)
    changes = open_adapter(whole.adapter, base).changes.keys()
    held = load_file(whole.adapter / "adapter_model.safetensors")
    save_file(
        {name.replace("model.model.model.", "model.model."): each for name, each in held.items()},
        whole.adapter / "adapter_model.safetensors",
    )
    assert open_adapter(whole.adapter, base).changes.keys() == changes
    LlamaModel.from_pretrained(whole.base).save_pretrained(tmp_path / "headless")
    headless = Checkpoint.open(tmp_path / "headless")
    save_file(held, whole.adapter / "adapter_model.safetensors")
    found = open_adapter(whole.adapter, headless)
    assert {f"model.{name}" for name in found.changes} == changes


@pytest.mark.slow
def test_a_head_that_was_trained_apart_from_its_embedding_is_refused(tmp_path: Path) -> None:
    options = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    made = adapt("llama-tied", save_base("llama-tied", tmp_path / "base"), tmp_path, **options)
    with pytest.raises(MergingError, match=r"tie_word_embeddings.*trained lm_head.weight apart"):
        open_adapter(made.adapter, Checkpoint.open(made.base))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    """Over a narrow base the change is not rounded away: float32; over a wide one nothing of the base is."""
    base = save_base("llama", tmp_path / "base", dtype)
    made = adapt("llama", base, tmp_path, r=2, target_modules=["q_proj"])
    composed, origin = open_adapter(made.adapter, Checkpoint.open(base)), Checkpoint.open(base)
    name = "model.layers.0.self_attn.q_proj.weight"
    found, factors = composed.read(name), composed.factors(name)
    assert factors is not None
    assert found.dtype == (torch.float32 if dtype == torch.bfloat16 else torch.float64)
    exact = origin.read(name).double() + factors.dense().double()
    assert torch.allclose(found.double(), exact, atol=1e-7)
    other = "model.layers.0.self_attn.k_proj.weight"
    assert composed.read(other).data_ptr() == composed.base.read(other).data_ptr()
    assert composed.tensors[other].dtype == dtype
