"""Tree-structured Parzen estimator, by Optuna: candidates are drawn where good trials are dense and others are not.

Bergstra et al., "Algorithms for hyper-parameter optimization", NeurIPS 2011; Watanabe, "Tree-structured Parzen
estimator", arXiv 2304.11127 (multivariate kernels, several objectives, constraints). Pending trials count as bad ones
(constant liar), so that workers do not crowd.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from search.optimizers.contract import Settings
from search.optimizers.optuna_study import OptunaOptimizer

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class TpeOptions(BaseModel):
    """Options of ``tpe``.

    Attributes:
        startup: observations (baselines count) before the estimator is asked; points around the start until then.
        spread: standard deviation of those points, in units of a gene's range.
        candidates: how many points are drawn from the good trials' density, of which the best is proposed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    startup: int = Field(default=16, ge=1)
    spread: float = Field(default=0.2, gt=0.0, le=1.0)
    candidates: int = Field(default=24, ge=1)


class Tpe(OptunaOptimizer):
    """See the module docstring."""

    Options: ClassVar[type[BaseModel]] = TpeOptions

    def __init__(self, settings: Settings) -> None:
        options = TpeOptions.model_validate(settings.options)
        super().__init__(settings, options.startup, options.spread)
        self._startup_trials = options.startup
        self._candidates = options.candidates

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna.samplers import TPESampler

        return TPESampler(
            n_startup_trials=0, n_ei_candidates=self._candidates, seed=seed, multivariate=True, constant_liar=True
        )
