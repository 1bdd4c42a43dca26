"""What was stopped early: on no front, no finalist, with the items that it was scored on and no others."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from search.events import RungReached, Told
from search.loop import _repeat
from search.optimizers.contract import Outcome
from search.results import Results
from search.store import Store

SyntheticRun = Callable[..., Results]


def test_a_repeated_recipe_of_a_censored_candidate_is_censored_too() -> None:
    """An optimizer of a later stage never heard of the first one, and must not take partial scores for whole ones."""
    first = Outcome("censored", (0.9, 0.9), (0.1, 0.1), 40, reason="dominated by candidate 2 after 40 items")
    again = _repeat(7, first)
    assert (again.state, again.of, again.utilities, again.items) == ("censored", 7, (0.9, 0.9), 0)


@pytest.fixture
def raced(synthetic_run: SyntheticRun, tmp_path: Path) -> Results:
    fast = {"rungs": (20, 60), "alpha": 0.3}
    settings = {"fidelity": fast, "optimizer": "random"}
    return synthetic_run(tmp_path / "run", objectives=1, candidates=60, search=settings)


def test_baselines_are_never_raced_and_the_censored_go_nowhere(raced: Results) -> None:
    store = Store.open(raced.folder, read_only=True)
    rungs = [each for each in store.events(RungReached) if isinstance(each, RungReached)]
    outcomes = {each.candidate: each.outcome for each in store.events(Told) if isinstance(each, Told)}
    scores = {each.id: store.item_scores(each.id, "search") for each in raced.candidates}
    items = {id: {name: len(each) for name, each in row.items()} for id, row in scores.items()}
    store.close()
    censored = {each.id for each in raced.candidates if each.state == "censored"}
    assert len(censored) > 5
    labelled = {each.id for each in raced.candidates if each.label}
    assert labelled and not labelled & {each.candidate for each in rungs}
    assert all(set(items[id].values()) == {120} for id in labelled)
    assert not censored & {*raced.scores["search"], *raced.finalists, *raced.front, raced.chosen}
    assert not censored & set(raced.judge.front(raced.scores["search"]))
    assert not censored & set(raced.judge.finalists(raced.scores["search"], 100))
    for id in censored:
        own = [each for each in rungs if each.candidate == id]
        assert [each.dropped for each in own] == [False] * (len(own) - 1) + [True]
        assert len({each.opponent for each in own}) == 1
        assert min(own[-1].evidence.values()) >= -math.log(0.3)
        assert outcomes[id].items == own[-1].items == sum(items[id].values()) in (20, 60)
    assert raced.items == sum(each.items for each in outcomes.values() if each.state != "duplicate")


def test_what_a_finalist_is_on_selection_it_is_on_all_of_it(raced: Results) -> None:
    store = Store.open(raced.folder, read_only=True)
    for id in raced.finalists:
        assert {len(each) for each in store.item_scores(id, "selection").values()} == {160}
        assert {len(each) for each in store.item_scores(id, "search").values()} == {120}
    store.close()
