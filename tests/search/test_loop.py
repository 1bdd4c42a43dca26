"""The loop under fire: whatever moment it is killed at, the resumed search is the undisturbed one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_searches import GROUPS, SOURCES, TARGETS, FakeWorker, Killed, coefficients, config, content, start

from merging.recipe import Recipe
from search.errors import Interrupted, SearchError
from search.events import EvaluationStarted, Scored, Told
from search.loop import FAILURES_IN_A_ROW, Search
from search.optimizers.contract import Genome
from search.stages import build_optimizer, build_stages
from search.store import Store
from search.workers.inline import InlinePool


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "fidelity"),
    [
        ("sms_emoa", {"rungs": [60, 110], "alpha": 0.3}),
        pytest.param("cma", {"rungs": [60, 110], "alpha": 0.3}, marks=pytest.mark.slow),
        pytest.param("random", {"rungs": [10, 20], "rule": "halving"}, marks=pytest.mark.slow),
        pytest.param("nsga2", {"rungs": [60, 110], "alpha": 0.3}, marks=pytest.mark.slow),
        pytest.param("auto", {"rungs": [80], "alpha": 0.4}, marks=pytest.mark.slow),
        pytest.param("cma", "off", marks=pytest.mark.slow),
        pytest.param("cma", {"minibatch": 40, "redraw": 8}, marks=pytest.mark.slow),
    ],
)
def test_killed_anywhere_it_ends_as_the_undisturbed_search(optimizer: str, fidelity: Any, tmp_path: Path) -> None:
    settings = config(optimizer, 60, fidelity, methods=["task_arithmetic", "slerp"], method_blocks=2)

    def fail(recipe: Recipe) -> bool:
        return int(recipe.hash[:2], 16) < 25  # about a tenth, baselines among them

    calm, fire = tmp_path / "calm", tmp_path / "fire"
    calm.mkdir()
    fire.mkdir()
    undisturbed = FakeWorker(fail)
    start(calm, settings, undisturbed)
    chance = random.Random(7)
    disturbed, kills = FakeWorker(fail), 0
    while True:
        try:
            start(fire, settings, disturbed, kill_at=chance.randint(1, 9), after=chance.random() < 0.5)
        except Killed:
            kills += 1
        else:
            break
    assert kills > 15
    assert content(fire) == content(calm)
    assert len(disturbed.evaluated) <= len(undisturbed.evaluated) + kills
    if fidelity != "off" and "rungs" in fidelity:
        assert any(told[2].state == "censored" for told in content(calm)[0])
    store = Store.open(fire, read_only=True)
    assert [each.id for each in store.candidates()] == list(range(60))
    store.close()


def test_the_baselines_come_first_and_are_what_they_are_called(tmp_path: Path) -> None:
    settings = config("random", 12)
    stages = build_stages(settings, GROUPS, SOURCES)
    start(tmp_path, settings, FakeWorker())
    store = Store.open(tmp_path, read_only=True)
    candidates = store.candidates()
    store.close()
    wanted = {
        "base": (0.0, 0.0), "expert a": (1.0, 0.0), "expert b": (0.0, 1.0), "average": (0.5, 0.5),
        "task arithmetic 0.8": (0.8, 0.8),
    }  # fmt: skip
    found = {each.label: each for each in candidates if each.label}
    assert list(found)[:4] == ["base", "expert a", "expert b", "average"]
    for label, (a, b) in wanted.items():
        recipe = stages[0].space.decode(found[label].genome)
        assert recipe.hash == found[label].recipe_hash
        for assignment in recipe.groups.values():
            assert coefficients(assignment) == pytest.approx({"a": a, "b": b})


def test_a_known_recipe_is_not_evaluated_again(tmp_path: Path) -> None:
    # with narrow bounds around a grid point of the baselines nearly everything is one recipe
    settings = config("random", 30, coefficient=[0.5, 0.5000000000001])
    worker = FakeWorker()
    start(tmp_path, settings, worker)
    assert len(worker.evaluated) == len(set(worker.evaluated))
    store = Store.open(tmp_path, read_only=True)
    states = [each.state for each in store.candidates()]
    assert states.count("duplicate") > 10
    first = {each.recipe_hash: each.id for each in reversed(store.candidates())}
    for each in store.candidates():
        if each.state == "duplicate":
            assert each.duplicate_of == first[each.recipe_hash]
    store.close()


def test_candidates_that_need_no_evaluation_do_not_hold_up_a_stop(tmp_path: Path) -> None:
    settings = config("random", 500, coefficient=[0.5, 0.5000000000001])
    asked = iter([False] * 30)
    with pytest.raises(Interrupted):
        start(tmp_path, settings, FakeWorker(), should_stop=lambda: next(asked, True))
    store = Store.open(tmp_path, read_only=True)
    states = [each.state for each in store.candidates()]
    assert states.count("duplicate") > 10
    assert len(states) <= 31
    store.close()


def test_what_earlier_stages_found_is_told_to_the_next(tmp_path: Path) -> None:
    """At the start of the last stage the optimizer's best point is the first stages' best one, not a random one."""
    settings = config("sms_emoa", 80)
    start(tmp_path, settings, FakeWorker())
    store = Store.open(tmp_path, read_only=True)
    told = [each for each in store.events(Told) if isinstance(each, Told)]
    store.close()
    last = max(each.stage for each in told)
    best_before = max(min(each.outcome.utilities) for each in told if each.stage < last)
    first_of_last = [min(each.outcome.utilities) for each in told if each.stage == last][:15]
    space = build_stages(settings, GROUPS, SOURCES)[last].space
    chance = np.random.default_rng(0)
    points = [Genome(tuple(chance.random(space.box.continuous).tolist())) for _ in range(40)]
    by_chance = [FakeWorker().evaluate(space.decode(each), "search").values for each in points]
    assert max(first_of_last) > max(min(each.values()) for each in by_chance[:15])
    assert max(first_of_last) > 0.7 * best_before


def test_failures_are_recorded_and_too_many_in_a_row_stop(tmp_path: Path) -> None:
    settings = config("random", 100)
    with pytest.raises(SearchError, match=f"the last {FAILURES_IN_A_ROW} candidates failed.*NaN"):
        start(tmp_path, settings, FakeWorker(lambda recipe: True))
    store = Store.open(tmp_path, read_only=True)
    states = [(each.state, each.reason) for each in store.candidates()]
    store.close()
    assert states == [("failed", "NaN")] * FAILURES_IN_A_ROW


def test_a_grown_budget_goes_on_where_it_ended(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    small.mkdir()
    large.mkdir()
    start(small, config("sms_emoa", 40), FakeWorker())
    before = content(small)
    grown = FakeWorker()
    ends = [stage.end for stage in build_stages(config("sms_emoa", 40), GROUPS, SOURCES) if stage.end is not None]
    store = Store.open(small)
    settings = config("sms_emoa", 55)
    stages = build_stages(settings, GROUPS, SOURCES, ends)
    search = Search(
        stages, lambda stage, seconds: build_optimizer(settings, stage, 40, 2), InlinePool(grown), TARGETS, store.append
    )  # fmt: skip
    assert search.restore(store.events()) == []
    search.run(settings.search.budget)
    store.close()
    after = content(small)
    assert len(grown.evaluated) <= 15
    assert [part[:40] for part in after[:3]] == before[:3]
    assert len(after[0]) == 55


def test_a_request_to_stop_ends_between_candidates_and_is_logged(tmp_path: Path) -> None:
    calls = iter([False] * 5 + [True])
    with pytest.raises(Interrupted):
        start(tmp_path, config("random", 30), FakeWorker(), should_stop=lambda: next(calls))
    store = Store.open(tmp_path, read_only=True)
    assert [each.state for each in store.candidates()] == ["complete"] * 5
    assert list(store.events())[-1].kind == "interrupted"
    store.close()


def test_a_pending_candidate_is_issued_again_with_the_same_genome(tmp_path: Path) -> None:
    settings = config("random", 20)
    with pytest.raises(Killed):
        start(tmp_path, settings, FakeWorker(), kill_at=28, after=True)  # 13 told, a stage begun, candidate 13 asked
    store = Store.open(tmp_path, read_only=True)
    pending = store.candidates()[-1]
    store.close()
    assert pending.state == "running"
    start(tmp_path, settings, FakeWorker())
    store = Store.open(tmp_path, read_only=True)
    again = store.candidates()[pending.id]
    assert (again.genome, again.recipe_hash, again.state) == (pending.genome, pending.recipe_hash, "complete")
    assert list(store.events(EvaluationStarted)) == [EvaluationStarted(pending.id, "search")]
    assert sum(isinstance(each, Scored) for each in store.events(Scored)) == 20
    store.close()
