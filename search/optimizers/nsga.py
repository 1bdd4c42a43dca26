"""NSGA-II and NSGA-III, by Optuna: generations, sorted by domination, then by crowding or by reference directions.

Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II", IEEE TEC 6(2), 2002; Deb & Jain, "An
evolutionary many-objective optimization algorithm using reference-point-based nondominated sorting approach", IEEE TEC
18(4), 2014. Constraints by Deb's rules: feasible before infeasible, then the smaller violation.

Asked of several workers: whatever is told belongs to the generation that is open then, children and points that were
never asked for alike (baselines, another stage's front: they are the seeds of the first one). Optuna's own way loses
children that finish after their generation has closed. A generation closes when it is full, at a tell: the parents of
the next one are chosen then, with a generator of (seed, generation), so that asks leave no trace.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from search.optimizers.contract import Settings
from search.optimizers.optuna_study import Observation, OptunaOptimizer
from search.optimizers.outcomes import generator
from search.optimizers.prescreen import PrescreenOptions

if TYPE_CHECKING:
    from optuna.samplers import BaseGASampler
    from optuna.samplers.nsgaii import BaseCrossover, BaseMutation

SPREAD_OF_CHILDREN = 5.0  # SBX's distribution index; 20, as usual, moves too little in a few hundred evaluations
CLOSING = 1  # the stream of generators that close generations; ids have one of their own


class NsgaOptions(PrescreenOptions):
    """Options of ``nsga2`` and ``nsga3``, and those of pre-screening.

    Attributes:
        population: size of a generation; from the budget, between 12 and 40, if None.
        spread: standard deviation of the first generation around the start, in units of a gene's range.
        crossover: of coefficients: "uniform" gene by gene, "sbx" simulated binary, "blx" blended (BLX-alpha, 0.5).
        mutation: of coefficients: "polynomial" near the parent, "uniform" anywhere.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    population: int | None = Field(default=None, ge=4)
    spread: float = Field(default=0.1, gt=0.0, le=1.0)
    crossover: Literal["uniform", "sbx", "blx"] = "sbx"
    mutation: Literal["polynomial", "uniform"] = "polynomial"


class _Nsga(OptunaOptimizer):
    """Generations of a genetic sampler."""

    Options: ClassVar[type[BaseModel]] = NsgaOptions
    imputes_failures = False

    def __init__(self, settings: Settings) -> None:
        options = NsgaOptions.model_validate(settings.options)
        super().__init__(settings, 1, options.spread)
        self._options = options
        self._population = options.population or min(40, max(12, settings.budget // 25))
        self._generation = 0
        self._members = 0  # of the open generation, so far

        self._key = self._generation_key()

    def forget(self, id: int) -> None:
        """See :class:`search.optimizers.prescreen.Screenable`: asks leave no trace."""

    @abstractmethod
    def _sampler(self, seed: int) -> BaseGASampler:
        """A fresh sampler."""

    def _generation_key(self) -> str:
        """Under which attribute Optuna keeps a trial's generation: what it notes when it is asked for one."""
        from search.optimizers.optuna_table import quiet, running

        with quiet():
            sampler = self._sampler(0)
            sampler.get_trial_generation(self._table.study(sampler), running(0, {}, {}))
        (key,) = self._table.noted
        return key

    def _attributes(self) -> dict[str, int]:
        return {self._key: self._generation}

    def _learn(self, number: int, observation: Observation) -> None:
        super()._learn(number, observation)
        self._members += 1
        if self._members >= self._population:
            self._close()

    def _close(self) -> None:
        """End the open generation: of its members and their parents, the next one's parents remain."""
        from search.optimizers.optuna_table import quiet

        self._generation += 1
        self._members = 0
        self._table.rows = self._rows
        with quiet():
            seed = generator(self._seed, CLOSING, self._generation).integers(2**31 - 1)
            sampler = self._sampler(int(seed))
            self._rows = sampler.get_parent_population(self._table.study(sampler), self._generation)
        self._table.rows = []

    def _crossover(self) -> BaseCrossover:
        from optuna.samplers.nsgaii import BLXAlphaCrossover, SBXCrossover, UniformCrossover

        from search.optimizers.optuna_table import Clipped

        if self._options.crossover == "uniform":
            return UniformCrossover()
        if self._options.crossover == "blx":
            return Clipped(BLXAlphaCrossover())
        return Clipped(SBXCrossover(eta=SPREAD_OF_CHILDREN))

    def _mutation(self) -> BaseMutation | None:
        from optuna.samplers.nsgaii import PolynomialMutation

        return PolynomialMutation() if self._options.mutation == "polynomial" else None


class Nsga2(_Nsga):
    """See the module docstring."""

    def _sampler(self, seed: int) -> BaseGASampler:
        from optuna.samplers import NSGAIISampler

        return NSGAIISampler(
            population_size=self._population, mutation=self._mutation(), crossover=self._crossover(), seed=seed
        )


class Nsga3(_Nsga):
    """See the module docstring. There are about as many reference directions as individuals, as the paper has it."""

    def __init__(self, settings: Settings) -> None:
        self._objectives = settings.objectives
        super().__init__(settings)

    def _sampler(self, seed: int) -> BaseGASampler:
        from optuna.samplers import NSGAIIISampler

        return NSGAIIISampler(
            population_size=self._population,
            mutation=self._mutation(),
            crossover=self._crossover(),
            seed=seed,
            dividing_parameter=divisions(self._objectives, self._population),
        )


def divisions(objectives: int, directions: int) -> int:
    """Most parts into which each objective's axis can be cut so that the simplex lattice of Das & Dennis has no more
    than so many directions (>= 1): comb(parts + objectives - 1, objectives - 1) of them."""
    if objectives == 1:
        return 1
    parts = 1
    while math.comb(parts + objectives, objectives - 1) <= directions:
        parts += 1
    return parts
