"""Tiny random models with adapters that peft made, and what peft makes of them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    HrmTextConfig,
    HrmTextForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

SIZE: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_LM = SIZE | {"num_key_value_heads": 2, "max_position_embeddings": 32}
_VISION = {key: value for key, value in SIZE.items() if key != "vocab_size"} | {"image_size": 8, "patch_size": 4}

MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**_LM, tie_word_embeddings=False)),
    "llama-tied": (LlamaForCausalLM, LlamaConfig(**_LM, tie_word_embeddings=True)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(vocab_size=41, n_embd=16, n_layer=2, n_head=2, n_positions=32)),
    "t5": (
        T5ForConditionalGeneration,
        T5Config(vocab_size=41, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=0),
    ),
    "mixtral": (MixtralForCausalLM, MixtralConfig(**_LM, num_local_experts=3)),
    "qwen-moe": (
        Qwen2MoeForCausalLM,
        Qwen2MoeConfig(**_LM, num_experts=3, moe_intermediate_size=12, shared_expert_intermediate_size=20),
    ),
    "bert": (BertForSequenceClassification, BertConfig(**SIZE, max_position_embeddings=32, num_labels=3)),
    "llava": (  # whose names live are others than on disk
        LlavaForConditionalGeneration,
        LlavaConfig(vision_config=CLIPVisionConfig(**_VISION), text_config=LlamaConfig(**_LM), image_token_index=3),
    ),
    "hrm": (HrmTextForCausalLM, HrmTextConfig(**_LM)),  # whose matrices are split on loading
    "gpt-oss": (GptOssForCausalLM, GptOssConfig(**_LM, num_local_experts=3, head_dim=4)),  # stacks, stored [in, out]
    "whisper": (
        WhisperForConditionalGeneration,
        WhisperConfig(
            vocab_size=41,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            num_mel_bins=8,
            max_source_positions=16,
            max_target_positions=16,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        ),
    ),
    "vit": (ViTForImageClassification, ViTConfig(**_VISION, num_labels=3)),
}


@dataclass(frozen=True)
class Adapted:
    """Folders.

    Attributes:
        base: the model.
        adapter: as peft saved it.
        merged: what merge_and_unload makes of both.
    """

    base: Path
    adapter: Path
    merged: Path


def save_base(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A random model of an architecture, saved."""
    kind, config = MODELS[name]
    torch.manual_seed(3)
    model: PreTrainedModel = kind(config).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def adapt(name: str, base: Path, folder: Path, seed: int = 5, **options: Any) -> Adapted:
    """An adapter with random weights, and its merge by peft.

    Args:
        name: of :data:`MODELS`.
        base: folder of the model.
        folder: for the results.
        seed: of the weights.
        options: of peft's LoraConfig.
    """
    kind, _ = MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(kind.from_pretrained(base), LoraConfig(**options))
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(folder / "adapter")
        model.merge_and_unload().save_pretrained(folder / "merged")
    return Adapted(base, folder / "adapter", folder / "merged")
