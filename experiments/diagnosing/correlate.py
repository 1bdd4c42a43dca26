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
    """Of the pairs that have this number.

    Args:
        pairs: that count.
        key: of the predictor.
        seed: of the bootstrap.
        draws: of it.
    """
    known = [each for each in pairs if math.isfinite(each.values.get(key, math.nan))]
    values, gaps = np.array([each.values[key] for each in known]), np.array([each.gap for each in known])
    families = [each.family for each in known]
    cells = sorted({each.cell for each in known})
    places = [[number for number, each in enumerate(known) if each.cell == cell] for cell in cells]
    generator, found = np.random.default_rng(seed), []
    for _ in range(draws if len(cells) > 1 else 0):
        drawn = [number for cell in generator.integers(len(cells), size=len(cells)) for number in places[cell]]
        found.append(within(values[drawn], gaps[drawn], [families[number] for number in drawn]))
    found = [each for each in found if math.isfinite(each)]
    low, high = np.quantile(found, [0.025, 0.975]) if found else (math.nan, math.nan)
    return Correlation(
        len(known), spearman(values, gaps), within(values, gaps, families), float(low), float(high),
        pearson(values, gaps),
    )  # fmt: skip


def chance(pairs: Sequence[Pair], keys: Sequence[str], seed: int = 0, draws: int = DRAWS) -> float:
    """What the best of several predictors reaches by chance, in 1 of 20 cases: the 95 % quantile of the largest
    |``within``| after gaps are exchanged within families."""
    generator = np.random.default_rng(seed)
    gaps = np.array([each.gap for each in pairs])
    families = [each.family for each in pairs]
    places = [[number for number, each in enumerate(families) if each == name] for name in dict.fromkeys(families)]
    columns = [np.array([each.values.get(key, math.nan) for each in pairs]) for key in keys]
    columns = [column for column in columns if np.isfinite(column).all()]
    largest = []
    for _ in range(draws):
        mixed = gaps.copy()
        for place in places:
            mixed[place] = generator.permutation(gaps[place])
        largest.append(max(abs(within(column, mixed, families)) for column in columns))
    return float(np.quantile(largest, 0.95))


def spearman(values: np.ndarray, others: np.ndarray) -> float:
    """Pearson's correlation of ranks, equal values sharing one; nan where one is constant or there are fewer than 3."""
    return pearson(rankdata(values), rankdata(others)) if len(values) > 2 else math.nan


def within(values: np.ndarray, others: np.ndarray, families: Sequence[str]) -> float:
    """Pearson's correlation of ranks within each family, each family's brought to mean 0 and to the same spacing; nan
    where no family of at least 3 has any spread."""
    left, right = [], []
    for name in dict.fromkeys(families):
        place = [number for number, each in enumerate(families) if each == name]
        if len(place) >= 3:
            for column, ranks in ((left, values), (right, others)):
                held = rankdata(ranks[place])
                column.append((held - held.mean()) / len(place))
    return pearson(np.concatenate(left), np.concatenate(right)) if left else math.nan


def pearson(values: np.ndarray, others: np.ndarray) -> float:
    """Correlation; nan where one is constant."""
    if len(values) < 2 or not values.std() > 0.0 or not others.std() > 0.0:
        return math.nan
    return float(np.corrcoef(values, others)[0, 1])
