"""The tests that every optimizer must pass, also one from another package.

Inherit in a test module, and name the optimizer::

    class TestMine(OptimizerConformance):
        name = "mine"                        # as registered; or override `make`
        objectives = (1, 2)                  # how many it supports

One whose asks are expensive lowers ``asks``, ``kills`` and the learning budget; nothing is left out for it. Needs
pytest. Nothing here looks inside an optimizer: it is asked, told, thrown away and replayed.
"""

from __future__ import annotations

import json
import random as python_random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from search import pareto
from search.optimizers.contract import Asked, Box, Genome, Optimizer, Outcome, Settings, Told, Trial, remembered, replay
from search.optimizers.registry import build

BOXES = (Box(3, (3, 2)), Box(40), Box(1), Box(0, (4, 3, 5)), Box(0, (3,)), Box(2, (1,)), Box(0))
WORKERS = 3


class OptimizerConformance:
    """See the module docstring.

    Class attributes:
        name: as registered.
        options: the optimizer's options.
        objectives: numbers of objectives that it supports.
        boxes: in which its proposals must lie.
        killed_boxes: in which a killed run must go on as if nothing had happened.
        asks: how long the lives are in which it is killed and compared (>= 12).
        kills: how often it is killed in one of them (>= 1).
        seeded: whether another seed must lead to other proposals.
        learns: whether it must beat random search.
        learning_box: where it must, at
        learning_budget: evaluations, on average over
        learning_seeds: seeds.
    """

    name: ClassVar[str] = ""
    options: ClassVar[dict[str, float | int | str | bool]] = {}
    objectives: ClassVar[tuple[int, ...]] = (1, 2, 3)
    boxes: ClassVar[tuple[Box, ...]] = BOXES
    killed_boxes: ClassVar[tuple[Box, ...]] = (Box(3, (3, 2)), Box(0, (4, 3, 5)), Box(12))
    asks: ClassVar[int] = 45
    kills: ClassVar[int] = 5
    seeded: ClassVar[bool] = True
    learns: ClassVar[bool] = True
    learning_box: ClassVar[Box] = Box(8, (3,))
    learning_budget: ClassVar[int] = 150
    learning_seeds: ClassVar[int] = 3

    def make(self, settings: Settings) -> Optimizer:
        """The optimizer under test, fresh."""
        return build(self.name, settings)

    def settings(self, box: Box, objectives: int, seed: int = 0, budget: int = 60) -> Settings:
        """Settings for a planted problem: the reference is below all that is reachable."""
        return Settings(box, objectives, seed, budget, (-2.0,) * objectives, options=dict(self.options))

    def test_proposals_lie_in_the_box(self) -> None:
        """Whatever the box: no coefficients, no categories, one choice, one gene, none at all."""
        for box in self.boxes:
            for objectives in self.objectives:
                optimizer = self.make(self.settings(box, objectives))
                assert isinstance(optimizer, Optimizer)
                for event in _life(optimizer, box, objectives, self.asks):
                    if isinstance(event, Asked):
                        assert event.trial.genome in box
                        assert all(type(value) is float for value in event.trial.genome.values)
                        assert all(type(choice) is int for choice in event.trial.genome.categories)

    def test_interruptions_change_nothing(self) -> None:
        """A run that is killed again and again proposes what an undisturbed one does, with failed, censored, duplicate,
        infeasible, injected, late and never finished trials in its log."""
        for box in self.killed_boxes:
            for objectives in self.objectives:
                self._survives(self.settings(box, objectives), box, objectives)

    def test_genes_without_effect_are_tolerated(self) -> None:
        """A space that says which genes have no effect is heard, or ignored, to the bit in a replay; proposals stay in
        the box, and what was told is not changed."""
        box, objectives = Box(4, (3, 2)), self.objectives[-1]

        def canonical(genome: Genome) -> Genome:  # the last coefficient is a density that only method 0 has
            values = genome.values if genome.categories[0] == 0 else (*genome.values[:3], 0.5)
            return Genome(values, genome.categories)

        self._survives(replace(self.settings(box, objectives), canonical=canonical), box, objectives)

    def _survives(self, settings: Settings, box: Box, objectives: int) -> None:
        undisturbed = list(_life(self.make(settings), box, objectives, self.asks))
        assert all(event.trial.genome in box for event in undisturbed)
        killed = _Killed(lambda: self.make(settings), self.asks, self.kills)
        assert list(_life(killed, box, objectives, self.asks)) == undisturbed
        assert killed.times == self.kills

    def test_the_seed_decides(self) -> None:
        """Equal seeds propose equally, another seed differently."""
        box, objectives = Box(6, (3,)), self.objectives[-1]

        def genomes(seed: int) -> list[Genome]:
            events = _life(self.make(self.settings(box, objectives, seed)), box, objectives, min(30, self.asks))
            return [event.trial.genome for event in events if isinstance(event, Asked)]

        assert genomes(3) == genomes(3)
        if self.seeded:
            assert genomes(3) != genomes(4)

    def test_global_generators_are_left_alone(self) -> None:
        """Neither read, advanced nor reseeded: what is proposed does not depend on them, nor they on it."""
        box, objectives = Box(3, (3, 2)), self.objectives[0]
        histories = []
        for seed in (1, 2):
            np.random.seed(seed)  # noqa: NPY002
            python_random.seed(seed)
            before = (repr(np.random.get_state()), python_random.getstate())  # noqa: NPY002
            histories.append(list(_life(self.make(self.settings(box, objectives)), box, objectives, self.asks)))
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
        for id in range(3, min(30, self.asks)):
            genome = optimizer.ask(id, ())
            assert genome in box
            optimizer.tell(Trial(id, genome), Outcome("complete", evaluate(genome)))
            other = Genome((id / 30.0,) * 5, (0,))
            optimizer.tell(Trial(1000 + id, other), Outcome("complete", evaluate(other)))

    def test_nothing_but_failures_is_survived(self) -> None:
        """It keeps proposing, and not one point for ever."""
        self._keeps_proposing(Outcome("failed", reason="not finite"))

    def test_equal_scores_are_survived(self) -> None:
        """An evaluator that gives every candidate the same number."""
        self._keeps_proposing(Outcome("complete", (0.25,) * self.objectives[0], items=40))

    def _keeps_proposing(self, outcome: Outcome) -> None:
        box = Box(4, (3,))
        optimizer = self.make(self.settings(box, self.objectives[0]))
        proposed = []
        for id in range(min(60, self.asks)):
            proposed.append(optimizer.ask(id, ()))
            assert proposed[-1] in box
            optimizer.tell(Trial(id, proposed[-1]), outcome)
        assert len(set(proposed)) >= min(10, self.asks // 2)

    def test_it_beats_random_search(self) -> None:
        """At an equal budget on planted spheres, for every number of objectives; on average over seeds."""
        self._beats_random(lambda genome: -1.0)

    def test_it_beats_random_search_where_the_best_is_forbidden(self) -> None:
        """A constraint that the spheres' centers break: the best feasible point beats random search's."""
        self._beats_random(lambda genome: float(np.mean(genome.values)) - 0.4)

    def _beats_random(self, violation: Callable[[Genome], float]) -> None:
        if not self.learns:
            pytest.skip("it does not learn; random search is what others are measured against")
        seeds = range(self.learning_seeds)
        for objectives in self.objectives:
            ours = np.mean([self._reached(self.make, objectives, seed, violation) for seed in seeds])
            theirs = np.mean([self._reached(_random, objectives, seed, violation) for seed in seeds])
            assert ours > theirs, f"{objectives} objectives: {ours:.4f} against random's {theirs:.4f}"

    def _reached(
        self,
        make: Callable[[Settings], Optimizer],
        objectives: int,
        seed: int,
        violation: Callable[[Genome], float],
    ) -> float:
        """Best balanced utility of a feasible candidate; -4, the worst, if there is none. Both ends of the diagonal are
        told first, as a run's baselines are; the first of them is feasible."""
        box, budget = self.learning_box, self.learning_budget
        settings = self.settings(box, objectives, seed, budget)
        optimizer, evaluate = make(settings), _planted(box, objectives)
        points = []
        for id in range(budget):
            genome = Genome((float(id),) * box.continuous, (0,) * len(box.categories))
            if id > 1:
                genome = optimizer.ask(id, ())
            utilities, broken = evaluate(genome), violation(genome)
            optimizer.tell(Trial(id, genome), Outcome("complete", utilities, violations=(broken,)))
            if broken <= 0.0:
                points.append(utilities)
        if not points:
            return -4.0
        best, worst = np.zeros(objectives), np.full(objectives, -2.0)
        return -float(pareto.tchebycheff(np.asarray(points), best, worst).min())


class _Killed:
    """An optimizer that is thrown away now and then, and rebuilt from its log."""

    def __init__(self, make: Callable[[], Optimizer], asks: int, kills: int) -> None:
        self._make = make
        self._optimizer = make()
        self._log: list[Asked | Told] = []
        least = 2 * asks - WORKERS - 1  # that many events has a life at least
        self._at = set(np.random.default_rng(0).choice(np.arange(2, least), kills, replace=False).tolist())
        self.times = 0

    def ask(self, id: int, pending: Sequence[Trial]) -> Genome:
        genome = self._optimizer.ask(id, pending)
        memo = remembered(self._optimizer, id)
        logged = None if memo is None else json.loads(json.dumps(memo, allow_nan=False))
        self._after(Asked(Trial(id, genome), tuple(pending), logged))
        return genome

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        self._optimizer.tell(trial, outcome)
        self._after(Told(trial, outcome))

    def _after(self, event: Asked | Told) -> None:
        self._log.append(event)
        if len(self._log) in self._at:
            self.times += 1
            self._optimizer = self._make()
            asked_again = [event._replace(memo=None) if isinstance(event, Asked) else event for event in self._log]
            assert replay(self._optimizer, asked_again if self.times % 2 else self._log) == []


def _random(settings: Settings) -> Optimizer:
    return build(
        "random", Settings(settings.box, settings.objectives, settings.seed, settings.budget, settings.reference)
    )


def _planted(box: Box, objectives: int) -> Callable[[Genome], tuple[float, ...]]:
    """Spheres around one center per objective, minus a penalty for categories other than 0: all within [-2, 0]."""
    centers = np.linspace(0.8, 0.5, objectives)

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
