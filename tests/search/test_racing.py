"""Racing inside a search: what the log restores, who is tested on what, and what may never be dropped."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.contract import Items, ItemScores, Metric, Split, Status, weighted_mean
from merging.recipe import Group, Recipe, SourceRef
from search import fidelity
from search.events import Asked, Event, RungReached, Scored, Told
from search.loop import Search
from search.objectives import Objectives, Target
from search.racing import SEED, Racer, Verdict
from search.results import Results
from search.schema import Config, FidelityConfig
from search.stages import build_optimizer, build_stages
from search.store import Store
from search.workers.evaluation import CandidateFailed, Evaluation, joined
from search.workers.inline import InlinePool, InlineWorker, score_model

SyntheticRun = Callable[..., Results]

ACCURACY = Metric("accuracy", "maximize", 0.0, 1.0)
WER = Metric("wer", "minimize", 0.0, math.inf)


class Bench:
    """Items with strata and weights; what they score is given by the test."""

    def __init__(self, name: str, metric: Metric = ACCURACY, n: int = 200, clusters: int = 0) -> None:
        self.name, self.metric, self.metrics = name, metric, (metric,)
        ids = tuple(f"{name}-{k}" for k in range(n))
        hashes = tuple(hashlib.sha256(each.encode()).hexdigest() for each in ids)
        labels = tuple(f"text {k % clusters}" for k in range(n)) if clusters else ()
        self._items = Items(ids, tuple("xyyz"[k % 4] for k in range(n)), hashes, labels)
        chance = np.random.default_rng([n, *name.encode()])
        self.weights = dict(zip(ids, chance.integers(1, 9, n).astype(float) if metric is WER else [1.0] * n))  # noqa: B905

    def items(self, split: Split) -> Items:
        return self._items

    def aggregate(self, scores: ItemScores) -> dict[str, float]:
        return {self.metric.name: weighted_mean(scores, self.metric.name)}

    def scores(self, values: Mapping[str, float], ids: Sequence[str] | None = None) -> ItemScores:
        """nan: no verdict."""
        ids = self._items.ids if ids is None else tuple(ids)
        statuses: tuple[Status, ...] = tuple("unscored" if math.isnan(values[id]) else "ok" for id in ids)
        found = {self.metric.name: np.array([values[id] for id in ids])}
        return ItemScores(ids, found, {self.metric.name: np.array([self.weights[id] for id in ids])}, statuses)

    def draw(self, chance: np.random.Generator, skill: float) -> dict[str, float]:
        """Values of a system: the higher the skill the better; a few without a verdict."""
        n = len(self._items)
        if self.metric is WER:
            words = np.array([self.weights[id] for id in self._items.ids])
            values = chance.poisson(words * (1.2 - skill)) / words
        else:
            values = (chance.random(n) < skill).astype(float)
        values = np.where(chance.random(n) < 0.03, np.nan, values)
        return dict(zip(self._items.ids, values.tolist(), strict=True))

    @cached_property
    def promoting(self) -> frozenset[str]:
        roles = fidelity.roles(self._items, fidelity.nested_order(self._items, SEED))
        return frozenset(id for id, promotes in zip(self._items.ids, roles, strict=True) if promotes)


def objectives(benches: Sequence[Bench]) -> Objectives:
    high = {id(each): min(each.metric.high, 1.5) for each in benches}
    return Objectives([Target(f"{b.name}.{b.metric.name}", b.metric, 0.0, high[id(b)], None) for b in benches])


def racer(benches: Sequence[Bench], **options: Any) -> Racer:
    config = FidelityConfig.model_validate({"rungs": (40, 120), **options})
    return Racer({each.name: each for each in benches}, objectives(benches), config)  # type: ignore[misc]


def system(benches: Sequence[Bench], seed: int, *skills: float) -> dict[str, dict[str, float]]:
    chance = np.random.default_rng(seed)
    return {bench.name: bench.draw(chance, skill) for bench, skill in zip(benches, skills, strict=True)}


def cut(benches: Sequence[Bench], of: Mapping[str, Mapping[str, float]], to: Racer, rung: int) -> dict[str, ItemScores]:
    """Scores on the rungs up to this one, items in the evaluator's order, as the loop joins them."""
    seen = {name: {id for each in to.rungs[: rung + 1] for id in each[name]} for name in of}
    return {b.name: b.scores(of[b.name], [id for id in b.items("search").ids if id in seen[b.name]]) for b in benches}


