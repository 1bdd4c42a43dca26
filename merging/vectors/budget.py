"""Which codec a tensor is kept in: the smallest whose error is within a budget."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from merging.recipe import MergingError
from merging.vectors import lowrank, onebit
from merging.vectors.codec import CODECS, Encoded, encode_pair, fits
from merging.vectors.shapes import matrices
from merging.vectors.tensors import OutOfReach, Pair, check_finite

ALL = tuple(name for name in CODECS if name not in ("seeded", "factored"))
"""Without ``seeded``, whose error is large on purpose: only for who asks for it by name."""

_TRIED = 1 << 19
"""Elements by which the codecs of a larger tensor are put in order: slices that lie evenly over it."""

_ROUNDING = 0.003
"""Relative error that rounding values, or two factors, to bfloat16 adds at most, nearly: 2⁻⁹ for each."""

_TRIES = 4
_CLOSER = 0.97
_AIMED = 0.995  # slices tell the step of a whole tensor to within this much


def choose(name: str, base: Tensor, expert: Tensor, budget: float, allowed: Iterable[str] = ALL) -> Encoded:
    """The smallest encoding of a tensor whose relative error is within a budget.

    Small tensors are encoded in every way. Of larger ones every way is tried on slices first, and the whole tensor is
    then encoded in the order of the sizes found, until one keeps the budget. Singular values are computed only where a
    few of them leave hope that they are the smallest.

    Args:
        name, base, expert: as in :func:`merging.vectors.codec.encode`.
        budget: the relative error ‖τ − τ̂‖/‖τ‖ that is allowed, at least 0; 0 is exact.
        allowed: names of codecs; ``exact`` is always among them, and ``seeded`` only where it is named.

    Raises:
        MergingError: a budget that is none, an unknown codec, weights that are not finite.
    """
    check_budget(budget)
    names = sorted({"exact", *allowed})
    pair = Pair(name, base, expert)
    check_finite(pair)
    usable = [each for each in names if fits(each, pair.shape, pair.dtype) and CODECS[each].encode]
    if budget == 0.0 or usable == ["exact"] or pair.is_equal():
        return encode_pair(pair, "exact")
    best = _smallest(pair, [each for each in usable if each != "svd"], budget)
    found = _svd(pair, budget, best.bytes) if "svd" in usable else None
    return best if found is None or found.bytes >= best.bytes else found


def check_budget(budget: float) -> None:
    """Refuse what is no relative error.

    Raises:
        MergingError: says what is expected.
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0.0 <= budget <= 1.0:
        raise MergingError(
            f"expected a budget between 0 (exact) and 1 (nothing of the change need be kept), found {budget!r}"
        )


def _smallest(pair: Pair, codecs: list[str], budget: float) -> Encoded:
    """Of all codecs whose size can be told from slices. ``exact`` is one of them."""
    sample = pair.sample(_TRIED)
    sizes: dict[str, float] = {}
    whole: dict[str, Encoded] = {}
    for codec in codecs:
        if codec == "onebit":  # slices have no rows
            rows, columns = onebit.rows_of(pair.shape)
            if onebit.error_of(pair) <= budget:
                sizes[codec] = rows * (columns / 8 + 4)
            continue
        found = _within(sample, codec, budget)
        if found is not None:
            sizes[codec] = found.bytes * (pair.numel / sample.numel)
            if sample is pair:
                whole[codec] = found
    for codec in sorted(sizes, key=lambda each: (sizes[each], each)):
        encoded = whole.get(codec) or _within(pair, codec, budget)
        if encoded is not None:
            return encoded
    return encode_pair(pair, "exact")


def _within(pair: Pair, codec: str, budget: float) -> Encoded | None:
    """An encoding within a budget; None where the codec has none."""
    target = budget
    for _ in range(_TRIES):
        try:
            found = encode_pair(pair, codec, **_options(codec, target))
        except OutOfReach:
            return None
        if found.error <= budget:
            return found
        if not _options(codec, target):  # there is nothing to turn
            return None
        target *= min(_CLOSER, budget / found.error)
    return None


def _options(codec: str, error: float) -> dict[str, Any]:
    """What makes a codec leave about a relative error."""
    if codec == "uniform":
        return {"error": _AIMED * error}
    if codec == "topk":
        narrow, error = _narrowed(error)
        return {"error": error, "values": "bfloat16" if narrow else "float32"}
    return {}


def _narrowed(error: float) -> tuple[bool, float]:
    """Whether rounding values to bfloat16 leaves enough of a relative error, and how much."""
    narrow = error > 2 * _ROUNDING
    return narrow, math.sqrt(error**2 - _ROUNDING**2) if narrow else error


def _svd(pair: Pair, budget: float, size: int) -> Encoded | None:
    """The fewest singular values within a budget, where they are smaller than a size in bytes."""
    narrow, error = _narrowed(budget)
    count, rows, columns = matrices(pair.shape).stack
    most = min(min(rows, columns), (size - 1) // (count * (rows + columns) * (2 if narrow else 4)))
    if most < 1 or lowrank.is_out_of_reach(pair, error, most):
        return None
    try:
        found = encode_pair(pair, "svd", error=error, most=most, values="bfloat16" if narrow else "float32")
    except OutOfReach:
        return None
    return found if found.error <= budget else None
