"""A change that is added: θ = θ0 + τ̂, with τ̂ in pieces of float32 and one rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def added(base: Tensor, delta: Tensor, dtype: torch.dtype) -> Tensor:
    """Base + τ, in float64 where the base or the result has it, else in float32, rounded once to ``dtype``."""
    exact = torch.float64 if torch.float64 in (base.dtype, dtype) else torch.float32
    return (base.to(exact) + delta.to(exact)).to(dtype)


@dataclass(frozen=True, eq=False)
class Added:
    """See :class:`merging.composed.Change`.

    Attributes:
        shape, dtype: of the composed tensor.
        deltas: gives τ̂, flat float32, in consecutive pieces of any size, as often as it is called.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    deltas: Callable[[], Iterator[Tensor]]
    factors: None = None

    def compose(self, base: Tensor) -> Tensor:
        """Base + τ̂; see :func:`added`."""
        out = torch.empty(self.shape, dtype=self.dtype)
        flat, origin, start = out.view(-1), base.reshape(-1), 0
        for delta in self.deltas():
            stop = start + delta.numel()
            flat[start:stop] = added(origin[start:stop], delta, self.dtype)
            start = stop
        return out
