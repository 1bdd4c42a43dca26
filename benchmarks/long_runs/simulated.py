"""A long search without models: the real stages, optimizer, loop, racer and store over planted skills.

Two experts, each with a skill that the other lacks; how well a merge has a skill depends on the coefficients of every
group, and each item is solved if the skill reaches its difficulty. Only the scores are made up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluators.contract import SPLITS, Items, ItemScores, Metric, Split
from merging.recipe import Group, Recipe, SourceRef
from search.config import resolved_yaml
from search.events import LOG_VERSION, Event, RunStarted
from search.loop import Search
from search.objectives import Objectives, Target, aggregate, standard_errors
from search.racing import Racer
from search.schema import Config
from search.stages import Stage, build_optimizer, build_stages
from search.standing import Schedule
from search.store import Store
from search.workers.contract import Pool
from search.workers.evaluation import Evaluation
from search.workers.evaluation import Items as SomeItems

Array = npt.NDArray[np.float64]

EXPERTS = ("string", "language")
KINDS = ("attention", "mlp")
METRIC = Metric("accuracy", "maximize", 0.0, 1.0)
TARGETS = Objectives([Target(f"{name}.accuracy", METRIC, 0.0, 1.0, name) for name in EXPERTS])


class PlantedEvaluator:
    """Items with difficulties."""

    metrics = (METRIC,)
    fingerprint = "planted"

    def __init__(self, name: str, items: int) -> None:
        self.name = name
        self._items = {}
        for split in SPLITS:
            ids = tuple(f"{name}/{split}/{index}" for index in range(items))
            self._items[split] = Items(ids, ("",) * items, tuple(hashlib.sha256(id.encode()).hexdigest() for id in ids))
        self._difficulties = {
            split: dict(zip(each.ids, np.random.default_rng([items, len(name)]).random(items).tolist(), strict=True))
            for split, each in self._items.items()
        }

    def items(self, split: Split) -> Items:
        return self._items[split]

    def aggregate(self, scores: ItemScores) -> dict[str, float]:
        return {METRIC.name: float(scores.values[METRIC.name].mean())}

    def solve(self, skill: float, split: Split, some: Sequence[str] | None) -> ItemScores:
        ids = self._items[split].ids if some is None else tuple(some)
        hits = np.asarray([skill >= self._difficulties[split][id] for id in ids], dtype=np.float64)
        return ItemScores(ids, {METRIC.name: hits}, {METRIC.name: np.ones(len(ids))}, ("ok",) * len(ids))


@dataclass
class PlantedWorker:
    """Scores recipes; pure."""

    evaluators: dict[str, PlantedEvaluator]
    layers: int

    def evaluate(self, recipe: Recipe, split: Split, items: SomeItems | None, seconds: float) -> Evaluation:
        found = {alias: [] for alias in EXPERTS}
        for _, assignment in sorted(recipe.groups.items(), key=lambda each: str(each[0])):
            given = {alias: float(dict(parameters)["coefficient"]) for alias, parameters in assignment.sources}
            for alias in EXPERTS:
                found[alias].append(given.get(alias, 0.0))
        scores: dict[str, ItemScores] = {}
        values: dict[str, float] = {}
        errors: dict[str, float] = {}
        depth = np.linspace(-1.0, 1.0, len(found[EXPERTS[0]]))
        for own, other in (EXPERTS, EXPERTS[::-1]):
            ids = None if items is None else items.get(own, ())
            if ids is not None and not ids:
                continue
            wanted = 0.8 + 0.15 * depth
            skill = np.exp(
                -3.0 * ((np.asarray(found[own]) - wanted) ** 2 + 0.5 * (np.asarray(found[other])) ** 2).mean()
            )
            scores[own] = self.evaluators[own].solve(float(skill), split, ids)
            values |= aggregate(own, self.evaluators[own], scores[own])  # type: ignore[arg-type]
            errors |= standard_errors(own, scores[own])
        return Evaluation(values, errors, scores, {"materialize": 0.1 * seconds, "evaluate": 0.9 * seconds})


def make_config(candidates: int, optimizer: str, race: bool) -> Config:
    """The config that a user would have written."""
    return Config.model_validate(
        {
            "name": "long",
            "models": {"base": "models/base", "experts": {name: f"models/{name}" for name in EXPERTS}},
            "evaluators": {name: {"type": "exact_match", "data": f"{name}.jsonl"} for name in EXPERTS},
            "objectives": [f"{name}.accuracy" for name in EXPERTS],
            "space": {"granularity": "layer", "coefficient": [0.0, 1.5]},
            "search": {
                "optimizer": optimizer,
                "budget": {"candidates": candidates},
                "fidelity": {} if race else "off",
            },
        }
    )


class Simulation:
    """A run directory of a simulated search, and the search over it, built anew as every start of a process does.

    Args:
        folder: the run directory; may hold a run that goes on.
        genes: continuous genes of the last stage.
        items: of each evaluator and split.
        candidates: budget.
        optimizer: as in a config.
        race: with rungs and early stopping.
        workers: slots of the pool that will be used.
    """

    def __init__(
        self, folder: Path, genes: int, items: int, candidates: int, optimizer: str, race: bool, workers: int = 1
    ) -> None:
        self.folder = folder
        self.config = make_config(candidates, optimizer, race)
        layers = max(1, round(genes / (len(EXPERTS) * len(KINDS))))
        self._groups = [Group(kind, depth) for depth in range(layers) for kind in KINDS]
        self._sources = {alias: SourceRef(f"models/{alias}", f"sha256:{alias}") for alias in ("base", *EXPERTS)}
        self.evaluators = {name: PlantedEvaluator(name, items) for name in EXPERTS}
        self.worker = PlantedWorker(self.evaluators, layers)
        self._schedule = Schedule("strict" if workers == 1 else "steady", workers)
        self.stages = build_stages(self.config, self._groups, self._sources)
        self.genes = self.stages[-1].space.box.continuous

    def create(self) -> Store:
        """The run directory of a run that begins."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = resolved_yaml(self.config)
        for name in ("config.yaml", "resolved.yaml"):
            (self.folder / name).write_text(text, encoding="utf-8")
        store = Store.create(self.folder)
        store.append(
            RunStarted(
                config=self.config.model_dump(mode="json"),
                sources={alias: ref.content for alias, ref in self._sources.items()},
                paths={alias: ref.path for alias, ref in self._sources.items()},
                groups=[str(each) for each in self._groups],
                objectives=TARGETS.as_data(),
                evaluators={name: each.fingerprint for name, each in self.evaluators.items()},
                engine="simulated",
                threads=1,
                stage_ends=[stage.end for stage in self.stages if stage.end is not None],
                reference=list(TARGETS.reference),
                items={
                    name: {split: list(each.items(split).ids) for split in SPLITS}
                    for name, each in self.evaluators.items()
                },
                metrics={each: {"direction": "maximize", "low": 0.0, "high": 1.0} for each in TARGETS.names},
                folder=str(self.folder),
                version=LOG_VERSION,
                schedule=self._schedule.kind,
                window=self._schedule.window,
            )
        )
        return store

    def search(
        self, pool: Pool, emit: Callable[..., None], wrap: Callable[[Any], Any] = lambda optimizer: optimizer
    ) -> Search:
        """A search that is still to be restored, or begins."""
        ends = [stage.end or self.config.search.budget.candidates for stage in self.stages]
        planned = [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]

        def make_optimizer(stage: Stage, seconds: float | None) -> Any:
            return wrap(build_optimizer(self.config, stage, planned[stage.index], len(TARGETS.targets), seconds))

        evaluators: Any = self.evaluators
        racer = Racer(evaluators, TARGETS, self.config.search.fidelity)
        return Search(
            self.stages,
            make_optimizer,
            pool,
            TARGETS,
            emit,
            evaluators=evaluators,
            racer=racer if len(racer.rungs) > 1 else None,
            schedule=self._schedule,
        )


def emitter(store: Store) -> Callable[..., None]:
    """What a run's own emit does, without listeners."""

    def emit(*events: Event) -> None:
        store.append(*events)

    return emit
