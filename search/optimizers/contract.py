"""The ask/tell contract of an optimizer, and the records that cross it. No I/O, no torch, no clock.

An optimizer proposes points of a box with categories and hears what became of them. It is rebuilt after a crash by
replaying its own history (:func:`replay`): the log of asks and tells, in their order, is its only memory on disk. So an
optimizer must be a pure function of its settings and that history: every random draw comes from a generator of its
own, seeded by the settings (never numpy's global one).

:mod:`search.optimizers.conformance` holds the test class that every optimizer, also a third party's, must pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable


class OptimizerError(Exception):
    """Settings that an optimizer cannot work with: one paragraph, shown without a traceback."""


@dataclass(frozen=True)
class Genome:
    """A point of a space.

    Attributes:
        values: [n] floats in [0, 1], one per continuous gene.
        categories: [m] choice indices, one per categorical gene.
    """

    values: tuple[float, ...]
    categories: tuple[int, ...] = ()


@dataclass(frozen=True)
class Box:
    """What a genome may be: n continuous genes in [0, 1], and m categorical ones with so many choices each."""

    continuous: int
    categories: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.continuous < 0 or any(count < 1 for count in self.categories):
            raise OptimizerError(f"a box needs continuous >= 0 and at least one choice per category, got {self}")

    def __contains__(self, genome: Genome) -> bool:
        return (
            len(genome.values) == self.continuous
            and len(genome.categories) == len(self.categories)
            and all(0.0 <= value <= 1.0 for value in genome.values)
            and all(0 <= choice < count for choice, count in zip(genome.categories, self.categories, strict=True))
        )


@dataclass(frozen=True)
class Settings:
    """Everything that an optimizer's proposals may depend on besides its history.

    Attributes:
        box: the space of genomes.
        objectives: how many utilities an outcome has (>= 1).
        seed: of the optimizer's own generators.
        budget: how many asks are planned; a hint (population sizes), it may grow later without a new optimizer.
        reference: [objectives] the hypervolume's reference point in utilities, fixed when the run starts.
        center: where the search starts when nothing better is known (the average merge); the middle if None.
        weights: [objectives] relative importance for optimizers that scalarise; equal if None.
        options: the optimizer's own options from the config, already validated by it.
        seconds: what evaluating one candidate costs, in seconds, as measured on the baselines and logged when the stage
            began (so a replay has the same number); None is unknown, and is taken for expensive (10 s and more).
        sure: how probable each of the center's own choices is in what is drawn before anything was learnt, in (0, 1),
            the others alike: where most of a box's points make no sense, and the center does. None: that is each
            optimizer's own affair.
        canonical: pure; from a genome to the one with the same recipe whose genes of no effect (a density under a
            method that has none) are at a fixed value. What fits a model to genomes should fit it to these. None is the
            identity.
    """

    box: Box
    objectives: int
    seed: int
    budget: int
    reference: tuple[float, ...]
    center: Genome | None = None
    weights: tuple[float, ...] | None = None
    options: dict[str, float | int | str | bool] = field(default_factory=dict)
    seconds: float | None = None
    canonical: Callable[[Genome], Genome] | None = None
    sure: float | None = None


class Trial(NamedTuple):
    """A genome with the id under which it was, or would have been, asked for. Ids are unique within one optimizer."""

    id: int
    genome: Genome


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        state: "complete": all items scored. "censored": stopped early, its utilities are partial and only its rank
            means something; it never enters a front. "failed": no model came of it. "duplicate": another trial had the
            same recipe, whose utilities are repeated here.
        utilities: [objectives] larger is better, whatever the metric's direction; empty when failed.
        errors: [objectives] standard error of each utility; empty when unknown.
        items: how many items were scored.
        violations: one number per constraint, > 0 where it is broken, by how much.
        reason: why it failed, for people.
        of: the trial that a duplicate repeats.
    """

    state: Literal["complete", "censored", "failed", "duplicate"]
    utilities: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()
    items: int = 0
    violations: tuple[float, ...] = ()
    reason: str = ""
    of: int | None = None

    @property
    def feasible(self) -> bool:
        """True when no constraint is broken."""
        return all(violation <= 0.0 for violation in self.violations)


