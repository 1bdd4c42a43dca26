"""The sources of one assignment as a method sees them, and the scratch memory that it works in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class Pool:
    """Tensors of the base and of some sources in order. Lazy: a tensor is read when it is asked for.

    Attributes:
        aliases: the sources, in order.
        names: canonical names of the tensors that are merged, sorted.
    """

    def __init__(
        self,
        base: str,
        aliases: tuple[str, ...],
        names: tuple[str, ...],
        read: Callable[[str, str], Tensor],
        dtype: torch.dtype | None = None,
    ):
        self.aliases = aliases
        self.names = names
        self._base = base
        self._read = read
        self._dtype = dtype
        self._memory: dict[Any, Any] = {}

    def base(self, name: str) -> Tensor:
        """The base's tensor, rounded to the pool's dtype if it has one; read-only."""
        return self._get(self._base, name)

    def sources(self, name: str) -> tuple[Tensor, ...]:
        """[sources] one tensor of every source; read-only."""
        return tuple(self._get(alias, name) for alias in self.aliases)

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """``compute()``, the first time; afterwards what it returned. For statistics, also those of the whole model."""
        if key not in self._memory:
            self._memory[key] = compute()
        return self._memory[key]

    def _get(self, alias: str, name: str) -> Tensor:
        tensor = self._read(alias, name)
        return tensor if self._dtype is None else tensor.to(self._dtype)


class Workspace:
    """Scratch buffers, allocated once and reused: a method asks for number 0, 1, … in the shape that it needs."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def like(self, out: Tensor, number: int) -> Tensor:
        """An uninitialised buffer with the shape, dtype and device of ``out``. A number is one piece of memory."""
        buffer = self.take(number, out.numel(), out.dtype, out.device)
        return buffer if out.dim() == 1 else buffer.view(out.shape)

    def take(self, number: int, numel: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """[numel] uninitialised buffer."""
        key = (number, dtype, device)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < numel:
            buffer = self._buffers[key] = torch.empty(numel, dtype=dtype, device=device)
        return buffer if buffer.numel() == numel else buffer[:numel]


def dot(a: Tensor, b: Tensor, chunk: int = 1 << 16) -> float:
    """⟨a, b⟩ over all elements in float64.

    The sum is a fixed tree of elementwise additions, so it is the same for every number of threads, vector width and
    memory alignment; library reductions are not.
    """
    a, b = a.reshape(-1), b.reshape(-1)
    sums = []
    for start, stop in pieces(a.numel(), chunk):
        product = a[start:stop].to(torch.float64) * b[start:stop].to(torch.float64)
        length = product.numel()
        while length > 1:
            half = length // 2
            product[:half].add_(product[length - half : length])
            length -= half
        sums.append(float(product[0]))
    return math.fsum(sums)


def pieces(numel: int, chunk: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive pieces of at most ``chunk`` elements."""
    for start in range(0, numel, chunk):
        yield start, min(start + chunk, numel)
