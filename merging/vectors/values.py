"""How single values of τ are stored: bfloat16, rounded (a relative error of at most 2⁻⁹), or float32 as they are."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from merging.recipe import MergingError
from merging.vectors.frames import malformed
from merging.vectors.tensors import Bits

VALUES = ("bfloat16", "float32")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a parameter is a number: JSON does not tell 1 from 1.0."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def stored_as(values: Tensor, dtype: str) -> Bits:
    """Flat float32 values as the numbers that are stored: bits of bfloat16, or float32.

    Raises:
        MergingError: no such dtype.
    """
    if dtype not in VALUES:
        raise MergingError(f"expected values of a vector in {' or '.join(VALUES)}, found {dtype!r}")
    if dtype == "float32":
        plain: Bits = values.contiguous().numpy()
        return plain
    bits: Bits = values.to(torch.bfloat16).view(torch.int16).numpy().view("<u2")
    return bits


def number_of(dtype: object) -> np.dtype[np.generic]:
    """What a stored value is.

    Raises:
        MergingError: malformed: no such dtype.
    """
    if dtype not in VALUES:
        raise malformed(f"values in {' or '.join(VALUES)}", repr(dtype))
    return np.dtype("<f4" if dtype == "float32" else "<u2")


def widened(stored: Bits, dtype: object) -> Tensor:
    """The inverse of :func:`stored_as`: float32."""
    found = torch.from_numpy(stored.view(np.int16) if dtype == "bfloat16" else stored)
    return found.view(torch.bfloat16).to(torch.float32) if dtype == "bfloat16" else found
