"""Minibatches: every candidate is scored on some of the items, the same for a generation of candidates, and no others.

A protocol of published searches (EvoLLM's data-flow search: 200 training items a candidate, drawn anew): cheap, and the
search cannot wear one subset out. What it costs: scores of different subsets are estimates, each with its own luck, and
are compared as such; finalists are scored again, on selection items. With rungs, in contrast
(:mod:`search.fidelity`), everybody sees the same items, and only the hopeless see fewer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

from evaluators.contract import Evaluator, Items
from search.fidelity import nested_order
from search.schema import FidelityConfig, SearchSettings

_GENERATIONS = 2**32


class Minibatches:
    """Which items a candidate is scored on.

    Args:
        evaluators: only their items of the search split are read.
        size: items of each evaluator, at most.
        every: candidates after which other items are drawn, or "never".
        seed: of the search: another seed draws other items.
    """

    def __init__(
        self, evaluators: Mapping[str, Evaluator], size: int, every: int | Literal["never"], seed: int
    ) -> None:
        self._items = {name: each.items("search") for name, each in evaluators.items()}
        self._size = size
        self._every = every
        self._seed = seed
        self._drawn = lru_cache(maxsize=4)(self._draw)

    @staticmethod
    def wanted(evaluators: Mapping[str, Evaluator], settings: SearchSettings) -> Minibatches | None:
        """Those of a search; None where its candidates are scored on everything, or climb rungs."""
        given = settings.fidelity
        if given.minibatch is None:
            return None
        return Minibatches(evaluators, given.minibatch, given.redraw, settings.seed)

    def of(self, number: int) -> dict[str, tuple[str, ...]]:
        """evaluator -> ids, in the evaluator's own order: of the number-th candidate of a stage, counted from 0.

        A pure function of the items' content, the seed and the number: a resumed search asks the same.
        """
        return self._drawn(0 if self._every == "never" else 1 + number // self._every)

    def _draw(self, generation: int) -> dict[str, tuple[str, ...]]:
        # a subset for the whole run is the same for every seed, so that runs can be compared item by item
        seed = self._seed * _GENERATIONS + generation if generation else 0
        return {name: drawn(items, self._size, seed) for name, items in self._items.items()}


def drawn(items: Items, size: int, seed: int) -> tuple[str, ...]:
    """A stratified draw of at most ``size`` items, every stratum in its share to less than one item.

    Returns:
        ids, in the order of ``items``.
    """
    return tuple(items.ids[place] for place in sorted(nested_order(items, seed)[:size].tolist()))


def independent(
    ids: Sequence[str], clusters: Mapping[str, str] | None, settings: FidelityConfig, baseline: bool
) -> int:
    """How many independent items a candidate's search score is of.

    Args:
        ids: all of an evaluator's search items.
        clusters: id -> cluster; None where every item is one of its own.
        settings: the search's.
        baseline: baselines are scored on everything.

    Returns:
        Items, or clusters of them; of a minibatch of clustered items about as many as its share of the items.
    """
    every = len(ids) if clusters is None else len({clusters.get(each, each) for each in ids})
    if settings.minibatch is None or baseline or settings.minibatch >= len(ids):
        return every
    return max(1, round(every * settings.minibatch / len(ids)))


def in_words(settings: FidelityConfig) -> str:
    """What a reader of search scores has to know; "" where there is no minibatch."""
    if settings.minibatch is None:
        return ""
    again = "" if settings.redraw == "never" else f", drawn anew for every {settings.redraw} candidates"
    return (
        f"Search scores of candidates are of {settings.minibatch} items of each evaluator{again}; those of baselines "
        "are of all items. "
    )
