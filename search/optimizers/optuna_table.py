"""Optuna without its bookkeeping: samplers that read our own list of trials. Importing this imports Optuna (not torch).

A study with 200 genes costs Optuna milliseconds per trial in copies and per-parameter writes, and its running trials
cannot be taken back. Samplers only ever read ``get_all_trials``, so the storage here answers that from a list that the
optimizer sets before each ask, and a proposal is one call of the sampler's public ``sample_relative``.

Values are losses, negated utilities: when it normalises, Optuna's NSGA-III (5.0.0) takes every objective for one to be
minimised, whatever the study's directions.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.samplers.nsgaii import BaseCrossover
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from search.optimizers.contract import Box, Genome
from search.optimizers.outcomes import Array

NAME = "search"
_EPOCH = datetime(1970, 1, 1)  # Optuna wants a time; no sampler reads it, and a clock would not replay


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna's own messages (a new study, a converged one, an experimental class) are not for this package's users;
    its logger is as before afterwards."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        logger.setLevel(level)


class Codec:
    """Genomes of a box as Optuna's parameters. Categories with a single choice are no parameters."""

    def __init__(self, box: Box) -> None:
        self._values = [f"value {gene}" for gene in range(box.continuous)]
        self._categories = [f"category {gene}" if count > 1 else None for gene, count in enumerate(box.categories)]
        self.distributions: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in self._values}
        for name, count in zip(self._categories, box.categories, strict=True):
            if name is not None:
                self.distributions[name] = CategoricalDistribution(tuple(range(count)))

    def encode(self, genome: Genome) -> dict[str, float | int]:
        """Parameters of a genome."""
        found: dict[str, float | int] = dict(zip(self._values, genome.values, strict=True))
        found.update(
            (name, choice) for name, choice in zip(self._categories, genome.categories, strict=True) if name is not None
        )
        return found

    def decode(self, parameters: Mapping[str, Any], rest: Genome) -> Genome:
        """The genome of parameters; genes that they leave out are as in `rest`."""
        return Genome(
            tuple(float(parameters.get(name, own)) for name, own in zip(self._values, rest.values, strict=True)),
            tuple(
                own if name is None else int(parameters.get(name, own))
                for name, own in zip(self._categories, rest.categories, strict=True)
            ),
        )


class Table(InMemoryStorage):  # type: ignore[misc,unused-ignore]
    """A storage of one study whose trials are a list that the caller sets.

    Attributes:
        rows: what every sampler reads.
        noted: system attributes that a sampler set on the trial that it proposed for, since the last clearing.
    """

    def __init__(self, objectives: int) -> None:
        super().__init__()
        self.rows: list[FrozenTrial] = []
        self.noted: dict[str, Any] = {}
        with quiet():
            optuna.create_study(study_name=NAME, storage=self, directions=["minimize"] * objectives)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """The rows of these states."""
        rows = [row for row in self.rows if states is None or row.state in states]
        return copy.deepcopy(rows) if deepcopy else rows

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """What samplers note on the trial that they propose for."""
        self.noted[key] = value

    def study(self, sampler: BaseSampler) -> optuna.Study:
        """The study as it is now. A new object each time: a study caches its trials."""
        return optuna.load_study(study_name=NAME, storage=self, sampler=sampler)


class Clipped(BaseCrossover):  # type: ignore[misc,unused-ignore]
    """Another crossover of two parents, whose children are moved to the nearest point of the box. Optuna draws again
    and again until a child lies inside, which never ends where many genes of both parents are at a bound."""

    n_parents = 2

    def __init__(self, inner: BaseCrossover) -> None:
        self._inner = inner

    def crossover(self, parents_params: Array, rng: Any, study: optuna.Study, search_space_bounds: Array) -> Array:
        """[genes] a child of the parents [2, genes], within bounds [genes, 2]."""
        child = self._inner.crossover(parents_params, rng, study, search_space_bounds)
        return np.asarray(np.clip(child, search_space_bounds[:, 0], search_space_bounds[:, 1]))


def finished(
    number: int,
    parameters: dict[str, float | int],
    distributions: dict[str, BaseDistribution],
    utilities: Sequence[float],
    constraints: Sequence[float] = (),
    attributes: Mapping[str, Any] | None = None,
) -> FrozenTrial:
    """A completed trial.

    Args:
        number: its place in the study.
        parameters, distributions: from :class:`Codec`.
        utilities: [objectives] finite, larger is better.
        constraints: finite, > 0 where broken.
        attributes: a sampler's own notes.
    """
    trial = FrozenTrial(
        number=number,
        state=TrialState.COMPLETE,
        value=None,
        values=[-float(utility) for utility in utilities],
        datetime_start=_EPOCH,
        datetime_complete=_EPOCH,
        params=parameters,
        distributions=distributions,
        user_attrs={},
        system_attrs=dict(attributes or {}),
        intermediate_values={},
        trial_id=number,
    )
    for place, constraint in enumerate(constraints):
        trial.set_constraint(str(place), float(constraint))
    return trial


def running(
    number: int,
    parameters: dict[str, float | int],
    distributions: dict[str, BaseDistribution],
    attributes: Mapping[str, Any] | None = None,
) -> FrozenTrial:
    """A trial that is being evaluated; arguments as for :func:`finished`."""
    return FrozenTrial(
        number=number,
        state=TrialState.RUNNING,
        value=None,
        datetime_start=_EPOCH,
        datetime_complete=None,
        params=parameters,
        distributions=distributions,
        user_attrs={},
        system_attrs=dict(attributes or {}),
        intermediate_values={},
        trial_id=number,
    )
