"""Whole searches without models: the real stages, loop, racer, store and finals over an item landscape."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.searching.items import ItemLandscape, SimulatedEvaluator, item_scores
from evaluators.contract import SPLITS, ItemScores, Split
from merging.recipe import Recipe, SourceRef
from search import pareto
from search.claims import Claims
from search.events import LOG_VERSION, Event, RungReached, RunStarted
from search.finals import Finals
from search.loop import Search
from search.objectives import Objectives, Target, aggregate, standard_errors
from search.optimizers.contract import Optimizer
from search.racing import Racer
from search.results import Results
from search.schema import Config
from search.stages import Stage, build_optimizer, build_stages
from search.statistics import Interval
from search.store import Store
from search.workers.evaluation import Evaluation
from search.workers.inline import InlinePool

Array = npt.NDArray[np.float64]


@dataclass
class SimulatedWorker:
    """Scores recipes by a landscape, and counts what was asked.

    Attributes:
        landscape: verdicts.
        evaluators: by skill.
        seconds: what an evaluation claims to have cost; `auto` may choose by it.
        items: scored so far, per split.
    """

    landscape: ItemLandscape
    evaluators: Mapping[str, SimulatedEvaluator]
    seconds: float = 0.1
    items: dict[Split, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))

    def evaluate(self, recipe: Recipe, split: Split, items: Mapping[str, Sequence[str]] | None = None) -> Evaluation:
        """See :class:`search.workers.evaluation.Worker`."""
        values: dict[str, float] = {}
        errors: dict[str, float] = {}
        scores: dict[str, ItemScores] = {}
        for skill, evaluator in self.evaluators.items():
            every = evaluator.items(split).ids
            wanted = every if items is None else tuple(items.get(skill, ()))
            if not wanted:
                continue
            place = {id: index for index, id in enumerate(every)}
            verdicts = self.landscape.verdicts(recipe, skill, split)
            scores[skill] = item_scores(wanted, verdicts[[place[id] for id in wanted]])
            values |= aggregate(skill, evaluator, scores[skill])
            errors |= standard_errors(skill, scores[skill])
            self.items[split] += len(wanted)
        return Evaluation(values, errors, scores, {"materialize": 0.0, "evaluate": self.seconds})


@dataclass(frozen=True)
class Decision:
    """What a rung of the race decided.

    Attributes:
        candidate: judged.
        opponent: against whom; None where there was none.
        dropped: whether it ended there.
    """

    candidate: int
    opponent: int | None
    dropped: bool


@dataclass(frozen=True)
class Reported:
    """What the run's report says at the end.

    Attributes:
        chosen: the recommended candidate.
        wins: whether it is said to beat the best baseline.
        intervals: (candidate, split) -> [skills] 95 % intervals, of the chosen one and of the baselines.
    """

    chosen: int
    wins: bool
    intervals: dict[tuple[int, Split], list[Interval]]


@dataclass(frozen=True)
class Simulated:
    """A simulated run at its end.

    Attributes:
        results: as ``paretomerge report`` reads them; its database may be gone.
        landscape: with the truth.
        items: scored, per split.
        decisions: of every rung that was not the last.
        truths: candidate -> [skills] true accuracies.
        reported: None for a run without finals.
    """

    results: Results
    landscape: ItemLandscape
    items: dict[Split, int]
    decisions: tuple[Decision, ...]
    truths: dict[int, Array]
    reported: Reported | None

    def share(self, ids: Sequence[int]) -> float:
        """Hypervolume of these candidates' true accuracies over the best possible."""
        points = [self.truths[id] for id in ids]
        return pareto.hypervolume(points, (0.0,) * len(self.landscape.skills)) / self.landscape.best

    @property
    def search_front(self) -> list[int]:
        """The front by search scores: what a run without finals would report."""
        return self.results.judge.front(self.results.scores["search"])

    @property
    def search_winner(self) -> int:
        """The knee by search scores."""
        return self.results.judge.knee(self.results.scores["search"], self.search_front)

    def scores(self, id: int, split: Split) -> Array:
        """[skills] measured accuracies of a candidate."""
        values = self.results.values(id, split)
        return np.asarray([values[f"{skill}.accuracy"] for skill in self.landscape.skills])


def config(
    landscape: ItemLandscape, seed: int, search: Mapping[str, Any], space: Mapping[str, Any] | None = None
) -> Config:
    """A run's config over a landscape: one expert, evaluator and objective per skill."""
    skills = landscape.skills
    return Config.model_validate(
        {
            "name": "simulated",
            "models": {"base": "base", "experts": {skill: skill for skill in skills}},
            "evaluators": {skill: {"type": "exact_match"} for skill in skills},
            "objectives": [f"{skill}.accuracy" for skill in skills],
            "space": dict(space or {}),
            "search": {"seed": seed, **search},
        }
    )


