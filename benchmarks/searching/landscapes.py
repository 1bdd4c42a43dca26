"""What the optimizers are compared on: problems whose truth is known and whose observations are noisy.

A landscape is larger-is-better utilities in [0, 1] over a box of genomes. ``truth`` is what scores a front, ``observe``
what an optimizer hears. The noise of evaluation i is drawn from (seed, i) alone, whoever asks and whatever for, so two
optimizers on one seed meet the same luck: their difference is a paired one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import stats

from benchmarks.searching.quadratics import Quadratics, quadratics, ripples
from benchmarks.searching.table import Table, TableError
from search import pareto
from search.optimizers.contract import Box, Genome

Array = npt.NDArray[np.float64]

ITEMS = 250
FINER = 4
DATA = Path(__file__).resolve().parents[1] / "data"
TABLES = {"table-two": DATA / "skills_two.npz", "table-three": DATA / "skills_three.npz"}


class Landscape(Protocol):
    """One problem, one seed."""

    @property
    def box(self) -> Box:
        """The genomes."""
        ...

    @property
    def objectives(self) -> int:
        """How many utilities."""
        ...

    @property
    def starts(self) -> tuple[Genome, ...]:
        """What every contender is told first and pays for, as a run's baselines are."""
        ...

    @property
    def best(self) -> float:
        """Hypervolume beyond the origin of the best front that there is, or a bound above it."""
        ...

    def truth(self, genome: Genome) -> Array:
        """[objectives] true utilities."""
        ...

    def observe(self, number: int, genome: Genome) -> Array:
        """[objectives] utilities as measured by the evaluation of this number."""
        ...


@dataclass(frozen=True)
class Synthetic:
    """Coupled tasks of known front (:mod:`benchmarks.searching.quadratics`), each measured on ``ITEMS`` items.

    Attributes:
        tasks: the smooth part; its exact front bounds the rough one's too.
        seed: of the noise.
        ripple: adds to the loss, >= 0, [objectives] from values; None for a smooth landscape.
    """

    tasks: Quadratics
    seed: int
    ripple: Callable[[Array], Array] | None = None

    @property
    def box(self) -> Box:
        return Box(self.tasks.optimum.shape[1], (self.tasks.penalty.shape[2],) * self.tasks.penalty.shape[1])

    @property
    def objectives(self) -> int:
        return len(self.tasks.optimum)

    @property
    def starts(self) -> tuple[Genome, ...]:
        """The average merge with each method."""
        box = self.box
        choices = range(box.categories[0] if box.categories else 1)
        return tuple(Genome((0.5,) * box.continuous, (choice,) * len(box.categories)) for choice in choices)

    @cached_property
    def best(self) -> float:
        return pareto.hypervolume(self.tasks.front(), (0.0,) * self.objectives)

    def truth(self, genome: Genome) -> Array:
        values = np.asarray(genome.values, dtype=np.float64)
        loss = self.tasks.loss(values, genome.categories)
        return np.exp(-loss if self.ripple is None else -loss - self.ripple(values))

    def observe(self, number: int, genome: Genome) -> Array:
        luck = np.random.default_rng([self.seed, 99, number]).random(self.objectives)
        # by the inverse of the distribution function: better candidates are better under the same luck
        return np.asarray(stats.binom.ppf(luck, ITEMS, self.truth(genome)) / ITEMS, dtype=np.float64)