def whole(benches: Sequence[Bench], of: Mapping[str, Mapping[str, float]]) -> dict[str, ItemScores]:
    return {bench.name: bench.scores(of[bench.name]) for bench in benches}


@given(st.lists(st.integers(1, 90), min_size=1, max_size=3), st.lists(st.integers(1, 80), max_size=4, unique=True))
@settings(deadline=None, max_examples=60)
def test_rungs_share_no_item_and_together_are_all_of_them(sizes: list[int], rungs: list[int]) -> None:
    benches = [Bench(f"e{k}", n=n) for k, n in enumerate(sizes)]
    made = racer(benches, rungs=sorted(rungs)).rungs
    assert len(made) == 1 + sum(each < max(sizes) for each in rungs)
    ends = [each for each in sorted(rungs) if each < max(sizes)]
    for bench in benches:
        joint = [id for rung in made for id in rung[bench.name]]
        assert sorted(joint) == sorted(bench.items("search").ids)
        for rung, end in enumerate(ends):
            assert sum(len(each[bench.name]) for each in made[: rung + 1]) == min(end, len(bench.items("search")))
    assert any(made[-1].values())


def test_evidence_is_mcnemars_mixture_on_testing_items_alone() -> None:
    benches = [Bench("a"), Bench("b")]
    race = racer(benches)
    strong, weak = system(benches, 1, 0.9, 0.85), system(benches, 2, 0.3, 0.35)
    race.admit(0, whole(benches, strong))
    for rung in range(2):
        verdict = race.judge(5, rung, cut(benches, weak, race, rung), (0.3, 0.3))
        for bench in benches:
            tests = [id for each in race.rungs[: rung + 1] for id in each[bench.name] if id not in bench.promoting]
            one, two = strong[bench.name], weak[bench.name]
            wins, losses = (sum(x[id] > y[id] for id in tests) for x, y in ((one, two), (two, one)))
            expected = float(fidelity.mcnemar_e(wins, losses))
            assert verdict.evidence[f"{bench.name}.accuracy"] == pytest.approx(expected, abs=1e-12)
        assert verdict.opponent == 0
        assert verdict.dropped == (min(verdict.evidence.values()) >= math.log(20))
    assert verdict.dropped and "candidate 0" in verdict.reason


def test_promoting_items_choose_the_opponent_and_testing_items_judge() -> None:
    """Each side of the data is overturned in turn: it changes what it is for, and nothing else."""
    benches = [Bench("a"), Bench("b", WER)]
    one, two = system(benches, 3, 0.9, 0.5), system(benches, 4, 0.5, 0.9)
    mine = system(benches, 5, 0.45, 0.45)
    mine["a"] |= dict.fromkeys(benches[0].promoting, 0.0)

    def verdict(promoting: float | None = None, testing: float | None = None) -> Verdict:
        """Of a candidate whose items of one role are all alike in the first objective."""
        first = {
            id: value if (given := promoting if id in benches[0].promoting else testing) is None else given
            for id, value in mine["a"].items()
        }
        race = racer(benches)
        race.admit(0, whole(benches, one))
        race.admit(1, whole(benches, two))
        return race.judge(2, 0, cut(benches, {**mine, "a": first}, race, 0), (0.0, 0.0))

    assert verdict().opponent == 1
    assert verdict(promoting=1.0).opponent == 0
    for value in (0.0, 1.0):
        assert verdict(testing=value).opponent == 1
    assert verdict(testing=0.0).evidence["a.accuracy"] > verdict(testing=1.0).evidence["a.accuracy"]


def test_an_opponent_is_frozen_with_the_scores_that_it_had() -> None:
    benches = [Bench("a"), Bench("b")]
    race, weak = racer(benches), system(benches, 9, 0.5, 0.5)
    race.admit(0, whole(benches, system(benches, 7, 0.6, 0.6)))
    assert race.judge(3, 0, cut(benches, weak, race, 0), (0.5, 0.5)).opponent == 0
    race.admit(1, whole(benches, system(benches, 8, 0.99, 0.99)))
    alone = racer(benches)
    alone.admit(0, whole(benches, system(benches, 7, 0.6, 0.6)))
    alone.judge(3, 0, cut(benches, weak, alone, 0), (0.5, 0.5))
    later = race.judge(3, 1, cut(benches, weak, race, 1), (0.5, 0.5))
    assert later == alone.judge(3, 1, cut(benches, weak, alone, 1), (0.5, 0.5))
    assert race.judge(4, 0, cut(benches, weak, race, 0), (0.5, 0.5)).opponent == 1


