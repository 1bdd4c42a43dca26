"""How much memory models need, told from their headers and configs: no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from merging.arena import size_of
from merging.checkpoint import Checkpoint, TensorInfo
from merging.compatibility import declares_ties, is_frozen, optional_heads
from merging.composed import Composed
from merging.kernel import torch_dtype
from merging.layout import block_of
from merging.opening import open_model, open_models
from merging.recipe import MergingError
from merging.sources import Sources


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
        cast: alias -> bytes of what ``sources`` counts, in the dtype of the live model.
        layer: bytes of the largest block of the live model.
        around: bytes of the live model outside its blocks.
        path: bytes of all that a path through layers has at once, where it does not lie where it is run; 0 for models
            that hold merged weights.
        scaled: bytes of the weights that hops of a path have for themselves, if all have scales.
        folder: the base's; None where nothing is known of it but sizes.
    """

    parameters: int
    sources: Mapping[str, int]
    live: int
    piece: int
    tensor: int
    itemsize: int
    widths: Widths | None
    cast: Mapping[str, int] = field(default_factory=dict)
    layer: int = 0
    around: int = 0
    path: int = 0
    scaled: int = 0
    folder: Path | None = None


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
    itemsizes = {name: _live_dtype(name, info, wanted).itemsize for name, info in held.items()}
    live = {name: info.numel * itemsizes[name] for name, info in held.items()}
    blocks = _blocks(live)
    elements: dict[int, int] = {}
    for name, info in held.items():
        elements[itemsizes[name]] = elements.get(itemsizes[name], 0) + info.numel
    return ModelSizes(
        parameters=sum(info.numel for info in held.values()),
        sources=sources,
        live=sum(live.values()),
        piece=max(blocks.values()),
        tensor=max(live.values()),
        itemsize=max(elements, key=lambda size: elements[size]),
        widths=_widths(origin.path),
        cast={
            alias: sum(
                info.numel * itemsizes[name] for name in merged if (info := _held(each, name, heads)) is not None
            )
            for alias, each in models.items()
        },
        layer=max((size for block, size in blocks.items() if block not in live), default=0),
        around=sum(size for block, size in blocks.items() if block in live),
        folder=origin.path,
    )


def writers_of(base: Path | str, dtype: str | None = None) -> int:
    """Bytes of what writes to the residual stream in the largest block: what a hop with a scale has for itself. 0 where
    the architecture permits no scales.

    Args:
        base: folder of the base.
        dtype: of the live model; what is stored if None.

    Raises:
        MergingError: the folder is no readable checkpoint.
    """
    from merging.dataflow.writers import find_writers

    sources = Sources.opened({"base": open_model(base)})
    try:
        blocks = find_writers(sources)
    except MergingError:  # said where scales are searched
        return 0
    wanted = torch_dtype(dtype)
    of = {name: info.numel * _live_dtype(name, info, wanted).itemsize for name, info in sources.tensors.items()}
    return max((sum(of.get(name, 0) for name in names) for names in blocks), default=0)


def for_paths(sizes: ModelSizes, depth: int, writers: int = 0) -> ModelSizes:
    """What lies in memory where the live model is a path through the layers of the models: every layer of every model
    once, in its dtype; keys and values for every hop; and for hops with scales their residual writers.

    Args:
        sizes: of the models.
        depth: hops of a path, at most.
        writers: see :func:`writers_of`; 0 where all scales are 1.
    """
    sources = {alias: sizes.cast.get(alias, size) for alias, size in sizes.sources.items()}
    path = min(sum(sources.values()), depth * sizes.layer + sizes.around)
    widths = None if sizes.widths is None else replace(sizes.widths, layers=depth)
    return replace(sizes, sources=sources, live=0, path=path, widths=widths, scaled=depth * writers)


def _held(checkpoint: Checkpoint, name: str, heads: Mapping[str, str]) -> TensorInfo | None:
    """What lies in memory for a tensor; None for what is the base's own."""
    if isinstance(checkpoint, Composed) and not {name, heads.get(name, name)} & checkpoint.changes.keys():
        return None
    return _stored(checkpoint, name, heads)


def _stored(checkpoint: Checkpoint, name: str, heads: Mapping[str, str]) -> TensorInfo | None:
    return checkpoint.tensors.get(name) or checkpoint.tensors.get(heads.get(name, name))


def _live_dtype(name: str, info: TensorInfo, wanted: torch.dtype | None) -> torch.dtype:
    return info.dtype if wanted is None or is_frozen(name, info) else wanted


def _blocks(live: Mapping[str, int]) -> dict[str, int]:
    """Bytes of the blocks, and of the tensors outside of them."""
    pieces: dict[str, int] = {}
    for name, size in live.items():
        block = block_of(name)
        pieces[block] = pieces.get(block, 0) + size
    return pieces


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
