"""What the optimizers that ask Optuna's samplers share: their memory of outcomes, and ask and tell around a sampler.

Optuna is imported when one of them is built, not before: their options are read by commands that build none.

A proposal is a pure function of the settings, of what was told, in its order, of what is pending, and of the asked id:
a fresh sampler, seeded by (seed, id), sees trials made of canonical genomes. What samplers cannot express is said here:

- censored: utilities are partial, so they are lowered until a complete candidate dominates them (:func:`demoted`);
- failed: models learn that the place is bad from the worst utilities seen so far; without any, nothing;
- duplicate: its original is known already; it counts only where that was never told (another stage's);
- infeasible: one constraint each, as Optuna reads them; a violation that is not finite is as bad as the worst so far.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from search.optimizers.contract import Genome, Outcome, Settings, Trial
from search.optimizers.outcomes import Array, first_choices, generator, genome, utilities, violation

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

REDRAWS = 30
SMALLEST_MOVE, LARGEST_MOVE = 0.01, 0.5


class Observation(NamedTuple):
    """What a model is fitted on: a canonical genome, utilities [objectives], violations (> 0 is broken)."""

    genome: Genome
    utilities: Array
    violations: tuple[float, ...]


class Memory:
    """Outcomes as observations, in the order of their tells."""

    def __init__(self, settings: Settings, imputes_failures: bool) -> None:
        self._objectives = settings.objectives
        self._canonical = settings.canonical
        self._imputes = imputes_failures
        self._ids: set[int] = set()
        self._known: set[Genome] = set()
        self._best: list[Array] = []  # utilities of the feasible complete ones that nothing else dominates
        self._worst: Array | None = None
        self._largest = 0.0  # finite violation so far
        self.constraints = 0

    def canonical(self, genome: Genome) -> Genome:
        """The genome whose genes of no effect are at a fixed value."""
        return self._canonical(genome) if self._canonical else genome

    def __contains__(self, genome: Genome) -> bool:
        return genome in self._known

    def add(self, trial: Trial, outcome: Outcome) -> Observation | None:
        """Take an outcome; None when a model has nothing to learn from it."""
        point = self.canonical(trial.genome)
        repeated = outcome.state == "duplicate" and outcome.of in self._ids
        self._known.add(point)
        self._ids.add(trial.id)
        found = utilities(outcome, self._objectives)
        if repeated or (found is None and not self._imputes):
            return None
        if found is None:
            return None if self._worst is None else self._failure(point)
        violations = self._violations(outcome)
        if outcome.state == "censored":
            if not self._best:
                return None
            return Observation(point, demoted(found, np.asarray(self._best)), violations)
        self._worst = found if self._worst is None else np.minimum(self._worst, found)
        if violation(outcome) <= 0.0:
            self._promote(found)
        return Observation(point, found, violations)

    def _failure(self, point: Genome) -> Observation:
        assert self._worst is not None
        return Observation(point, self._worst, (max(1.0, self._largest),) * self.constraints)

    def _violations(self, outcome: Outcome) -> tuple[float, ...]:
        finite = [each for each in outcome.violations if np.isfinite(each)]
        self._largest = max(self._largest, *finite, 0.0)
        self.constraints = max(self.constraints, len(outcome.violations))
        worst = max(1.0, self._largest)
        return tuple(float(each) if np.isfinite(each) else worst for each in outcome.violations)

    def _promote(self, found: Array) -> None:
        if any((other >= found).all() for other in self._best):
            return
        self._best = [other for other in self._best if not (found >= other).all()]
        self._best.append(found)


def demoted(partial: Array, front: Array) -> Array:
    """Utilities of a censored candidate, lowered as little as it takes for a complete one to dominate them: it was
    stopped because it would not be among the best, whatever its first items said.

    Args:
        partial: [objectives] utilities on the items that it was scored on.
        front: [n, objectives] utilities of complete candidates, n > 0.

    Returns:
        [objectives] at most `partial`, and below one row of `front` in every objective.
    """
    margin = 1e-3 * np.maximum(front.max(axis=0) - front.min(axis=0), 1e-6)
    ceilings = front - margin
    nearest = int(np.argmin(np.maximum(partial - ceilings, 0.0).sum(axis=1)))
    return np.asarray(np.minimum(partial, ceilings[nearest]))


class OptunaOptimizer(ABC):
    """ask/tell around a sampler.

    Args:
        settings: as for every optimizer.
        startup: points are drawn around the start until so many observations are there.
        spread: standard deviation of that, in units of a gene's range.

    Class attributes:
        imputes_failures: whether a failure is shown to the sampler as a bad candidate.
    """

    imputes_failures: ClassVar[bool] = True

    def __init__(self, settings: Settings, startup: int, spread: float) -> None:
        from search.optimizers.optuna_table import Codec, Table

        self._settings = settings
        self._box = settings.box
        self._seed = settings.seed
        self._center = settings.center
        self._startup = startup
        self._spread = spread
        self._memory = Memory(settings, self.imputes_failures)
        self._codec = Codec(settings.box)
        self._table = Table(settings.objectives)
        self._count = 0  # observations
        self._rows: list[FrozenTrial] = []

    @abstractmethod
    def _sampler(self, seed: int) -> BaseSampler:
        """A fresh sampler."""

    def ask(self, id: int, pending: Sequence[Trial]) -> Genome:
        """See :class:`search.optimizers.contract.Optimizer`."""
        random = generator(self._seed, id)
        waiting = [self._memory.canonical(trial.genome) for trial in pending]
        if self._center is not None:
            center = self._memory.canonical(self._center)
            if center not in self._memory and center not in waiting:
                return center
        proposal = self._founder(random)
        if self._codec.distributions and self._count >= self._startup:
            proposal = self._sampled(random, waiting, proposal)
        return self._unseen(random, proposal, waiting)

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """See :class:`search.optimizers.contract.Optimizer`."""
        observation = self._memory.add(trial, outcome)
        if observation is not None:
            self._learn(self._count, observation)
            self._count += 1

    def remembered(self, id: int) -> dict[str, Any]:
        """See :class:`search.optimizers.contract.Recalling`: asks leave no trace."""
        return {}

    def recall(self, trial: Trial, memo: Mapping[str, Any]) -> None:  # noqa: B027 - there is nothing to do
        """See :class:`search.optimizers.contract.Recalling`."""

    def _learn(self, number: int, observation: Observation) -> None:
        """Take in the observation of this number (they count from 0)."""
        self._rows.append(self._row(number, observation))

    def _row(self, number: int, observation: Observation) -> FrozenTrial:
        from search.optimizers.optuna_table import finished

        return finished(
            number,
            self._codec.encode(observation.genome),
            self._codec.distributions,
            observation.utilities.tolist(),
            observation.violations,
            self._attributes(),
        )

    def _trials(self) -> list[FrozenTrial]:
        """Finished trials that the sampler sees."""
        return self._rows

    def _attributes(self) -> dict[str, int]:
        """The sampler's notes on a trial that is told or proposed now."""
        return {}

    def _sampled(self, random: np.random.Generator, waiting: Sequence[Genome], founder: Genome) -> Genome:
        """What the sampler proposes; the founder where it proposes nothing."""
        from search.optimizers.optuna_table import quiet, running

        codec, first = self._codec, self._count
        trials = self._trials()
        busy = [running(first + n, codec.encode(each), codec.distributions) for n, each in enumerate(waiting)]
        self._table.rows = [*trials, *busy]
        with quiet():
            sampler = self._sampler(int(random.integers(2**31 - 1)))
            asked = running(first + len(busy), {}, {}, self._attributes())
            found = sampler.sample_relative(self._table.study(sampler), asked, codec.distributions)
        self._table.rows = []
        return codec.decode(found, founder)

    def _founder(self, random: np.random.Generator) -> Genome:
        """A point around the start, with categories at random: see :func:`first_choices`."""
        center = np.full(self._box.continuous, 0.5) if self._center is None else np.asarray(self._center.values)
        values = center + self._spread * random.standard_normal(self._box.continuous)
        return genome(values, first_choices(self._settings, random))

    def _unseen(self, random: np.random.Generator, proposal: Genome, waiting: Sequence[Genome]) -> Genome:
        """The proposal, or, where its merge is known or under way, the first unknown one in a widening circle."""
        choices = np.asarray(self._box.categories, dtype=np.int64)
        found = self._memory.canonical(proposal)
        for attempt in range(REDRAWS):
            if found not in self._memory and found not in waiting:
                break
            reach = SMALLEST_MOVE * (LARGEST_MOVE / SMALLEST_MOVE) ** (attempt / (REDRAWS - 1))
            values = np.asarray(proposal.values) + reach * random.standard_normal(self._box.continuous)
            flips = random.random(len(choices)) < max(attempt / REDRAWS, 1.0 / max(1, len(choices)))
            categories = np.where(flips, random.integers(0, choices), np.asarray(proposal.categories, dtype=np.int64))
            found = self._memory.canonical(genome(values, categories))
        return found