@runtime_checkable
class Optimizer(Protocol):
    """Proposes genomes and learns from outcomes.

    It may also have ``diagnosis() -> dict[str, float | str]``, what it thinks of its own work (a surrogate's
    cross-validated quality, which optimizer `auto` took and why): read now and then, never needed.
    """

    def ask(self, id: int, pending: Sequence[Trial]) -> Genome:
        """The next point to try.

        Args:
            id: the id that the new trial will have; not asked before. An optimizer may seed its draw with it.
            pending: trials that were asked and not told yet, oldest first (several workers).
        """
        ...

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """What became of a trial. Out of order is normal. Trials that were never asked for (baselines, an earlier
        stage's front) are told in the same way, and are learnt from."""
        ...


@runtime_checkable
class Recalling(Optimizer, Protocol):
    """An optimizer that need not propose again what its log holds: proposing may cost seconds, and thousands of
    proposals an hour. Beside each genome the log keeps what else the ask left behind in the optimizer."""

    def remembered(self, id: int) -> dict[str, Any] | None:
        """What the ask of this id left behind: plain data of JSON's types, numbers finite; {} if it was nothing; None
        where only another ask can tell. Called at most once, before anything else happens."""
        ...

    def recall(self, trial: Trial, memo: Mapping[str, Any]) -> None:
        """Be as after the ask that gave this trial and left this memo, cheaply.

        Raises:
            KeyError, TypeError, ValueError: a memo that :meth:`remembered` never gave.
        """
        ...


class Asked(NamedTuple):
    """History: this trial was proposed, while these were pending; what :class:`Recalling` remembered of it, if that was
    logged."""

    trial: Trial
    pending: tuple[Trial, ...] = ()
    memo: Mapping[str, Any] | None = None


class Told(NamedTuple):
    """History: the optimizer heard this."""

    trial: Trial
    outcome: Outcome


def replay(optimizer: Optimizer, history: Iterable[Asked | Told]) -> list[int]:
    """Bring a fresh optimizer to where an earlier one was.

    Args:
        optimizer: newly built from the same settings.
        history: the earlier one's asks and tells, in order.

    Returns:
        Ids of trials that this optimizer proposed differently from the log: empty unless its code, or a library
        beneath it, has changed since. The logged genome is the one that counts. What is recalled from a memo is not
        proposed again, but for the last one: there a change shows.

    Raises:
        OptimizerError: a memo that cannot be read.
    """
    events = list(history)
    asked = [place for place, event in enumerate(events) if isinstance(event, Asked)]
    recalling = optimizer if isinstance(optimizer, Recalling) else None
    different = []
    for place, event in enumerate(events):
        if isinstance(event, Told):
            optimizer.tell(event.trial, event.outcome)
        elif recalling is not None and event.memo is not None and place != asked[-1]:
            _recall(recalling, event.trial, event.memo)
        elif optimizer.ask(event.trial.id, event.pending) != event.trial.genome:
            different.append(event.trial.id)
    return different


def remembered(optimizer: Optimizer, id: int) -> dict[str, Any] | None:
    """What is to be logged beside a genome that was just asked for; None where a replay has to ask again."""
    return optimizer.remembered(id) if isinstance(optimizer, Recalling) else None


def _recall(optimizer: Recalling, trial: Trial, memo: Mapping[str, Any]) -> None:
    try:
        optimizer.recall(trial, memo)
    except (KeyError, TypeError, ValueError) as error:
        raise OptimizerError(
            f"what the log remembers of the proposal of candidate {trial.id} is not what this optimizer wrote "
            f"({type(error).__name__}: {error}); the log was changed, or another version wrote it"
        ) from error
