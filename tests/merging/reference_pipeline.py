"""What the reference computes with: one tensor's case, hash keys, orders, and the pipeline of task vectors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Parameters = Mapping[str, Any]

CANCELS = 1e-5  # an election whose |Σ D| is below this share of Σ |D| is left unjudged


class Refused(ValueError):
    """The definitions call this a user's error."""


class Merged(NamedTuple):
    """What a method makes of one tensor.

    Attributes:
        value: float64, of the tensor's shape.
        doubtful: bool, of the tensor's shape: elements that rounding may have decided.
        magnitude: float64, of the tensor's shape: what rounding errors are proportional to.
    """

    value: Array
    doubtful: Array
    magnitude: Array


@dataclass(frozen=True)
class Case:
    """One tensor of the base and of the sources, with every parameter filled in."""

    base: Array
    sources: Sequence[Array]
    per_source: Sequence[Parameters]
    shared: Parameters
    name: str
    contents: Sequence[str]
    trimmed: Sequence[Array] | None = None
    deltas: list[Array] = field(default_factory=list)
    selecting: list[Array] = field(default_factory=list)

    def __post_init__(self) -> None:
        for source in self.sources:
            self.deltas.append(source - self.base)
            self.selecting.append(source.astype(np.float32) - self.base.astype(np.float32))

    def __getitem__(self, name: str) -> Any:
        return self.shared[name]

    def column(self, name: str) -> list[float]:
        return [float(values[name]) for values in self.per_source]

    @property
    def mergekit(self) -> bool:
        return bool(self.shared["convention"] == "mergekit")

    def nowhere(self) -> Array:
        return np.zeros(self.base.shape, bool)


# Keys and orders.


def keys(count: int, seed: int, content: str, name: str, operation: str) -> NDArray[np.uint32]:
    """[count] uint32 hash of every element's index."""
    text = f"{seed}\n{content}\n{name}\n{operation}"
    start = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
    x = np.arange(count, dtype=np.uint32) ^ np.uint32(start)
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def largest(deltas: Mapping[str, Array], count: int, seed: int) -> dict[str, Array]:
    """name -> mask of the ``count`` elements of largest magnitude over all; equal ones by key, then by name."""
    names = sorted(deltas)
    size = np.concatenate([np.abs(deltas[name]).reshape(-1) for name in names])
    key = np.concatenate([keys(deltas[name].size, seed, "", name, "ties") for name in names])
    place = np.concatenate([np.full(deltas[name].size, position) for position, name in enumerate(names)])
    kept = np.zeros(size.size, bool)
    kept[np.lexsort((place, key, -size))[:count]] = True
    parts = np.split(kept, np.cumsum([deltas[name].size for name in names])[:-1])
    return {name: part.reshape(deltas[name].shape) for name, part in zip(names, parts, strict=True)}


def descending(size: Array, case: Case) -> Array:
    """Positions of the flattened tensor from largest to smallest, equal ones in the convention's order."""
    size = size.reshape(-1)
    if case.mergekit:
        return np.argsort(-size, kind="stable")
    return np.lexsort((keys(size.size, int(case.shared.get("seed", 0)), "", case.name, "ties"), -size))


def mask_of(positions: Array, shape: tuple[int, ...]) -> Array:
    mask = np.zeros(math.prod(shape), bool)
    mask[positions] = True
    return mask.reshape(shape)


# Sparsifiers: source number -> mask, probability of each kept element (None: not random), doubtful.

Sparse = tuple[Array, "Array | float | None", Array]


def trim(case: Case, t: int) -> Sparse:
    delta, density = case.selecting[t], float(case.per_source[t]["density"])
    if case.trimmed is not None:
        return case.trimmed[t], None, case.nowhere()
    count = round(density * delta.size)
    if case.mergekit:
        count = 0 if density <= 0 else max(1, int(density * delta.size))
    if density >= 1:
        count = delta.size
    return mask_of(descending(np.abs(delta), case)[:count], delta.shape), None, case.nowhere()


def tails(case: Case, t: int) -> Sparse:
    delta, density = case.selecting[t], float(case.per_source[t]["density"])
    n, top = delta.size, int(float(case.per_source[t]["gamma"]) * delta.size)
    if case.mergekit:
        if density >= 1:
            return ~case.nowhere(), None, case.nowhere()
        ascending, count = np.argsort(np.abs(delta).reshape(-1), kind="stable"), int(density * n)
        bottom = max(0, n - count - top)
        return mask_of(ascending[bottom : bottom + count], delta.shape), None, case.nowhere()
    ascending, count = descending(np.abs(delta), case)[::-1], round(density * n)
    bottom = max(0, n - count - top)
    return mask_of(ascending[bottom : max(bottom, min(bottom + count, n - top))], delta.shape), None, case.nowhere()


def drop_keys(case: Case, t: int) -> Array:
    key = keys(case.base.size, int(case["seed"]), case.contents[t], case.name, "drop")
    return key.astype(np.float64).reshape(case.base.shape)


def drop(case: Case, t: int) -> Sparse:
    density = float(case.per_source[t]["density"])
    return drop_keys(case, t) < round(density * 2**32), density, case.nowhere()


