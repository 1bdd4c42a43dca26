"""A context and several continuations of it in one row: a tree of tokens, read in one forward pass.

Each row holds a context and, one after another, its branches; a mask of four dimensions lets a branch see the context
and itself, and positions go on from the context in each. Before all rows there may be a beginning, read once and kept
as keys and values. Both are known to work for models whose tokens meet in plain attention alone; that a model is such
a one is proved against the plain way, for every power of two of lengths, since windows and the like show in long
texts only.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from evaluators.engines.cache import Beginning, plain_limit
from evaluators.engines.logits import ScoredLogits, same_logits
from evaluators.engines.memory import is_out_of_memory

# Implementations of attention that take any mask; others (flash) know causal ones only.
_MASKABLE = ("eager", "sdpa")


class TreeLogits:
    """Logits of rows that are trees.

    Args:
        model: a Hugging Face causal language model, in evaluation mode when called.
        logits: the same model's logits at chosen positions.
        device: where its inputs go.
    """

    def __init__(self, model: nn.Module, logits: ScoredLogits, device: torch.device) -> None:
        self._logits = logits
        self._device = device
        self._dtype = next(model.parameters()).dtype
        accepted = inspect.signature(type(model).forward).parameters
        config = getattr(model, "config", None)
        possible = (
            {"position_ids", "attention_mask", "past_key_values", "use_cache"} <= set(accepted)
            and getattr(config, "_attn_implementation", None) in _MASKABLE
            and not getattr(model, "_is_stateful", False)
        )
        self._limit = plain_limit(model) if possible else 0
        self._proven: dict[tuple[bool, int], bool] = {}

    @property
    def proven(self) -> dict[tuple[bool, int], bool]:
        """Whether trees give the plain way's logits, as far as known, keyed by (with a beginning, ⌈log₂ length⌉)."""
        return dict(self._proven)

    def knows(self, shared: int, length: int) -> bool | None:
        """Whether rows of ``length`` tokens, ``shared`` of them read apart, come out right; None: to be proved."""
        if length > self._limit or self._logits.fast is False:
            return False
        return self._proven.get(_key(shared, length))

    def prove(self, shared: int, length: int, found: Tensor | None, expected: Tensor) -> bool | None:
        """Compare logits of a tree with those of the plain way, and remember what it says about such rows.

        Returns:
            None where nothing can be told (see :func:`evaluators.engines.logits.same_logits`).
        """
        same = same_logits(found, expected)
        if same is not None:
            self._proven[_key(shared, length)] = same
        return same

    def __call__(
        self, ids: Tensor, segments: Tensor, positions: Tensor, beginning: Beginning | None, index: Tensor
    ) -> Tensor | None:
        """Logits [n, vocabulary] at n places of the flattened ``ids``.

        Args:
            ids: [rows, width] token ids.
            segments: [rows, width] what each token belongs to, see :func:`tree_mask`.
            positions: [rows, width] of each token in its request.
            beginning: keys and values of what comes before all rows; None for nothing.
            index: [n] where logits are wanted.

        Returns:
            None where the model is found not to take such input.
        """
        shared = 0 if beginning is None else beginning.length
        inputs: dict[str, Any] = {"use_cache": False}
        if beginning is not None:
            inputs = {"past_key_values": beginning.shared(), "use_cache": True}
        try:
            return self._logits.picked(
                index,
                input_ids=ids.to(self._device),
                attention_mask=tree_mask(segments.to(self._device), shared, self._dtype),
                position_ids=positions.to(self._device),
                **inputs,
            )
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            if self._proven.get(_key(shared, shared + ids.shape[1])):  # it worked before, so this is something else
                raise
            return None


def tree_mask(segments: Tensor, shared: int, dtype: torch.dtype) -> Tensor:
    """What each token sees, to be added to attention scores: 0, or the lowest number of ``dtype``.

    Args:
        segments: [rows, n] 0 for a context's tokens, k for those of its k-th branch, any other for what fills up.
        shared: number of tokens before all rows, which every token sees.
        dtype: of the mask, and of the queries that it is for.

    Returns:
        [rows, 1, n, shared + n].
    """
    rows, width = segments.shape
    seen = (segments[:, None, :] == 0) | (segments[:, None, :] == segments[:, :, None])
    seen &= torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    mask = torch.zeros(rows, 1, width, shared + width, dtype=dtype, device=segments.device)
    mask[:, 0, :, shared:].masked_fill_(~seen, torch.finfo(dtype).min)
    return mask


def _key(shared: int, length: int) -> tuple[bool, int]:
    return shared > 0, (length - 1).bit_length()
