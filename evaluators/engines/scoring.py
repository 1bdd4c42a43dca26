"""Log-likelihoods of many requests: what they have in common is read once, and each answer is its own.

Nothing that depends on the weights outlives a call but the proof that the model takes trees. What depends on the
requests alone, the inputs made ready, is kept: candidate after candidate is asked the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from evaluators.contract import LogLikelihood, Request
from evaluators.engines.cache import Beginning
from evaluators.engines.forward import text_config
from evaluators.engines.logits import ScoredLogits, target_scores
from evaluators.engines.memory import BatchLimit
from evaluators.engines.planning import Batch, Planner, Tree
from evaluators.engines.tree import TreeLogits

# Logits that may exist at once; at four bytes each half a gigabyte.
LOGITS = 2**27

# Attending to so many positions costs what all else costs for one token: about 12 width² weights a layer against
# 2 width multiplications a position, twice.
_POSITIONS = 6

# Tokens of requests whose inputs are kept ready; a few dozen bytes each.
_KEPT = 2**20

_Key = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


class Scorer:
    """Log-likelihoods with one model.

    Args:
        model: a Hugging Face causal language model, in evaluation mode when called.
        logits: the same model's logits at chosen positions.
        device: where its inputs go.
        limit: of the tokens of a forward pass, padding included; may change between two calls.
        vocabulary: how wide the logits are.
        check: raises for a request (with its index) that the model cannot read.
    """

    def __init__(
        self,
        model: nn.Module,
        logits: ScoredLogits,
        device: torch.device,
        *,
        limit: BatchLimit,
        vocabulary: int,
        check: Callable[[int, Sequence[int], Sequence[int]], None],
    ) -> None:
        self._model = model
        self._logits = logits
        self._device = device
        self._check = check
        self._tree = TreeLogits(model, logits, device)
        worth = _POSITIONS * int(getattr(text_config(model), "hidden_size", 0) or 512)
        self._planner = Planner(limit, max(1, LOGITS // vocabulary), worth)
        self._limit = limit
        self._plans: OrderedDict[tuple[_Key, bool, bool, int], list[Batch]] = OrderedDict()

    @property
    def tree(self) -> TreeLogits:
        """The way with trees, and what is proved of it."""
        return self._tree

    def forget(self) -> None:
        """Drop the inputs that are kept ready."""
        self._plans.clear()

    def __call__(self, requests: Sequence[Request]) -> list[LogLikelihood]:
        """One answer a request; nan where the numbers are not finite, 0.0 for empty continuations."""
        totals = np.zeros(len(requests))
        greedy = np.ones(len(requests), dtype=bool)
        beginning: Beginning | None = None
        read: tuple[int, ...] = ()
        for batch in self._plan(requests):
            self._planner.passing(batch)
            if batch.tree is None:
                self._plainly(batch, totals, greedy)
                continue
            tree = batch.tree
            if self._tree.knows(len(tree.beginning), tree.longest) is not False:
                if tree.beginning and (beginning is None or read != tree.beginning):
                    beginning, read = Beginning(self._model, self._logits, tree.beginning, self._device), tree.beginning
                again = self._as_trees(requests, batch, tree, beginning if tree.beginning else None, totals, greedy)
            else:
                again = batch.requests.tolist()
            for each in self._planner.plain(requests, again):
                self._planner.passing(each)
                self._plainly(each, totals, greedy)
        finite = np.isfinite(totals)
        return [
            LogLikelihood(total if is_finite else float("nan"), is_greedy and is_finite)
            for total, is_greedy, is_finite in zip(totals.tolist(), greedy.tolist(), finite.tolist(), strict=True)
        ]

    def _plan(self, requests: Sequence[Request]) -> Iterable[Batch]:
        """Inputs made ready: kept ones, or new ones, which are kept unless they are too many."""
        content = tuple((tuple(context), tuple(continuation)) for context, continuation in requests)
        lengths = [len(context) + len(continuation) for context, continuation in content]
        longest = max(lengths, default=0)
        trees, apart = self._tree.knows(0, longest) is not False, self._tree.knows(1, longest) is not False
        key = (content, trees, apart, self._limit.tokens)
        kept = self._plans.get(key)
        if kept is not None:
            self._plans.move_to_end(key)
            return kept
        for index, (context, continuation) in enumerate(requests):
            self._check(index, context, continuation)
        if trees or apart:
            batches = self._planner.shared(requests, apart=apart)
        else:
            asked = [index for index, request in enumerate(requests) if request.continuation]
            batches = self._planner.plain(requests, asked)
        if sum(lengths) > _KEPT:
            return batches
        self._plans[key] = made = list(batches)
        while sum(batch.ids.numel() for plan in self._plans.values() for batch in plan) > _KEPT:
            self._plans.popitem(last=False)
        return made

    def _as_trees(
        self,
        requests: Sequence[Request],
        batch: Batch,
        tree: Tree,
        beginning: Beginning | None,
        totals: np.ndarray,
        greedy: np.ndarray,
    ) -> list[int]:
        """Fill in a batch's answers. Returns the requests that are to be asked again, plainly."""
        logits = self._tree(batch.ids, tree.segments, tree.positions, beginning, batch.index)
        right = self._tree.knows(len(tree.beginning), tree.longest)
        if right is None:
            right = self._prove(requests, batch, tree, logits)
        if logits is None or not right:
            return [int(index) for index in batch.requests]
        _fill_in(batch, logits, totals, greedy)
        # Weights of zero times NaN are NaN: one branch's broken tokens must not be another's.
        return [int(index) for index in batch.requests[tree.branched] if np.isnan(totals[index])]

    def _prove(self, requests: Sequence[Request], batch: Batch, tree: Tree, found: Tensor | None) -> bool | None:
        """Compare a few requests' logits with those of the plain way."""
        compared = [int(batch.requests[place]) for place in tree.compared]
        expected: list[Tensor] = []
        order: list[int] = []
        for plain in self._planner.plain(requests, compared):
            expected.append(self._logits.at(plain.ids, plain.lengths, plain.index))
            for index in plain.requests:
                order += batch.places_of(int(np.flatnonzero(batch.requests == index)[0])).tolist()
        picked = None if found is None else found[torch.tensor(order)]
        return self._tree.prove(len(tree.beginning), tree.longest, picked, torch.cat(expected))

    def _plainly(self, batch: Batch, totals: np.ndarray, greedy: np.ndarray) -> None:
        _fill_in(batch, self._logits.at(batch.ids, batch.lengths, batch.index), totals, greedy)


def _fill_in(batch: Batch, logits: Tensor, totals: np.ndarray, greedy: np.ndarray) -> None:
    chosen, hits = target_scores(logits, batch.places, batch.targets)
    count = len(batch.requests)
    totals[batch.requests] = np.bincount(batch.owners, weights=chosen, minlength=count)
    greedy[batch.requests] = np.bincount(batch.owners, weights=~hits, minlength=count) == 0