def ranked_drop(case: Case, t: int) -> Sparse:
    density, epsilon = float(case.per_source[t]["density"]), float(case.per_source[t]["epsilon"])
    if case.mergekit:
        if density >= 1 or density <= 0:
            return np.full(case.base.shape, density >= 1), 1.0, case.nowhere()
        if not (density - epsilon > 0 and density + epsilon < 1):
            raise Refused("density ± epsilon leaves (0, 1)")
    width = case.base.shape[-1] if case.base.ndim else 1
    rows = np.abs(case.selecting[t]).reshape(-1, width)
    rank = np.empty(rows.shape)
    for row, order in zip(rank, np.argsort(rows, axis=1, kind="stable"), strict=True):
        row[order] = np.arange(width) / (width - 1) if width > 1 else 0.5
    chance = (density - epsilon) + 2 * epsilon * rank.reshape(case.base.shape)
    if not case.mergekit:
        chance = np.clip(chance, 0.0, 1.0)
    key = drop_keys(case, t)
    return key < np.round(chance * 2**32), chance, np.abs(key - chance * 2**32) <= 2048


# The pipeline of task vectors: sparsify, rescale, × c, elect, combine, normalise, × s, + base.


def pipeline(sparsify: Callable[[Case, int], Sparse], elects: bool) -> Callable[[Case], Merged]:
    def run(case: Case) -> Merged:
        coefficients = case.column("coefficient")
        terms, doubtful = [], case.nowhere()
        for t, delta in enumerate(case.deltas):
            mask, chance, unsure = sparsify(case, t)
            doubtful |= unsure
            kept = np.where(mask, delta, 0.0)
            if case["rescale"]:
                kept = kept * rescaling(delta, kept, None if case.mergekit else chance)
                if unsure.any() and case.mergekit:
                    doubtful |= True
            terms.append(coefficients[t] * kept)
        if elects:
            total, size, unsure = elect(case, terms, coefficients)
            doubtful |= unsure
        else:
            total, size = add(case, terms), add(case, [np.abs(term) for term in terms])
            if case["normalize"] and terms:
                divisor = sum(coefficients)
                if abs(divisor) < 1e-8:
                    if not case.mergekit:
                        raise Refused("the coefficients sum to 0")
                    divisor = 1.0
                total, size = total / divisor, size / abs(divisor)
        scale = float(case["scale"])
        return Merged(case.base + scale * total, doubtful, np.abs(case.base) + abs(scale) * size)

    return run


def rescaling(delta: Array, kept: Array, chance: Array | float | None) -> Array | float:
    if chance is not None:
        return np.divide(1.0, chance, out=np.zeros(np.shape(chance)), where=np.asarray(chance) > 0)
    before, after = math.fsum(np.abs(delta).flat), math.fsum(np.abs(kept).flat)
    return 1.0 if min(before, after) < 1e-7 else before / after


def add(case: Case, terms: Sequence[Array]) -> Array:
    return sum(terms, np.zeros(case.base.shape))


def elect(case: Case, terms: Sequence[Array], coefficients: Sequence[float]) -> tuple[Array, Array, Array]:
    """Σ of the terms of the elected sign (÷ their number or weight), its magnitude, and where the vote was close."""
    sign = np.sign(add(case, terms))
    if case.mergekit:
        sign = np.where(sign == 0, 1.0, sign)
    agree = [(np.sign(term) == sign) & (term != 0) for term in terms]
    total = add(case, [np.where(mask, term, 0.0) for mask, term in zip(agree, terms, strict=True)])
    doubtful = close_vote(case, terms)
    divisor = np.ones(case.base.shape)
    if case["normalize"]:
        if case.mergekit:
            divisor = add(case, [mask * c for mask, c in zip(agree, coefficients, strict=True)])
            weight = add(case, [mask * abs(c) for mask, c in zip(agree, coefficients, strict=True)])
            doubtful = doubtful | ((np.abs(divisor) < CANCELS * weight) & (not plain(coefficients)))
        else:
            divisor = add(case, [mask.astype(float) for mask in agree])
        divisor = np.where(divisor == 0, 1.0, divisor)
    return total / divisor, np.abs(total / divisor), doubtful


def close_vote(case: Case, terms: Sequence[Array]) -> Array:
    """Where Σ D nearly cancels, but for sums that every precision takes exactly."""
    size = add(case, [np.abs(term) for term in terms])
    close = np.asarray((np.abs(add(case, terms)) < CANCELS * size) & (size > 0))
    columns = np.stack([term[close] for term in terms], axis=1) if close.any() else np.zeros((0, 0))
    certain = []
    for column in columns:
        present = column[column != 0]
        certain.append((len(present) == 2 and present[0] == -present[1]) or plain(column))
    close[close] = ~np.array(certain, bool)
    return close


def plain(values: Sequence[float] | Array) -> bool:
    """Whether the values are multiples of one power of two and few bits long: float32 sums them without rounding."""
    values = np.asarray(values, np.float64)
    largest_value = np.abs(values).max(initial=0.0)
    if largest_value == 0.0:
        return True
    units = values / 2.0 ** (math.floor(math.log2(largest_value)) - 18)
    return bool((units == np.floor(units)).all())
