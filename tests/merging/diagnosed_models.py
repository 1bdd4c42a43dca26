"""Models of a few tensors, of which everything is known: what a diagnosis must say of them can be computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from merging.sources import Sources

Model = Mapping[str, Tensor]


def write(folder: Path, tensors: Model) -> Path:
    """A model folder with these tensors."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "plain"}))
    save_file({name: each.contiguous().clone() for name, each in tensors.items()}, folder / "model.safetensors")
    return folder


def sources_of(folder: Path, base: Model, **changes: Model) -> Sources:
    """A base and experts that are changed from it; tensors that an expert does not name are the base's."""
    experts = {
        alias: write(folder / alias, {name: each + change.get(name, 0) for name, each in base.items()})
        for alias, change in changes.items()
    }
    return Sources.load(write(folder / "base", base), experts)


def block(depth: int, name: str = "mlp.up_proj") -> str:
    """The name of a matrix in a block."""
    return f"model.layers.{depth}.{name}.weight"


def zeros(depths: int = 2, shape: tuple[int, int] = (24, 40)) -> dict[str, Tensor]:
    """A base of zeros, so that task vectors have the bits that they are given; two matrices and a norm per block."""
    tensors = {"model.embed_tokens.weight": torch.zeros(50, shape[1])}
    for depth in range(depths):
        tensors[block(depth)] = torch.zeros(shape)
        tensors[block(depth, "self_attn.q_proj")] = torch.zeros(shape)
        tensors[block(depth, "input_layernorm")] = torch.zeros(shape[1])
    return tensors


def noise(base: Model, seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    """Independent normal numbers in the shapes of a base."""
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(each.shape, generator=generator) for name, each in base.items()}
