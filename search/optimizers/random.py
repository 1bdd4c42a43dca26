"""Uniform random search: the baseline that every optimizer must beat at an equal number of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from search.optimizers.contract import Genome, Outcome, Settings, Trial
from search.optimizers.outcomes import first_choices, generator, genome


class RandomOptions(BaseModel):
    """Random search has no options."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Random:
    """Draws each genome independently, decided by (seed, id) alone; learns nothing. Uniformly, but for choices where
    the settings say how sure the center's are: it would draw nothing but nonsense."""

    Options: ClassVar[type[BaseModel]] = RandomOptions

    def __init__(self, settings: Settings) -> None:
        RandomOptions.model_validate(settings.options)
        self._settings = settings
        self._seed = settings.seed

    def ask(self, id: int, pending: Sequence[Trial]) -> Genome:
        """See :class:`search.optimizers.contract.Optimizer`."""
        random = generator(self._seed, id)
        values = random.random(self._settings.box.continuous)
        return genome(values, first_choices(self._settings, random))

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """See :class:`search.optimizers.contract.Optimizer`."""
