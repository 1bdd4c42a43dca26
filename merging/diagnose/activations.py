"""What the blocks of a live model give: variances and row-by-row products, streamed over any number of inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from merging.layout import Layout, block_of
from merging.masks import keys_of
from merging.recipe import MergingError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Activations:
    """One block's output over all inputs.

    Attributes:
        rows: how many.
        variance: over rows, summed over features; nan where something is not finite.
        gram: [drawn, drawn] float64, products of the drawn rows after their mean was taken off.
        finite: whether every value is.
    """

    rows: int
    variance: float
    gram: Tensor
    finite: bool


def cka(one: Tensor, other: Tensor) -> float:
    """Linear centred kernel alignment ⟨K, L⟩/(‖K‖‖L‖) (Kornblith et al. 2019, arXiv 1905.00414).

    Args:
        one, other: [rows, rows] products of centred rows, of the same inputs.

    Returns:
        In [0, 1]; 1 for what differs by a rotation and a factor. nan where one is 0 or not finite.
    """
    size = float(one.norm()) * float(other.norm())
    if not size > 0.0 or not math.isfinite(size):
        return math.nan
    return float((one * other).sum()) / size


class Watched:
    """Collects the outputs of blocks. Build with :func:`watch_blocks`."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._blocks: dict[str, _Block] = {}

    def add(self, name: str, output: object) -> None:
        """Take in what a block gave."""
        tensor = _first_tensor(output)
        if tensor is not None and tensor.ndim:
            self._blocks.setdefault(name, _Block(self._rows)).add(tensor)

    def finished(self) -> dict[str, Activations]:
        """Block -> what it gave, in the order of their first calls."""
        return {name: each.finished() for name, each in self._blocks.items()}


@contextmanager
def watch_blocks(model: nn.Module, rows: int) -> Iterator[Watched]:
    """Within the context, every call of a block of the model is taken in.

    Args:
        model: any with numbered blocks.
        rows: how many rows of a block's outputs are drawn for products.

    Raises:
        MergingError: the model has no blocks.
    """
    watched = Watched(rows)
    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: watched.add(name, output))
        for name, module in blocks_of(model).items()
    ]
    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> module of every block of every stack, as :class:`merging.layout.Layout` sees blocks.

    Raises:
        MergingError: there are none.
    """
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters(remove_duplicate=False)}
    layout = Layout.of(shapes)
    names = dict.fromkeys(block_of(name) for name in shapes if layout.group(name).depth is not None)
    if not names:
        raise MergingError(
            f"expected numbered blocks in the live {type(model).__name__}, found none: there is nothing to look at "
            "block by block"
        )
    return {name: model.get_submodule(name) for name in names}


class _Block:
    """Sums over rows, joined batch by batch (Chan et al. 1979), and the rows with the smallest keys: an even draw from
    all, the same places for every model."""

    def __init__(self, rows: int) -> None:
        self._wanted = rows
        self._count = 0
        self._mean = torch.zeros(0, dtype=torch.float64)
        self._squares = torch.zeros(0, dtype=torch.float64)
        self._keys = torch.zeros(0, dtype=torch.int64)
        self._drawn = torch.zeros(0)
        self._finite = True

    def add(self, tensor: Tensor) -> None:
        rows = _rows(tensor.detach())
        if not len(rows):
            return
        if not self._count:
            width = rows.shape[1]
            self._mean, self._squares = (torch.zeros(width, dtype=torch.float64) for _ in range(2))
            self._drawn = torch.zeros(0, width)
        self._finite = self._finite and bool(torch.isfinite(rows).all())
        self._draw(rows)
        mean = rows.mean(0, dtype=torch.float32).to("cpu", torch.float64)
        squares = _squares(rows, mean)
        total = self._count + len(rows)
        apart = mean - self._mean
        self._squares += squares + apart.square() * (self._count * len(rows) / total)
        self._mean += apart * (len(rows) / total)
        self._count = total

    def _draw(self, rows: Tensor) -> None:
        index = np.arange(self._count, self._count + len(rows))
        keys = torch.from_numpy(keys_of(index, _DRAW))
        near = keys.topk(min(self._wanted, len(keys)), largest=False).indices
        joined = torch.cat([self._keys, keys[near]])
        taken = torch.cat([self._drawn, rows[near.to(rows.device)].to("cpu", torch.float32)])
        kept = joined.topk(min(self._wanted, len(joined)), largest=False).indices
        self._keys, self._drawn = joined[kept], taken[kept]

    def finished(self) -> Activations:
        order = self._keys.argsort()
        centred = self._drawn[order].to(torch.float64)
        centred -= centred.mean(0, keepdim=True)
        variance = float(self._squares.sum()) / self._count if self._finite else math.nan
        return Activations(self._count, variance, centred @ centred.T, self._finite)


_DRAW = 0
"""Seed of the keys by which rows are drawn."""

_PIECE = 1 << 22


def _squares(rows: Tensor, mean: Tensor) -> Tensor:
    """[features] float64: Σ (row − mean)², by pieces of rows."""
    step = max(1, _PIECE // rows.shape[1])
    centre = mean.to(rows.device)
    total = torch.zeros_like(centre)
    for start in range(0, len(rows), step):
        total += (rows[start : start + step].to(torch.float64) - centre).square().sum(0)
    return total.cpu()


def _rows(tensor: Tensor) -> Tensor:
    """[rows, features]: of what is between convolutions, [batch, channels, height, width], channels are features."""
    if tensor.ndim == 4:
        tensor = tensor.movedim(1, -1)
    return tensor.reshape(-1, tensor.shape[-1])


def _first_tensor(output: Any) -> Tensor | None:
    """The tensor that a block gives, or the first of several."""
    while isinstance(output, list | tuple) and output:
        output = output[0]
    if isinstance(output, Tensor):
        return output
    values = getattr(output, "values", None)  # a ModelOutput
    found = next(iter(values()), None) if callable(values) else None
    return found if isinstance(found, Tensor) else None
