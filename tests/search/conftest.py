"""A finished, interrupted or failing run directory without a model: the real search over planted skills."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluators.contract import SPLITS, Items, ItemScores, Metric, Split
from merging.recipe import Group, Recipe, SourceRef
from search.config import resolved_yaml
from search.constraints import Constraint, Constraints
from search.errors import Interrupted, SearchError
from search.events import Asked, Event, RunStarted
from search.finals import Finals, holdout_hashes
from search.ledger import Ledger
from search.loop import Search
from search.minibatch import Minibatches
from search.objectives import Objectives, Target, aggregate, standard_errors
from search.racing import Racer
from search.results import Results
from search.schema import Config
from search.space import path_of
from search.stages import build_optimizer, build_stages
from search.store import Store
from search.workers.evaluation import CandidateFailed, Evaluation
from search.workers.evaluation import Items as SomeItems
from search.workers.inline import InlinePool

sys.path.insert(0, str(Path(__file__).parent))  # the fakes beside the tests: importlib mode adds no folder

SKILLS = ("string", "language", "sums", "dates")
GROUPS = [
    Group("embedding"), Group("norm"), *(Group(kind, depth) for depth in range(6) for kind in ("attention", "mlp")),
]  # fmt: skip
ITEMS: Mapping[Split, int] = {"search": 120, "selection": 160, "holdout": 240}

SyntheticRun = Callable[..., Results]


class PlantedSkill:
    """Difficulties of items: the higher a merge's skill, the more of them it solves."""

    def __init__(self, name: str, metric: Metric) -> None:
        self.name, self.metric, self.metrics = name, metric, (metric,)
        self.ids = {split: tuple(f"{name}/{split}/{index}" for index in range(ITEMS[split])) for split in SPLITS}

    def items(self, split: Split) -> Items:
        ids = self.ids[split]
        return Items(ids, ("",) * len(ids), tuple(hashlib.sha256(each.encode()).hexdigest() for each in ids))

    def aggregate(self, scores: ItemScores) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in scores.values.items()}

    def score(self, skill: float, split: Split, recipe_hash: str, some: Sequence[str] | None = None) -> ItemScores:
        ids = self.ids[split]
        difficulty = np.random.default_rng([SPLITS.index(split), *self.name.encode()]).random(len(ids))
        luck = np.random.default_rng([SPLITS.index(split), int(recipe_hash[:12], 16)]).normal(0.0, 0.1, len(ids))
        solved = (difficulty + luck < skill).astype(np.float64)
        values = 1.0 - solved if self.metric.direction == "minimize" else solved
        values = self.metric.low + values * (self.metric.high - self.metric.low)
        if some is not None:
            values, ids = values[[ids.index(each) for each in some]], tuple(some)
        return ItemScores(ids, {self.metric.name: values}, {self.metric.name: np.ones(len(ids))}, ("ok",) * len(ids))


def planted_skill(recipe: Recipe, expert: str) -> float:
    """0.1 for the base, 0.85 for the expert alone; the other experts interfere."""
    if recipe.layers is not None:
        return planted_path_skill(recipe, expert)
    given = [{alias: dict(values) for alias, values in each.sources} for each in recipe.groups.values()]
    aliases = {alias for each in given for alias in each} | {expert}
    # an expert that a group leaves out has the coefficient 0 there
    of = {alias: [float(each.get(alias, {}).get("coefficient", 0.0)) for each in given] for alias in aliases}
    own = of.pop(expert)
    strength = float(np.mean(own))
    interference = float(np.mean(np.abs(list(of.values())))) if of else 0.0
    roughness = float(np.std(own))
    return float(np.clip(0.1 + 0.75 * strength * (2 - strength) - 0.3 * interference - 0.1 * roughness, 0.02, 0.98))


def planted_path_skill(recipe: Recipe, expert: str) -> float:
    """As of weights: the more layers of the expert, the better; layers out of order and scales far from 1 do harm."""
    path = path_of(recipe)
    own = len({hop.layer for hop in path if hop.alias == expert}) / len({group.depth for group in GROUPS} - {None})
    rising = np.mean([later.layer > hop.layer for hop, later in itertools.pairwise(path)] or [True])
    harm = 0.3 * (1.0 - float(rising)) + 0.3 * float(np.mean([abs(hop.scale - 1.0) for hop in path]))
    return float(np.clip(0.1 + 0.75 * own**1.5 - harm, 0.02, 0.98))


class PlantedWorker:
    """Scores recipes by :func:`planted_skill`; fails where the test says so."""

    def __init__(self, skills: Mapping[str, PlantedSkill], failure: Callable[[int], str | None]) -> None:
        self.current = 0
        self._skills, self._failure = skills, failure

    def evaluate(self, recipe: Recipe, split: Split, items: SomeItems | None = None) -> Evaluation:
        reason = self._failure(self.current) if split == "search" else None
        if reason is not None:
            raise CandidateFailed(reason, {"materialize": 0.02})
        scores, values, errors = {}, {}, {}
        for name, skill in self._skills.items():
            some = None if items is None else items[name]
            scores[name] = skill.score(planted_skill(recipe, name), split, recipe.hash, some)
            values |= aggregate(name, skill, scores[name])  # type: ignore[arg-type]
            errors |= standard_errors(name, scores[name])
        return Evaluation(values, errors, scores, {"materialize": 0.05, "evaluate": 0.4})


