"""Sums of which the measures of any scope are made: those of its tensors, added."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np

from merging.diagnose.results import Measures, Pair


class Mean:
    """Means of some values, each weighted by the elements that it is about; undefined values take no part.

    Attributes:
        sums, weights: float64, one entry per value.
    """

    def __init__(self, count: int):
        self.sums = np.zeros(count)
        self.weights = np.zeros(count)

    def add(self, values: np.ndarray, weight: int) -> None:
        """Take in [count] values of one matrix; nan is undefined."""
        there = np.isfinite(values)
        self.sums[there] += values[there] * weight
        self.weights[there] += weight

    def join(self, other: Mean) -> None:
        """Take in what another has taken in."""
        self.sums += other.sums
        self.weights += other.weights

    def value(self) -> np.ndarray:
        """[count]; nan where there was none."""
        return _divided(self.sums, self.weights)


class Tally:
    """What is summed over the elements of a scope. Pairs are in the order of ``itertools.combinations``.

    Attributes:
        elements: how many there were.
        inner: [experts + 2, experts + 2] float64 inner products of θ0, every τ, and ones.
        changed: [experts] elements whose τ is not 0.
        kept: [experts] positions that are among the largest at the density.
        both, either: [pairs] positions that both keep, that one or both keep.
        both_chance, either_chance: [pairs] what is expected of these for independent positions.
        shared: [pairs + 1] positions that two or more keep; the last entry: of all experts.
        opposed: [pairs + 1] of these, where signs differ.
        cancelled: [pairs + 1] Σ of 1 − |Σ τ̂| / Σ |τ̂| over these.
        matrix_elements: elements of the matrices that were decomposed.
        ranks: effective, stable and energy rank, [3 · experts].
        alignment: [experts].
        subspaces: left, its chance, right, its chance, [4 · pairs].
        interference: Σ over matrices of ‖(UᵀU − I)·S·(VᵀV − I)‖_1.
        strength: Σ of the singular values in it.
    """

    def __init__(self, experts: int):
        pairs = experts * (experts - 1) // 2
        self.elements = 0
        self.inner = np.zeros((experts + 2, experts + 2))
        self.changed, self.kept = np.zeros(experts), np.zeros(experts)
        self.both, self.either = np.zeros(pairs), np.zeros(pairs)
        self.both_chance, self.either_chance = np.zeros(pairs), np.zeros(pairs)
        self.shared, self.opposed, self.cancelled = np.zeros(pairs + 1), np.zeros(pairs + 1), np.zeros(pairs + 1)
        self.matrix_elements = 0
        self.ranks, self.alignment, self.subspaces = Mean(3 * experts), Mean(experts), Mean(4 * pairs)
        self.interference, self.strength = 0.0, 0.0

    def join(self, other: Tally) -> None:
        """Take in another scope, which has no tensor in common with this one."""
        for name, value in vars(other).items():
            if isinstance(value, Mean):
                getattr(self, name).join(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def measures(self, aliases: Sequence[str]) -> Measures:
        """What the sums say.

        Args:
            aliases: of the experts, in order.
        """
        count, pairs = len(aliases), list(combinations(aliases, 2))
        squares = self.inner.diagonal().clip(min=0.0)
        norms, base_norm = np.sqrt(squares[1:-1]), math.sqrt(squares[0])
        cosine = _over_pairs(self.inner[1:-1, 1:-1])
        means = self.inner[1:-1, -1]
        centred = self.inner[1:-1, 1:-1] - np.outer(means, means) / max(self.elements, 1)
        # what is left of a task vector that is the same everywhere is rounding
        flat = centred.diagonal() <= 1e-14 * squares[1:-1]
        centred[flat] = 0.0
        distance = squares[1:-1, None] + squares[None, 1:-1] - 2.0 * self.inner[1:-1, 1:-1]
        overlap, chance = _divided(self.both, self.either), _divided(self.both_chance, self.either_chance)
        conflict, weighted = _divided(self.opposed, self.shared), _divided(self.cancelled, self.shared)
        ranks = self.ranks.value().reshape(3, count)
        subspaces = self.subspaces.value().reshape(4, len(pairs))
        return Measures(
            elements=self.elements,
            base_norm=base_norm,
            norm=_named(aliases, norms),
            norm_ratio=_named(aliases, norms / base_norm) if base_norm > 0.0 else {},
            changed=_named(aliases, self.changed / max(self.elements, 1)),
            cosine=_named(pairs, cosine),
            pearson=_named(pairs, _over_pairs(centred)),
            z=_named(pairs, cosine * math.sqrt(self.elements)),
            euclidean=_named(pairs, np.sqrt(distance[np.triu_indices(count, 1)].clip(min=0.0))),
            sign_conflict=_with_all(pairs, conflict),
            sign_conflict_weighted=_with_all(pairs, weighted),
            overlap=_named(pairs, overlap),
            overlap_chance=_named(pairs, chance),
            overlap_lift=_named(pairs, _divided(overlap, chance)),
            effective_rank=_named(aliases, ranks[0]),
            stable_rank=_named(aliases, ranks[1]),
            energy_rank=_named(aliases, ranks[2]),
            subspace_left=_named(pairs, subspaces[0]),
            subspace_left_chance=_named(pairs, subspaces[1]),
            subspace_right=_named(pairs, subspaces[2]),
            subspace_right_chance=_named(pairs, subspaces[3]),
            alignment=_named(aliases, self.alignment.value()),
            interference=self.interference if self.strength else None,
            interference_ratio=self.interference / self.strength if self.strength else None,
            matrix_elements=self.matrix_elements,
        )


def _over_pairs(inner: np.ndarray) -> np.ndarray:
    """[pairs] cosines of a Gram matrix; nan where one vector is zero."""
    lengths = np.sqrt(inner.diagonal().clip(min=0.0))
    upper = np.triu_indices(len(inner), 1)
    return _divided(inner[upper], np.outer(lengths, lengths)[upper]).clip(-1.0, 1.0)


def _divided(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, nan where the whole is 0."""
    result: np.ndarray = np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0.0)
    return result


def _named(names: Sequence[Any], values: np.ndarray) -> dict[Any, float]:
    """Those of the values that are defined."""
    return {name: float(value) for name, value in zip(names, values, strict=True) if math.isfinite(value)}


def _with_all(pairs: Sequence[Pair], values: np.ndarray) -> dict[Pair | Literal["all"], float]:
    return _named([*pairs, "all"], values)
