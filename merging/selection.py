"""Exact order statistics of |τ|: which elements belong to the k largest, with no sort of the whole tensor.

|τ| is the float32 difference of expert and base (exact for 16-bit weights that are near each other). Its bits, read as
an integer, order as its values do, so a histogram of the upper half of the bits finds the bin of a threshold, and only
the elements of that bin are sorted. Ties are frequent where weights have 16 bits, and are broken by a key, so that
exactly k elements are kept: a :class:`Cut` says which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from merging.masks import keys_of
from merging.pool import Pool, pieces

# Which of several equal elements are kept first: those with small hashed keys, with small or with large indices.
Order = Literal["hash", "index", "reversed"]

# Densities are genes on this grid (DESIGN §5): their cuts are computed together, and no candidate waits for them.
GRID = 64

ALL_KEYS = (1 << 31) - 1
NO_KEYS = -(1 << 31)

_CHUNK = 1 << 18
_BINS = 1 << 15


class Cut(NamedTuple):
    """The k largest elements: those above the threshold, and at it those whose key is at most ``key``.

    Attributes:
        threshold: float32 value; infinity keeps nothing.
        key: int32; :data:`ALL_KEYS` keeps everything at the threshold.
    """

    threshold: float
    key: int


NOTHING = Cut(math.inf, NO_KEYS)
EVERYTHING = Cut(0.0, ALL_KEYS)


def is_tied(where: Cut) -> bool:
    """Whether a cut goes through equal values, so that their keys must be asked."""
    return where.key != ALL_KEYS and where.threshold != math.inf


def cuts(pool: Pool, name: str, number: int, counts: Sequence[int], order: Order, seed: int) -> tuple[Cut, ...]:
    """Where the largest |τ| of a tensor end, for one or several counts; remembered.

    Args:
        pool: the sources.
        name: canonical tensor name.
        number: of the source in the pool.
        counts: how many elements to keep, each in [0, elements].
        order: how ties are broken.
        seed: of the keys, for order ``hash``.
    """
    numel = pool.base(name).numel()
    known: dict[int, Cut] = pool.once(("cuts", name, number, order, seed), dict)
    ends = {count: NOTHING if count <= 0 else EVERYTHING for count in counts if not 0 < count < numel}
    missing = set(counts) - ends.keys() - known.keys()
    if missing:
        if pool.searching:  # the other densities will be asked for as well
            missing |= {round(step * numel / GRID) for step in range(1, GRID)} - known.keys() - {0, numel}
        known |= _cuts(lambda: magnitudes(pool, name, number), sorted(missing), _key_of(order, seed))
    return tuple(ends.get(count) or known[count] for count in counts)


def cut_by(values: Tensor, count: int, order: Order, seed: int) -> Cut:
    """Where the ``count`` largest of non-negative float32 values end: as :func:`cuts`, for other scores than |τ|."""
    flat = values.reshape(-1)
    if count <= 0:
        return NOTHING
    if count >= flat.numel():
        return EVERYTHING

    def scores() -> Iterator[tuple[int, np.ndarray]]:
        for start, stop in pieces(flat.numel(), _CHUNK):
            yield start, flat[start:stop].cpu().numpy()

    return _cuts(scores, [count], _key_of(order, seed))[count]


def model_cuts(pool: Pool, number: int, count: int, seeds: dict[str, int]) -> dict[str, Cut]:
    """Where the ``count`` largest |τ| of a whole source end, for every tensor: trimming as the TIES paper has it.

    Args:
        pool: the sources; all its tensors take part.
        number: of the source in the pool.
        count: how many elements of the model to keep.
        seeds: tensor name -> seed of its keys. Equal keys of two tensors are told apart by the tensors' names.
    """
    totals = {name: pool.base(name).numel() for name in pool.names}
    if count <= 0:
        return dict.fromkeys(pool.names, NOTHING)
    if count >= sum(totals.values()):
        return dict.fromkeys(pool.names, EVERYTHING)
    histogram: np.ndarray = pool.once(
        ("histogram", number), lambda: sum(_histogram(magnitudes(pool, name, number)) for name in pool.names)
    )
    bin_, above = _bins(histogram, [count])[count]
    rest = count - above
    gathered = [_gather(magnitudes(pool, name, number), bin_, _key_of("hash", seeds[name])) for name in pool.names]
    owners = np.repeat(np.arange(len(gathered)), [len(each) for each in gathered])
    merged = np.concatenate(gathered)
    if rest > len(merged):  # the threshold lies among exact zeros
        return dict.fromkeys(pool.names, EVERYTHING)
    order = np.lexsort((-owners, merged))[::-1]  # largest first; of equal ones the first tensor's
    last = order[rest - 1]
    threshold, key = _split(merged[last])
    return {
        name: Cut(threshold, key if position <= owners[last] else max(key - 1, NO_KEYS))
        for position, name in enumerate(pool.names)
    }


def magnitudes(pool: Pool, name: str, number: int) -> Iterator[tuple[int, np.ndarray]]:
    """(index of the first element, |τ| in float32) of consecutive pieces of a flattened tensor."""
    base, source = pool.base(name).reshape(-1), pool.source(name, number).reshape(-1)
    for start, stop in pieces(base.numel(), _CHUNK):
        delta = (source[start:stop].to(torch.float32) - base[start:stop].to(torch.float32)).abs_()
        yield start, delta.cpu().numpy()


def row_ranks(pool: Pool, name: str, number: int) -> Tensor:
    """Position of every |τ| within its row, ascending, ties by index.

    Returns:
        Flat [elements] int16 of the rank minus 2¹⁵ where rows have at most 2¹⁶ elements, else int32 of the rank.
    """
    base, source = pool.base(name), pool.source(name, number)
    width = row_width(tuple(base.shape))
    small = width <= 1 << 16
    ranks = np.empty(base.numel(), dtype=np.int16 if small else np.int32)
    flat_base, flat_source = base.reshape(-1), source.reshape(-1)
    step = max(1, _CHUNK // width) * width if width else 1
    positions = np.arange(width)
    for start, stop in pieces(base.numel(), step):
        delta = (flat_source[start:stop].to(torch.float32) - flat_base[start:stop].to(torch.float32)).abs_()
        rows = delta.cpu().numpy().reshape(-1, width)
        order = np.argsort(rows, axis=1, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, positions[None, :], axis=1)
        ranks[start:stop] = (rank - (1 << 15) if small else rank).reshape(-1)
    return torch.from_numpy(ranks)


def row_width(shape: tuple[int, ...]) -> int:
    """Elements of a row: the last axis; a vector is one row."""
    return shape[-1] if shape else 1


_Scores = Callable[[], Iterator[tuple[int, np.ndarray]]]
_KeyOf = Callable[[np.ndarray], np.ndarray]


def _key_of(order: Order, seed: int) -> _KeyOf:
    """Indices of elements -> their keys: int64 in [−2³¹, 2³¹), the smaller are kept first."""
    if order == "hash":
        return lambda index: keys_of(index, seed)
    if order == "index":
        return lambda index: index
    return lambda index: -1 - index


def _cuts(scores: _Scores, counts: Sequence[int], key_of: _KeyOf) -> dict[int, Cut]:
    """The cuts of several counts, each above 0 and below the number of scores."""
    found = _bins(_histogram(scores()), counts)
    wanted = np.unique([bin_ for bin_, _ in found.values()])
    gathered = np.sort(np.concatenate([_gather(scores(), wanted, key_of)]))
    bins = gathered >> np.uint64(48)
    starts = dict(zip(wanted.tolist(), np.searchsorted(bins, wanted, side="left").tolist(), strict=True))
    ends = dict(zip(wanted.tolist(), np.searchsorted(bins, wanted, side="right").tolist(), strict=True))
    result = {}
    for count, (bin_, above) in found.items():
        position = ends[bin_] - (count - above)
        # Before the bin's first: the threshold lies among exact zeros, and whatever is kept of them is zero.
        result[count] = EVERYTHING if position < starts[bin_] else Cut(*_split(gathered[position]))
    return result


def _histogram(scores: Iterator[tuple[int, np.ndarray]]) -> np.ndarray:
    """[2¹⁵] how many values share the upper 16 bits (the sign is 0)."""
    total = np.zeros(_BINS, dtype=np.int64)
    for _, values in scores:
        total += torch.bincount(torch.from_numpy(values.view(np.int32) >> 16), minlength=_BINS).numpy()
    return total


def _bins(histogram: np.ndarray, counts: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Count -> (bin that holds the count-th largest value, how many values are in larger bins)."""
    from_top = np.cumsum(histogram[::-1])
    result = {}
    for count in counts:
        position = int(np.searchsorted(from_top, count, side="left"))
        above = int(from_top[position - 1]) if position else 0
        result[count] = (_BINS - 1 - position, above)
    return result


def _gather(scores: Iterator[tuple[int, np.ndarray]], bins: np.ndarray | int, key_of: _KeyOf) -> np.ndarray:
    """Values in some bins as uint64 that order as (value, key reversed): what is kept first is the largest."""
    wanted = np.zeros(_BINS, dtype=bool)
    wanted[bins] = True
    parts = [np.empty(0, dtype=np.uint64)]
    for start, values in scores:
        bits = values.view(np.int32)
        inside = np.flatnonzero(wanted[bits >> 16] & (bits != 0))
        if len(inside):
            key = key_of(inside + start)
            parts.append((bits[inside].astype(np.uint64) << np.uint64(32)) | (ALL_KEYS - key).astype(np.uint64))
    return np.concatenate(parts)


def _split(composite: np.uint64) -> tuple[float, int]:
    bits = int(composite) >> 32
    return float(np.int32(bits).view(np.float32)), ALL_KEYS - (int(composite) & 0xFFFFFFFF)
