"""Pairs of tensors for the tests of codecs."""

from __future__ import annotations

import torch
from torch import Tensor

from merging.files import TensorInfo
from merging.vectors.codec import Encoded, decode


def gaussian(shape: tuple[int, ...], size: float = 0.01, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A base, and τ, both normally distributed: float32, τ is ``size`` times as large."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw), size * torch.randn(shape, generator=draw)


def composed(encoded: Encoded, base: Tensor, expert: Tensor) -> Tensor:
    """What decoding gives back."""
    info = TensorInfo(expert.dtype, tuple(expert.shape), "shard")
    return decode(info, encoded.codec, encoded.parameters, encoded.tensors).compose(base)


def bits(tensor: Tensor) -> bytes:
    """For comparisons that tell −0.0 from 0.0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def error_of(found: Tensor, base: Tensor, expert: Tensor) -> float:
    """The relative error, from its definition."""
    delta = expert.double() - base.double()
    return float((found.double() - expert.double()).norm() / delta.norm())
