"""How long a run has still to go, from what its own candidates took.

A sum of many costs is near its mean, so the middle is a mean, not a median; but costs drift (a racing search drops more
and more, an optimizer's models grow), so its error is taken from the means of consecutive stretches, which drift shows
in, and not from single candidates alone. Ends are at about one in ten on either side. What repeats another candidate's
recipe costs nothing and is counted as that.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from search.course import Course
from search.finals import LEAST_FINALISTS
from search.judge import GRID
from search.pace import Cost
from search.ranges import Range
from search.schema import Budget, PlateauConfig

Limit = Literal["candidates", "items", "hours", "gpu_hours", "plateau"]

STRETCHES = 8
TAIL = 1.28
"""Standard normal quantile: one in ten is beyond."""
DRIFT = 0.1
"""Share by which costs to come may differ for reasons that nothing measured shows (another load of the machine, another
stage), and as much again for each time that what is left is as long as what was measured, up to three in all."""


@dataclass(frozen=True)
class Remaining:
    """Wall seconds to the end.

    Attributes:
        search: of the search; 0 once it has ended.
        finals: of selection and holdout.
        limit: which part of the budget is expected to end the search; None once it has ended.
        candidates: that the search is still to tell; under limits in time or items an estimate.
        measured: candidates that it is estimated from.
        workers: evaluations that get done in the time of one.
    """

    search: Range
    finals: Range
    limit: Limit | None
    candidates: Range
    measured: int
    workers: float

    @property
    def seconds(self) -> Range:
        """In all."""
        return self.search + self.finals


def remaining(course: Course, now: float | None = None, budget: Budget | None = None) -> Remaining | None:
    """The estimate, or None before anything was measured, and for a run that has finished.

    Args:
        course: where the run stands.
        now: unix time, by a clock like the writer's; what is under way has begun before it. The time of the last event
            if None, as for a run that nobody works on.
        budget: as it is now; as far as the log knows it if None.
    """
    budget = budget or course.config.search.budget
    if course.phase == "finished" or not any(each.worked for each in course.pace.recent):
        return None
    finals = _finals(course, budget)
    workers = course.pace.parallelism()
    if course.phase != "search" or course.ended is not None:
        nothing = Range.exactly(0.0)
        return Remaining(nothing, finals, None, nothing, len(course.pace.recent), workers)
    costs = course.pace.speaking(max(each.stage for each in course.pace.recent))
    rate = _Rate.of([each.busy + each.overhead for each in costs], workers)
    limits = _limits(course, budget, costs, rate)
    begun = max(0.0, (course.at if now is None else now) - course.at) if course.running else 0.0
    done = _under_way(course, course.at if now is None else now, rate)
    search, limit = _first(limits)
    credit = min(done, search.middle) if limit in ("candidates", "items") else min(begun, search.middle)
    search = Range(max(0.0, search.low - credit), max(0.0, search.middle - credit), max(0.0, search.high - credit))
    left = _candidates(limits, rate, budget.candidates - course.told)
    return Remaining(search, finals, limit, left, sum(each.worked for each in costs), workers)


_NOTHING = Range.exactly(0.0)
_ENDLESS = Range.exactly(math.inf)


class _Rate(NamedTuple):
    """What one of many takes, in wall seconds.

    Attributes:
        mean: of those measured.
        error: standard error of the mean.
        spread: standard deviation of one.
        measured: how many.
    """

    mean: float
    error: float
    spread: float
    measured: int

    @staticmethod
    def of(times: Sequence[float], workers: float) -> _Rate:
        """From worker seconds, in the order in which they were spent; at least one of them."""
        each = np.asarray(times, dtype=np.float64) / workers
        if len(each) >= 10:  # the very first one loads what all later ones find loaded: no sign of what is to come
            each = np.clip(each, *np.quantile(each, [0.05, 0.95]))
        mean, count = float(each.mean()), len(each)
        if count < 2:
            return _Rate(mean, mean, mean, count)
        spread = float(each.std(ddof=1))
        stretches = [float(part.mean()) for part in np.array_split(each, min(STRETCHES, count // 2))]
        drift = float(np.std(stretches, ddof=1)) / math.sqrt(len(stretches)) if len(stretches) > 2 else 0.0
        return _Rate(mean, max(drift, spread / math.sqrt(count)), spread, count)

    def times(self, count: float) -> Range:
        """Of so many more."""
        if count <= 0.0:
            return _NOTHING
        if math.isinf(count):
            return _ENDLESS
        middle = count * self.mean
        unseen = middle * DRIFT * (1.0 + min(2.0, count / self.measured))
        off = TAIL * math.hypot(count * self.error, math.sqrt(count) * self.spread) + unseen
        return Range(middle * middle / (middle + off) if middle > 0.0 else 0.0, middle, middle + off)


def _limits(course: Course, budget: Budget, costs: Sequence[Cost], rate: _Rate) -> dict[Limit, Range]:
    """limit -> wall seconds until it is reached; only those that there are."""
    pace = course.pace
    found: dict[Limit, Range] = {"candidates": rate.times(budget.candidates - course.told)}
    if budget.items is not None:
        each = sum(cost.items for cost in costs) / len(costs)
        left = round(budget.items * (1.0 - course.config.search.reserve)) - pace.items
        found["items"] = rate.times(left / each if each > 0.0 else math.inf) if left > 0 else _NOTHING
    if budget.hours is not None:
        seconds = max(0.0, budget.hours * 3600.0 - pace.seconds)
        # what is under way then is still brought to its end
        found["hours"] = Range(seconds, seconds, seconds + rate.mean * course.pace.parallelism())
    if budget.gpu_hours is not None and pace.gpu_seconds > 0.0 and pace.seconds > 0.0:
        seconds = max(0.0, budget.gpu_hours * 3600.0 - pace.gpu_seconds) * pace.seconds / pace.gpu_seconds
        found["gpu_hours"] = Range(seconds * (1.0 - DRIFT), seconds, seconds * (1.0 + DRIFT))
    if budget.plateau is not None:
        # the earliest end; nobody can say whether something better is found before
        found["plateau"] = Range(rate.times(_until_flat(course, budget.plateau)).low, math.inf, math.inf)
    return found


def _until_flat(course: Course, plateau: PlateauConfig) -> int:
    """Candidates until the search counts as flat, if it gets no better any more (:class:`search.budget.Progress`)."""
    if not course.changes:
        return plateau.candidates
    now = course.volume
    since = len(course.changes) - 1
    if now is not None:
        enough = now / (1.0 + plateau.gain)
        since = bisect.bisect_left(range(since), enough, key=lambda place: course.volume_after(place + 1) or 0.0)
    of_last_stage = course.started.stage_ends[-1] if course.started.stage_ends else 0
    return max(0, max(course.changes[since], of_last_stage + 1) + plateau.candidates - course.told)


def _first(limits: dict[Limit, Range]) -> tuple[Range, Limit]:
    """Whichever comes first: each end of the range by itself."""
    limit = min(limits, key=lambda name: limits[name].middle)
    low, middle, high = (min(getattr(each, end) for each in limits.values()) for end in ("low", "middle", "high"))
    return Range(low, middle, high), limit


def _candidates(limits: dict[Limit, Range], rate: _Rate, most: int) -> Range:
    """How many the search is still to tell."""
    found = _first(limits)[0]
    if list(limits) == ["candidates"] or rate.mean <= 0.0:
        return Range.exactly(float(max(0, most)))
    low, middle, high = (min(float(most), end / rate.mean) for end in (found.low, found.middle, found.high))
    return Range(math.floor(low), round(middle), math.ceil(high))


def _under_way(course: Course, now: float, rate: _Rate) -> float:
    """Wall seconds that those under way have already had, of what is still counted as theirs."""
    spent = [max(0.0, now - each.since) for each in course.running.values()]
    return sum(min(each / course.pace.parallelism(), rate.mean) for each in spent)


def _finals(course: Course, budget: Budget) -> Range:
    """Wall seconds of what is still to be scored on selection and holdout."""
    selection, holdout = _named(course, budget)
    return _on(course, "selection", selection) + _on(course, "holdout", holdout)


def _named(course: Course, budget: Budget) -> tuple[Range, Range]:
    """How many candidates are still to be scored on either split."""
    selection, holdout = _named_if_opened(course, budget)
    return selection, holdout if course.config.search.holdout else _NOTHING


def _named_if_opened(course: Course, budget: Budget) -> tuple[Range, Range]:
    if course.pending("holdout"):
        return _NOTHING, Range.exactly(float(len(course.pending("holdout"))))
    if course.finalists:
        compared = float(len(set(course.baselines)))
        # the chosen one may be a baseline itself
        opened = Range(compared, compared + 1.0, compared + 1.0)
        return Range.exactly(float(len(course.pending("selection")))), opened
    compared = float(_baselines(course))
    most = _affordable(course, budget, compared)
    front = min(float(len(course.front)), most)
    # some of the finalists may be baselines themselves
    named = Range(max(front, compared), compared + (front + most) / 2.0, compared + most)
    return named, Range(compared, compared + 1.0, compared + 1.0)


def _baselines(course: Course) -> int:
    """Of the grid over λ only the best is one; the best per expert may be another."""
    named = sum(not label.startswith(GRID) for label in course.labels.values())
    grid = any(label.startswith(GRID) for label in course.labels.values())
    return named + grid + ("per-expert" in course.stage_names)


def _affordable(course: Course, budget: Budget, baselines: float) -> float:
    """How many finalists the reserve will pay for (:class:`search.finals.Finals`)."""
    settings = course.config.search
    items = course.pace.items * budget.candidates / max(1, course.told)
    if budget.items is not None:
        items = min(items, budget.items * (1.0 - settings.reserve))
    reserved = items * settings.reserve / (1.0 - settings.reserve)
    most = max(LEAST_FINALISTS, reserved // max(1, course.items_of("selection")) - baselines)
    return min(most, settings.finalists) if settings.finalists is not None else most


def _on(course: Course, split: Literal["selection", "holdout"], count: Range) -> Range:
    """Wall seconds of scoring so many on a split: by what it took others there, else by the seconds of an item."""
    pace, items = course.pace, course.items_of(split)
    times: Sequence[float] = pace.finals[split]
    if len(times) < 3:
        times = [items * one + load for one, load in zip(pace.per_item, pace.materializing, strict=True)]
    if not times:  # logs that say nothing of an evaluation's parts
        times = [cost.busy / max(1, cost.items) * items for cost in pace.recent if cost.worked]
    rate = _Rate.of(times, pace.parallelism())
    return Range(rate.times(count.low).low, rate.times(count.middle).middle, rate.times(count.high).high)
