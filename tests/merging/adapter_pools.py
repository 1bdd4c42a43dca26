"""Pools whose sources are known in factors, and the same with their weights multiplied out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from merging.composed import Factored, Factors
from merging.pool import Pool

Low = Sequence[Mapping[str, Factors]]


def random_factors(shape: tuple[int, ...], rank: int, seed: int, size: float = 0.05) -> Factors:
    """A random task vector whose elements have about a standard deviation of ``size``."""
    generator = torch.Generator().manual_seed(seed)
    columns = 1
    for each in shape[1:]:
        columns *= each
    left = torch.randn(shape[0], rank, generator=generator) * size
    return Factors.of(left, torch.randn(rank, columns, generator=generator) / max(rank, 1) ** 0.5)


def random_base(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(99)
    return {name: (torch.randn(shape, generator=generator) * 0.3).to(dtype) for name, shape in shapes.items()}


def thin(base: Mapping[str, Tensor], low: Low, dtype: torch.dtype | None = None, **config: object) -> Pool:
    """Sources of which the weights are asked for only where a method cannot do without."""
    aliases = tuple("abcdefgh"[: len(low)])

    def factors(alias: str, name: str) -> Factors:
        return low[aliases.index(alias)][name]

    def read(alias: str, name: str) -> Tensor:
        if alias == "base":
            return base[name]
        return Factored.over(factors(alias, name), base[name].dtype).compose(base[name])

    shapes = {name: tuple(each.shape) for name, each in base.items()}
    return Pool("base", aliases, tuple(sorted(base)), read, dtype, config=config, shapes=shapes, factors=factors)


def dense(base: Mapping[str, Tensor], low: Low, *, exact: bool = False, **config: object) -> Pool:
    """The same without factors; ``exact``: in float64, in which the sum with the base and the product are rounded."""
    aliases = tuple("abcdefgh"[: len(low)])

    def read(alias: str, name: str) -> Tensor:
        if not exact:
            return base[name] if alias == "base" else composed(alias, name)
        if alias == "base":
            return base[name].double()
        each = low[aliases.index(alias)][name]
        return base[name].double() + (each.left.double() @ each.right.double()).reshape(base[name].shape)

    def composed(alias: str, name: str) -> Tensor:
        return Factored.over(low[aliases.index(alias)][name], base[name].dtype).compose(base[name])

    return Pool("base", aliases, tuple(sorted(base)), read, config=config)
