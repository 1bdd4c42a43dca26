"""Logits of a causal model at chosen positions only, and what is read from them.

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

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

# Two orders of the same sums differ by less; another formula differs by more. Relative to the spread of the logits.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}

# Logits of every position, of so many rows as this allows, are enough to compare two ways with: all at once they could
# take more memory than all else that is ever asked.
_COMPARED = 2**27

# Logits that are turned into log-probabilities at a time: measured, parts that stay in a CPU's cache are the fastest.
_PART = 2**20


class ScoredLogits:
    """Right-padded batches in, logits at chosen positions out.

    Args:
        model: a Hugging Face causal language model, in evaluation mode when called.
        device: where its inputs go.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model = model
        self._device = device
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
        ids = right_padded(sequences)
        index = torch.tensor(rows) * ids.shape[1] + torch.tensor(columns)
        return self.at(ids, [len(sequence) for sequence in sequences], index)

    def at(self, ids: Tensor, lengths: Sequence[int], index: Tensor) -> Tensor:
        """The same, of rows that are padded already.

        Args:
            ids: [rows, width] token ids, padded on the right.
            lengths: [rows] own tokens of each.
            index: [n] places in the flattened ``ids``.
        """
        ids = ids.to(self._device)
        if self._fast is False:
            return self._plain(ids, lengths, index)
        picked = self.picked(index, input_ids=ids, **self._options)
        if self._fast is None:
            self._fast = self._agrees(picked, ids, lengths, index)
            return picked if self._fast and picked is not None else self._plain(ids, lengths, index)
        if picked is None:
            raise RuntimeError(f"the output head of {type(self._model).__name__} was used before and is not used now")
        return picked

    def picked(self, index: Tensor, **inputs: Any) -> Tensor | None:
        """One forward pass whose head sees nothing but the positions ``index`` [n] of the flattened ``input_ids``.

        Returns:
            Logits [n, vocabulary]; None where the head is not used in the way that this needs.
        """
        if self._head is None:
            return None
        shape = inputs["input_ids"].shape
        calls = 0

        def pick(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal calls
            calls += 1
            hidden = arguments[0]
            if hidden.shape[:2] != shape:  # not what the head is known to be given: the shape check below sees it
                return arguments
            return (hidden.flatten(0, 1)[index.to(hidden.device)].unsqueeze(0), *arguments[1:])

        hook = self._head.register_forward_pre_hook(pick)
        try:
            logits = self._model(**inputs).logits
        finally:
            hook.remove()
        if calls != 1 or logits.shape[:2] != (1, len(index)):
            return None
        return logits[0]  # type: ignore[no-any-return]

    def _agrees(self, picked: Tensor | None, ids: Tensor, lengths: Sequence[int], index: Tensor) -> bool | None:
        """Whether what was picked is what the plain way says of the first and of the last rows (see `same_logits`)."""
        if picked is None:
            return False
        count, width = ids.shape
        rows = min(count, max(2, _COMPARED // (width * picked.shape[-1])))
        chosen = torch.cat([torch.arange(rows - rows // 2), torch.arange(count - rows // 2, count)])
        place = torch.full((count,), -1)
        place[chosen] = torch.arange(rows)
        kept = place[index // width] >= 0
        asked = place[index[kept] // width] * width + index[kept] % width
        plain = self._plain(ids[chosen.to(ids.device)], [lengths[row] for row in chosen.tolist()], asked)
        return same_logits(picked[kept.to(picked.device)], plain)

    def _plain(self, ids: Tensor, lengths: Sequence[int], index: Tensor) -> Tensor:
        own = torch.tensor(lengths, device=self._device)[:, None]
        mask = (torch.arange(ids.shape[1], device=self._device) < own).long()
        logits = self._model(input_ids=ids, attention_mask=mask, **self._options).logits
        return logits.flatten(0, 1)[index.to(logits.device)]  # type: ignore[no-any-return]


def right_padded(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Token ids [n, longest]. What fills up a row is its own first token: a broken embedding of any other would be
    read with it, since attention weights of zero times NaN are NaN."""
    width = max(len(sequence) for sequence in sequences)
    rows = [
        sequence if len(sequence) == width else [*sequence, *[sequence[0]] * (width - len(sequence))]
        for sequence in sequences
    ]
    return torch.tensor(rows)


def target_scores(
    logits: Tensor, positions: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Log-probability of each target, and whether it is the arg max (of equals the first, as in greedy decoding).

    Args:
        logits: [p, vocabulary]; computed in float32, or float64 where they are.
        positions: [n] which row of ``logits``, ascending; several targets may share one.
        targets: [n] token ids.

    Returns:
        float64 [n] in nats, not finite where the row is not; bool [n].
    """
    chosen = np.empty(len(targets))
    hits = np.empty(len(targets), dtype=bool)
    size = max(1, _PART // logits.shape[1])
    for start in range(0, len(logits), size):
        low, high = np.searchsorted(positions, (start, start + size))
        if low == high:
            continue
        part = logits[start : start + size]
        wide = part if part.dtype == torch.float64 else part.float()
        row = torch.from_numpy(positions[low:high] - start).to(wide.device)
        wanted = torch.from_numpy(targets[low:high]).to(wide.device)
        value = wide[row, wanted]
        chosen[low:high] = (value - wide.logsumexp(dim=-1)[row]).double().cpu().numpy()
        best = (value == wide.amax(dim=-1)[row]).cpu().numpy()
        # The arg max is dearer than the maximum, and is looked for only where the target attains the latter.
        ties = torch.from_numpy(np.flatnonzero(best)).to(wide.device)
        best[best] = (wide[row[ties]].argmax(dim=-1) == wanted[ties]).cpu().numpy()
        hits[low:high] = best
    return chosen, hits


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
