"""Decoding in batches: left padding, a key-value cache, rows that leave when they are done.

A loop of its own and not transformers' ``generate``: that costs more per call than a small model's whole answer, keeps
finished rows in the batch, and reads sampling settings from the model. What a cache needs differs between model
families, so the cached logits are compared with a plain forward pass once for each model; where they disagree, or where
the model has no such cache (recurrent ones), the whole sequence is read again for every token: slow, and right.

Every step asks the model through one method, :meth:`Decoder._forward`: where compiled steps over a cache of fixed size
pay (GPUs), that is the place for them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from evaluators.contract import Generation, Sampling
from evaluators.engines.cache import Beginning, may_drop_rows, new_cache, plain_limit
from evaluators.engines.logits import ScoredLogits, same_logits
from evaluators.engines.sampling import draw

Ended = Literal["end", "stop", "length", "non_finite"]
# How a batch reads its prompts: all of one length, padded on the left, or after a beginning that is read apart. A
# family may be right with one and wrong with another.
Way = Literal["even", "padded", "shared"]

# Rows whose logits are compared with the plain way's.
_COMPARED = 2


@dataclass
class _Row:
    """One generation under way."""

    prompt: Sequence[int]
    budget: int
    generator: np.random.Generator | None
    tokens: list[int] = field(default_factory=list)
    ended: Ended | None = None

    @property
    def sequence(self) -> list[int]:
        return [*self.prompt, *self.tokens]


class Decoder:
    """Decodes batches of prompts with one model.

    Args:
        model: a Hugging Face causal language model, in evaluation mode when called.
        logits: the same model's logits at chosen positions, for the way without a cache.
        device: where its inputs go.
        ends: ids that end an answer.
    """

    def __init__(self, model: nn.Module, logits: ScoredLogits, device: torch.device, ends: frozenset[int]) -> None:
        self._model = model
        self._logits = logits
        self._device = device
        self._ends = ends
        accepted = inspect.signature(type(model).forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        cacheable = "past_key_values" in accepted and not getattr(model, "_is_stateful", False)
        self._limit = plain_limit(model) if cacheable else 0
        self._cache_proven: dict[Way, bool] = {}
        if not cacheable:
            self._cache_proven = {"even": False, "padded": False, "shared": False}

    @property
    def cache_proven(self) -> dict[Way, bool]:
        """Whether the cache gives a plain forward pass's logits, as far as known."""
        return dict(self._cache_proven)

    def reads_apart(self, length: int) -> bool:
        """Whether prompts of at most ``length`` tokens, answers included, may share a beginning."""
        known = self._cache_proven.get("shared") is not False and self._logits.fast is not False
        return known and self._takes_positions and length <= self._limit

    def begin(self, tokens: Sequence[int]) -> Beginning:
        """Read a beginning of many prompts."""
        return Beginning(self._model, self._logits, tokens, self._device)

    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        budgets: Sequence[int],
        stopped: Callable[[Sequence[int]], bool] | None = None,
        sampling: Sampling | None = None,
        beginning: Beginning | None = None,
    ) -> list[Generation]:
        """Continue each prompt.

        Args:
            prompts: token ids, none empty.
            budgets: at most so many new tokens each.
            stopped: given a row's new tokens, whether the last of them completes a stop string.
            sampling: how tokens are drawn, with one seed a prompt of this batch; None for the most likely ones.
            beginning: of all prompts, each of which has at least one token more.
        """
        way: Way = "even" if len({len(prompt) for prompt in prompts}) == 1 else "padded"
        if beginning is not None and self._cache_proven.get("shared") is not False:
            rows = _rows(prompts, budgets, sampling)
            if self._with_cache(rows, stopped, sampling, "shared", beginning):
                return _generations(rows)
        if self._cache_proven.get(way) is not False:
            rows = _rows(prompts, budgets, sampling)
            if self._with_cache(rows, stopped, sampling, way, None):
                return _generations(rows)
        rows = _rows(prompts, budgets, sampling)
        active = [row for row in rows if row.ended is None]
        while active:
            self._advance(active, self._last_logits(active), stopped, sampling)
            active = [row for row in active if row.ended is None]
        return _generations(rows)

    def _with_cache(
        self,
        rows: list[_Row],
        stopped: Callable[[Sequence[int]], bool] | None,
        sampling: Sampling | None,
        way: Way,
        beginning: Beginning | None,
    ) -> bool:
        """Decode to the end; False, with the rows half-way, when the cache proves wrong for this model."""
        active = [row for row in rows if row.ended is None]
        if not active:
            return True
        shared = 0 if beginning is None else beginning.length
        ids, mask, positions = self._left_padded([row.prompt for row in active], shared)
        if beginning is None:
            longest = max(len(row.prompt) + row.budget for row in active)
            cache = new_cache(self._model, longest, self._limit)
        else:
            cache = beginning.copied(len(active))
        dropping = may_drop_rows(cache)
        for step in range(max(row.budget for row in active)):
            logits = self._forward(ids, mask, positions, cache)
            if step < 2 and not self._right(active, logits, step, way):
                return False
            chosen = self._advance(active, logits, stopped, sampling)
            keep = [place for place, row in enumerate(active) if row.ended is None]
            if not keep:
                return True
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = None if mask is None else torch.cat([mask, mask.new_ones(len(mask), 1)], dim=-1)
            if dropping and len(keep) < len(active):
                index = torch.tensor(keep, device=self._device)
                for layer in cache.layers:  # of a model that is spread, each on the device of its block
                    layer.batch_select_indices(index.to(layer.keys.device))
                ids, positions = ids[index], positions[index]
                mask = None if mask is None else mask[index]
                active = [active[place] for place in keep]
        return True

    def _right(self, active: Sequence[_Row], logits: Tensor, step: int, way: Way) -> bool:
        """Whether this way may go on: it is proved, or agrees with the plain way at its first two steps."""
        if way in self._cache_proven:
            return self._cache_proven[way]
        places = [place for place, row in enumerate(active) if row.ended is None]
        places = [*places[: _COMPARED // 2], *places[_COMPARED // 2 :][-_COMPARED // 2 :]]
        same = same_logits(logits[places], self._last_logits([active[place] for place in places]))
        if same is False or (same and step == 1):
            self._cache_proven[way] = same
        return same is not False

    def _last_logits(self, active: Sequence[_Row]) -> Tensor:
        sequences = [row.sequence for row in active]
        return self._logits(sequences, range(len(sequences)), [len(sequence) - 1 for sequence in sequences])

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: DynamicCache) -> Tensor:
        where = {"position_ids": positions} if self._takes_positions else {}
        output = self._model(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **where, **self._options
        )
        return output.logits[:, -1]  # type: ignore[no-any-return]

    def _left_padded(self, prompts: Sequence[Sequence[int]], shared: int) -> tuple[Tensor, Tensor | None, Tensor]:
        """Ids and positions [rows, width] of what follows the beginning, and which of all tokens are the rows' own,
        [rows, shared + width]; None where all are."""
        width = max(len(prompt) for prompt in prompts) - shared
        ids = [[*[prompt[0]] * (width - len(prompt) + shared), *prompt[shared:]] for prompt in prompts]
        filled = torch.tensor([width - len(prompt) + shared for prompt in prompts])[:, None]
        places = torch.arange(width)
        positions = (places - filled).clamp(min=0) + shared
        mask = None
        if bool(filled.any()):
            own = places >= filled
            mask = torch.cat([torch.ones(len(prompts), shared, dtype=torch.bool), own], dim=-1).long().to(self._device)
        return torch.tensor(ids, device=self._device), mask, positions.to(self._device)

    def _advance(
        self,
        active: Sequence[_Row],
        logits: Tensor,
        stopped: Callable[[Sequence[int]], bool] | None,
        sampling: Sampling | None,
    ) -> Tensor:
        """Append each row's token, or end the row. Returns the chosen ids [rows], on the inputs' device."""
        best, chosen = logits.max(dim=-1)
        finite = torch.isfinite(best).tolist()  # a NaN or +inf anywhere in the row is its maximum
        if sampling is not None:
            places = [place for place, row in enumerate(active) if finite[place] and row.ended is None]
            uniforms = [row.generator.random() for row in (active[p] for p in places) if row.generator is not None]
            if places:
                index = torch.tensor(places, device=logits.device)
                drawn = draw(logits[index], uniforms, temperature=sampling.temperature, top_p=sampling.top_p)
                chosen = chosen.index_copy(0, index, drawn)
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


def _rows(prompts: Sequence[Sequence[int]], budgets: Sequence[int], sampling: Sampling | None) -> list[_Row]:
    seeds = [None] * len(prompts) if sampling is None else sampling.seeds
    return [
        _Row(
            prompt,
            budget,
            None if seed is None else np.random.default_rng(seed),
            ended=None if budget > 0 else "length",
        )
        for prompt, budget, seed in zip(prompts, budgets, seeds, strict=True)
    ]


def _generations(rows: Sequence[_Row]) -> list[Generation]:
    return [Generation(row.tokens, row.ended or "length") for row in rows]
