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
_PIECE = 1 << 17

# Pieces that one thread works on in turn.
_RUN = 8


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
    narrow = torch.empty(len(experts), size)
    for first, last in pieces(bounds[1] - bounds[0], _PIECE):
        start, stop = bounds[0] + first, bounds[0] + last
        origin, others = base[start:stop].cpu(), [expert[start:stop].cpu() for expert in experts]
        rows = stacked[:, : stop - start]
        rows[0].copy_(origin)
        for row, other in zip(rows[1:-1], others, strict=True):
            row.copy_(other).sub_(rows[0])
        tally.inner += (rows @ rows.mT).numpy()
        tally.changed += torch.count_nonzero(rows[1:-1], dim=1).numpy()
        if ends:
            deltas = narrow[:, : stop - start]
            origin = origin.to(torch.float32)
            for delta, other in zip(deltas, others, strict=True):
                torch.sub(other.to(torch.float32), origin, out=delta)
            _count_kept(tally, deltas, start, ends, seeds)
    tally.elements = bounds[1] - bounds[0]
    return tally


def _count_kept(tally: Tally, deltas: Tensor, start: int, ends: list[Cut], seeds: Sequence[int]) -> None:
    """Conflicts and overlaps of a piece.

    Args:
        tally: is added to.
        deltas: [experts, size] float32, as the thresholds were found for.
        start: index of the piece's first element in its tensor.
        ends: [experts] which elements are kept.
        seeds: [experts] of the keys.
    """
    kept = torch.stack([_kept(delta, start, end, seed) for delta, end, seed in zip(deltas, ends, seeds, strict=True)])
    counts = torch.count_nonzero(kept, dim=1).to(torch.float64).numpy()
    shared = (kept.sum(0, dtype=torch.uint8) > 1).nonzero().squeeze(1)  # the others are in no conflict
    trimmed = deltas[:, shared] * kept[:, shared]
    signs = trimmed.sign()
    same = signs.abs()
    upper = np.triu_indices(len(deltas), 1)
    both = (same @ same.mT).to(torch.float64).numpy()[upper]
    agreed = (signs @ signs.mT).to(torch.float64).numpy()[upper]  # those with one sign less those with two
    tally.kept += counts
    tally.both += both
    tally.either += (counts[:, None] + counts[None, :])[upper] - both
    tally.shared += [*both, len(shared)]
    opposed = (signs.sum(0).abs() < same.sum(0)).nonzero().squeeze(1)
    tally.opposed += [*((both - agreed) / 2.0), len(opposed)]
    trimmed, signs = trimmed[:, opposed].to(torch.float64), signs[:, opposed]
    for place, (i, j) in enumerate(zip(*upper, strict=True)):
        tally.cancelled[place] += _cancelled(trimmed[[i, j]][:, signs[i] * signs[j] < 0.0])
    tally.cancelled[-1] += _cancelled(trimmed)


def _kept(delta: Tensor, start: int, end: Cut, seed: int) -> Tensor:
    """[size] which elements of a piece are among the largest; exact zeros never are."""
    size = delta.abs()
    if not is_tied(end):
        return (size >= end.threshold) & (size > 0.0)
    kept = size > end.threshold
    at = (size == end.threshold).nonzero().squeeze(1)
    key = keys((at + start).to(torch.int32), torch.tensor(seed, dtype=torch.int32))
    kept[at[key <= end.key]] = True
    return kept & (size > 0.0) if end.threshold == 0.0 else kept


def _cancelled(deltas: Tensor) -> float:
    """Σ of 1 − |Σ τ̂| / Σ |τ̂| over [experts, positions]; where all signs agree it is 0."""
    return float((1.0 - deltas.sum(0).abs() / deltas.abs().sum(0)).sum())
