"""What one merge and one evaluation cost on this machine: really done, a few times, and timed.

The recipes are some that the search itself would try: baselines, and points of its last stage. The first one warms
everything up and is told apart. Then every evaluator scores the items of the first rung, of the next, … as far as the
time given for it reaches; longer ones are reckoned from these. Only items of the search split are looked at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from merging.recipe import Recipe
from search.forecast.arithmetic import Costs, Pace
from search.forecast.outline import Outline
from search.optimizers.contract import Genome, Outcome, Trial
from search.ranges import Range
from search.space import AnySpace
from search.space.any_path import AnyPath
from search.stages import Stage
from search.workers.evaluation import CandidateFailed, Evaluation

if TYPE_CHECKING:
    from search.optimizers.contract import Optimizer

Evaluate = Callable[[Recipe, Mapping[str, Sequence[str]]], Evaluation]
"""Materialises a recipe and scores these items of the search split."""
MakeOptimizer = Callable[[Stage], "Optimizer"]

REPEATS = 3
"""So many timed repeats, at least, of the smallest sample; the first one of all comes before them."""
MOST_REPEATS = 7
SECONDS = 30.0
"""The next sample is taken only where what it will take still fits into this."""
PROPOSING = 4.0
"""Seconds, for each stage, in which its optimizer searches a made-up landscape."""

NEW_CHOICES = 0.1
"""Of the slots of a path, those that are drawn anew: as many end elsewhere as of indicators that are numbers."""

SPREAD = 1.15
"""A few repeats one after the other differ less than hours do: their ends are moved apart by this factor."""


@dataclass(frozen=True)
class Sample:
    """What was timed.

    Attributes:
        merges: seconds of each timed materialisation.
        first: seconds that the very first merge and evaluation took together.
        scored: evaluator -> items -> seconds of each repeat.
        failed: reasons of recipes that gave no model or no score.
    """

    merges: tuple[float, ...]
    first: float
    scored: Mapping[str, Mapping[int, tuple[float, ...]]]
    failed: tuple[str, ...] = ()

    @property
    def largest(self) -> dict[str, int]:
        """Evaluator -> the largest number of items that was timed."""
        return {name: max(sizes) for name, sizes in self.scored.items()}


@dataclass
class _Timings:
    merges: list[float] = field(default_factory=list)
    scored: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def spread(seconds: Sequence[float]) -> Range:
    """The median of some timings, between the smallest and the largest of them, moved apart by :data:`SPREAD`."""
    return Range(min(seconds) / SPREAD, float(np.median(seconds)), max(seconds) * SPREAD)


def trials(stages: Sequence[Stage], count: int = MOST_REPEATS + 1) -> list[Recipe]:
    """Recipes that the search would try, each another one in every group: the last stage's centre, and points around
    it, drawn with a fixed seed."""
    space = stages[-1].space
    random = np.random.default_rng(0)
    found = [space.decode(space.center())]
    while len(found) < count:
        found.append(space.decode(_near(space, random, 0.2)))
    return found


def sample(
    evaluate: Evaluate,
    recipes: Sequence[Recipe],
    rungs: Sequence[Mapping[str, Sequence[str]]],
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Sample:
    """Time merges and evaluations.

    Args:
        evaluate: does one.
        recipes: to be tried in turn; the first one is not counted.
        rungs: evaluator -> ids that are new in each.
        seconds: see :data:`SECONDS`.
        clock: seconds from anywhere.

    Raises:
        CandidateFailed: none of them gave a model and scores.
    """
    found = _Timings()
    began = clock()
    warm = clock()
    _run(evaluate, recipes[0], rungs[0], found, timed=False)
    first = clock() - warm
    turn = 1
    for place, rung in enumerate(rungs):
        if place and not _reaches(rung, found, seconds - (clock() - began)):
            break
        repeats = 0
        while repeats < (REPEATS if place == 0 else 1) or (
            repeats < MOST_REPEATS and (clock() - began) < seconds * _share(place, len(rungs))
        ):
            if not _run(evaluate, recipes[turn % len(recipes)], rung, found) and len(found.failed) > MOST_REPEATS:
                break
            repeats, turn = repeats + 1, turn + 1
    if not found.merges or not found.scored:
        raise CandidateFailed(found.failed[-1] if found.failed else "nothing could be timed", {})
    return Sample(
        tuple(found.merges),
        first,
        {name: {count: tuple(each) for count, each in sizes.items()} for name, sizes in found.scored.items()},
        tuple(found.failed),
    )


def costs_of(
    timed: Sample, start: float, propose: Mapping[str, Range], evaluators: Sequence[str], merges: float = 1.0
) -> Costs:
    """What was timed, as what things cost.

    Args:
        timed: see :func:`sample`.
        start: seconds that loading took.
        propose: see :func:`proposing`.
        evaluators: all of them.
        merges: by how much merges of the search are larger than those that were timed.
    """
    return Costs(
        start=Range(0.5 * start, start, 2.0 * start) + Range(0.0, 0.0, timed.first),
        merge=spread(timed.merges).scaled(merges),
        paces={
            name: Pace({count: spread(each) for count, each in timed.scored[name].items()} if name in timed.scored else
                       {1: Range.exactly(0.0)})
            for name in evaluators
        },
        propose=propose,
    )  # fmt: skip


def proposing(
    stages: Sequence[Stage],
    outline: Outline,
    make: MakeOptimizer,
    objectives: int,
    seconds: float = PROPOSING,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Range]:
    """Seconds of an optimizer's work on one candidate, by stage.

    A fresh optimizer searches a made-up smooth landscape, from where the stage begins, for as long as ``seconds``
    allow. What it takes grows with what it has heard, so the later half counts; where the end of the stage was not
    reached, it may be several times as much.
    """
    found = {}
    heard = 0
    for stage, planned in zip(stages, outline.stages, strict=True):
        if not stage.fixed and planned.candidates:
            landscape = _Landscape(stage.space, objectives)
            found[stage.name] = _proposing(make(stage), landscape, planned.candidates, heard, seconds, clock)
        heard += planned.candidates
    return found


class _Landscape:
    """Utilities as merges have them: an expert's skill follows from the mean of its coefficients, the others' take from
    it, some genes count a little more than others, and there is noise."""

    def __init__(self, space: AnySpace, objectives: int) -> None:
        self.random = np.random.default_rng(0)
        self.space = space
        n = max(1, space.box.continuous)
        own = (np.arange(n) * objectives // n)[None, :] == np.arange(objectives)[:, None]
        weights = np.where(own, 1.0, -0.5) * self.random.uniform(0.5, 1.5, (objectives, n))
        self._weights = weights / np.maximum(1.0, own.sum(axis=1, keepdims=True))

    def outcome(self, genome: Genome) -> Outcome:
        """Of a point."""
        values = np.asarray(genome.values or (0.5,))
        skill = np.tanh(self._weights @ values) * 0.5 + 0.4
        utilities = np.clip(skill + 0.02 * self.random.standard_normal(len(skill)), 0.0, 1.0)
        return Outcome("complete", tuple(utilities.tolist()), (0.02,) * len(skill), 100)


def _proposing(
    optimizer: Optimizer,
    landscape: _Landscape,
    count: int,
    heard: int,
    seconds: float,
    clock: Callable[[], float],
) -> Range:
    for number in range(heard):
        genome = _near(landscape.space, landscape.random, 0.3)
        optimizer.tell(Trial(-1 - number, genome), landscape.outcome(genome))
    spent: list[float] = []
    began = clock()
    while len(spent) < count and (len(spent) < 3 or clock() - began < seconds):
        start = clock()
        trial = Trial(heard + len(spent), optimizer.ask(heard + len(spent), ()))
        optimizer.tell(trial, landscape.outcome(trial.genome))
        spent.append(clock() - start)
    if len(spent) > 3:
        spent = spent[1:]  # the first one imports, and fits to everything at once
    later = float(np.mean(spent[len(spent) // 2 :]))
    reached = len(spent) >= 0.9 * count
    return Range(min(float(np.mean(spent)), later) / SPREAD, later, later * (1.5 if reached else 4.0))


def _near(space: AnySpace, random: np.random.Generator, width: float) -> Genome:
    """A point around the centre; a path that has most of its slots as the centre has them."""
    center = space.center()
    values = np.clip(np.asarray(center.values) + width * random.standard_normal(len(center.values)), 0.0, 1.0)
    if isinstance(space, AnyPath):
        choices = tuple(
            int(random.integers(count)) if random.random() < NEW_CHOICES else own
            for own, count in zip(center.categories, space.box.categories, strict=True)
        )
    else:
        choices = tuple(int(random.integers(count)) for count in space.box.categories)
    return Genome(tuple(values.tolist()), choices)


def _run(
    evaluate: Evaluate, recipe: Recipe, rung: Mapping[str, Sequence[str]], found: _Timings, timed: bool = True
) -> bool:
    """One recipe, and one evaluator after the other. Only the first of them is preceded by a merge."""
    try:
        for place, (name, ids) in enumerate((name, ids) for name, ids in rung.items() if ids):
            done = evaluate(recipe, {name: ids})
            if not timed:
                continue
            if place == 0:
                found.merges.append(done.seconds.get("materialize", 0.0))
            found.scored.setdefault(name, {}).setdefault(len(ids), []).append(done.seconds["evaluate"])
    except CandidateFailed as failure:
        found.failed.append(failure.reason)
        return False
    return True


def _reaches(rung: Mapping[str, Sequence[str]], found: _Timings, left: float) -> bool:
    """Whether one more repeat, of this rung, fits into the time that is left."""
    if not found.merges:
        return False
    needed = float(np.median(found.merges))
    for name, ids in rung.items():
        sizes = found.scored.get(name)
        if sizes and ids:
            largest = max(sizes)
            needed += float(np.median(sizes[largest])) * len(ids) / largest
    return needed <= left


def _share(place: int, rungs: int) -> float:
    """Of the time: repeats of this rung may begin in it. A quarter goes to the first one, the rest to those after."""
    return 1.0 if rungs == 1 else 0.25 + 0.75 * place / (rungs - 1)
