"""Steady-state evolution that maximises the hypervolume of its population; categories beside coefficients.

(mu+1) selection after Beume, Naujoks & Emmerich, "SMS-EMOA: multiobjective selection based on dominated hypervolume",
EJOR 181(3), 2007: of mu+1 individuals the one that goes is, in the worst non-domination rank, the one that contributes
least hypervolume. Constraints: infeasible ones go first, the most violating of them foremost (Deb's rules). Step sizes
mutate with the individuals that carry them (Schwefel's self-adaptation, log-normal). With one objective the best mu
survive.

Every proposal is drawn from a generator seeded by (seed, id), so the state is the population alone, and that comes from
tells. What a child inherited is remembered until its tell, and is the same in a replay because its parents are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from search import pareto
from search.optimizers.contract import Genome, Outcome, Settings, Trial
from search.optimizers.outcomes import Array, generator, genome, utilities, violation
from search.optimizers.prescreen import PrescreenOptions

SMALLEST_STEP, LARGEST_STEP = 1e-4, 0.5
REDRAWS = 30
REMEMBERED = 512


class SmsEmoaOptions(PrescreenOptions):
    """Options of ``sms_emoa``.

    Attributes:
        population: how many individuals survive (mu >= 2); from the budget, between 10 and 40, if None.
        sigma0: step size around the start, in units of a gene's range, in (0, 0.5].
        crossover: probability in [0, 1] that a child has two parents.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    population: int | None = Field(default=None, ge=2)
    sigma0: float = Field(default=0.1, gt=0.0, le=LARGEST_STEP)
    crossover: float = Field(default=0.8, ge=0.0, le=1.0)


class Strategy(NamedTuple):
    """What an individual mutates its children with: a step size, and a probability per category."""

    step: float
    flip: float


@dataclass(frozen=True)
class Individual:
    """A survivor: its genome's hash, the values [n] and categories [m] that its children inherit, utilities
    [objectives], total violation >= 0."""

    id: int
    genome: Genome
    key: int
    values: Array
    categories: npt.NDArray[np.int64]
    strategy: Strategy
    utilities: Array
    violation: float


class Standing:
    """How a population stands: ranks, feasibility first, and, within a rank, contributions. These are computed for a
    rank when somebody asks: selection needs the last one, and parents seldom meet in the same.

    Args:
        points: [p, objectives] utilities.
        corner: [objectives] of the hypervolume.
        ranks: [p] from 0.
    """

    def __init__(self, points: Array, corner: Array, ranks: npt.NDArray[np.int64]) -> None:
        self.ranks = ranks
        self._points = points
        self._corner = corner
        self._shares: dict[int, Array] = {}

    def worst(self) -> int:
        """Index of the one that goes. Of equals the oldest goes: it lets the population drift over plateaus."""
        rank = int(self.ranks.max())
        last = np.flatnonzero(self.ranks == rank)
        return int(last[np.argmin(self._of(rank)[last])])

    def better(self, one: int, other: int) -> bool:
        """Whether one comes before the other: by rank, then by contribution."""
        rank, theirs = int(self.ranks[one]), int(self.ranks[other])
        if rank != theirs or one == other:
            return rank < theirs
        shares = self._of(rank)
        return bool(shares[one] > shares[other])

    def _of(self, rank: int) -> Array:
        """[p] contributions of those of a rank, 0 elsewhere."""
        if rank not in self._shares:
            here = self.ranks == rank
            shares = np.zeros(len(self._points))
            shares[here] = pareto.contributions(self._points[here], self._corner)
            self._shares[rank] = shares
        return self._shares[rank]


