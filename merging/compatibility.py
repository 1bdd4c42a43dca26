"""What must hold of models that are merged with each other, beside their shapes: plain weights, ties that agree."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from merging.checkpoint import Checkpoint, TensorInfo
from merging.layout import Layout, is_buffer, tied_heads
from merging.recipe import MergingError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_COMPARED_AT_ONCE = 1 << 20


def optional_heads(checkpoint: Checkpoint) -> dict[str, str]:
    """Heads that the architecture may tie -> their embedding, whether they are stored or not."""
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    return tied_heads(shapes, Layout.of(shapes))


def may_lack(checkpoint: Checkpoint) -> frozenset[str]:
    """Tensors that other checkpoints of the same model need not store: tied heads, constants."""
    constants = {name for name, info in checkpoint.tensors.items() if is_buffer(name, info.shape)}
    return frozenset(constants | optional_heads(checkpoint).keys())


def is_frozen(name: str, info: TensorInfo) -> bool:
    """Whether a tensor is never merged but copied from the base: integers, booleans, stored constants."""
    return info.dtype not in FLOATS or is_buffer(name, info.shape)


def is_tied(checkpoint: Checkpoint, head: str, embedding: str) -> bool:
    """Stored twice, but one parameter: the config says so and the bytes agree."""
    return declares_ties(checkpoint) and _same_bits(checkpoint, head, embedding)


def declares_ties(checkpoint: Checkpoint) -> bool:
    """Whether the config says that head and embedding are one parameter."""
    config = checkpoint.config
    for level in (config, config.get("text_config"), config.get("decoder")):
        if isinstance(level, dict) and "tie_word_embeddings" in level:
            return bool(level["tie_word_embeddings"])
    from transformers import AutoConfig  # only the architecture's class knows its default

    try:
        loaded = AutoConfig.from_pretrained(checkpoint.home, local_files_only=True, trust_remote_code=False)
    except Exception:  # an architecture that this transformers does not know: what is stored is what there is
        return False
    return bool(getattr(loaded, "tie_word_embeddings", False))


def check_ties(base: Checkpoint, checkpoints: Iterable[Checkpoint], tied: Mapping[str, str]) -> None:
    """Where the base has one tensor for head and embedding, an expert must not have two different ones.

    Args:
        base: the base.
        checkpoints: all models.
        tied: heads of the base that are stored but tied -> their embedding.

    Raises:
        MergingError: one does.
    """
    for checkpoint in checkpoints:
        for head, embedding in optional_heads(checkpoint).items():
            one_in_base = head in tied or head not in base.tensors
            if one_in_base and not _same_bits(checkpoint, head, embedding):
                raise MergingError(
                    f"in the base {base.path} {head} is tied to {embedding}, but {checkpoint.path} stores two "
                    "different tensors there; an untied fine-tune cannot be merged into a tied base"
                )


def check_plain(checkpoint: Checkpoint) -> None:
    """Refuse quantised and complex weights.

    Raises:
        MergingError: names what was found.
    """
    method = checkpoint.config.get("quantization_config")
    odd = [
        name
        for name, info in checkpoint.tensors.items()
        if info.dtype.is_complex or (info.dtype.itemsize == 1 and info.dtype.is_floating_point)
    ]
    if method or odd:
        found = "a quantization_config in config.json" if method else f"{checkpoint.tensors[odd[0]].dtype} in {odd[0]}"
        raise MergingError(
            f"expected unquantised weights in {checkpoint.path}, found {found}; the optimum of a quantised model is "
            "another optimum: merge the unquantised models, quantise afterwards"
        )


def _same_bits(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors of a model are equal, byte for byte; one that is not stored is equal."""
    a, b = (checkpoint.tensors.get(name) for name in (one, other))
    if a is None or b is None:
        return True
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    buffers = [torch.empty(min(_COMPARED_AT_ONCE, a.numel), dtype=a.dtype) for _ in range(2)]
    with checkpoint.reader(one) as read_one, checkpoint.reader(other) as read_other:
        for start in range(0, a.numel, _COMPARED_AT_ONCE):
            left, right = (buffer[: a.numel - start] for buffer in buffers)
            read_one(left, start)
            read_other(right, start)
            if not torch.equal(left.view(torch.uint8), right.view(torch.uint8)):
                return False
    return True
