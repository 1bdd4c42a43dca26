"""Greedy decoding in batches: left padding, a key-value cache, rows that leave when they are done.

A loop of its own and not transformers' ``generate``: that costs more per call than a small model's whole answer, keeps
finished rows in the batch, and reads sampling settings from the model. What a cache needs differs between model
families, so the cached logits are compared with a plain forward pass once for each model; where they disagree, or where
the model has no such cache (recurrent ones), the whole sequence is read again for every token: slow, and right.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from evaluators.contract import Generation
from evaluators.engines.logits import ScoredLogits, same_logits

Ended = Literal["end", "stop", "length", "non_finite"]


@dataclass
class _Row:
    """One generation under way."""

    prompt: Sequence[int]
    budget: int
    tokens: list[int] = field(default_factory=list)
    ended: Ended | None = None

    @property
    def sequence(self) -> list[int]:
        return [*self.prompt, *self.tokens]


class GreedyDecoder:
    """Decodes batches of prompts with one model.

    Args:
        model: a Hugging Face causal language model, in evaluation mode when called.
        logits: the same model's logits at chosen positions, for the way without a cache.
        device: where its inputs go.
        filler: the token id that fills up short prompts.
        ends: ids that end an answer.
    """

    def __init__(
        self, model: nn.Module, logits: ScoredLogits, device: torch.device, filler: int, ends: frozenset[int]
    ) -> None:
        self._model = model
        self._logits = logits
        self._device = device
        self._filler = filler
        self._ends = ends
        accepted = inspect.signature(type(model).forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        cacheable = "past_key_values" in accepted and not getattr(model, "_is_stateful", False)
        # Keyed by whether the batch has padding: a family may be right without it and wrong with it.
        self._cache_proven: dict[bool, bool] = {} if cacheable else {True: False, False: False}

    @property
    def cache_proven(self) -> dict[bool, bool]:
        """Whether the cache gives a plain forward pass's logits, keyed by padding or none, as far as known."""
        return dict(self._cache_proven)

    def __call__(
        self, prompts: Sequence[Sequence[int]], budgets: Sequence[int], stopped: Callable[[list[int]], bool] | None
    ) -> list[Generation]:
        """Continue each prompt.

        Args:
            prompts: token ids, none empty.
            budgets: at most so many new tokens each.
            stopped: given a row's new tokens, whether its text holds a stop string.
        """
        padded = len({len(prompt) for prompt in prompts}) > 1
        rows = self._rows(prompts, budgets)
        if self._cache_proven.get(padded) is False or not self._with_cache(rows, stopped, padded):
            rows = self._rows(prompts, budgets)
            self._without_cache(rows, stopped)
        return [Generation(row.tokens, row.ended or "length") for row in rows]

    def _rows(self, prompts: Sequence[Sequence[int]], budgets: Sequence[int]) -> list[_Row]:
        return [
            _Row(prompt, budget, ended=None if budget > 0 else "length")
            for prompt, budget in zip(prompts, budgets, strict=True)
        ]

    def _with_cache(self, rows: list[_Row], stopped: Callable[[list[int]], bool] | None, padded: bool) -> bool:
        """Decode to the end; False, with the rows half-way, when the cache proves wrong for this model."""
        active = [row for row in rows if row.ended is None]
        if not active:
            return True
        ids, mask = self._left_padded([row.prompt for row in active])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self._model.config)
        step = 0
        while True:
            logits = self._forward(ids, mask, positions, cache)
            if step == 1 and padded not in self._cache_proven:
                proven = self._agrees(active, logits)
                if proven is not None:
                    self._cache_proven[padded] = proven
                if proven is False:
                    return False
            chosen = self._advance(active, logits, stopped)
            keep = [place for place, row in enumerate(active) if row.ended is None]
            if not keep:
                return True
            ids, mask, positions = chosen[:, None], _one_more(mask), positions[:, -1:] + 1
            if len(keep) < len(active) and _may_drop_rows(cache):
                index = torch.tensor(keep, device=self._device)
                cache.batch_select_indices(index)
                ids, mask, positions = ids[index], mask[index], positions[index]
                active = [active[place] for place in keep]
            step += 1

    def _without_cache(self, rows: list[_Row], stopped: Callable[[list[int]], bool] | None) -> None:
        active = [row for row in rows if row.ended is None]
        while active:
            self._advance(active, self._last_logits(active), stopped)
            active = [row for row in active if row.ended is None]

    def _agrees(self, active: Sequence[_Row], logits: Tensor) -> bool | None:
        places = [place for place, row in enumerate(active) if row.ended is None]
        return same_logits(logits[places], self._last_logits([active[place] for place in places]))

    def _last_logits(self, active: Sequence[_Row]) -> Tensor:
        sequences = [row.sequence for row in active]
        return self._logits(sequences, range(len(sequences)), [len(sequence) - 1 for sequence in sequences])

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        where = {"position_ids": positions} if self._takes_positions else {}
        output = self._model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **where, **self._options
        )
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def _left_padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = max(len(prompt) for prompt in prompts)
        ids = [[*[self._filler] * (width - len(prompt)), *prompt] for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        return torch.tensor(ids, device=self._device), torch.tensor(mask, device=self._device)

    def _advance(self, active: Sequence[_Row], logits: Tensor, stopped: Callable[[list[int]], bool] | None) -> Tensor:
        """Append each row's arg max, or end the row. Returns the chosen ids [rows], on the inputs' device."""
        best, chosen = logits.max(dim=-1)
        finite = torch.isfinite(best).tolist()  # a NaN or +inf anywhere in the row is its maximum
        for row, token, is_finite in zip(active, chosen.tolist(), finite, strict=True):
            if row.ended is not None:
                continue
            if not is_finite:
                row.ended = "non_finite"
            elif token in self._ends:
                row.ended = "end"
            else:
                row.tokens.append(token)
                if stopped is not None and stopped(row.tokens):
                    row.ended = "stop"
                elif len(row.tokens) >= row.budget:
                    row.ended = "length"
        return chosen.to(self._device)


def _one_more(mask: Tensor) -> Tensor:
    return torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)


def _may_drop_rows(cache: DynamicCache) -> bool:
    """Whether rows can be taken out: plain attention layers only, for the others' states need not be one row each."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
