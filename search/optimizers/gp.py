"""Bayesian optimization with Gaussian processes, by Optuna: the best of all where evaluations are few and dear.

Per objective (and constraint) a process with a Matern 5/2 kernel, one length scale a gene, categories by Hamming
distance; proposed is what maximises the log expected improvement, or the log expected hypervolume improvement: Ament et
al., "Unexpected improvements to expected improvement", NeurIPS 2023; Daulton et al., "Differentiable expected
hypervolume improvement", NeurIPS 2020; Gardner et al., "Bayesian optimization with inequality constraints", ICML 2014.
Pending trials enter as fantasies drawn from the processes.

A fit costs the cube of its trials. Beyond `window` of them it sees the front and the latest, so that an ask stays
bounded while a run grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from search import pareto
from search.optimizers.contract import Genome, Settings
from search.optimizers.optuna_study import Observation, OptunaOptimizer
from search.optimizers.outcomes import Array

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

MOST_CELLS = 25_000  # trials x genes of a fit: distances to 2,048 points are held at once, 400 MB with so many


class GpOptions(BaseModel):
    """Options of ``gp``.

    Attributes:
        startup: observations (baselines count) before the processes are asked; points around the start until then.
        spread: standard deviation of those points, in units of a gene's range.
        deterministic: scores carry no noise (they do where items are a sample, so: false).
        window: how many trials a fit sees at most; fewer where trials x genes would be beyond 25,000 (391 of 64 genes).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    startup: int = Field(default=10, ge=2)
    spread: float = Field(default=0.15, gt=0.0, le=1.0)
    deterministic: bool = False
    window: int = Field(default=300, ge=20)


class Gp(OptunaOptimizer):
    """See the module docstring."""

    Options: ClassVar[type[BaseModel]] = GpOptions

    def __init__(self, settings: Settings) -> None:
        options = GpOptions.model_validate(settings.options)
        super().__init__(settings, options.startup, options.spread)
        self._deterministic = options.deterministic
        genes = max(1, settings.box.continuous + len(settings.box.categories))
        self._window = max(20, min(options.window, MOST_CELLS // genes))
        self._observations: list[Observation] = []
        self._singular = 0

    def diagnosis(self) -> dict[str, float | str]:
        """How many observations there are, how many of them a fit sees, and how many fits were singular."""
        fitted = float(min(self._count, self._window))
        return {"observations": float(self._count), "fitted": fitted, "singular": float(self._singular)}

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import GPSampler

        return GPSampler(seed=seed, n_startup_trials=2, deterministic_objective=self._deterministic)

    def _sampled(self, random: np.random.Generator, waiting: Sequence[Genome], founder: Genome) -> Genome:
        try:
            return super()._sampled(random, waiting, founder)
        except RuntimeError:  # torch's: a covariance that is not positive definite, where trials all but coincide
            self._singular += 1
            return founder

    def _learn(self, number: int, observation: Observation) -> None:
        super()._learn(number, observation)
        self._observations.append(observation)

    def _trials(self) -> list[FrozenTrial]:
        """What a fit sees: no more than the window, as many constraints for every trial, no outliers."""
        utilities = np.asarray([each.utilities for each in self._observations])
        floor = lower_fence(utilities)
        return [self._shown(int(number), floor) for number in self._chosen(utilities)]

    def _shown(self, number: int, floor: Array) -> FrozenTrial:
        each = self._observations[number]
        missing = (0.0,) * (self._memory.constraints - len(each.violations))
        if not missing and (each.utilities >= floor).all():
            return self._rows[number]
        return self._row(number, Observation(each.genome, np.maximum(each.utilities, floor), each.violations + missing))

    def _chosen(self, utilities: Array) -> npt.NDArray[np.int64]:
        """Numbers, ascending: of the front, half a window at most, its latest; then the latest of the others."""
        count = len(utilities)
        if count <= self._window:
            return np.arange(count)
        broken = [sum(max(0.0, value) for value in each.violations) for each in self._observations]
        front = np.flatnonzero(pareto.nondominated(utilities, broken))[-(self._window // 2) :]
        others = np.setdiff1d(np.arange(count), front)[-(self._window - len(front)) :]
        return np.sort(np.concatenate([front, others]))


def lower_fence(utilities: Array) -> Array:
    """[objectives] Tukey's outer fence below the utilities [n, objectives]: lower quartile - 3 interquartile ranges. A
    broken merge can be worse than the others by orders of magnitude, and a process that is scaled to it is flat
    elsewhere."""
    low, high = np.quantile(utilities, [0.25, 0.75], axis=0)
    return np.asarray(low - 3.0 * (high - low))