def simulate(landscape: ItemLandscape, settings: Config, *, finals: bool = True, seconds: float = 0.1) -> Simulated:
    """Run a search to its end, in a temporary folder.

    Args:
        landscape: scores.
        settings: from :func:`config`.
        finals: False ends after the search: no selection, no choice, no holdout, and the reserve is searched with too.
        seconds: what a candidate is said to cost; `auto` may choose by it.
    """
    with tempfile.TemporaryDirectory() as temporary:
        run = _Run(landscape, settings, Path(temporary) / "run", seconds)
        try:
            run.execute(finals)
        finally:
            run.store.close()
        return run.at_the_end(finals)


class _Run:
    """:class:`search.run.Run` with a simulated worker."""

    def __init__(self, landscape: ItemLandscape, settings: Config, folder: Path, seconds: float) -> None:
        folder.mkdir(parents=True)
        self._landscape = landscape
        self._settings = settings
        self._folder = folder
        self._evaluators = {skill: SimulatedEvaluator(landscape, skill) for skill in landscape.skills}
        self._worker = SimulatedWorker(landscape, self._evaluators, seconds)
        self._objectives = Objectives(
            [
                Target(f"{skill}.accuracy", evaluator.metrics[0], 0.0, 1.0, skill)
                for skill, evaluator in self._evaluators.items()
            ]
        )
        self._sources = {alias: SourceRef(alias, f"sha256:{alias}") for alias in ("base", *landscape.skills)}
        self._stages = build_stages(settings, landscape.groups, self._sources, version=LOG_VERSION)
        self._decisions: list[Decision] = []
        self.store = Store.create(folder)
        self.store.append(self._beginning())

    def execute(self, finals: bool) -> None:
        """The search, and what comes after it."""
        settings = self._settings.search
        racer = Racer(self._evaluators, self._objectives, settings.fidelity)
        search = Search(
            self._stages,
            self._optimizer,
            InlinePool(self._worker),
            self._objectives,
            self._emit,
            evaluators=self._evaluators,
            racer=racer if len(racer.rungs) > 1 else None,
        )
        search.run(settings.budget, settings.reserve if finals else 0.0)
        if finals:
            after = Finals(
                self.store, self._stages, InlinePool(self._worker), self._evaluators, self._objectives, self._emit
            )  # fmt: skip
            after.run(settings, search.items)

    def at_the_end(self, finals: bool) -> Simulated:
        """Read what was stored."""
        results = Results.load(self._folder)
        truths = {}
        for each in results.candidates:
            recipe = self._stages[each.stage].space.decode(each.genome)
            truths[each.id] = self._landscape.truth(recipe)
        return Simulated(
            results,
            self._landscape,
            self._worker.items,
            tuple(self._decisions),
            truths,
            _reported(results) if finals else None,
        )

    def _optimizer(self, stage: Stage, seconds: float | None) -> Optimizer:
        ends = [each.end or self._settings.search.budget.candidates for each in self._stages]
        planned = ends[stage.index] - (ends[stage.index - 1] if stage.index else 0)
        return build_optimizer(
            self._settings, stage, max(1, planned), len(self._objectives.targets), seconds=seconds
        )  # fmt: skip

    def _emit(self, *events: Event) -> None:
        self.store.append(*events)
        self._decisions += [
            Decision(event.candidate, event.opponent, event.dropped)
            for event in events
            if isinstance(event, RungReached)
        ]

    def _beginning(self) -> RunStarted:
        return RunStarted(
            config=self._settings.model_dump(mode="json"),
            sources={alias: ref.content for alias, ref in self._sources.items()},
            paths={alias: ref.path for alias, ref in self._sources.items()},
            groups=[str(group) for group in self._landscape.groups],
            objectives=self._objectives.as_data(),
            evaluators={name: each.fingerprint for name, each in self._evaluators.items()},
            engine="simulated",
            threads=1,
            stage_ends=[stage.end for stage in self._stages if stage.end is not None],
            reference=list(self._objectives.reference),
            items={
                name: {split: list(each.items(split).ids) for split in SPLITS}
                for name, each in self._evaluators.items()
            },
            metrics={
                f"{name}.accuracy": {"direction": "maximize", "low": 0.0, "high": 1.0} for name in self._evaluators
            },
            version=LOG_VERSION,
        )


def _reported(results: Results) -> Reported:
    claims = Claims(results)
    held = [claims.chosen, *(each.candidate for each in claims.baselines)]
    splits: dict[int, tuple[Split, ...]] = dict.fromkeys(held, ("holdout",)) | {claims.chosen: SPLITS}
    intervals = {
        (id, split): [claims.interval(id, split, target) for target in results.objectives.targets]
        for id in held
        for split in splits[id]
    }
    return Reported(claims.chosen, claims.best is not None and claims.best.beaten, intervals)
