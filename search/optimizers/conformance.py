"""The tests that every optimizer must pass, also one from another package.

Inherit in a test module, and name the optimizer::

    class TestMine(OptimizerConformance):
        name = "mine"                        # as registered; or override `make`
        objectives = (1, 2)                  # how many it supports

Needs pytest. Nothing here looks inside an optimizer: it is asked, told, thrown away and replayed.
"""

from __future__ import annotations

import random as python_random
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import pytest

from search import pareto
from search.optimizers.contract import Asked, Box, Genome, Optimizer, Outcome, Settings, Told, Trial, replay
from search.optimizers.registry import build

BOXES = (Box(3, (3, 2)), Box(40), Box(1), Box(0, (4, 3, 5)), Box(0, (3,)), Box(2, (1,)), Box(0))
WORKERS = 3


class OptimizerConformance:
    """See the module docstring.

    Class attributes:
        name: as registered.
        options: the optimizer's options.
        objectives: numbers of objectives that it supports.
        learns: whether it must beat random search.
    """

    name: ClassVar[str] = ""
    options: ClassVar[dict[str, float | int | str | bool]] = {}
    objectives: ClassVar[tuple[int, ...]] = (1, 2, 3)
    learns: ClassVar[bool] = True

    def make(self, settings: Settings) -> Optimizer:
        """The optimizer under test, fresh."""
        return build(self.name, settings)

    def settings(self, box: Box, objectives: int, seed: int = 0, budget: int = 60) -> Settings:
        """Settings for a planted problem: the reference is below all that is reachable."""
        return Settings(box, objectives, seed, budget, (-2.0,) * objectives, options=dict(self.options))

    @pytest.mark.parametrize("box", BOXES, ids=str)
    def test_proposals_lie_in_the_box(self, box: Box) -> None:
        """Whatever the box: no coefficients, no categories, one choice, one gene, none at all."""
        for objectives in self.objectives:
            optimizer = self.make(self.settings(box, objectives))
            assert isinstance(optimizer, Optimizer)
            for event in _life(optimizer, box, objectives, 40):
                if isinstance(event, Asked):
                    assert event.trial.genome in box
                    assert all(type(value) is float for value in event.trial.genome.values)
                    assert all(type(choice) is int for choice in event.trial.genome.categories)

    @pytest.mark.parametrize("box", (Box(3, (3, 2)), Box(0, (4, 3, 5)), Box(12)), ids=str)
    def test_interruptions_change_nothing(self, box: Box) -> None:
        """A run that is killed again and again proposes what an undisturbed one does, with failed, censored, duplicate,
        injected, late and never finished trials in its log."""
        for objectives in self.objectives:
            settings = self.settings(box, objectives)
            undisturbed = list(_life(self.make(settings), box, objectives, 45))
            killed = _Killed(lambda settings=settings: self.make(settings))  # type: ignore[misc]
            assert list(_life(killed, box, objectives, 45)) == undisturbed
            assert killed.times > 2

    def test_the_seed_decides(self) -> None:
        """Equal seeds propose equally, another seed differently."""
        box, objectives = Box(6, (3,)), self.objectives[-1]

        def genomes(seed: int) -> list[Genome]:
            events = _life(self.make(self.settings(box, objectives, seed)), box, objectives, 30)
            return [event.trial.genome for event in events if isinstance(event, Asked)]

        assert genomes(3) == genomes(3)
        assert genomes(3) != genomes(4)

    def test_global_generators_are_left_alone(self) -> None:
        """Neither read, advanced nor reseeded: what is proposed does not depend on them, nor they on it."""
        box, objectives = Box(3, (3, 2)), self.objectives[0]
        histories = []
        for seed in (1, 2):
            np.random.seed(seed)  # noqa: NPY002
            python_random.seed(seed)
            before = (repr(np.random.get_state()), python_random.getstate())  # noqa: NPY002
            histories.append(list(_life(self.make(self.settings(box, objectives)), box, objectives, 60)))
            assert (repr(np.random.get_state()), python_random.getstate()) == before  # noqa: NPY002
        assert histories[0] == histories[1]

    def test_what_was_never_asked_for_is_taken(self) -> None:
        """Baselines come before the first ask, points from elsewhere at any time, under ids of their own."""
        box, objectives = Box(5, (3,)), self.objectives[0]
        optimizer = self.make(self.settings(box, objectives))
        evaluate = _planted(box, objectives)
        for id, value in enumerate((0.0, 1.0, 0.5)):
            genome = Genome((value,) * 5, (id,))
            optimizer.tell(Trial(id, genome), Outcome("complete", evaluate(genome)))
        for id in range(3, 30):
            genome = optimizer.ask(id, ())
            assert genome in box
            optimizer.tell(Trial(id, genome), Outcome("complete", evaluate(genome)))
            other = Genome((id / 30.0,) * 5, (0,))
            optimizer.tell(Trial(1000 + id, other), Outcome("complete", evaluate(other)))

    def test_nothing_but_failures_is_survived(self) -> None:
        """It keeps proposing, and not one point for ever."""
        box, objectives = Box(4, (3,)), self.objectives[0]
        optimizer = self.make(self.settings(box, objectives))
        proposed = []
        for id in range(60):
            proposed.append(optimizer.ask(id, ()))
            optimizer.tell(Trial(id, proposed[-1]), Outcome("failed", reason="not finite"))
        assert len(set(proposed)) > 10

    def test_it_beats_random_search(self) -> None:
        """At an equal budget on planted spheres, for every number of objectives; on average over seeds."""
        if not self.learns:
            pytest.skip("random search is what others are measured against")
        box = Box(8, (3,))
        for objectives in self.objectives:
            ours = np.mean([self._reached(self.make, box, objectives, seed) for seed in range(3)])
            theirs = np.mean([self._reached(_random, box, objectives, seed) for seed in range(3)])
            assert ours > theirs, f"{objectives} objectives: {ours:.4f} against random's {theirs:.4f}"

    def _reached(self, make: Callable[[Settings], Optimizer], box: Box, objectives: int, seed: int) -> float:
        """Best balanced utility after 150 evaluations."""
        settings = self.settings(box, objectives, seed, budget=150)
        optimizer, evaluate = make(settings), _planted(box, objectives)
        points = []
        for id in range(150):
            genome = optimizer.ask(id, ())
            points.append(evaluate(genome))
            optimizer.tell(Trial(id, genome), Outcome("complete", points[-1]))
        best, worst = np.zeros(objectives), np.full(objectives, -2.0)
        return -float(pareto.tchebycheff(np.asarray(points), best, worst).min())


