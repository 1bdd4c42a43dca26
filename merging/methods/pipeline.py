"""The pipeline that most methods on task vectors share: sparsify → rescale → elect → combine → normalise → scale.

Every stage is a pure function on a piece of a tensor; :func:`pipeline` runs them as one kernel. Two conventions differ
in details and are named in the recipe: the papers', and mergekit's (see each stage).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from merging.masks import keys
from merging.methods.contract import Inputs

Sparsify = Literal["none", "trim", "tails", "drop", "ranked"]
Divide = Literal["none", "count", "coefficients"]


class Plan(NamedTuple):
    """What is compiled in.

    Attributes:
        sparsify: ``trim`` keeps the largest |τ|, ``tails`` drops the largest and the smallest, ``drop`` keeps at
            random, ``ranked`` keeps at random, the likelier the larger in its row.
        tied: some cut goes through equal |τ|, which are told apart by keys.
        hashed: those keys are hashed, instead of the elements' indices.
        unbiased: ``ranked`` divides every kept element by its own probability.
        elect: keep only what agrees with the sign of the sum.
        zero_is_positive: a sum of exactly 0 elects the positive (mergekit); otherwise nothing (a base's weight stays).
        divide: by the number of those that agree, by the sum of their coefficients, or not.
    """

    sparsify: Sparsify
    tied: bool
    hashed: bool
    unbiased: bool
    elect: bool
    zero_is_positive: bool
    divide: Divide


# Numbers and integers of each source, then those that all share.
NUMBERS = 4  # factor of the delta; threshold below (or lowest probability); threshold above (or its step); coefficient
INTEGERS = 4  # seed of its keys, key of the cut below, key of the cut above, last key that is kept
SHARED_NUMBERS = 1  # factor of the sum
SHARED_INTEGERS = 1  # seed of the keys that break ties


def pipeline(inputs: Inputs, plan: Plan) -> Tensor:
    """b + s · Σ over the kept of f_t · (x_t − b), in the dtype of ``inputs.numbers``."""
    base = inputs.base.to(inputs.numbers.dtype)
    key = tie_keys(inputs, plan) if plan.tied else None
    terms = [
        rescaled(sparsified(inputs, base, slot, plan, key), inputs.numbers[NUMBERS * slot])
        for slot in range(len(inputs.sources))
    ]
    if not terms:
        return base
    total = summed(terms)
    if plan.elect:
        sign = elected(total, plan.zero_is_positive)
        agreeing = [agreement(term, sign) for term in terms]
        total = summed(agreeing) * sign
        if plan.divide == "count":
            total = normalised(total, [each.sign() for each in agreeing])
        elif plan.divide == "coefficients":
            weights = [inputs.numbers[NUMBERS * slot + 3] for slot in range(len(terms))]
            total = normalised(total, [each.sign() * weight for each, weight in zip(agreeing, weights, strict=True)])
    return scaled(total, inputs.numbers[-1]) + base


def sparsified(inputs: Inputs, base: Tensor, slot: int, plan: Plan, key: Tensor | None) -> Tensor:
    """τ̂_t of one source: its task vector with 0 where it is dropped.

    Args:
        inputs: see :class:`merging.methods.contract.Inputs`.
        base: in the accumulation dtype.
        slot: of the source.
        plan: see :class:`Plan`.
        key: of :func:`tie_keys`, where the plan is ``tied``.
    """
    numbers = inputs.numbers[NUMBERS * slot : NUMBERS * (slot + 1)]
    integers = inputs.integers[INTEGERS * slot : INTEGERS * (slot + 1)]
    delta = inputs.sources[slot].to(base.dtype) - base
    if plan.sparsify in {"trim", "tails"}:
        keep = above(_magnitude(inputs, slot, delta), numbers[1], integers[1], key)
        if plan.sparsify == "tails":
            keep = keep & ~above(_magnitude(inputs, slot, delta), numbers[2], integers[2], key)
        return masked(delta, keep)
    if plan.sparsify == "drop":
        return masked(delta, keys(inputs.indices, integers[0]) <= integers[3])
    if plan.sparsify == "ranked":
        probability = keep_probability(inputs.fields[slot], numbers[1], numbers[2])
        keep = uniform(keys(inputs.indices, integers[0]), probability) < probability
        # Kept is only what has a probability above 0; the bound is for the others, which are masked.
        return masked(delta / probability.clamp(min=1e-30) if plan.unbiased else delta, keep)
    return delta


def _magnitude(inputs: Inputs, slot: int, delta: Tensor) -> Tensor:
    """|τ| in float32, whatever the dtype that is summed in: the cuts were found by it."""
    if delta.dtype != torch.float32:
        delta = inputs.sources[slot].to(torch.float32) - inputs.base.to(torch.float32)
    return delta.abs()


def masked(delta: Tensor, keep: Tensor) -> Tensor:
    """δ where it is kept, else 0 (or −0: torch.where takes four times as long as the product, eagerly)."""
    return delta * keep


def tie_keys(inputs: Inputs, plan: Plan) -> Tensor:
    """Keys that all sources share; smaller ones are kept first."""
    if plan.hashed:
        return keys(inputs.indices, inputs.integers[-1])
    # mergekit sorts ascending for tails, so that the lowest indices are dropped first, and descending for trimming.
    return -1 - inputs.indices if plan.sparsify == "tails" else inputs.indices


def above(magnitude: Tensor, threshold: Tensor, last: Tensor, key: Tensor | None) -> Tensor:
    """Whether elements belong to a :class:`merging.selection.Cut`; without keys all at the threshold do."""
    if key is None:
        return magnitude >= threshold
    return (magnitude > threshold) | ((magnitude == threshold) & (key <= last))


def keep_probability(rank: Tensor, lowest: Tensor, step: Tensor) -> Tensor:
    """DELLA's probability to keep an element: linear in its rank within the row, clipped to [0, 1]."""
    place = rank.to(torch.int32) + 32768 if rank.dtype == torch.int16 else rank
    return (place.to(lowest.dtype) * step + lowest).clamp(0.0, 1.0)


def uniform(key: Tensor, like: Tensor) -> Tensor:
    """Ordered 32-bit keys -> numbers in [0, 1) on a grid of 2⁻²⁴, which float32 holds."""
    return (((key >> 8) & 0xFFFFFF) ^ 0x800000).to(like.dtype) * (1.0 / (1 << 24))


def rescaled(delta: Tensor, factor: Tensor) -> Tensor:
    """τ̂ · factor: the coefficient and what makes up for the dropped, in one number."""
    return delta * factor


def summed(terms: list[Tensor]) -> Tensor:
    """Σ of the terms, in order."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def elected(total: Tensor, zero_is_positive: bool) -> Tensor:
    """γ in {−1, 0, 1}: the sign of the sum."""
    if zero_is_positive:
        return (total >= 0.0).to(total.dtype) * 2.0 - 1.0
    return total.sign()


def agreement(term: Tensor, sign: Tensor) -> Tensor:
    """|term| where a term has the elected sign, else 0."""
    return (term * sign).clamp(min=0.0)


def normalised(total: Tensor, weights: list[Tensor]) -> Tensor:
    """Σ / Σ of the weights of those that agree (0 for the others); a divisor of exactly 0 counts as 1."""
    divisor = summed(weights)
    return total / (divisor + (divisor == 0.0))


def scaled(total: Tensor, scale: Tensor) -> Tensor:
    """Σ · s."""
    return total * scale
