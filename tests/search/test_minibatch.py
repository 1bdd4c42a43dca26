"""Minibatches: who is scored on which items, and that all that follows counts what was scored."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_searches import EVALUATORS, IDS, FakeWorker, config, start
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from evaluators.contract import Items, ItemScores, Split
from merging.recipe import Recipe
from search.config import resolved_yaml
from search.events import Told
from search.minibatch import Minibatches, drawn, in_words, independent
from search.schema import Config, FidelityConfig
from search.store import Store
from search.workers.evaluation import Evaluation
from search.workers.evaluation import Items as SomeItems


def ids_scored(folder: Path) -> dict[int, tuple[str, ...]]:
    """candidate -> ids of the items that it was scored on, of those that were evaluated."""
    store = Store.open(folder, read_only=True)
    found = {each.id: store.item_scores(each.id, "search") for each in store.candidates()}
    store.close()
    return {id: scores["a"].ids for id, scores in found.items() if scores}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    folder = tmp_path_factory.mktemp("minibatches")
    settings = config("random", 40, {"minibatch": 30, "redraw": 10}, granularity="model")
    start(folder, settings, FakeWorker())
    return settings, folder


def test_a_generation_shares_its_items_and_the_next_has_others(searched: tuple[Config, Path]) -> None:
    settings, folder = searched
    found = ids_scored(folder)
    store = Store.open(folder, read_only=True)
    labelled = {each.id for each in store.candidates() if each.label}
    told = {each.candidate: each.outcome.items for each in store.events(Told) if isinstance(each, Told)}
    store.close()
    assert all(found[id] == IDS for id in labelled)
    first = max(labelled) + 1
    minibatches = Minibatches.wanted(EVALUATORS, settings.search)
    assert minibatches is not None
    generations: dict[int, set[tuple[str, ...]]] = {}
    for id in found.keys() - labelled:
        assert found[id] == minibatches.of(id - first)["a"]
        assert told[id] == 60  # of both evaluators
        generations.setdefault((id - first) // 10, set()).add(found[id])
    assert all(len(each) == 1 and len(next(iter(each))) == 30 for each in generations.values())
    assert len(generations) == len(set().union(*generations.values())) >= 3


class RareWorker(FakeWorker):
    """Has a metric of one item alone, as a group of tasks has of a small one."""

    def evaluate(self, recipe: Recipe, split: Split, items: SomeItems | None = None) -> Evaluation:
        found = super().evaluate(recipe, split, items)
        own = found.scores["a"]
        rare = np.array([float(each == IDS[0]) for each in own.ids])
        weights, metrics = {**own.weights, "rare": rare}, {**own.values, "rare": rare}
        scores = {**found.scores, "a": ItemScores(own.ids, metrics, weights, own.statuses)}
        value = 1.0 if rare.any() else float("nan")
        return replace(found, scores=scores, values={**found.values, "a.rare": value})


def test_a_metric_of_which_a_minibatch_says_nothing_is_left_out(tmp_path: Path) -> None:
    start(tmp_path, config("random", 30, {"minibatch": 20, "redraw": 4}, granularity="model"), RareWorker())
    store = Store.open(tmp_path, read_only=True)
    scores = store.scores("search")
    drawn_rare = {id: IDS[0] in store.item_scores(id, "search")["a"].ids for id in scores}
    store.close()
    assert {True, False} == set(drawn_rare.values())
    for id, found in scores.items():
        assert found.keys() >= {"a.accuracy", "b.accuracy"}
        assert ("a.rare" in found) == drawn_rare[id]


def test_one_subset_for_the_whole_run_is_the_same_for_every_seed() -> None:
    settings = config("random", 40, {"minibatch": 30})
    other = settings.search.model_copy(update={"seed": 9})
    one, two = Minibatches.wanted(EVALUATORS, settings.search), Minibatches.wanted(EVALUATORS, other)
    assert one is not None and two is not None
    assert one.of(0) == one.of(1000) == two.of(0)
    redrawn = [
        each.model_copy(update={"fidelity": FidelityConfig(minibatch=30, redraw=1)})
        for each in (settings.search, other)
    ]
    three, four = (Minibatches.wanted(EVALUATORS, each) for each in redrawn)
    assert three is not None and four is not None
    assert len({three.of(0)["a"], three.of(1)["a"], four.of(0)["a"], one.of(0)["a"]}) == 4
    assert Minibatches.wanted(EVALUATORS, config("random", 40).search) is None


@given(st.lists(st.sampled_from("xyz"), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 2**70))
def test_a_draw_is_stratified_and_in_the_items_order(strata: list[str], size: int, seed: int) -> None:
    ids = tuple(str(place) for place in range(len(strata)))
    hashes = tuple(hashlib.sha256(each.encode()).hexdigest() for each in ids)
    found = drawn(Items(ids, tuple(strata), hashes), size, seed)
    assert len(found) == min(size, len(ids))
    assert list(found) == sorted(set(found), key=ids.index)
    for stratum, count in Counter(strata).items():
        owed = count * len(found) / len(ids)
        assert abs(sum(strata[int(each)] == stratum for each in found) - owed) < 1.0


def test_over_many_generations_every_item_has_its_turn() -> None:
    settings = config("random", 40, {"minibatch": 40, "redraw": 5}).search
    minibatches = Minibatches.wanted(EVALUATORS, settings)
    assert minibatches is not None
    counts = Counter(id for number in range(0, 1000, 5) for id in minibatches.of(number)["a"])
    assert set(counts) == set(IDS)
    assert min(counts.values()) > 25 and max(counts.values()) < 80  # 50 each, sd 6


@pytest.mark.parametrize(
    ("fidelity", "message"),
    [
        ({"minibatch": 30, "rungs": [10]}, "rungs: these stop candidates between rungs"),
        ({"minibatch": 30, "alpha": 0.1}, "alpha: these"),
        ({"redraw": 8}, "how often a minibatch is drawn"),
        ({"minibatch": 0}, "greater than or equal to 1"),
        ({"minibatch": 30, "redraw": "always"}, "a number of candidates >= 1, or never, found 'always'"),
        ({"minibatch": 30, "redraw": True}, "found True"),
    ],
)
def test_what_contradicts_itself_is_refused(fidelity: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config("random", 40, fidelity)


def test_what_is_stored_is_what_was_meant_and_old_configs_read_as_ever() -> None:
    settings = config("random", 40, {"minibatch": 30, "redraw": 8})
    assert settings.search.fidelity.model_dump(mode="json") == {"minibatch": 30, "redraw": 8}
    assert Config.model_validate(settings.model_dump(mode="json")) == settings
    assert "minibatch" not in resolved_yaml(config("random", 40)) + resolved_yaml(config("random", 40, {"rungs": [5]}))


def test_intervals_are_of_the_items_that_were_scored() -> None:
    fidelity = FidelityConfig(minibatch=30, redraw=8)
    clusters = {each: str(int(each) // 2) for each in IDS}
    assert independent(IDS, None, fidelity, baseline=False) == 30
    assert independent(IDS, None, fidelity, baseline=True) == 160
    assert independent(IDS[:20], None, fidelity, baseline=False) == 20
    assert independent(IDS, clusters, fidelity, baseline=False) == 15
    assert independent(IDS, None, FidelityConfig(), baseline=False) == 160
    assert "30 items of each evaluator, drawn anew for every 8" in in_words(fidelity)
    assert in_words(FidelityConfig()) == ""
