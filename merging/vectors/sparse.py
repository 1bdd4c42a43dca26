"""Sparse: some of the elements of τ, the others are taken for zero.

``topk`` keeps the largest |τ|: the smallest error that so many elements allow. Where they lie is stored as the gaps
between them. ``seeded`` keeps a random choice, which a seed and a counter hash tell (:mod:`merging.masks`), so that
nothing but the values is stored; divided by the density, as DARE has it (Yu et al. 2023, arXiv 2311.03099), they are
τ on average.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from merging.files import TensorInfo
from merging.masks import keys_of, last_kept, seed32
from merging.pool import pieces
from merging.recipe import MergingError, Value
from merging.selection import EVERYTHING, NOTHING, Cut, cut_by, is_tied
from merging.vectors.added import Added
from merging.vectors.frames import Frames, malformed, pack
from merging.vectors.positions import count, gaps, positions
from merging.vectors.tensors import PIECE, Bits, Pair
from merging.vectors.values import is_number, number_of, stored_as, widened

Parts = tuple[dict[str, Value], dict[str, Tensor]]

DENSITY = 0.1
"""Of the elements, where nobody says otherwise: DARE's usual drop rate of 0.9."""

_BINS = 1 << 15


def encode_topk(
    pair: Pair, density: float | None = None, error: float | None = None, values: str = "bfloat16"
) -> Parts:
    """The largest |τ| of a tensor; of equal ones a hash of their position decides.

    Args:
        pair: floating-point.
        density: kept fraction, in [0, 1]; :data:`DENSITY` where no ``error`` is given either.
        error: keep as few as leave this relative error, not counting what the rounding of the values adds.
        values: dtype that they are stored in, one of :data:`merging.vectors.values.VALUES`.

    Raises:
        MergingError: a number out of its range.
    """
    if error is not None:
        if density is not None:
            raise MergingError("expected a density or an error for topk, found both; leave one out")
        largest = _fewest(pair, error)
    else:
        density = DENSITY if density is None else density
        _check_density(density, 0.0)
        largest = round(density * pair.numel)
    cut = _cut(pair, largest)
    places: list[Bits] = []
    kept: list[Bits] = []
    for start, stop in pieces(pair.numel, PIECE):
        delta = pair.delta(start, stop)
        index = _inside(delta.abs().numpy(), start, cut, _tie_seed(pair))
        places.append(gaps(index))
        kept.append(stored_as(delta[torch.from_numpy(index)], values))
    return {"values": values}, {"gaps": pack(places), "kept": pack(kept)}


def decode_topk(info: TensorInfo, values: object, gaps: Tensor, kept: Tensor) -> Added:
    """What adds the elements to the base.

    Raises:
        MergingError: malformed.
    """
    number = number_of(values)
    frames = len(range(0, info.numel, PIECE))
    places, numbers = Frames(gaps, frames), Frames(kept, frames)
    counts = [count(places, piece, stop - start) for piece, (start, stop) in enumerate(pieces(info.numel, PIECE))]
    numbers.check(each * number.itemsize for each in counts)

    def deltas() -> Iterator[Tensor]:
        for piece, (start, stop) in enumerate(pieces(info.numel, PIECE)):
            found = torch.zeros(stop - start)
            index = torch.from_numpy(positions(places, piece, stop - start))
            found[index] = widened(numbers.unpack(piece, number, counts[piece]), values)
            yield found

    return Added(info.shape, info.dtype, deltas)


def encode_seeded(
    pair: Pair,
    density: float = DENSITY,
    seed: int = 0,
    content: str = "",
    rescale: bool = True,
    values: str = "bfloat16",
) -> Parts:
    """A random choice of the elements: those that the method ``dare_linear`` keeps of the same tensor.

    Args:
        pair: floating-point.
        density: kept fraction 1 − p, in (0, 1].
        seed: of the choice: a recipe's.
        content: content hash of the fine-tune, to get the choice that a merge of it makes; "" for one that is the same
            for all models.
        rescale: composing divides what is kept by the density, as DARE does. The relative error is then √(p/(1 − p))
            on average, otherwise √p.
        values: as in :func:`encode_topk`.

    Raises:
        MergingError: a number out of its range.
    """
    _check_density(density, math.ulp(0.0))
    key = seed32(seed, content, pair.name, "drop")
    kept = [
        stored_as(pair.delta(start, stop)[torch.from_numpy(_chosen(start, stop, key, density))], values)
        for start, stop in pieces(pair.numel, PIECE)
    ]
    return (
        {"values": values, "density": float(density), "key": key, "rescale": bool(rescale)},
        {"kept": pack(kept)},
    )