class _Killed:
    """An optimizer that is thrown away now and then, and rebuilt from its log."""

    def __init__(self, make: Callable[[], Optimizer]) -> None:
        self._make = make
        self._optimizer = make()
        self._log: list[Asked | Told] = []
        self._random = np.random.default_rng(0)
        self.times = 0

    def ask(self, id: int, pending: Sequence[Trial]) -> Genome:
        genome = self._optimizer.ask(id, pending)
        self._after(Asked(Trial(id, genome), tuple(pending)))
        return genome

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        self._optimizer.tell(trial, outcome)
        self._after(Told(trial, outcome))

    def _after(self, event: Asked | Told) -> None:
        self._log.append(event)
        if self._random.random() < 0.06:
            self.times += 1
            self._optimizer = self._make()
            assert replay(self._optimizer, self._log) == []


def _random(settings: Settings) -> Optimizer:
    return build(
        "random", Settings(settings.box, settings.objectives, settings.seed, settings.budget, settings.reference)
    )


def _planted(box: Box, objectives: int) -> Callable[[Genome], tuple[float, ...]]:
    """Spheres around one center per objective, minus a penalty for categories other than 0: all within [-2, 0]."""
    centers = np.linspace(0.3, 0.7, objectives)

    def evaluate(genome: Genome) -> tuple[float, ...]:
        values = np.asarray(genome.values)
        wrong = float(np.mean([choice != 0 for choice in genome.categories])) if genome.categories else 0.0
        distance = [float(np.mean((values - center) ** 2)) if box.continuous else 0.0 for center in centers]
        return tuple(-each - wrong for each in distance)

    return evaluate


def _life(optimizer: Optimizer, box: Box, objectives: int, asks: int) -> Iterator[Asked | Told]:
    """What an unkind run logs: several workers that finish out of order, every kind of outcome, points that were never
    asked for, and trials that were never told."""
    events = np.random.default_rng([asks, objectives, box.continuous])
    evaluate = _planted(box, objectives)
    start = Genome((0.5,) * box.continuous, (0,) * len(box.categories))
    told = Trial(0, start)
    yield _tell(optimizer, told, Outcome("complete", evaluate(start)))
    pending: list[Trial] = []
    for id in range(1, asks):
        trial = Trial(id, optimizer.ask(id, tuple(pending)))
        yield Asked(trial, tuple(pending))
        pending.append(trial)
        while len(pending) >= WORKERS or (pending and events.random() < 0.3):
            done = pending.pop(int(events.integers(len(pending))))
            yield _tell(optimizer, done, _outcome(done, told, evaluate, events))
        if events.random() < 0.1:
            told = Trial(1000 + id, Genome(tuple(events.random(box.continuous).tolist()), start.categories))
            yield _tell(optimizer, told, Outcome("complete", evaluate(told.genome)))


def _tell(optimizer: Optimizer, trial: Trial, outcome: Outcome) -> Told:
    optimizer.tell(trial, outcome)
    return Told(trial, outcome)


def _outcome(
    trial: Trial, other: Trial, evaluate: Callable[[Genome], tuple[float, ...]], events: np.random.Generator
) -> Outcome:
    kind = events.choice(["complete", "infeasible", "censored", "failed", "duplicate"], p=[0.6, 0.1, 0.1, 0.1, 0.1])
    utilities = evaluate(trial.genome)
    if kind == "failed":
        return Outcome("failed", reason="not finite")
    if kind == "censored":
        return Outcome("censored", utilities, items=10)
    if kind == "duplicate":
        return Outcome("duplicate", evaluate(other.genome), of=other.id)
    violations = (float(events.random()),) if kind == "infeasible" else (-1.0,)
    return Outcome("complete", utilities, items=40, violations=violations)
