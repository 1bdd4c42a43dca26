"""How long a search will take, and of what: arithmetic on what its config asks for and on what one merge and one
evaluation cost. Nothing is run here; :mod:`search.forecast.costs` measures.

Three things are not known beforehand, and each has three cases: how quickly a candidate is merged and scored, how many
candidates are stopped early, and whether a plateau ends the search. Every combination is played through, stage by
stage, until a limit of the budget is reached. The middle of a figure is what comes of the middle cases, its ends are
the smallest and the largest of all combinations: an outer bound, not an interval of confidence.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from search.finals import LEAST_FINALISTS
from search.forecast.outline import CASES, Case, Items, Outline, StageOutline
from search.ranges import Range

STORE = Range(0.002, 0.01, 0.04)
"""Seconds in which a candidate's few transactions are on disk: fast and slow disks."""


class Pace:
    """Seconds that scoring takes, by how many items: measured at some numbers of items, reckoned for the others.

    Between two measured numbers the line through them, beyond the largest in proportion to it, and below the smallest
    what the smallest took, in proportion but for a quarter of it: what a call costs whatever its size.
    """

    FIXED = 0.25

    def __init__(self, measured: Mapping[int, Range]) -> None:
        """Args:
        measured: items -> seconds; one entry at least, items >= 1.
        """
        self.measured = dict(sorted(measured.items()))
        if not self.measured or min(self.measured) < 1:
            raise ValueError("expected seconds of one or more items")

    def seconds(self, items: int, case: Case) -> float:
        """Of scoring so many items in one call; 0 for none."""
        if items <= 0:
            return 0.0
        sizes = list(self.measured)
        times = [float(getattr(self.measured[each], case)) for each in sizes]
        if items <= sizes[0]:
            return times[0] * (self.FIXED + (1.0 - self.FIXED) * items / sizes[0])
        for (small, least), (large, most) in itertools.pairwise(zip(sizes, times, strict=True)):
            if items <= large:
                return least + (max(most, least) - least) * (items - small) / (large - small)
        return times[-1] * items / sizes[-1]


@dataclass(frozen=True)
class Costs:
    """What things cost, in seconds.

    Attributes:
        start: until the first candidate: models and data are loaded and checked.
        merge: one candidate written into the live model, all of it.
        paces: evaluator -> what scoring takes.
        propose: the optimizer's work on one candidate, by stage name.
        store: writing down what became of one.
    """

    start: Range
    merge: Range
    paces: Mapping[str, Pace]
    propose: Mapping[str, Range] = field(default_factory=dict)
    store: Range = STORE

    def scoring(self, items: Items, case: Case) -> float:
        """Of these items of every evaluator."""
        return sum(self.paces[name].seconds(count, case) for name, count in items.of.items())


@dataclass(frozen=True)
class StageForecast:
    """What a stage will come to.

    Attributes:
        name: as in its outline.
        candidates: evaluated in it.
        items: scored in it, over all evaluators.
        seconds: wall time, over all workers.
    """

    name: str
    candidates: Range
    items: Range
    seconds: Range


@dataclass(frozen=True)
class Forecast:
    """What a search will come to.

    Attributes:
        stages: in order; "selection" and "holdout" at the end, and "control" where there is one.
        candidates: of the search.
        items: scored by the search.
        finalists: re-scored on the selection split, the baselines not counted.
        evaluations: candidates scored on any split, every split counted.
        start: seconds until the first candidate.
        seconds: wall time in all.
        busy: seconds that workers merge and score, over all of them; of the search, as ``budget.gpu_hours`` counts.
    """

    stages: tuple[StageForecast, ...]
    candidates: Range
    items: Range
    finalists: Range
    evaluations: Range
    start: Range
    seconds: Range
    busy: Range


def no_costs(outline: Outline) -> Costs:
    """Costs of a plan without times: counts follow from them all the same, unless hours end the search."""
    free = Pace({1: Range.exactly(0.0)})
    return Costs(
        Range.exactly(0.0),
        Range.exactly(0.0),
        dict.fromkeys(outline.splits["search"].of, free),
        store=Range.exactly(0.0),
    )


def forecast(outline: Outline, costs: Costs) -> Forecast:
    """Play every case through.

    Args:
        outline: what the config asks for.
        costs: of one merge and one evaluation.
    """
    plays = {
        (pace, stopped, flat): _play(outline, costs, pace, stopped, flat)
        for pace, stopped in itertools.product(CASES, CASES)
        for flat in ((False, True) if outline.budget.plateau is not None else (False,))
    }
    middle = plays["middle", "middle", False]

    def over(figure: Callable[[_Play], float]) -> Range:
        found = [figure(each) for each in plays.values()]
        return Range(min(found), figure(middle), max(found))

    stages = [
        StageForecast(
            each.name,
            over(lambda play, at=index: float(play.stages[at].candidates)),  # type: ignore[misc]
            over(lambda play, at=index: play.stages[at].items),  # type: ignore[misc]
            over(lambda play, at=index: play.stages[at].seconds),  # type: ignore[misc]
        )
        for index, each in enumerate(middle.stages)
    ]
    found = Forecast(
        stages=tuple(stages),
        candidates=over(lambda play: float(play.candidates)),
        items=over(lambda play: play.items),
        finalists=over(lambda play: float(play.finalists)),
        evaluations=over(lambda play: float(play.evaluations)),
        start=costs.start,
        seconds=over(lambda play: play.seconds) + costs.start,
        busy=over(lambda play: play.busy),
    )
    return _with_control(found, outline, costs) if outline.control else found