def test_a_member_that_another_dominates_where_they_promote_is_nobodys_opponent() -> None:
    benches = [Bench("a"), Bench("b")]
    race = racer(benches)
    best = {bench.name: dict.fromkeys(bench.items("search").ids, 1.0) for bench in benches}
    race.admit(0, whole(benches, system(benches, 1, 0.5, 0.5)))
    race.admit(1, whole(benches, best))
    race.admit(2, whole(benches, system(benches, 2, 0.6, 0.6)))
    verdict = race.judge(3, 0, cut(benches, system(benches, 3, 0.4, 0.4), race, 0), (0.4, 0.4))
    assert verdict.opponent == 1


@pytest.mark.slow
def test_one_better_objective_is_enough_to_go_on() -> None:
    """Intersection-union: however far behind in one objective, who equals the opponent in another is not dropped."""
    benches = [Bench("a", n=400), Bench("b", n=400)]
    dropped = 0
    for seed in range(80):
        race = racer(benches, rungs=(40, 120, 360))
        strong, mine = system(benches, 2 * seed, 0.95, 0.6), system(benches, 2 * seed + 1, 0.05, 0.6)
        race.admit(0, whole(benches, strong))
        dropped += any(race.judge(1, rung, cut(benches, mine, race, rung), (0.1, 0.6)).dropped for rung in range(3))
    assert dropped <= 8  # 5 % of 80 and two standard errors; the e-value's own level is at most 5 %


def test_without_a_known_cap_nobody_is_tested() -> None:
    """Error counts are capped by what two complete candidates show; constraints may leave only one."""
    benches = [Bench("a", WER)]
    race = racer(benches)
    race.admit(0, whole(benches, system(benches, 1, 0.9)))
    hopeless = system(benches, 2, 0.0)
    assert race.judge(1, 0, cut(benches, hopeless, race, 0), (0.0,)) == Verdict()
    race.admit(2, whole(benches, system(benches, 3, 0.8)))
    assert race.judge(4, 0, cut(benches, hopeless, race, 0), (0.0,)).dropped


def test_who_has_no_verdict_on_any_promoting_item_promotes_nobody() -> None:
    benches = [Bench("a")]
    race, strong = racer(benches), system(benches, 1, 0.95)
    blind = {"a": {id: math.nan if id in benches[0].promoting else value for id, value in strong["a"].items()}}
    race.admit(0, whole(benches, blind))
    assert race.judge(1, 0, cut(benches, system(benches, 2, 0.1), race, 0), (0.1,)).opponent is None


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["race", "halving"])
@given(st.integers(0, 10**6), st.integers(0, 60))
@settings(deadline=None, max_examples=15)
def test_a_racer_restored_from_a_log_decides_as_the_undisturbed_one(rule: str, seed: int, cut_at: int) -> None:
    """Killed after any entry of the log, between two rungs too: what follows is bit for bit the same."""
    benches = [Bench("a", n=130), Bench("b", WER, n=100)]
    options = {"rungs": (20, 60), "rule": rule, "alpha": 0.3, "keep": 0.5}
    target = objectives(benches)
    chance = np.random.default_rng(seed)
    pool = [system(benches, int(chance.integers(10**6)), *chance.uniform(0.2, 0.9, 2)) for _ in range(14)]

    def step(race: Racer, id: int, rung: int, log: list[tuple[Any, ...]]) -> bool:
        """One rung of a candidate; True where it has ended."""
        if id < 3 or rung == len(race.rungs) - 1:  # the first three are baselines
            race.release(id)
            race.admit(id, whole(benches, pool[id]))
            log.append(("complete", id))
            return True
        scores = cut(benches, pool[id], race, rung)
        values = {f"{b.name}.{b.metric.name}": weighted_mean(scores[b.name], b.metric.name) for b in benches}
        verdict = race.judge(id, rung, scores, target.utilities(values))
        # numbers go through the log as JSON
        log.append(("rung", id, rung, *json.loads(json.dumps([values, verdict.opponent])), verdict))
        if verdict.dropped:
            race.release(id)
        return verdict.dropped

    calm: list[tuple[Any, ...]] = []
    race = racer(benches, **options)
    for id in range(len(pool)):
        rung = 0
        while not step(race, id, rung, calm):
            rung += 1

    log = list(calm[:cut_at])
    race = racer(benches, **options)
    id = rung = 0
    for entry in log:
        id, rung = entry[1], 0
        if entry[0] == "complete":
            race.release(id)
            race.admit(id, whole(benches, pool[id]))
            id += 1
        else:
            race.recall(id, entry[2], target.utilities(entry[3]), entry[4])
            rung = entry[2] + 1
            if entry[5].dropped:
                race.release(id)
                id, rung = id + 1, 0
    while id < len(pool):
        ended = step(race, id, rung, log)
        id, rung = (id + 1, 0) if ended else (id, rung + 1)
    assert log == calm