class SmsEmoa:
    """See the module docstring."""

    Options: ClassVar[type[BaseModel]] = SmsEmoaOptions

    def __init__(self, settings: Settings) -> None:
        options = SmsEmoaOptions.model_validate(settings.options)
        box = settings.box
        self._box = box
        self._objectives = settings.objectives
        self._seed = settings.seed
        self._reference = np.asarray(settings.reference, dtype=np.float64)
        self._choices = np.asarray(box.categories, dtype=np.int64)
        self._crossover = options.crossover
        self._mu = options.population or min(40, max(10, settings.budget // 40))
        self._first = Strategy(options.sigma0, 1.0 / max(1, len(box.categories)))
        self._center = settings.center
        self._flipped = 0.5 if settings.sure is None else 1.0 - settings.sure  # choices of a founder
        # Where most choices are off, a gene that hangs on one would drift until it is on, and arrive anywhere.
        self._canonical = settings.canonical if settings.sure is not None else None
        self._population: list[Individual] = []
        self._hashes: set[int] = set()
        self._asked: dict[int, Strategy] = {}
        self._told: dict[int, None] = {}  # hashes of the last genomes told, oldest first
        self._standing: Standing | None = None

    @property
    def population(self) -> tuple[Individual, ...]:
        """The survivors, in the order of their arrival."""
        return tuple(self._population)

    def ask(self, id: int, pending: Sequence[Trial]) -> Genome:
        """See :class:`search.optimizers.contract.Optimizer`."""
        random = generator(self._seed, id)
        known = {hash(trial.genome) for trial in pending}
        known.update(self._told, self._hashes)
        if self._center is not None and not self._population and hash(self._center) not in known:
            self._asked[id] = self._first
            return self._center
        founding = len(self._population) + len(pending) < self._mu // 2 or not self._population
        for attempt in range(REDRAWS):
            strategy, child = self._founder(random) if founding else self._child(random, attempt)
            if hash(child) not in known:
                break
        self._asked[id] = strategy
        return child

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """See :class:`search.optimizers.contract.Optimizer`. Only complete outcomes enter the population; a duplicate's
        original is, or was, there itself."""
        strategy = self._asked.pop(trial.id, self._first)
        key = hash(trial.genome)
        self._told[key] = None
        if len(self._told) > REMEMBERED:
            del self._told[next(iter(self._told))]
        found = utilities(outcome, self._objectives)
        if outcome.state != "complete" or found is None:
            return
        before = self._standing
        if any(each.id == trial.id for each in self._population):
            self._population = [each for each in self._population if each.id != trial.id]
            before = None
        settled = trial.genome if self._canonical is None else self._canonical(trial.genome)
        self._population.append(
            Individual(
                trial.id,
                trial.genome,
                key,
                np.asarray(settled.values, dtype=np.float64),
                np.asarray(settled.categories, dtype=np.int64),
                strategy,
                found,
                violation(outcome),
            )
        )
        self._standing = None
        if len(self._population) > self._mu:
            self._select(before)
        self._hashes = {each.key for each in self._population}

    def remembered(self, id: int) -> dict[str, Any]:
        """See :class:`search.optimizers.contract.Recalling`: what the child inherited."""
        return self._asked[id]._asdict()

    def recall(self, trial: Trial, memo: Mapping[str, Any]) -> None:
        """See :class:`search.optimizers.contract.Recalling`."""
        self._asked[trial.id] = Strategy(float(memo["step"]), float(memo["flip"]))

    def forget(self, id: int) -> None:
        """See :class:`search.optimizers.prescreen.Screenable`."""
        self._asked.pop(id, None)

    def _select(self, before: Standing | None) -> None:
        """Of mu + 1 one goes.

        Args:
            before: how the first mu of them stood, if that is known.
        """
        standing = self._stand()
        worst = standing.worst()
        del self._population[worst]
        # who goes is of the last rank, so that the ranks of the others are as they were; the corner may not be
        unchanged = worst == len(self._population) and before is not None
        self._standing = before if unchanged else Standing(*self._points(), np.delete(standing.ranks, worst))

    def _stand(self) -> Standing:
        if self._standing is None:
            points, corner = self._points()
            ranks = pareto.ranks(points, [each.violation for each in self._population])
            self._standing = Standing(points, corner, ranks)
        return self._standing

    def _points(self) -> tuple[Array, Array]:
        """[p, objectives] utilities of the population, and the [objectives] corner of its hypervolume: the run's
        reference, or lower where individuals lie below it: they would all contribute nothing, and which of them goes
        would be arbitrary."""
        points = np.asarray([each.utilities for each in self._population])
        low, high = points.min(axis=0), points.max(axis=0)
        return points, np.asarray(np.minimum(self._reference, low - 0.1 * np.maximum(high - low, 1e-9)))

    def _founder(self, random: np.random.Generator) -> tuple[Strategy, Genome]:
        """A point around the start."""
        if self._center is None:
            values = np.full(self._box.continuous, 0.5)
            categories = random.integers(0, self._choices)
        else:
            values = np.asarray(self._center.values, dtype=np.float64)
            categories = np.asarray(self._center.categories, dtype=np.int64)
            categories = self._flip(random, categories, self._flipped)
        return self._first, genome(values + self._first.step * random.standard_normal(len(values)), categories)

    def _child(self, random: np.random.Generator, attempt: int) -> tuple[Strategy, Genome]:
        """A mutated cross of two parents. Later attempts, after known points only, step and flip more."""
        one, two = self._parent(random), self._parent(random)
        values, categories, strategy = one.values, one.categories, one.strategy
        if one is not two and random.random() < self._crossover:
            values, categories = self._cross(random, one, two)
            strategy = Strategy(
                math.sqrt(one.strategy.step * two.strategy.step), math.sqrt(one.strategy.flip * two.strategy.flip)
            )
        strategy = self._vary(random, strategy)
        values = values + strategy.step * random.standard_normal(len(values))
        return strategy, genome(values, self._flip(random, categories, max(strategy.flip, attempt / REDRAWS)))

    def _vary(self, random: np.random.Generator, strategy: Strategy) -> Strategy:
        """The child's own strategy: log-normal around what it inherited."""
        rate = max(0.3, 1.0 / math.sqrt(max(1, self._box.continuous)))
        step = strategy.step * math.exp(rate * random.standard_normal())
        flip = strategy.flip * math.exp(0.3 * random.standard_normal())
        lowest = 0.25 / max(1, len(self._choices))
        return Strategy(min(LARGEST_STEP, max(SMALLEST_STEP, step)), min(0.5, max(lowest, flip)))

    def _parent(self, random: np.random.Generator) -> Individual:
        """The better of two drawn at random: by rank, then by contribution, then the one drawn first."""
        standing = self._stand()
        one, two = (int(each) for each in random.integers(0, len(self._population), 2))
        return self._population[two if standing.better(two, one) else one]

    def _cross(
        self, random: np.random.Generator, one: Individual, two: Individual
    ) -> tuple[Array, npt.NDArray[np.int64]]:
        """Half the time blended along the line through both, half the time gene by gene; categories gene by gene."""
        count = len(one.values)
        if random.random() < 0.5:
            share = random.uniform(-0.25, 1.25)
            values = one.values + share * (two.values - one.values)
        else:
            values = np.where(random.random(count) < 0.5, one.values, two.values)
        categories = np.where(random.random(len(self._choices)) < 0.5, one.categories, two.categories)
        return values, categories

    def _flip(
        self, random: np.random.Generator, categories: npt.NDArray[np.int64], probability: float
    ) -> npt.NDArray[np.int64]:
        """Each category, with this probability, becomes one of its other choices."""
        moved = (random.random(len(categories)) < probability) & (self._choices > 1)
        shift = 1 + random.integers(0, np.maximum(1, self._choices - 1))
        return np.where(moved, (categories + shift) % self._choices, categories)
