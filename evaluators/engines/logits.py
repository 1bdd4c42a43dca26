"""Logits of a causal model at chosen positions only.

The output head is often the largest matrix of a small model, and its logits the largest tensor of any: computing them
where nobody looks costs more than all else. The positions are picked *at the head's input*, by a hook that lives for
one forward pass, so that whatever a model does to its logits afterwards (scaling, soft-capping, casting) still happens.
That, and leaving out the attention mask of right-padded batches, is proved for each model on its first batch against
the plain forward pass; a model that disagrees is asked the plain way from then on.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

# Two orders of the same sums differ by less; another formula differs by more. Relative to the spread of the logits.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


class ScoredLogits:
    """Right-padded batches in, logits at chosen positions out.

    Args:
        model: a Hugging Face causal language model, in evaluation mode when called.
        device: where its inputs go.
        filler: the token id that fills up short rows; any id of the vocabulary, since nothing causal sees it.
    """

    def __init__(self, model: nn.Module, device: torch.device, filler: int) -> None:
        self._model = model
        self._device = device
        self._filler = filler
        find_head: Any = getattr(model, "get_output_embeddings", lambda: None)
        head = find_head()
        self._head: nn.Module | None = head if isinstance(head, nn.Module) else None
        self._fast: bool | None = None if self._head is not None else False
        accepted = inspect.signature(type(model).forward).parameters
        self._options: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}

    @property
    def fast(self) -> bool | None:
        """Whether picking positions at the head is proved for this model; None until its first finite batch."""
        return self._fast

    def __call__(self, sequences: Sequence[Sequence[int]], rows: Sequence[int], columns: Sequence[int]) -> Tensor:
        """Logits [n, vocabulary] in the model's dtype at the n positions (``rows[i]``, ``columns[i]``).

        Args:
            sequences: token ids, none empty; of any lengths.
            rows: [n] which sequence.
            columns: [n] which of its positions; the logits there predict the next token.
        """
        width = max(len(sequence) for sequence in sequences)
        padded = [[*sequence, *[self._filler] * (width - len(sequence))] for sequence in sequences]
        ids = torch.tensor(padded, device=self._device)
        index = torch.tensor([row * width + column for row, column in zip(rows, columns, strict=True)])
        if self._fast is False:
            return self._plain(sequences, ids, index)
        picked = self._picked(ids, index)
        if self._fast is None:
            plain = self._plain(sequences, ids, index)
            self._fast = same_logits(picked, plain)
            return picked if self._fast and picked is not None else plain
        if picked is None:
            raise RuntimeError(f"the output head of {type(self._model).__name__} was used before and is not used now")
        return picked

    def _plain(self, sequences: Sequence[Sequence[int]], ids: Tensor, index: Tensor) -> Tensor:
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=self._device)
        mask = (torch.arange(ids.shape[1], device=self._device) < lengths[:, None]).long()
        logits = self._model(input_ids=ids, attention_mask=mask, **self._options).logits
        return logits.flatten(0, 1)[index.to(logits.device)]  # type: ignore[no-any-return]

    def _picked(self, ids: Tensor, index: Tensor) -> Tensor | None:
        if self._head is None:
            return None
        calls = 0

        def pick(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal calls
            calls += 1
            hidden = arguments[0]
            if hidden.shape[:2] != ids.shape:  # not what the head is known to be given: the shape check below sees it
                return arguments
            return (hidden.flatten(0, 1)[index.to(hidden.device)].unsqueeze(0), *arguments[1:])

        hook = self._head.register_forward_pre_hook(pick)
        try:
            logits = self._model(input_ids=ids, **self._options).logits
        finally:
            hook.remove()
        if calls != 1 or logits.shape[:2] != (1, len(index)):
            return None
        return logits[0]  # type: ignore[no-any-return]


def same_logits(found: Tensor | None, expected: Tensor) -> bool | None:
    """Whether two ways to the same logits agree up to the rounding of their dtype.

    Returns:
        None where it cannot be told: the numbers are not finite, or all of them are alike (weights that are zero).
    """
    if found is None or found.shape != expected.shape:
        return False
    tolerance = _TOLERANCE.get(found.dtype, 0.03)
    found, expected = found.double(), expected.to(found.device).double()
    if not (bool(torch.isfinite(found).all()) and bool(torch.isfinite(expected).all())):
        return None
    spread = float(expected.max() - expected.min())
    if spread == 0.0:
        return None
    return float((found - expected).abs().max()) <= tolerance * spread
