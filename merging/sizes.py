"""How much memory models need, told from their headers and configs: no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from merging.arena import size_of
from merging.checkpoint import Checkpoint, TensorInfo
from merging.compatibility import declares_ties, is_frozen, optional_heads
from merging.composed import Composed
from merging.kernel import torch_dtype
from merging.layout import block_of
from merging.opening import open_models


@dataclass(frozen=True)
class Widths:
    """What the memory of a forward pass depends on.

    Attributes:
        layers: blocks.
        keys: elements of one token's keys in one block; its values have as many.
        hidden: elements of one token between blocks.
        intermediate: elements of one token inside a feed-forward network, over the experts that are used.
        vocabulary: tokens.
    """

    layers: int
    keys: int
    hidden: int
    intermediate: int
    vocabulary: int


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a base and its experts, in bytes.

    Attributes:
        parameters: elements of the base, tied ones once.
        sources: alias -> what :func:`merging.arena.hold` keeps of it at most, the base first: of an adapter what it
            changes, as if it were multiplied out, as it is on a device.
        live: weights of the live model.
        piece: the largest part of it that lies on one device in any case: a block, or a single tensor.
        tensor: the largest tensor of it.
        itemsize: of most of its elements.
        widths: None where the config does not say.
    """

    parameters: int
    sources: Mapping[str, int]
    live: int
    piece: int
    tensor: int
    itemsize: int
    widths: Widths | None


def sizes_of(base: Path | str, experts: Mapping[str, Path | str], dtype: str | None = None) -> ModelSizes:
    """Sizes of models on disk.

    Args:
        base: folder of the base.
        experts: alias -> folder.
        dtype: of the live model; what is stored if None.

    Raises:
        MergingError: a folder is no readable checkpoint.
    """
    models = open_models(base, experts)
    origin = models["base"]
    heads = optional_heads(origin)
    tied = {head for head in heads if declares_ties(origin)}
    held = {name: info for name, info in origin.tensors.items() if name not in tied}
    merged = [name for name, info in held.items() if not is_frozen(name, info)]
    sources = {
        alias: sum(size_of(info) for name in merged if (info := _held(each, name, heads)) is not None)
        for alias, each in models.items()
    }
    wanted = torch_dtype(dtype)
    live = {name: info.numel * _live_dtype(name, info, wanted).itemsize for name, info in held.items()}
    elements: dict[int, int] = {}
    for name, info in held.items():
        size = _live_dtype(name, info, wanted).itemsize
        elements[size] = elements.get(size, 0) + info.numel
    return ModelSizes(
        parameters=sum(info.numel for info in held.values()),
        sources=sources,
        live=sum(live.values()),
        piece=_largest_piece(live),
        tensor=max(live.values()),
        itemsize=max(elements, key=lambda size: elements[size]),
        widths=_widths(origin.path),
    )


def _held(checkpoint: Checkpoint, name: str, heads: Mapping[str, str]) -> TensorInfo | None:
    """What lies in memory for a tensor; None for what is the base's own."""
    if isinstance(checkpoint, Composed) and not {name, heads.get(name, name)} & checkpoint.changes.keys():
        return None
    return _stored(checkpoint, name, heads)


def _stored(checkpoint: Checkpoint, name: str, heads: Mapping[str, str]) -> TensorInfo | None:
    return checkpoint.tensors.get(name) or checkpoint.tensors.get(heads.get(name, name))


def _live_dtype(name: str, info: TensorInfo, wanted: torch.dtype | None) -> torch.dtype:
    return info.dtype if wanted is None or is_frozen(name, info) else wanted


def _largest_piece(live: Mapping[str, int]) -> int:
    """Of the blocks and of the tensors outside of them."""
    pieces: dict[str, int] = {}
    for name, size in live.items():
        block = block_of(name)
        pieces[block] = pieces.get(block, 0) + size
    return max(pieces.values())


def _widths(path: Path) -> Widths | None:
    from transformers import AutoConfig

    try:
        loaded = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        return widths_of(loaded.get_text_config(decoder=True))
    except Exception:  # an architecture that this transformers does not know, or one without such sizes
        return None


def widths_of(config: Any) -> Widths:
    """What a config of transformers says; the names that classes give it are the library's to know.

    Keys and values are taken as whole in every block: sliding windows, recurrent blocks and compressed keys need less.

    Raises:
        AttributeError: it does not say.
    """
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    used = max(1, int(getattr(config, "num_experts_per_tok", None) or 1))
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    return Widths(
        layers=int(config.num_hidden_layers),
        keys=int(getattr(config, "num_key_value_heads", None) or heads) * int(width),
        hidden=int(config.hidden_size),
        intermediate=int(inner) * used,
        vocabulary=int(config.vocab_size),
    )
