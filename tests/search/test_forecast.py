"""How long a search will take: arithmetic with closed forms, and against what finished searches really did."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merging.recipe import Recipe
from search.forecast.arithmetic import Costs, Forecast, Pace, forecast
from search.forecast.costs import REPEATS, Sample, costs_of, proposing, sample, spread, trials
from search.forecast.disk import database_bytes, free_at
from search.forecast.outline import Items, Outline, StageOutline, compared, outline_of, stage_outlines
from search.ranges import Range
from search.schema import Budget, PlateauConfig
from search.store import DATABASE
from search.workers.evaluation import CandidateFailed, Evaluation

STAGES = (
    StageOutline("baselines", 10, 0, 0, False),
    StageOutline("per-expert", 20, 2, 0, True),
    StageOutline("full", 70, 24, 1, True),
)
WHOLE = Items({"one": 100, "two": 50})
RUNGS = (Items({"one": 40, "two": 40}), Items({"one": 60, "two": 10}))


def outline(**changes: Any) -> Outline:
    made = Outline(
        stages=STAGES,
        rungs=RUNGS,
        splits={"search": WHOLE, "selection": Items({"one": 30, "two": 30}), "holdout": Items({"one": 200, "two": 9})},
        budget=Budget(candidates=100),
        reserve=0.2,
        finalists=None,
        compared=6,
    )
    return replace(made, **changes)


def exact(merge: float = 2.0, item: float = 0.1, **changes: Any) -> Costs:
    """Costs that are known to the digit; scoring is in proportion to the items."""
    pace = Pace({1: Range.exactly(item), 10**6: Range.exactly(item * 10**6)})
    nothing = Range.exactly(0.0)
    made = Costs(nothing, Range.exactly(merge), {"one": pace, "two": pace}, store=nothing)
    return replace(made, **changes)


def ends(found: Range) -> tuple[float, float]:
    return found.low, found.high


def named(found: Forecast) -> dict[str, Any]:
    return {each.name: each for each in found.stages}


def test_without_early_stopping_everything_is_counted_to_the_digit() -> None:
    found = forecast(outline(rungs=(WHOLE,)), exact())
    stages = named(found)
    assert found.items == Range.exactly(100 * 150)
    assert ends(stages["full"].seconds) == pytest.approx((70 * (2.0 + 15.0),) * 2)
    # the reserve is a quarter of what was scored, and a finalist costs 60 items
    finalists = int(15_000 * 0.25 / 60) - 6
    assert found.finalists.middle == finalists
    assert stages["selection"].candidates.middle == finalists + 6
    assert stages["selection"].seconds.middle == pytest.approx((finalists + 6) * (2.0 + 6.0))
    assert ends(stages["holdout"].seconds) == pytest.approx((7 * (2.0 + 20.9),) * 2)
    assert found.seconds.middle == pytest.approx(sum(each.seconds.middle for each in found.stages))
    assert ends(found.busy) == pytest.approx((100 * 17.0,) * 2)


def test_early_stopping_spreads_items_between_the_first_rung_and_all() -> None:
    found = named(forecast(outline(), exact()))
    assert found["baselines"].items == Range.exactly(10 * 150)
    full = found["full"].items
    assert 70 * 80 < full.low < full.middle < full.high == 70 * 150
    # a race lets most candidates of an optimizer through; halving keeps a third for certain, all at the most
    halved = named(forecast(outline(rule="halving", keep=0.25), exact()))["full"].items
    assert halved.low == pytest.approx(70 * (80 + 0.25 * 70)) and halved.high == 70 * 150
    at_random = named(forecast(outline(at_random=True), exact()))["full"].items
    assert at_random.middle < full.middle


def test_workers_divide_the_time_and_the_driver_is_a_floor() -> None:
    one, four = forecast(outline(rungs=(WHOLE,)), exact()), forecast(outline(rungs=(WHOLE,), workers=4), exact())
    assert named(four)["full"].seconds.middle == pytest.approx(named(one)["full"].seconds.middle / 4)
    assert named(four)["holdout"].seconds.middle == pytest.approx(math.ceil(7 / 4) * (2.0 + 20.9))
    slow = exact(propose={"full": Range.exactly(30.0)})
    assert named(forecast(outline(workers=4), slow))["full"].seconds.middle == pytest.approx(70 * 30.0)
    assert four.busy.middle == pytest.approx(one.busy.middle)


@pytest.mark.parametrize(
    ("budget", "candidates"),
    [
        # the candidate that reaches a limit is still evaluated
        (Budget(candidates=100, items=10_000), math.ceil(8_000 / 150)),
        (Budget(candidates=100, hours=0.1), math.ceil(360 / 17)),
        (Budget(candidates=100, gpu_hours=0.1), math.ceil(360 / 17 / 0.5)),
        (Budget(candidates=100, items=10), 1),
    ],
)
def test_every_limit_of_the_budget_ends_the_search(budget: Budget, candidates: int) -> None:
    found = forecast(outline(rungs=(WHOLE,), budget=budget, gpus=0.5), exact())
    assert found.candidates == Range.exactly(candidates)


def test_a_plateau_shortens_the_last_stage_alone() -> None:
    budget = Budget(candidates=100, plateau=PlateauConfig(candidates=15))
    found = forecast(outline(budget=budget, rungs=(WHOLE,)), exact())
    assert found.candidates == Range(46, 100, 100)
    assert named(found)["per-expert"].candidates == Range.exactly(20)


def test_hours_make_the_candidates_uncertain_and_not_the_hours() -> None:
    costs = exact(merge=0.0)
    costs = replace(costs, merge=Range(1.0, 2.0, 4.0))
    found = forecast(outline(rungs=(WHOLE,), budget=Budget(candidates=10_000, hours=0.2)), costs)
    assert found.candidates.low < found.candidates.middle < found.candidates.high
    searched = [each for each in found.stages if each.name not in ("selection", "holdout")]
    assert sum(each.seconds.middle for each in searched) == pytest.approx(720, abs=20)


def test_a_control_is_a_second_search() -> None:
    without, found = forecast(outline(), exact()), forecast(outline(control=True), exact())
    control = named(found)["control"]
    assert found.seconds.middle == pytest.approx(without.seconds.middle + control.seconds.middle)
    assert control.items.middle < without.items.middle and control.candidates == without.candidates


def test_a_pace_goes_through_what_was_measured() -> None:
    pace = Pace({40: Range(1.0, 2.0, 4.0), 80: Range(1.5, 3.0, 6.0)})
    assert [pace.seconds(each, "middle") for each in (0, 40, 60, 80, 160)] == [0.0, 2.0, 2.5, 3.0, 6.0]
    assert 0.5 < pace.seconds(1, "middle") < pace.seconds(20, "middle") < 2.0  # a call costs something by itself
    assert pace.seconds(80, "low") == 1.5 and pace.seconds(80, "high") == 6.0
    with pytest.raises(ValueError, match="items"):
        Pace({})


# -- measuring --------------------------------------------------------------------------------------------------------


class Machine:
    """A clock, and evaluations that take a known time of it."""

    def __init__(self, merge: float, item: Mapping[str, float], fails: Sequence[int] = ()) -> None:
        self.now, self.calls = 0.0, 0
        self._merge, self._item, self._fails = merge, item, fails
        self._written: Recipe | None = None

    def clock(self) -> float:
        return self.now

    def evaluate(self, recipe: Recipe, items: Mapping[str, Sequence[str]]) -> Evaluation:
        self.calls += 1
        if self.calls - 1 in self._fails:
            raise CandidateFailed("not finite", {})
        merge = 0.0 if recipe is self._written else self._merge
        self._written = recipe
        score = sum(self._item[name] * len(ids) for name, ids in items.items())
        self.now += merge + score
        return Evaluation({}, {}, {}, {"materialize": merge, "evaluate": score})


def rungs(*sizes: Mapping[str, int]) -> list[dict[str, tuple[str, ...]]]:
    return [{name: tuple(f"{name}{each}" for each in range(count)) for name, count in size.items()} for size in sizes]


def recipes(count: int = 8) -> list[Any]:
    return [object() for _ in range(count)]


def test_a_sample_times_merges_and_each_evaluator_apart() -> None:
    machine = Machine(0.5, {"one": 0.01, "two": 0.1})
    found = sample(machine.evaluate, recipes(), rungs({"one": 40, "two": 40}, {"one": 80}), 60.0, machine.clock)
    assert found.first == pytest.approx(0.5 + 0.4 + 4.0)
    assert len(found.merges) >= REPEATS and set(found.merges) == {0.5}  # never one that was written already
    assert found.scored["two"] == {40: pytest.approx((4.0,) * len(found.scored["two"][40]))}
    assert found.scored["one"][80][0] == pytest.approx(0.8) and found.largest == {"one": 80, "two": 40}


def test_what_would_take_too_long_is_not_tried() -> None:
    machine = Machine(1.0, {"one": 1.0})
    found = sample(machine.evaluate, recipes(), rungs({"one": 5}, {"one": 1000}), 30.0, machine.clock)
    assert found.largest == {"one": 5}
    assert len(found.scored["one"][5]) == REPEATS and machine.now < 40.0


def test_merges_that_fail_are_left_out_and_said_and_all_of_them_is_an_end() -> None:
    machine = Machine(0.5, {"one": 0.1}, fails=[1, 3])
    found = sample(machine.evaluate, recipes(), rungs({"one": 10}), 20.0, machine.clock)
    assert found.failed == ("not finite", "not finite") and len(found.merges) >= 1
    broken = Machine(0.5, {"one": 0.1}, fails=range(1000))
    with pytest.raises(CandidateFailed, match="not finite"):
        sample(broken.evaluate, recipes(), rungs({"one": 10}), 20.0, broken.clock)
    assert broken.calls < 50


def test_a_forecast_of_a_machine_that_is_known_is_right() -> None:
    machine = Machine(0.5, {"one": 0.01, "two": 0.02})
    timed = sample(machine.evaluate, recipes(), rungs(*(each.of for each in RUNGS)), 60.0, machine.clock)
    costs = replace(costs_of(timed, 0.0, {}, ["one", "two"]), store=Range.exactly(0.0))
    whole = forecast(outline(rungs=(WHOLE,)), costs)
    true = 100 * (0.5 + 100 * 0.01 + 50 * 0.02)
    searched = sum(each.seconds.middle for each in whole.stages if each.name not in ("selection", "holdout"))
    assert searched == pytest.approx(true, rel=0.05)
    assert whole.seconds.low < searched < whole.seconds.high


def test_spread_is_around_what_was_seen() -> None:
    found = spread([3.0, 1.0, 2.0])
    assert found.low < 1.0 and found.middle == 2.0 and found.high > 3.0


def test_larger_merges_are_reckoned_and_evaluators_without_a_sample_cost_nothing() -> None:
    timed = Sample((1.0,), 2.0, {"one": {10: (1.0,)}})
    costs = costs_of(timed, 4.0, {}, ["one", "absent"], merges=1.5)
    assert costs.merge.middle == 1.5 and costs.start.middle == 4.0 and costs.start.high >= 4.0 + 2.0
    assert costs.scoring(Items({"absent": 10}), "high") == 0.0


# -- from a config, and against what searches did ----------------------------------------------------------------------


def of_run(folder: Path, synthetic_run: Any, **arguments: Any) -> tuple[Any, Outline]:
    results = synthetic_run(folder, candidates=60, **arguments)
    stages = results.stages
    items = results.started.items
    splits = {
        split: Items({name: len(each[split]) for name, each in items.items()})
        for split in ("search", "selection", "holdout")
    }
    search = results.config.search
    made = Outline(
        stages=stage_outlines(stages, search.budget.candidates),
        rungs=(splits["search"],),
        splits=splits,
        budget=search.budget,
        reserve=search.reserve,
        finalists=search.finalists,
        compared=compared(stages),
    )
    return results, made


def test_counts_and_bytes_are_those_of_a_search_that_was_run(tmp_path: Path, synthetic_run: Any) -> None:
    from search.stages import build_optimizer

    results, made = of_run(tmp_path / "run", synthetic_run)
    found = forecast(made, exact(paces=dict.fromkeys(results.started.items, Pace({1: Range.exactly(0.1)}))))
    assert found.candidates == Range.exactly(len(results.candidates))
    assert [each.candidates for each in made.stages] == [
        sum(each.stage == stage for each in results.candidates) for stage in range(len(made.stages))
    ]
    assert found.items.low <= results.items <= found.items.high
    assert found.finalists.low <= len(results.finalists) <= found.finalists.high
    assert len(results.scores["selection"]) <= found.finalists.high + made.compared
    assert len(results.scores["holdout"]) <= made.compared + 1

    stored = database_bytes(made, found, dict.fromkeys(results.started.items, 1))
    took = (results.folder / DATABASE).stat().st_size
    assert stored.low <= stored.middle == pytest.approx(took, rel=0.3)

    cut_off = stage_outlines(results.stages, 5)
    assert [each.candidates for each in cut_off] == [5, 0, 0]
    assert cut_off[-1].numbers == results.stages[-1].space.box.continuous

    tried = trials(results.stages, 5)
    assert len({each.hash for each in tried}) == 5
    assert tried == trials(results.stages, 5)  # drawn with a fixed seed

    asked: list[str] = []

    def make(stage: Any) -> Any:
        asked.append(stage.name)
        return build_optimizer(results.config, stage, 30, 2)

    spent = proposing(results.stages, made, make, 2)
    assert asked == list(spent) == ["per-expert", "full"]
    assert all(0.0 < each.low <= each.middle <= each.high < 60.0 for each in spent.values())


def test_free_space_is_asked_of_the_nearest_folder_that_is_there(tmp_path: Path) -> None:
    assert free_at(tmp_path / "not" / "there") == pytest.approx(free_at(tmp_path), rel=0.01)


def test_an_outline_reads_rungs_and_splits(nano_zoo: Path) -> None:
    from search.config import load_config
    from search.forecast.plan import _stages, opened
    from search.setup import build_evaluators, model_paths

    loaded = load_config(Path(__file__).parents[2] / "configs" / "nano.yaml")
    base, experts = model_paths(loaded)
    evaluators = build_evaluators(loaded)
    made = outline_of(loaded, evaluators, _stages(loaded.config, opened(base, experts)))
    assert [dict(each.of) for each in made.rungs] == [{"string": 40, "language": 40}, {"string": 24, "language": 24}]
    assert made.splits["search"].total == 128 and made.staged
    assert [each.name for each in made.stages] == ["baselines", "per-expert", "full"]
    # base, two experts, average, two presets, the best λ and the best with one coefficient per expert
    assert made.compared == 8 and made.stages[-1].numbers == 12


def test_what_only_a_run_makes_is_not_made_for_a_plan() -> None:
    from search.config import load_config
    from search.forecast.plan import _notes, _with_real_experts

    configs = Path(__file__).parents[2] / "configs"
    virtual = load_config(configs / "virtual.yaml")
    assert virtual.config.models.virtual and not _with_real_experts(virtual.config).models.virtual
    said = " ".join(_notes(virtual, outline(workers=3), measured=True))
    assert "Virtual experts" in said and "slow each other" in said and "look at inputs" not in said
    calibrated = load_config(configs / "nano.yaml", ["space.methods=[regmean]", "space.coefficient=[0,1]"])
    reduced = _with_real_experts(calibrated.config).space.methods
    assert [each if isinstance(each, str) else each.name for each in reduced] == ["task_arithmetic"]
    assert "look at inputs" in " ".join(_notes(calibrated, outline(), measured=True))
