"""Exact order statistics of scores that are computed piece by piece, and never stand in memory together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

# Pieces of float64 scores, the same ones at every call.
Scores = Callable[[], Iterator[np.ndarray]]

# So many scores are gathered and partitioned; of more, a histogram finds the few that a position can be among.
GATHERED = 1 << 22

_DIGIT = 16


def order_statistics(
    scores: Scores, count: int, positions: Sequence[int], gathered: int = GATHERED
) -> tuple[float, ...]:
    """The scores at some positions of their ascending order.

    Args:
        scores: float64, no NaN; asked for again at every pass.
        count: how many there are.
        positions: each in [0, count).
        gathered: how many may stand in memory.

    Returns:
        [positions] −0 counts as 0.
    """
    if not positions:
        return ()
    if count <= gathered:
        everything = np.concatenate([np.empty(0), *scores()]) + 0.0
        everything.partition(sorted(set(positions)))
        return tuple(float(everything[position]) for position in positions)
    return tuple(_search(scores, count, position, gathered) for position in positions)


def _search(scores: Scores, count: int, position: int, gathered: int) -> float:
    """One score, 16 bits of it at a pass until few candidates are left."""
    prefix, bits = 0, 0
    while count > gathered and bits < 64:
        bits += _DIGIT
        histogram = np.zeros(1 << _DIGIT, dtype=np.int64)
        for piece in scores():
            digits = _under(_ordered(piece), prefix, bits - _DIGIT) >> np.uint64(64 - bits)
            histogram += np.bincount((digits & np.uint64(0xFFFF)).astype(np.int64), minlength=1 << _DIGIT)
        upto = np.cumsum(histogram)
        digit = int(np.searchsorted(upto, position, side="right"))
        position -= int(upto[digit - 1]) if digit else 0
        prefix, count = (prefix << _DIGIT) | digit, int(histogram[digit])
    if bits == 64:  # all that are left are equal
        return _value(prefix)
    left = np.concatenate([_under(_ordered(piece), prefix, bits) for piece in scores()])
    return _value(int(np.partition(left, position)[position]))


def _under(keys: np.ndarray, prefix: int, bits: int) -> np.ndarray:
    """The keys that begin with these bits."""
    return keys[(keys >> np.uint64(64 - bits)) == np.uint64(prefix)] if bits else keys


def _ordered(values: np.ndarray) -> np.ndarray:
    """float64 -> uint64 that order as the values do."""
    bits = (values + 0.0).view(np.uint64)  # −0 becomes 0
    return np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))


def _value(key: int) -> float:
    bits = key ^ (1 << 63) if key >> 63 else ~key & ((1 << 64) - 1)
    return float(np.uint64(bits).view(np.float64))
