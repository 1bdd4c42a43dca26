"""Searches over a landscape that is a formula: no model, the real loop, the real store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from evaluators.contract import Items, ItemScores, Metric, Split
from merging.recipe import Assignment, Group, Recipe, SourceRef
from search.events import Asked, Event, Resumed, RungReached, Told
from search.loop import Search
from search.minibatch import Minibatches
from search.objectives import Objectives, Target, standard_errors
from search.patience import Patience
from search.racing import Racer
from search.schema import Config
from search.stages import build_optimizer, build_stages
from search.standing import Schedule
from search.store import Store
from search.workers.contract import Pool
from search.workers.evaluation import CandidateFailed, Evaluation
from search.workers.evaluation import Items as SomeItems
from search.workers.inline import InlinePool

GROUPS = [Group("embedding"), *(Group(kind, depth) for depth in range(4) for kind in ("attention", "mlp", "norm"))]
SOURCES = {name: SourceRef(name, f"sha256:{name}") for name in ("base", "a", "b")}
TARGETS = Objectives([Target(f"{name}.accuracy", Metric("accuracy", "maximize", 0, 1), 0, 1, name) for name in "ab"])
IDS = tuple(str(k) for k in range(160))


class Killed(BaseException):
    """kill -9, as near as a test in one process comes to it: nothing is caught, nothing is cleaned up."""


class FakeEvaluator:
    """Knows its items, and that their mean is the score."""

    def items(self, split: Split) -> Items:
        return Items(IDS, ("",) * len(IDS), tuple(hashlib.sha256(each.encode()).hexdigest() for each in IDS))

    def aggregate(self, scores: ItemScores) -> dict[str, float]:
        return {"accuracy": float(scores.values["accuracy"].mean())}


EVALUATORS: dict[str, Any] = {"a": FakeEvaluator(), "b": FakeEvaluator()}


def config(optimizer: str, budget: int, fidelity: Any = "off", **space: Any) -> Config:
    return Config.model_validate(
        {
            "name": "x",
            "models": {"base": "base", "experts": {"a": "a", "b": "b"}},
            "evaluators": {"a": {"type": "exact_match", "data": "a"}, "b": {"type": "exact_match", "data": "b"}},
            "objectives": ["a.accuracy", "b.accuracy"],
            "space": {"granularity": {"knots": 3}, **space},
            "search": {"optimizer": optimizer, "budget": {"candidates": budget}, "seed": 3, "fidelity": fidelity},
        }
    )


def coefficients(assignment: Assignment) -> dict[str, float]:
    """Of both experts; one that a recipe leaves out has none."""
    return {"a": 0.0, "b": 0.0} | {alias: float(dict(each)["coefficient"]) for alias, each in assignment.sources}


class FakeWorker:
    """Item scores that are a pure function of recipe and item; some recipes fail."""

    def __init__(self, fail: Callable[[Recipe], bool] = lambda recipe: False) -> None:
        self.evaluated: list[str] = []
        self._fail = fail

    def evaluate(self, recipe: Recipe, split: Split, items: SomeItems | None = None) -> Evaluation:
        self.evaluated.append(recipe.hash)
        if self._fail(recipe):
            raise CandidateFailed("NaN", {"materialize": 0.1})
        scores, values, errors = {}, {}, {}
        for name in "ab":
            skill = []
            for assignment in recipe.groups.values():
                values_of = coefficients(assignment)
                own, other = values_of[name], values_of["b" if name == "a" else "a"]
                skill.append(np.exp(-4 * (own - 0.9) ** 2 - 1.0 * (other - 0.1) ** 2))
            level = float(np.mean(skill))
            ids = IDS if items is None else tuple(items[name])
            draws = [int(hashlib.sha256(f"{name}{item}".encode()).hexdigest()[:8], 16) / 16**8 for item in ids]
            hits = np.array([float(draw < level) for draw in draws])
            scores[name] = ItemScores(ids, {"accuracy": hits}, {"accuracy": np.ones(len(ids))}, ("ok",) * len(ids))
            values[f"{name}.accuracy"] = float(hits.mean())
            errors |= standard_errors(name, scores[name])
        return Evaluation(values, errors, scores, {"evaluate": 0.1})


def start(
    folder: Path,
    settings: Config,
    worker: FakeWorker,
    kill_at: int | None = None,
    after: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    pool: Pool | None = None,
    schedule: Schedule | None = None,
    patience: Patience | None = None,
    let_go: bool = False,
) -> None:
    """One process' life: open or create, restore, run; killed at the n-th write, before or after it is on disk."""
    exists = (folder / "run.db").exists()
    store = Store.open(folder) if exists else Store.create(folder)
    stages = build_stages(settings, GROUPS, SOURCES)
    writes = 0

    def emit(*events: Event) -> None:
        nonlocal writes
        writes += 1
        if writes == kill_at and not after:
            raise Killed
        store.append(*events)
        if writes == kill_at:
            raise Killed

    racer = Racer(EVALUATORS, TARGETS, settings.search.fidelity)
    search = Search(
        stages,
        lambda stage, seconds: build_optimizer(settings, stage, settings.search.budget.candidates, 2, seconds=seconds),
        pool or InlinePool(worker),
        TARGETS,
        emit,
        should_stop,
        evaluators=EVALUATORS,
        racer=racer if len(racer.rungs) > 1 else None,
        minibatches=Minibatches.wanted(EVALUATORS, settings.search),
        schedule=schedule,
        patience=patience,
    )
    try:
        if exists:
            assert search.restore(store.events(), lambda id: store.item_scores(id, "search"), let_go=let_go) == []
            store.append(Resumed(0, let_go=let_go))
        search.run(settings.search.budget)
    finally:
        store.close()


def content(folder: Path) -> list[Any]:
    """What must not depend on interruptions."""
    store = Store.open(folder, read_only=True)
    told = [
        (each.candidate, each.stage, each.outcome, round(each.busy, 6))
        for each in store.events(Told)
        if isinstance(each, Told)
    ]
    rungs = [
        (each.candidate, each.rung, each.items, each.opponent, each.evidence, each.dropped)
        for each in store.events(RungReached)
        if isinstance(each, RungReached)
    ]
    asked = [(each.candidate, each.genome, each.recipe_hash) for each in store.events(Asked) if isinstance(each, Asked)]
    items = [
        {name: scores.values["accuracy"].tobytes() for name, scores in store.item_scores(each.id, "search").items()}
        for each in store.candidates()
    ]
    store.close()
    return [told, asked, items, rungs]
