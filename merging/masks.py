"""Random numbers that belong to an element: a counter hash instead of a generator.

The key of an element depends on the seed, the source, the tensor's name and the element's index, and on nothing else:
not on order, sharding, threads or device. A candidate's mask costs no memory, and a mask of a larger density contains
that of a smaller one.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import torch
from torch import Tensor

_SIGN = -(1 << 31)


@functools.lru_cache(1 << 16)
def seed32(seed: int, content: str, name: str, operation: str) -> int:
    """The seed of a tensor's keys, as a signed 32-bit number.

    Args:
        seed: the recipe's.
        content: hash of the source's content; "" for keys that all sources share.
        name: canonical tensor name.
        operation: what the keys are for.
    """
    digest = hashlib.sha256(f"{seed}\n{content}\n{name}\n{operation}".encode()).digest()
    return int.from_bytes(digest[:4], "little", signed=True)


def keys(index: Tensor, seed: Tensor) -> Tensor:
    """Uniform 32-bit keys of elements: lowbias32(index XOR seed), a bijection (Wellons 2018, "Hash prospector").

    Args:
        index: int32, the element's index modulo 2³².
        seed: int32, 0-d, of :func:`seed32`.

    Returns:
        int32, ordered as the unsigned keys are: the unsigned key minus 2³¹.
    """
    x = index ^ seed
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - (1 << 32))
    x = x ^ ((x >> 16) & 0xFFFF)
    return x ^ _SIGN


def keys_of(index: np.ndarray, seed: int) -> np.ndarray:
    """The keys of :func:`keys` in numpy, for indices of any integer dtype: int64 in [−2³¹, 2³¹)."""
    narrow = torch.from_numpy(index.astype(np.uint32).view(np.int32))
    found: np.ndarray = keys(narrow, torch.tensor(seed, dtype=torch.int32)).numpy().astype(np.int64)
    return found


def last_kept(density: float) -> int:
    """The largest key that a density in (0, 1] keeps: a fraction ``density`` of all keys is at most this."""
    return round(density * (1 << 32)) - 1 + _SIGN
