"""What was measured, read back: retentions by size, seed, merge and arm, and the blocks that trends are taken over."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.diagnosing.gaps import Records
from experiments.sizing.measure import PART, retentions
from experiments.sizing.plan import MERGES, ONE_LAMBDA, SKILLS, doublings, title


@dataclass(frozen=True)
class Cell:
    """One size and training seed that is measured whole.

    Attributes:
        name: of the family.
        seed: of its training.
        rows: ``models``, ``weights`` and one for every merge, as :mod:`experiments.sizing.measure` gives them.
    """

    name: str
    seed: int
    rows: dict[str, Any]

    @property
    def alone(self) -> dict[str, dict[str, float]]:
        """{model: {skill: accuracy on the holdout}} of the base and the experts."""
        found: dict[str, dict[str, float]] = self.rows["models"]["holdout"]
        return found

    def held(self, experts: Sequence[str], arm: str) -> dict[str, float]:
        """Skill -> accuracy of a merge on the holdout."""
        found: dict[str, float] = self.rows[title(experts)][arm]["holdout"]
        return found

    def chosen(self, experts: Sequence[str], arm: str) -> str:
        """What was chosen on search items."""
        return str(self.rows[title(experts)][arm]["chosen"])

    def kept(self, experts: Sequence[str], arm: str) -> dict[str, float]:
        """Skill -> retention of a merge on the holdout."""
        return retentions(self.held(experts, arm), self.alone, experts)

    def mean(self, experts: Sequence[str], arm: str) -> float:
        """Mean retention; 1 − it is the merge gap."""
        return statistics.fmean(self.kept(experts, arm).values())

    def worst(self, experts: Sequence[str], arm: str) -> float:
        """Smallest retention."""
        return min(self.kept(experts, arm).values())

    def primary(self) -> float:
        """What the question is answered by: mean retention at the best single λ, mean of the three merges."""
        return statistics.fmean(self.mean(experts, ONE_LAMBDA) for experts in MERGES)

    @property
    def learned(self) -> float:
        """The smallest gain of an expert over the base on its own skill: retention divides by it."""
        return min(self.alone[name][name] - self.alone["base"][name] for name in SKILLS)

    def norm_ratio(self) -> float:
        """‖τ‖/‖θ0‖, mean of the experts."""
        return statistics.fmean(self.rows["weights"]["norm_ratio"][name] for name in SKILLS)

    def of_pairs(self, key: str) -> float:
        """A measure of the weights, mean of the pairs of experts."""
        return statistics.fmean(each[key] for each in self.rows["weights"]["pairs"].values())


def read(records: Records, names: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Every size and seed of which all is known, smallest size first."""
    wanted = {"models", "weights", *(title(experts) for experts in MERGES)}
    found = [Cell(name, seed, records.read(PART, name, seed)) for name in names for seed in seeds]
    return [cell for cell in found if wanted <= cell.rows.keys()]


def blocks(cells: Sequence[Cell], value: Callable[[Cell], float]) -> dict[int, dict[float, float]]:
    """Training seed -> {log2(width): value}."""
    found: dict[int, dict[float, float]] = {}
    for cell in cells:
        found.setdefault(cell.seed, {})[doublings(cell.name)] = value(cell)
    return found


def by_size(cells: Sequence[Cell], value: Callable[[Cell], float]) -> dict[str, list[float]]:
    """Family -> its seeds' values, in the order of the cells."""
    found: dict[str, list[float]] = {}
    for cell in cells:
        found.setdefault(cell.name, []).append(value(cell))
    return found
