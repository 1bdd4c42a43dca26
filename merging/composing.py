"""What sources know of their models that are composed: which tensors are made when asked for, and from what."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from merging.checkpoint import Checkpoint
from merging.composed import Composed, Factored, Factors, factors_of

Key = tuple[str, str]
"""Alias of a model, and a tensor's canonical name there."""


class Composing:
    """Adapters and vectors among the models of a merge.

    Args:
        checkpoints: alias -> model.
        base: alias of the base.
    """

    def __init__(self, checkpoints: Mapping[str, Checkpoint], base: str):
        self._checkpoints = dict(checkpoints)
        self._base = base
        self._kept: dict[Key, Factors] = {}

    def changes(self, alias: str, stored: str) -> bool:
        """Whether a model is composed, and changes the tensor of this name on disk."""
        checkpoint = self._checkpoints[alias]
        return isinstance(checkpoint, Composed) and stored in checkpoint.changes

    def keep(self, key: Key, factors: Factors) -> None:
        """From now on these stand for the tensor's own, which they equal, in memory."""
        self._kept[key] = factors

    def kept(self, key: Key) -> Factors | None:
        """What was given to :meth:`keep`."""
        return self._kept.get(key)

    def factors(self, key: Key, stored: str) -> Factors | None:
        """The tensor's task vector in factored form, from memory or disk; None where it is not known so."""
        kept = self._kept.get(key)
        if kept is not None or key[0] == self._base:
            return kept
        return factors_of(self._checkpoints[key[0]], stored)

    def compose(self, key: Key, stored: str, placed: Tensor | None, *, mapped: bool = True) -> Tensor:
        """A tensor that is changed, in memory of its own.

        Args:
            key: of it.
            stored: its name on disk.
            placed: the base's, on any device, where it is in memory.
            mapped: whether the base's file may be mapped where it is not.
        """
        checkpoint = self._checkpoints[key[0]]
        assert isinstance(checkpoint, Composed)
        # Of its base what it changes, which in a view of other blocks need not be what the base has here.
        base = placed if checkpoint.base is self._checkpoints[self._base] else None
        if base is None and mapped:
            base = checkpoint.base.read(stored)
        elif base is None:
            info = checkpoint.base.tensors[stored]
            base = torch.empty(info.shape, dtype=info.dtype)
            checkpoint.base.read_into(stored, base)
        if key in self._kept:
            return Factored(self._kept[key], checkpoint.tensors[stored].dtype).compose(base.cpu())
        return checkpoint.composed(stored, base.cpu())