@pytest.mark.parametrize("clusters", [0, 17])
@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_joined_parts_are_the_whole_evaluation_bit_for_bit(clusters: int, seed: int) -> None:
    benches = [Bench("a", clusters=clusters), Bench("b", WER, n=90, clusters=clusters)]
    of = system(benches, seed, 0.5, 0.6)
    by_name: dict[str, Any] = {each.name: each for each in benches}
    for bench in benches:
        bench.score = lambda engine, ids, bench=bench: bench.scores(of[bench.name], ids)  # type: ignore[attr-defined]
    at_once = score_model(None, by_name, "search")  # type: ignore[arg-type]
    parts = [score_model(None, by_name, "search", rung) for rung in racer(benches, rungs=(7, 40, 120)).rungs]  # type: ignore[arg-type]
    together = joined(parts, by_name, "search")
    assert (together.values, together.errors) == (at_once.values, at_once.errors)
    assert together.items == at_once.items
    assert together.seconds["evaluate"] == pytest.approx(sum(each.seconds["evaluate"] for each in parts))
    for name, one in at_once.scores.items():
        two = together.scores[name]
        assert (two.ids, two.statuses) == (one.ids, one.statuses)
        assert all(two.values[each].tobytes() == one.values[each].tobytes() for each in one.values)
        assert all(two.weights[each].tobytes() == one.weights[each].tobytes() for each in one.weights)


GROUPS = [Group("embedding"), *(Group(kind, depth) for depth in range(3) for kind in ("attention", "mlp"))]
SOURCES = {name: SourceRef(name, f"sha256:{name}") for name in ("base", "a", "b")}
RUNGS = (30, 90)


class Killed(BaseException):
    """The process ends here."""


class Worker:
    """A pure function of recipe and item, that remembers what it was asked."""

    def __init__(self, benches: Sequence[Bench], failing: Callable[[str], bool] = lambda id: False) -> None:
        self.asked: list[tuple[str, str]] = []
        self._benches, self._failing = benches, failing

    def evaluate(self, recipe: Recipe, split: Split, items: Mapping[str, Sequence[str]] | None = None) -> Evaluation:
        scores = {}
        for bench in self._benches:
            ids = bench.items(split).ids if items is None else items[bench.name]
            self.asked += [(recipe.hash, id) for id in ids]
            given = [dict(dict(each.sources).get(bench.name, {})) for each in recipe.groups.values()]
            skill = np.mean([float(each.get("coefficient", 0.0)) for each in given])
            solved = [float(int(hashlib.sha256(id.encode()).hexdigest()[:8], 16) / 16**8 < 0.8 * skill) for id in ids]
            ones = np.ones(len(ids))
            statuses: tuple[Status, ...] = tuple("failed" if self._failing(id) else "ok" for id in ids)
            solved = [0.0 if status == "failed" else each for status, each in zip(statuses, solved, strict=True)]
            scores[bench.name] = ItemScores(tuple(ids), {"accuracy": np.array(solved)}, {"accuracy": ones}, statuses)
        parts = Evaluation({}, {}, scores, {"evaluate": 0.1})
        return joined([parts], {each.name: each for each in self._benches}, split)  # type: ignore[misc]


def process(folder: Path, worker: Worker, benches: Sequence[Bench], stop: Callable[[Event], bool]) -> None:
    """One process' life: until the budget is spent, or the first event that stops it, which is on disk then."""
    data = {
        "name": "x",
        "models": {"base": "base", "experts": {"a": "a", "b": "b"}},
        "evaluators": {name: {"type": "exact_match", "data": name} for name in "ab"},
        "objectives": ["a.accuracy", "b.accuracy"],
        "search": {"optimizer": "sms_emoa", "budget": {"candidates": 28}, "seed": 1},
    }
    config = Config.model_validate(data)
    exists = (folder / "run.db").exists()
    store = Store.open(folder) if exists else Store.create(folder)

    def emit(*events: Event) -> None:
        store.append(*events)
        if any(stop(each) for each in events):
            raise Killed

    search = Search(
        build_stages(config, GROUPS, SOURCES),
        lambda stage, seconds: build_optimizer(config, stage, 28, 2, seconds=seconds),
        InlinePool(worker),
        objectives(benches),
        emit,
        evaluators={each.name: each for each in benches},  # type: ignore[misc]
        racer=racer(benches, rungs=RUNGS, alpha=0.2),
    )
    try:
        if exists:
            assert search.restore(store.events(), lambda id: store.item_scores(id, "search")) == []
        search.run(config.search.budget)
    finally:
        store.close()