@dataclass
class _Recorder:
    store: Store
    worker: PlantedWorker

    def __call__(self, *events: Event) -> None:
        self.store.append(*events)
        for event in events:
            if isinstance(event, Asked):
                self.worker.current = event.candidate


def _config(
    name: str, metrics: Sequence[str], candidates: int, search: Mapping[str, Any], space: Mapping[str, Any] | None
) -> Config:
    experts = SKILLS[: max(2, len(metrics))]
    data: dict[str, Any] = {
        "name": name,
        "models": {"base": "models/base", "experts": {each: f"models/{each}" for each in experts}},
        "evaluators": {each: {"type": "exact_match", "data": each} for each in experts},
        "objectives": [f"{skill}.{metric}" for skill, metric in zip(SKILLS, metrics, strict=False)],
        "space": space or {"granularity": {"knots": 3}, "coefficient": [0.0, 1.2]},
        "search": {"optimizer": "sms_emoa", "budget": {"candidates": candidates}, "seed": 5, **search},
    }
    return Config.model_validate(data)


@pytest.fixture(scope="session")
def synthetic_run() -> SyntheticRun:
    """A factory of run directories, written by the real search, finals and store over planted skills.

    ``factory(folder, objectives=2, candidates=40, finished=True, failures=None, metrics=None, search=None, limits=())``
    ``failures`` maps a candidate's number to the reason of its failure, or None; ``metrics`` gives the metric of each
    objective, as names or whole :class:`Metric` records; ``search`` overrides keys of the config's section; ``limits``
    are constraints; ``space`` replaces the config's. An unfinished run has half of its candidates.
    """

    def build(
        folder: Path,
        objectives: int = 2,
        candidates: int = 40,
        finished: bool = True,
        failures: Callable[[int], str | None] = lambda id: None,
        metrics: Sequence[str | Metric] | None = None,
        search: Mapping[str, Any] | None = None,
        limits: Sequence[Constraint] = (),
        space: Mapping[str, Any] | None = None,
    ) -> Results:
        folder.mkdir(parents=True, exist_ok=True)
        given = metrics or ["accuracy"] * objectives
        kinds = [each if isinstance(each, Metric) else Metric(each, "maximize", 0.0, 1.0) for each in given]
        given_search = {"fidelity": "off", "finalists": 8, "reserve": 0.5, **(search or {})}
        config = _config("synthetic", [each.name for each in kinds], candidates, given_search, space)
        constraints = Constraints(limits)
        sources = {
            alias: SourceRef(f"models/{alias}", f"sha256:{hashlib.sha256(alias.encode()).hexdigest()}")
            for alias in ("base", *config.models.experts)
        }
        targets = Objectives(
            [Target(f"{skill}.{each.name}", each, each.low, each.high, skill)
             for skill, each in zip(SKILLS, kinds, strict=False)]
        )  # fmt: skip
        skills = {skill: PlantedSkill(skill, each) for skill, each in zip(SKILLS, kinds, strict=False)}
        stages = build_stages(config, GROUPS, sources)
        store = Store.create(folder)
        worker = PlantedWorker(skills, failures)
        emit = _Recorder(store, worker)
        emit(
            RunStarted(
                config=config.model_dump(mode="json"),
                sources={alias: each.content for alias, each in sources.items()},
                paths={alias: str((folder / each.path).absolute()) for alias, each in sources.items()},
                groups=[str(each) for each in GROUPS],
                objectives=targets.as_data(),
                evaluators={name: hashlib.sha256(name.encode()).hexdigest() for name in skills},
                engine="hf/cpu/float32",
                threads=1,
                stage_ends=[stage.end for stage in stages if stage.end is not None],
                reference=list(targets.reference),
                items={name: {split: list(each.ids[split]) for split in SPLITS} for name, each in skills.items()},
                constraints=constraints.as_data(),
                metrics={
                    f"{name}.{each.metric.name}": {
                        "direction": each.metric.direction,
                        "low": each.metric.low,
                        "high": each.metric.high,
                    }
                    for name, each in skills.items()
                },
                holdouts=holdout_hashes(skills),  # type: ignore[arg-type]
                folder=str(folder.absolute()),
                version=2,
            )
        )
        (folder / "resolved.yaml").write_text(resolved_yaml(config), encoding="utf-8")
        environment = {"packages": {"paretomerge": "0.1.0", "cma": None}, "python": "3.11.9", "cores": 2}
        (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")

        def should_stop() -> bool:
            return not finished and worker.current + 1 >= candidates // 2

        try:
            racer = Racer(skills, targets, config.search.fidelity)  # type: ignore[arg-type]
            minibatches = Minibatches.wanted(skills, config.search)  # type: ignore[arg-type]
            driver = Search(
                stages,
                lambda stage, seconds: build_optimizer(config, stage, candidates, len(kinds), seconds=seconds),
                InlinePool(worker),
                targets,
                emit,
                should_stop,
                evaluators=skills,  # type: ignore[arg-type]
                racer=racer if len(racer.rungs) > 1 else None,
                constraints=constraints,
                minibatches=minibatches,
            )
            driver.run(config.search.budget)
            finals = Finals(
                store, stages, InlinePool(worker), skills, targets, emit, constraints=constraints, ledger=Ledger(folder)  # type: ignore[arg-type]
            )  # fmt: skip
            finals.run(config.search, driver.items)
        except (Interrupted, SearchError):
            pass  # an unfinished run is what the test asked for; a run in which all failed ends like this
        finally:
            store.close()
        return Results.load(folder)

    return build