@dataclass(frozen=True)
class Recorded:
    """A table of real merges, replayed between its lattice points too.

    An item is answered by the lattice point that the item's own fixed dither rounds to: every verdict is a real one,
    neighbours agree on most items, and the mean follows the multilinear interpolation. The noise is real: a seed draws
    which search items of each skill are asked, the same ones of every candidate. Truth is the interpolated holdout.

    Attributes:
        table: the recorded merges.
        seed: draws the items.
        items: how many of each skill's search items are asked.
    """

    table: Table
    seed: int
    items: int = 100

    def __post_init__(self) -> None:
        for skill, each in self.table.items.items():
            if self.items > len(each.search):
                raise TableError(f"expected at most {len(each.search)} items of {skill}, found {self.items}")

    @property
    def box(self) -> Box:
        return self.table.lattice.box

    @property
    def objectives(self) -> int:
        return len(self.table.items)

    @property
    def starts(self) -> tuple[Genome, ...]:
        """The same coefficient for all experts, at every level, and the middle one with the other methods."""
        levels, methods = len(self.table.lattice.levels), len(self.table.lattice.methods)
        genes = len(self.table.lattice.genes)
        points = [(step / (levels - 1), 0) for step in range(levels)] + [(0.5, each) for each in range(1, methods)]
        return tuple(Genome((value,) * genes, (method,)) for value, method in points)

    @cached_property
    def best(self) -> float:
        """Of the lattice and what lies between its points, on a grid ``FINER`` times as fine."""
        lattice = self.table.lattice
        axis = np.linspace(0.0, 1.0, FINER * (len(lattice.levels) - 1) + 1)
        values = np.stack([each.ravel() for each in np.meshgrid(*[axis] * len(lattice.genes))], axis=1)
        found = np.concatenate([self._truths(values, method) for method in range(len(lattice.methods))])
        return pareto.hypervolume(found, (0.0,) * self.objectives)

    def truth(self, genome: Genome) -> Array:
        return np.asarray(self._truths(np.asarray([genome.values]), genome.categories[0])[0])

    def observe(self, number: int, genome: Genome) -> Array:
        means = []
        for skill, (asked, dither) in self._asked.items():
            rows = self.table.lattice.dithered(genome, dither)
            means.append(self.table.part(skill, "search")[rows, asked].mean())
        return np.asarray(means)

    @cached_property
    def _asked(self) -> dict[str, tuple[npt.NDArray[np.int64], Array]]:
        """Skill -> which items, and their dithers."""
        found = {}
        for index, (skill, items) in enumerate(self.table.items.items()):
            random = np.random.default_rng([self.seed, 77, index])
            asked = random.choice(len(items.search), self.items, replace=False)
            found[skill] = asked, random.random((self.items, len(self.table.lattice.genes)))
        return found

    @cached_property
    def _holdout(self) -> Array:
        """[rows / methods, methods, objectives]"""
        return self.table.truth("holdout").reshape(-1, len(self.table.lattice.methods), self.objectives)

    def _truths(self, values: Array, method: int) -> Array:
        rows, weights = self.table.lattice.corners(values)
        return np.asarray((self._holdout[:, method, :][rows] * weights[:, :, None]).sum(axis=1))


SYNTHETIC = tuple(f"{kind}-{n}d-{k}o" for kind in ("smooth", "rough") for n in (10, 64, 200) for k in (2, 3))


def names() -> tuple[str, ...]:
    """Every landscape, recorded ones where their table is there."""
    return (*SYNTHETIC, *(name for name, path in TABLES.items() if path.exists()))


@lru_cache(maxsize=4)
def _table(name: str) -> Table:
    return Table.load(TABLES[name])


def landscape(name: str, seed: int) -> Landscape:
    """Build a landscape.

    Args:
        name: ``smooth-10d-2o`` (any numbers), ``rough-64d-3o`` or a recorded table's.
        seed: of the problem and of its noise.

    Raises:
        TableError: no such name, or no such table.
    """
    if name in TABLES:
        return Recorded(_table(name), seed)
    kind, _, shape = name.partition("-")
    numbers = [each[:-1] for each in shape.split("-")]
    if kind not in ("smooth", "rough") or len(numbers) != 2 or not all(each.isdigit() for each in numbers):
        raise TableError(f"expected a landscape such as {', '.join(names())}, found {name!r}")
    n, tasks = (int(each) for each in numbers)
    return Synthetic(quadratics(n, seed, tasks), seed, ripples(n, seed, tasks) if kind == "rough" else None)


def share(landscape: Landscape, genomes: Sequence[Genome], observed: Sequence[Array]) -> float:
    """Hypervolume of the true utilities of the front chosen on observed ones, over the best possible."""
    chosen = np.flatnonzero(pareto.nondominated(np.asarray(observed))).tolist()
    true = np.asarray([landscape.truth(genomes[index]) for index in chosen])
    return pareto.hypervolume(true, (0.0,) * landscape.objectives) / landscape.best
