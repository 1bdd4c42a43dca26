"""Families of models for paths through their layers, and recipes of paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from families import Family, save

from merging.methods import canonical
from merging.recipe import Assignment, Group, Recipe
from merging.sources import Sources

Hops = Sequence[tuple[str, int]]

SIZE = {
    "vocab_size": 53,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
WINDOW = {"sliding_window": 5}
# Name -> (class, arguments of its config).
PATHS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {**SIZE, "tie_word_embeddings": False}),
    "llama-tied": ("LlamaForCausalLM", {**SIZE, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", {**SIZE, **WINDOW, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2ForCausalLM", {**SIZE, "tie_word_embeddings": True}),
    "qwen2-kinds": ("Qwen2ForCausalLM", {**SIZE, **WINDOW, "use_sliding_window": True, "max_window_layers": 2}),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 53, "n_embd": 24, "n_layer": 4, "n_head": 4, "n_positions": 64}),
    "mixtral": ("MixtralForCausalLM", {**SIZE, "num_local_experts": 3, "num_experts_per_tok": 2}),
    "gemma3": (
        "Gemma3ForCausalLM",
        {**SIZE, **WINDOW, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "olmo2": ("Olmo2ForCausalLM", SIZE),
    "phi": ("PhiForCausalLM", {**SIZE, "hidden_size": 32}),
}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def config_of(name: str, **more: Any) -> tuple[Any, Any]:
    """(class of the model, its config)."""
    cls = getattr(transformers, PATHS[name][0])
    return cls, cls.config_class(**{**PATHS[name][1], **SPECIAL, **more})


def save_path_family(name: str, folder: Path, dtype: torch.dtype = torch.float32, **more: Any) -> Family:
    """Three models of one class that have little in common."""
    cls, config = config_of(name, **more)
    family = Family(*(folder / each for each in ("base", "a", "b")))
    for seed, path in enumerate((family.base, family.a, family.b)):
        torch.manual_seed(seed)
        model = cls(config)
        with torch.no_grad():
            for each in model.parameters():
                each.add_(0.2 * torch.randn_like(each)) if each.ndim > 1 else each.mul_(torch.rand_like(each) + 0.5)
        save(model.to(dtype), path, "50GB")
    return family


def path_recipe(
    sources: Sources,
    hops: Hops,
    outside: str = "a",
    scales: Sequence[float] | None = None,
    dtype: str | None = None,
) -> Recipe:
    """A path: (alias, layer) for every hop."""
    groups = {
        group: canonical(Assignment.of("passthrough", {outside: {}}))
        for group in sources.layout.groups
        if group.depth is None
    }
    for number, (alias, layer) in enumerate(hops):
        for group in sources.layout.groups:
            if group.depth == layer:
                take = canonical(Assignment.of("passthrough", {alias: {}}))
                groups[Group(group.kind, number, group.stack)] = take
    return Recipe(
        "base",
        sources.refs,
        groups,
        dtype=dtype,
        layers=tuple({alias: layer} for alias, layer in hops),
        scales=None if scales is None else tuple(scales),
    )