def decode_seeded(
    info: TensorInfo, values: object, density: object, key: object, rescale: object, kept: Tensor
) -> Added:
    """What adds the chosen elements to the base.

    Raises:
        MergingError: malformed.
    """
    number = number_of(values)
    if not is_number(density) or not 0.0 < density <= 1.0:
        raise malformed("a density in (0, 1]", repr(density))
    if type(key) is not int or not -(1 << 31) <= key < 1 << 31:
        raise malformed("a key of 32 bits", repr(key))
    if type(rescale) is not bool:
        raise malformed("true or false for rescale", repr(rescale))
    numbers = Frames(kept, len(range(0, info.numel, PIECE)))
    for (start, stop), size in zip(pieces(info.numel, PIECE), numbers.sizes, strict=True):
        if size > (stop - start) * number.itemsize:
            raise malformed(f"at most {stop - start} values in a frame", f"{size} bytes of them")
    exactly = density
    seed, factor = key, 1.0 / density if rescale else 1.0

    def deltas() -> Iterator[Tensor]:
        for piece, (start, stop) in enumerate(pieces(info.numel, PIECE)):
            chosen = _chosen(start, stop, seed, exactly)
            stored = numbers.unpack(piece, number, int(chosen.sum()))
            found = torch.zeros(stop - start)
            found[torch.from_numpy(chosen)] = widened(stored, values) * factor
            yield found

    return Added(info.shape, info.dtype, deltas)


def _chosen(start: int, stop: int, key: int, density: float) -> Bits:
    """[stop − start] bool: whether elements are kept."""
    found: Bits = keys_of(np.arange(start, stop), key) <= last_kept(density)
    return found


def _check_density(density: float, least: float) -> None:
    if isinstance(density, bool) or not least <= density <= 1.0:
        interval = "[0, 1]" if least == 0.0 else "(0, 1]"
        raise MergingError(f"expected a density in {interval}, found {density!r}")


def _tie_seed(pair: Pair) -> int:
    return seed32(0, "", pair.name, "topk")


def _cut(pair: Pair, count: int) -> Cut:
    if count <= 0:
        return NOTHING
    if count >= pair.numel:
        return EVERYTHING
    magnitudes = torch.empty(pair.numel)
    for start, stop in pieces(pair.numel, PIECE):
        torch.abs(pair.delta(start, stop), out=magnitudes[start:stop])
    return cut_by(magnitudes, count, "hash", _tie_seed(pair))


def _inside(magnitudes: Bits, start: int, cut: Cut, seed: int) -> Bits:
    """Which of consecutive elements are within a cut, in [0, n); never a zero, which needs no place."""
    threshold = np.float32(cut.threshold)
    found: Bits = magnitudes > threshold
    tied = np.flatnonzero((magnitudes == threshold) & (magnitudes > 0))
    found[tied[keys_of(tied + start, seed) <= cut.key] if is_tied(cut) else tied] = True
    return np.flatnonzero(found)


def _fewest(pair: Pair, error: float) -> int:
    """How many of the largest |τ| must be kept for a relative error: exactly.

    The squares below each of 2¹⁵ bins of |τ| (its upper 16 bits) are summed, then those of one bin sorted.
    """
    counts, energies = np.zeros(_BINS, dtype=np.int64), np.zeros(_BINS)
    for delta in pair.deltas():
        magnitude = delta.abs().numpy()
        bins = magnitude.view(np.int32) >> 16
        counts += np.bincount(bins, minlength=_BINS)
        energies += np.bincount(bins, np.square(magnitude, dtype=np.float64), _BINS)
    allowed = error**2 * float(energies.sum())
    below = np.cumsum(energies)
    bin_ = min(int(np.searchsorted(below, allowed, side="right")), _BINS - 1)
    rest = allowed - (float(below[bin_ - 1]) if bin_ else 0.0)
    held = [each[each.view(np.int32) >> 16 == bin_] for each in (delta.abs().numpy() for delta in pair.deltas())]
    values = np.sort(np.concatenate([np.empty(0, np.float32), *held])).astype(np.float64)
    dropped = int(counts[:bin_].sum()) + int(np.searchsorted(np.cumsum(values**2), rest, side="right"))
    return pair.numel - dropped
