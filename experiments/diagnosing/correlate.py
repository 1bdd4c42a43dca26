"""How well numbers of pairs foretell their gaps: rank correlations, over all pairs and within families, and chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import rankdata

from experiments.diagnosing.families import FAMILIES, LEARNED
from experiments.diagnosing.gaps import Records

DRAWS = 2000
"""Of the bootstrap, and of permutations."""


@dataclass(frozen=True)
class Pair:
    """One measured pair.

    Attributes:
        family, seed, name: which.
        gap: 1 − mean retention at the best λ, on the holdout.
        best: that λ.
        learned: the smaller gain of the two experts over the base on their own task.
        values: predictor -> number; those that are not known are missing.
        diagnosis: its data, for the verdict; empty where it is not known.
    """

    family: str
    seed: int
    name: str
    gap: float
    best: float
    learned: float
    values: Mapping[str, float]
    diagnosis: Mapping[str, Any] = field(default_factory=dict)

    @property
    def cell(self) -> tuple[str, int]:
        """Pairs of one cell share a base, and experts."""
        return self.family, self.seed


def read(records: Records) -> tuple[list[Pair], list[Pair]]:
    """The pairs that count, and those of which an expert learned too little for its retention to mean anything."""
    found = []
    for name, family in FAMILIES.items():
        for seed in family.seeds:
            known = records.read("predictors", name, seed)
            for pair, row in records.read("gaps", name, seed).items():
                more = known.get(pair, {})
                learned = min(row["own"][each] - row["base"][each] for each in row["own"])
                numbers = {key: value for key, value in more.items() if key not in {"diagnosis", "seconds"}}
                found.append(
                    Pair(name, seed, pair, row["gap"], row["lambda"], learned, numbers, more.get("diagnosis", {}))
                )
    return [each for each in found if each.learned >= LEARNED], [each for each in found if each.learned < LEARNED]


@dataclass(frozen=True)
class Correlation:
    """Of one predictor with the gap.

    Attributes:
        count: pairs.
        overall: Spearman's ρ over all of them; nan where it is not defined.
        within: the same of ranks within each family, pooled: whether it orders models of one kind.
        low, high: 95 % interval of ``within``, cells drawn with replacement.
        pearson: over all pairs.
    """

    count: int
    overall: float
    within: float
    low: float
    high: float
    pearson: float


def correlation(pairs: Sequence[Pair], key: str, seed: int = 0, draws: int = DRAWS) -> Correlation:
    """Of the pairs that have this number. The bootstrap keeps every pair's ranks, and draws whose are counted.

    Args:
        pairs: that count.
        key: of the predictor.
        seed: of the bootstrap.
        draws: of it.
    """
    known = [each for each in pairs if math.isfinite(each.values.get(key, math.nan))]
    values, gaps = np.array([each.values[key] for each in known]), np.array([each.gap for each in known])
    families = [each.family for each in known]
    ranks = family_ranks(values, families), family_ranks(gaps, families)
    cells = sorted({each.cell for each in known})
    drawn = np.random.default_rng(seed).multinomial(len(cells), [1 / max(len(cells), 1)] * len(cells), size=draws)
    place = np.array([cells.index(each.cell) for each in known], dtype=int)
    found = _weighted(*ranks, drawn[:, place])
    found = found[np.isfinite(found)]
    low, high = np.quantile(found, [0.025, 0.975]) if len(found) else (math.nan, math.nan)
    return Correlation(
        len(known), spearman(values, gaps), within(values, gaps, families), float(low), float(high),
        pearson(values, gaps),
    )  # fmt: skip


def chance(pairs: Sequence[Pair], keys: Sequence[str], seed: int = 0, draws: int = DRAWS) -> float:
    """What the best of several predictors reaches by chance, in 1 of 20 cases: the 95 % quantile of the largest
    |``within``| after gaps are exchanged within families."""
    generator = np.random.default_rng(seed)
    families = [each.family for each in pairs]
    gaps = family_ranks(np.array([each.gap for each in pairs]), families)
    places = [[number for number, each in enumerate(families) if each == name] for name in dict.fromkeys(families)]
    columns = [
        family_ranks(np.array([each.values[key] for each in pairs]), families)
        for key in keys
        if all(math.isfinite(each.values.get(key, math.nan)) for each in pairs)
    ]
    largest = []
    for _ in range(draws):
        mixed = gaps.copy()
        for place in places:
            mixed[place] = generator.permutation(gaps[place])
        largest.append(max(abs(pearson(column, mixed)) for column in columns))
    return float(np.quantile(largest, 0.95))


def spearman(values: np.ndarray, others: np.ndarray) -> float:
    """Pearson's correlation of ranks, equal values sharing one; nan where one is constant or there are fewer than 3."""
    return pearson(rankdata(values), rankdata(others)) if len(values) > 2 else math.nan


def within(values: np.ndarray, others: np.ndarray, families: Sequence[str]) -> float:
    """Pearson's correlation of :func:`family_ranks`; nan where there is no spread."""
    return pearson(family_ranks(values, families), family_ranks(others, families))


def family_ranks(values: np.ndarray, families: Sequence[str]) -> np.ndarray:
    """Ranks within each family, brought to mean 0 and divided by its size; 0 in families of fewer than 3."""
    found = np.zeros(len(values))
    for name in dict.fromkeys(families):
        place = [number for number, each in enumerate(families) if each == name]
        if len(place) >= 3:
            held = rankdata(values[place])
            found[place] = (held - held.mean()) / len(place)
    return found


def _weighted(values: np.ndarray, others: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[draws] correlations of values that count so many times each; nan where one is constant.

    Args:
        values, others: [n].
        weights: [draws, n] of whole numbers.
    """
    total = weights.sum(1).clip(min=1)
    mean, other_mean = weights @ values / total, weights @ others / total
    covariance = weights @ (values * others) / total - mean * other_mean
    variance = weights @ values**2 / total - mean**2
    other_variance = weights @ others**2 / total - other_mean**2
    size = np.sqrt(variance.clip(min=0.0) * other_variance.clip(min=0.0))
    return np.divide(covariance, size, out=np.full(len(size), math.nan), where=size > 1e-12)


def pearson(values: np.ndarray, others: np.ndarray) -> float:
    """Correlation; nan where one is constant."""
    if len(values) < 2 or not values.std() > 0.0 or not others.std() > 0.0:
        return math.nan
    return float(np.corrcoef(values, others)[0, 1])
