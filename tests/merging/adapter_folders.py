"""Adapter folders written by hand, over a base of two layers: what peft would write, and what nobody should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

LAYER = "model.layers.{}.self_attn.q_proj"
ROOT = "base_model.model."


def write_base(folder: Path, **config: Any) -> Path:
    """A Llama of two layers, width 6, by its files alone: no class is built of it unless somebody asks."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    names = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    sizes = {
        **dict.fromkeys(names, (6, 6)),
        "mlp.gate_proj": (8, 6),
        "mlp.up_proj": (8, 6),
        "mlp.down_proj": (6, 8),
    }
    tensors = {"model.embed_tokens.weight": torch.randn(11, 6), "lm_head.weight": torch.randn(11, 6)}
    tensors["model.norm.weight"] = torch.ones(6)
    for layer in range(2):
        start = f"model.layers.{layer}."
        tensors |= {f"{start}{name}.weight": torch.randn(size) for name, size in sizes.items()}
        tensors |= {f"{start}{name}_layernorm.weight": torch.ones(6) for name in ("input", "post_attention")}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 6,
        "intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 11,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(settings | config))
    return folder


def factors(seed: int = 1, rank: int = 2, rows: int = 6, columns: int = 6) -> tuple[Tensor, Tensor]:
    """A [rank, columns] and B [rows, rank]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)


def write_adapter_folder(folder: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    """An adapter of the first layer's queries, unless other tensors are given."""
    folder.mkdir(parents=True)
    if tensors is None:
        a, b = factors()
        tensors = {f"{ROOT}{LAYER.format(0)}.lora_A.weight": a, f"{ROOT}{LAYER.format(0)}.lora_B.weight": b}
    held = {name: each.clone().contiguous() for name, each in tensors.items()}
    save_file(held, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    return folder