def decisions(folder: Path) -> list[Any]:
    store = Store.open(folder, read_only=True)
    found = [
        each if not isinstance(each, Told) else (each.candidate, each.outcome)
        for each in store.events(Asked, RungReached, Scored, Told)
    ]
    # seconds were measured
    found = [
        (each.candidate, each.rung, each.items, each.values, each.opponent, each.evidence, each.dropped)
        if isinstance(each, RungReached) else (each.candidate, each.values, each.errors)
        if isinstance(each, Scored) else each
        for each in found
    ]  # fmt: skip
    scores = [store.item_scores(each.id, "search") for each in store.candidates()]
    items = [{name: each.values["accuracy"].tobytes() for name, each in row.items()} for row in scores]
    store.close()
    return [found, items]


@pytest.mark.slow
@pytest.mark.parametrize("rung", [0, 1])
def test_killed_between_two_rungs_the_next_process_pays_for_new_items_only(rung: int, tmp_path: Path) -> None:
    benches = [Bench("a"), Bench("b")]
    calm, fire = tmp_path / "calm", tmp_path / "fire"
    calm.mkdir()
    fire.mkdir()
    undisturbed = Worker(benches)
    process(calm, undisturbed, benches, lambda event: False)
    assert len(set(undisturbed.asked)) == len(undisturbed.asked)
    first, second = Worker(benches), Worker(benches)

    def between_rungs(event: Event) -> bool:
        return isinstance(event, RungReached) and event.rung == rung and not event.dropped and event.candidate > 14

    with pytest.raises(Killed):
        process(fire, first, benches, between_rungs)
    process(fire, second, benches, lambda event: False)
    assert first.asked + second.asked == undisturbed.asked
    assert decisions(fire) == decisions(calm)


def test_a_few_failed_items_of_one_rung_do_not_fail_a_candidate() -> None:
    """91 items after a rung of 90: the last one alone says nothing of the model, though it is all of its rung."""
    benches = [Bench("a", n=91), Bench("b", n=91)]
    last = racer(benches, rungs=RUNGS).rungs[-1]["a"]
    assert len(last) == 1

    model = SimpleNamespace(apply=lambda recipe: None, weights_changed=lambda: None)

    def scorer(bench: Bench, failing: frozenset[str]) -> Any:
        def score(engine: object, ids: Sequence[str]) -> ItemScores:
            found = bench.scores(dict.fromkeys(bench.items("search").ids, 1.0), ids)
            statuses: tuple[Status, ...] = tuple("failed" if id in failing else "ok" for id in ids)
            return ItemScores(found.ids, found.values, found.weights, statuses)

        bench.score = score  # type: ignore[attr-defined]
        return bench

    evaluators = {"a": scorer(benches[0], frozenset(last)), "b": scorer(benches[1], frozenset())}
    worker = InlineWorker(model, model, evaluators)  # type: ignore[arg-type]
    part = worker.evaluate(None, "search", {"a": last, "b": ()})  # type: ignore[arg-type]
    assert part.scores["a"].statuses == ("failed",)
    assert worker.evaluate(None, "search").items == 182  # type: ignore[arg-type]
    evaluators["a"] = scorer(benches[0], frozenset(benches[0].items("search").ids))
    with pytest.raises(CandidateFailed, match="every item of a failed"):
        InlineWorker(model, model, evaluators).evaluate(None, "search")  # type: ignore[arg-type]


def test_a_candidate_whose_items_so_far_all_failed_ends_as_failed(tmp_path: Path) -> None:
    benches = [Bench("a"), Bench("b")]
    first = frozenset(racer(benches, rungs=RUNGS).rungs[0]["a"])
    process(tmp_path, Worker(benches, lambda id: id in first), benches, lambda event: False)
    store = Store.open(tmp_path, read_only=True)
    assert {each.reason for each in store.candidates() if not each.label} <= {
        "every item of a failed: the merged model gives no usable output",
        *(f"same recipe as candidate {id}, which failed" for id in range(28)),
    }
    states = {(bool(each.label), each.state) for each in store.candidates()}
    assert states == {(True, "complete"), (False, "failed")}
    assert list(store.events(RungReached)) == []
    store.close()