def _with_control(found: Forecast, outline: Outline, costs: Costs) -> Forecast:
    """The random search after it: the same again, but for what an optimizer takes, and more is stopped early."""
    chance = forecast(
        replace(outline, control=False, at_random=True), replace(costs, propose={}, start=Range.exactly(0.0))
    )
    row = StageForecast("control", chance.candidates, chance.items, chance.seconds + costs.start)
    return replace(found, stages=(*found.stages, row), seconds=found.seconds + row.seconds)


@dataclass
class _Stage:
    name: str
    candidates: int = 0
    items: float = 0.0
    seconds: float = 0.0


@dataclass
class _Play:
    """One case, played through."""

    stages: list[_Stage]
    finalists: int
    evaluations: int
    busy: float

    @property
    def searched(self) -> list[_Stage]:
        return self.stages[:-2]

    @property
    def candidates(self) -> int:
        return sum(each.candidates for each in self.searched)

    @property
    def items(self) -> float:
        return sum(each.items for each in self.searched)

    @property
    def seconds(self) -> float:
        return sum(each.seconds for each in self.stages)


class _Each(NamedTuple):
    """What one candidate of a stage takes, on average."""

    items: float
    busy: float
    driver: float

    def wall(self, workers: int) -> float:
        """Workers go on while the driver thinks, where there are several."""
        return self.busy + self.driver if workers == 1 else max(self.busy / workers, self.driver)


def _play(outline: Outline, costs: Costs, pace: Case, stopped: Case, flat: bool) -> _Play:
    stages, busy = [], 0.0
    left = _Left(outline)
    for stage, planned in _planned(outline, flat):
        each = _one(outline, costs, stage, pace, stopped)
        count = left.room(planned, each, outline)
        left.take(count, each, outline)
        busy += count * each.busy
        stages.append(_Stage(stage.name, count, count * each.items, count * each.wall(outline.workers)))
    items, tried = sum(each.items for each in stages), sum(each.candidates for each in stages)
    finalists = min(_affordable(outline, items), tried) if stopped != "low" else min(_fewest(outline, items), tried)
    compared = min(outline.compared, tried)
    again = finalists + compared
    stages.append(_final("selection", again, outline, costs, pace))
    opened = compared + 1 if outline.holdout else 0
    stages.append(_final("holdout", opened, outline, costs, pace))
    return _Play(stages, finalists, tried + again + opened, busy)


def _one(outline: Outline, costs: Costs, stage: StageOutline, pace: Case, stopped: Case) -> _Each:
    merge = float(getattr(costs.merge, pace))
    thinking = float(getattr(costs.propose.get(stage.name, Range.exactly(0.0)), pace))
    thinking += float(getattr(costs.store, pace))
    if not stage.climbs:
        whole = outline.splits["search"]
        return _Each(float(whole.total), merge + costs.scoring(whole, pace), thinking)
    shares = [outline.reaching(rung, stopped) for rung in range(len(outline.rungs))]
    items = sum(share * each.total for share, each in zip(shares, outline.rungs, strict=True))
    scoring = sum(share * costs.scoring(each, pace) for share, each in zip(shares, outline.rungs, strict=True))
    return _Each(items, merge + scoring, thinking)


def _planned(outline: Outline, flat: bool) -> Iterator[tuple[StageOutline, int]]:
    """The stages and how many candidates the plan gives them; the last one fewer, where a plateau ends it as early as
    it can."""
    last = len(outline.stages) - 1
    for index, stage in enumerate(outline.stages):
        count = stage.candidates
        if flat and index == last and outline.budget.plateau is not None:
            count = min(count, outline.budget.plateau.candidates + 1)
        yield stage, count


class _Left:
    """What the budget still allows."""

    def __init__(self, outline: Outline) -> None:
        budget = outline.budget
        self.items = math.inf if budget.items is None else float(round(budget.items * (1.0 - outline.reserve)))
        self.seconds = math.inf if budget.hours is None else 3600.0 * budget.hours
        self.busy = math.inf if budget.gpu_hours is None else 3600.0 * budget.gpu_hours

    def room(self, planned: int, each: _Each, outline: Outline) -> int:
        """How many more there may be: the one that reaches a limit is still evaluated."""
        count = float(planned)
        for left, one in (
            (self.items, each.items),
            (self.seconds, each.wall(outline.workers)),
            (self.busy, each.busy * outline.gpus),
        ):
            if left <= 0.0:
                return 0
            if one > 0.0 and math.isfinite(left):
                count = min(count, math.ceil(left / one - 1e-9))
        return int(count)

    def take(self, count: int, each: _Each, outline: Outline) -> None:
        """So many were evaluated."""
        self.items -= count * each.items
        self.seconds -= count * each.wall(outline.workers)
        self.busy -= count * each.busy * outline.gpus


def _affordable(outline: Outline, items: float) -> int:
    """As :meth:`search.finals.Finals._affordable` reckons: what the reserve pays for beside the baselines."""
    each = outline.splits["selection"].total
    reserved = items * outline.reserve / (1.0 - outline.reserve)
    most = max(LEAST_FINALISTS, int(reserved / max(1, each)) - outline.compared)
    return most if outline.finalists is None else min(most, outline.finalists)


def _fewest(outline: Outline, items: float) -> int:
    """Where the front is short and nothing comes near it."""
    return min(LEAST_FINALISTS, _affordable(outline, items))


def _final(split: str, count: int, outline: Outline, costs: Costs, pace: Case) -> _Stage:
    items = outline.splits[split]
    one = float(getattr(costs.merge, pace)) + costs.scoring(items, pace) + float(getattr(costs.store, pace))
    rounds = math.ceil(count / outline.workers)
    return _Stage(split, count, float(count * items.total), rounds * one)
