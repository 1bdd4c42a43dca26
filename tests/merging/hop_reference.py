"""A path of hops the plain way, against which folded models are compared: the models' own blocks in a loop, the hidden
state multiplied by each hop's scale before its block. No cache, no folding, nothing of the package."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

Hop = tuple[str, int, float]


class Scaled(nn.Module):
    """A block behind a factor on its hidden state."""

    def __init__(self, block: nn.Module, scale: float):
        super().__init__()
        self.block = block
        self.scale = scale

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.block(hidden * self.scale, *args, **kwargs)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def blocks_of(model: nn.Module) -> tuple[nn.Module, str, nn.ModuleList]:
    """(what holds the list, under which name, the list): the outermost list of modules."""
    name = min((name for name, each in model.named_modules() if isinstance(each, nn.ModuleList)), key=len)
    holder, _, leaf = name.rpartition(".")
    return model.get_submodule(holder), leaf, cast(nn.ModuleList, model.get_submodule(name))


def path_model(folders: dict[str, Path], hops: Sequence[Hop], outside: str) -> Any:
    """The model of a path; only to be called with ``use_cache=False``.

    Args:
        folders: alias -> model.
        hops: (alias, layer, scale) in order.
        outside: whose embeddings, final norm and head.
    """
    models = {alias: load(folder) for alias, folder in folders.items()}
    listed = {alias: blocks_of(model)[2] for alias, model in models.items()}
    own = {alias: list(blocks) for alias, blocks in listed.items()}
    whole = models[outside]
    holder, leaf, _ = blocks_of(whole)
    setattr(holder, leaf, nn.ModuleList([Scaled(own[alias][layer], scale) for alias, layer, scale in hops]))
    config = whole.config
    kinds = getattr(config, "layer_types", None)
    config.num_hidden_layers = len(hops)
    if kinds is not None:
        config.layer_types = [kinds[layer] for _, layer, _ in hops]
    return whole


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    found: Tensor = model(input_ids=tokens, use_cache=False).logits
    return found


@torch.no_grad()
def greedy(model: Any, tokens: Tensor, steps: int) -> list[int]:
    """The most likely tokens, one after the other."""
    for _ in range(steps):
        tokens = torch.cat([tokens, logits(model, tokens)[:, -1:].argmax(-1)], dim=1)
    return cast(list[int], tokens[0, -steps:].tolist())


def with_epsilons(model: nn.Module, hops: Sequence[Hop]) -> nn.Module:
    """The loop's model with each norm's epsilon scaled as the hidden state is: then folding has no error at all."""
    holder, leaf, blocks = blocks_of(model)
    own = nn.ModuleList(copy.deepcopy(block) for block in blocks)
    setattr(holder, leaf, own)
    products = [math.prod(scale for _, _, scale in hops[: at + 1]) for at in range(len(hops))]
    for part, product in [*zip(own, products, strict=True), (holder.get_submodule("norm"), products[-1])]:
        for module in part.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon = float(cast(float, module.variance_epsilon)) * product**2
    return model
