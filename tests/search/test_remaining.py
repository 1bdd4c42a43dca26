"""How long a run has still to go: closed forms where costs are alike, and a range that holds where they are not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.course import Course
from search.events import Asked, BudgetSpent, EvaluationStarted, FinalistsNamed, Resumed, RunStarted, Scored, Told
from search.optimizers.contract import Genome, Outcome
from search.ranges import Range
from search.remaining import Remaining, remaining
from search.schema import Budget
from search.store import Store

NAMES = ("a.accuracy", "b.accuracy")
ITEMS = {"search": 240, "selection": 320, "holdout": 480}
"""Of both evaluators together."""


@pytest.fixture(scope="module")
def started() -> RunStarted:
    from fake_searches import GROUPS, TARGETS, config

    settings = config("random", 100)
    search = settings.search.model_copy(update={"finalists": 8, "reserve": 0.5})
    items = {
        name: {split: [f"{name}/{split}/{place}" for place in range(count // 2)] for split, count in ITEMS.items()}
        for name in "ab"
    }
    aliases = ("base", "a", "b")
    return RunStarted(
        settings.model_copy(update={"search": search}).model_dump(mode="json"),
        {alias: f"sha256:{alias}" for alias in aliases},
        {alias: f"models/{alias}" for alias in aliases},
        [str(each) for each in GROUPS],
        TARGETS.as_data(),
        {"a": "fingerprint", "b": "fingerprint"},
        "hf/cpu/float32",
        1,
        [12, 34],
        list(TARGETS.reference),
        items,
        version=2,
    )


class Story:
    """A course, told with a clock."""

    def __init__(self, started: RunStarted, workers: int = 1) -> None:
        self.course = Course(started)
        self.now = 1000.0
        self.next = 0
        self.workers = workers

    def candidate(self, seconds: float, items: int = 240, gpus: float = 0.0, **outcome: Any) -> None:
        """One candidate that a worker has had for so long; the others are busy as well."""
        id, self.next = self.next, self.next + 1
        given: dict[str, Any] = {"state": "complete", "utilities": (0.5, 0.5), "items": items, **outcome}
        repeats = given.get("of") is not None
        recipe = f"recipe {given['of'] if repeats else id}"
        busy = 0.0 if repeats else seconds
        self.course.note(Asked(id, 2, Genome((0.5,)), recipe, "base" if id == 0 else ""), self.now)
        self.course.pace.note_running(self.workers)
        self.now += busy / self.workers
        if given["state"] == "complete":
            values = dict.fromkeys(NAMES, 0.5)
            self.course.note(Scored(id, "search", values, values, {"evaluate": busy}), self.now)
        told = Told(id, 2, Outcome(**given), {}, busy / self.workers, busy, gpus)
        self.course.note(told, self.now)

    def left(self, **budget: Any) -> Remaining:
        found = remaining(self.course, self.now, Budget(**{"candidates": 100, **budget}))
        assert found is not None
        return found


def story(started: RunStarted, costs: Sequence[float], **given: Any) -> Story:
    told = Story(started, given.pop("workers", 1))
    for each in costs:
        told.candidate(each, **given)
    return told


# -- closed forms -----------------------------------------------------------------------------------------------------


def test_alike_candidates_take_what_they_took(started: RunStarted) -> None:
    left = story(started, [3.0] * 20).left()
    assert left.search.middle == pytest.approx(80 * 3.0) and left.candidates == Range.exactly(80.0)
    assert left.search.low < left.search.middle < left.search.high < 1.5 * left.search.middle
    assert (left.limit, left.measured, left.workers) == ("candidates", 20, pytest.approx(1.0))


def test_workers_share_what_is_left(started: RunStarted) -> None:
    left = story(started, [3.0] * 20, workers=4).left()
    assert left.workers == pytest.approx(4.0) and left.search.middle == pytest.approx(80 * 3.0 / 4)


def test_workers_that_came_with_a_new_start_count_from_then_on(started: RunStarted) -> None:
    told = story(started, [3.0] * 20)
    told.course.note(Resumed(100), told.now)
    told.workers = 4
    told.candidate(3.0)
    assert told.left().workers == 4.0  # as many as were seen at once: too little is measured yet
    for _ in range(10):
        told.candidate(3.0)
    left = told.left()
    assert left.workers == pytest.approx(4.0) and left.search.middle == pytest.approx(69 * 3.0 / 4)


def test_repeated_recipes_take_nothing_and_are_expected_to_come_again(started: RunStarted) -> None:
    told = Story(started)
    for _ in range(20):
        told.candidate(3.0)
        told.candidate(0.0, state="duplicate", of=0)
    left = told.left()
    assert left.measured == 20 and left.search.middle == pytest.approx(60 * 1.5)
    assert told.course.pace.items == 20 * 240  # equal recipes count once


def test_the_finals_are_scored_at_the_price_of_an_item(started: RunStarted) -> None:
    told = story(started, [2.4] * 20)  # 0.01 s an item
    told.course.note(BudgetSpent("candidates", "20 candidates"), told.now)
    told.course.note(FinalistsNamed([3, 4, 5], [0, 1]), told.now)
    left = told.left()
    assert left.limit is None and left.search == Range.exactly(0.0)
    # two or three holdouts beside the five on selection
    assert left.finals.middle == pytest.approx(0.01 * (5 * ITEMS["selection"] + 3 * ITEMS["holdout"]))
    for id in (3, 4, 5):
        told.course.note(EvaluationStarted(id, "selection"), told.now)
        values = dict.fromkeys(NAMES, 0.5)
        told.course.note(Scored(id, "selection", values, values, {"evaluate": 10.0}), told.now)
    assert told.left().finals.middle > 2 * 10.0  # from now on by what it really takes there


def test_the_finals_of_a_search_that_goes_on_are_within_what_the_reserve_pays(started: RunStarted) -> None:
    left = story(started, [2.4] * 20).left()
    most = started.config["search"]["finalists"]
    baselines = 1 + 1  # the base, and the best per expert
    assert left.finals.high < 2.0 * 0.01 * ((most + baselines) * ITEMS["selection"] + 3 * ITEMS["holdout"])
    assert left.finals.low > 0.0 and left.seconds.middle == pytest.approx(left.search.middle + left.finals.middle)


def test_hours_end_the_search_to_the_second(started: RunStarted) -> None:
    left = story(started, [3.0] * 20).left(hours=120.0 / 3600.0)
    assert left.limit == "hours" and left.search.low == left.search.middle == pytest.approx(60.0)
    assert left.search.high == pytest.approx(63.0)  # what is under way then is brought to its end
    assert left.candidates.middle == 20.0


def test_items_end_the_search_when_they_are_spent_but_for_the_reserve(started: RunStarted) -> None:
    reserve = started.config["search"]["reserve"]
    told = story(started, [3.0] * 20)
    items = 240 * 50 / (1.0 - reserve)
    left = told.left(items=int(items))
    assert left.limit == "items" and left.search.middle == pytest.approx(30 * 3.0, rel=0.01)
    assert told.left(items=100).search == Range.exactly(0.0)


def test_gpu_hours_are_spent_as_fast_as_they_were(started: RunStarted) -> None:
    told = story(started, [3.0] * 20, workers=2, gpus=0.5)  # one GPU in all: as many GPU seconds as seconds
    left = told.left(gpu_hours=60.0 / 3600.0)
    assert left.limit == "gpu_hours" and left.search.middle == pytest.approx(30.0)


def test_a_plateau_may_end_it_early_and_says_nothing_of_the_rest(started: RunStarted) -> None:
    told = story(started, [3.0] * 20)  # the front has not changed since the first
    ends = started.stage_ends[-1]
    left = told.left(plateau={"candidates": 30, "gain": 0.001})
    plain = told.left()
    assert left.limit == "candidates" and left.search.middle == plain.search.middle
    quiet = max(1, ends + 1) + 30 - 20
    assert 0.5 * quiet * 3.0 < left.search.low <= quiet * 3.0
    assert left.candidates.low <= quiet


def test_what_is_under_way_has_had_a_part_of_its_time(started: RunStarted) -> None:
    told = story(started, [3.0] * 20)
    before = told.left().search.middle
    told.course.note(Asked(20, 2, Genome((0.5,)), "new"), told.now)
    told.now += 2.0
    assert told.left().search.middle == pytest.approx(before - 2.0)
    told.now += 100.0  # it hangs: nobody knows for how long, and the others still have to come
    assert told.left().search.middle == pytest.approx(before - 3.0)


def test_nothing_is_said_before_anything_was_measured(started: RunStarted) -> None:
    course = Course(started)
    assert remaining(course) is None
    course.note(Asked(0, 0, Genome((0.5,)), "a"), 1.0)
    assert remaining(course, 2.0) is None


def test_a_failure_is_measured_as_well(started: RunStarted) -> None:
    told = story(started, [3.0] * 10)
    for _ in range(10):
        told.candidate(1.0, items=0, state="failed", utilities=(), reason="NaN")
    assert told.left().search.middle == pytest.approx(80 * 2.0)


# -- the range --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.2, 1.0])
def test_the_range_holds_most_of_what_comes(started: RunStarted, spread: float) -> None:
    chance = np.random.default_rng(7)
    inside, off = [], []
    for _ in range(60):
        costs = np.exp(spread * chance.standard_normal(100))
        told = Story(started)
        for cost in costs[:30]:
            told.course.pace.note_told(_told(told, float(cost)), 0.0)
        told.course.told = 30
        truth = float(costs[30:].sum())
        found = told.left().search
        inside.append(found.low <= truth <= found.high)
        off.append(math.log(found.middle / truth))
    assert np.mean(inside) >= 0.8
    assert abs(float(np.mean(off))) < 0.15  # costs beyond the last twentieth are cut: a little too low


def _told(told: Story, seconds: float) -> Told:
    return Told(0, 2, Outcome("complete", (0.5, 0.5), items=240), {}, seconds, seconds)


@pytest.mark.parametrize("high", [0.0, 0.5, math.inf])
def test_ends_are_in_order_whatever_the_numbers(started: RunStarted, high: float) -> None:
    told = story(started, [0.0, 5.0, high if math.isfinite(high) else 1e9, 0.0])
    left = told.left()
    for each in (left.search, left.finals, left.seconds, left.candidates):
        assert 0.0 <= each.low <= each.middle <= each.high


def test_a_log_of_old_without_elapsed_times_has_an_estimate(tmp_path: Path) -> None:
    store = Store.open(Path(__file__).parent / "data" / "run_format_1", read_only=True)
    events = list(store.entries())
    store.close()
    course = Course(events[0].event)  # type: ignore[arg-type]
    for entry in events[1:60]:
        course.note(entry.event, entry.at)
    left = remaining(course)
    assert left is not None and left.seconds.middle > 0.0 and left.workers == 1.0
