"""What is counted element by element: inner products, sign conflicts and overlaps of task vectors.

One pass over a tensor that lies in memory, in pieces that stay in the cache, after the exact thresholds of the largest
|τ| were found (:mod:`merging.selection`). Pieces are worked on side by side, and their sums added in order, so that a
result is the same for every number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from merging.diagnose.measures import Tally
from merging.linear_algebra import one_thread
from merging.masks import keys
from merging.pool import Pool, pieces
from merging.selection import Cut, cuts, is_tied

# Elements of a piece. Counts over one are exact in float32.
_PIECE = 1 << 15

# Pieces that one thread works on in turn.
_RUN = 32


def count_elements(
    tally: Tally, pool: Pool, name: str, seeds: Sequence[int], density: float, threads: Executor | None = None
) -> None:
    """Add the elements of a tensor to a tally.

    Args:
        tally: of nothing but this tensor so far.
        pool: the models; what it remembers of the tensor can be forgotten afterwards.
        name: canonical tensor name.
        seeds: [experts] int32, by which each one's equal |τ| are told apart; the same for equal contents.
        density: fraction of the largest |τ| that is kept, at least one element.
        threads: that work on pieces side by side; none: this one.
    """
    base = pool.base(name).reshape(-1)
    experts = [each.reshape(-1) for each in pool.sources(name)]
    count = min(base.numel(), max(1, round(density * base.numel())))
    numbers = range(len(experts)) if len(experts) > 1 else ()  # one alone has nothing to be compared with
    abreast = map if threads is None else threads.map

    def end(number: int) -> Cut:
        with one_thread():
            return cuts(pool, name, number, [count], "hash", seeds[number])[0]

    ends = list(abreast(end, numbers))

    def of_run(bounds: tuple[int, int]) -> Tally:
        with one_thread():
            return _of_run(base, experts, ends, seeds, bounds)

    for part in abreast(of_run, list(pieces(base.numel(), _PIECE * _RUN))):
        tally.join(part)
    for place, (i, j) in enumerate(combinations(range(len(experts)), 2)):
        # the mean of a hypergeometric distribution
        expected = tally.kept[i] * tally.kept[j] / max(base.numel(), 1)
        tally.both_chance[place] = expected
        tally.either_chance[place] = tally.kept[i] + tally.kept[j] - expected


def _of_run(
    base: Tensor, experts: list[Tensor], ends: list[Cut], seeds: Sequence[int], bounds: tuple[int, int]
) -> Tally:
    tally = Tally(len(experts))
    size = min(_PIECE, bounds[1] - bounds[0])
    stacked = torch.ones(len(experts) + 2, size, dtype=torch.float64)  # θ0, every τ, and the ones that make sums
    for first, last in pieces(bounds[1] - bounds[0], _PIECE):
        start, stop = bounds[0] + first, bounds[0] + last
        rows = stacked[:, : stop - start]
        rows[0].copy_(base[start:stop])
        for row, expert in zip(rows[1:-1], experts, strict=True):
            row.copy_(expert[start:stop]).sub_(rows[0])
        tally.inner += (rows @ rows.mT).numpy()
        tally.changed += torch.count_nonzero(rows[1:-1], dim=1).numpy()
        if ends:
            origin = base[start:stop].cpu().to(torch.float32)
            narrow = torch.stack([expert[start:stop].cpu().to(torch.float32) - origin for expert in experts])
            _count_kept(tally, narrow, start, ends, seeds)
    tally.elements = bounds[1] - bounds[0]
    return tally


def _count_kept(tally: Tally, deltas: Tensor, start: int, ends: list[Cut], seeds: Sequence[int]) -> None:
    """Conflicts and overlaps of a piece.

    Args:
        tally: is added to.
        deltas: [experts, size] float32, as the thresholds were found for. Overwritten.
        start: index of the piece's first element in its tensor.
        ends: [experts] which elements are kept.
        seeds: [experts] of the keys.
    """
    sizes = deltas.abs()
    for delta, size, end, seed in zip(deltas, sizes, ends, seeds, strict=True):
        dropped = size < end.threshold
        if is_tied(end):
            at = (size == end.threshold).nonzero().squeeze(1)
            key = keys((at + start).to(torch.int32), torch.tensor(seed, dtype=torch.int32))
            dropped[at[key > end.key]] = True
        delta[dropped] = 0.0
    signs = deltas.sign()
    kept = signs.abs()
    upper = np.triu_indices(len(deltas), 1)
    both = (kept @ kept.mT).to(torch.float64).numpy()
    agreed = (signs @ signs.mT).to(torch.float64).numpy()  # those with one sign less those with two
    counts = both.diagonal()
    tally.kept += counts
    tally.both += both[upper]
    tally.either += (counts[:, None] + counts[None, :] - both)[upper]
    tally.shared[:-1] += both[upper]
    tally.opposed[:-1] += (both - agreed)[upper] / 2.0
    for place, (i, j) in enumerate(zip(*upper, strict=True)):
        tally.cancelled[place] += _cancelled(deltas[[i, j]], (signs[i] * signs[j] < 0.0).nonzero().squeeze(1))
    number = kept.sum(0)
    opposed = (signs.sum(0).abs() < number).nonzero().squeeze(1)
    tally.shared[-1] += int((number >= 2.0).sum())
    tally.opposed[-1] += len(opposed)
    tally.cancelled[-1] += _cancelled(deltas, opposed)


def _cancelled(deltas: Tensor, at: Tensor) -> float:
    """Σ of 1 − |Σ τ̂| / Σ |τ̂| over some positions; where all signs agree it is 0."""
    there = deltas[:, at].to(torch.float64)
    return float((1.0 - there.sum(0).abs() / there.abs().sum(0)).sum())
