"""The models of one family and training seed, loaded: merges by any method, scored on any split."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evaluators import registry
from evaluators.contract import Evaluator, Split
from experiments.matrix.arms import Arm
from experiments.matrix.families import Family
from experiments.matrix.records import Outcome
from merging.kernel import MergeFailed
from merging.methods.contract import CALIBRATION
from merging.methods.registry import canonical_recipe, get
from merging.recipe import Assignment, MergingError, Recipe, Value
from search.config import LoadedConfig
from search.setup import Setup, set_up
from search.workers.evaluation import CandidateFailed, Evaluation
from search.workers.inline import InlineWorker

if TYPE_CHECKING:
    from merging.calibration import CollectedCalibration, Samples

CHOSEN_ON: tuple[Split, ...] = ("search", "selection")
"""What a parameter is chosen on."""


class Bench:
    """Merges the experts of a config and scores the merges, each once a split."""

    def __init__(
        self, family: str, seed: int, loaded: LoadedConfig, known: Mapping[str, Outcome] | None = None
    ) -> None:
        """Load a config's models, data and engine.

        Args:
            family, seed: of the outcomes.
            loaded: the config.
            known: arm -> outcome: what need not be scored again.
        """
        self.family, self.seed, self.loaded = family, seed, loaded
        self.setup: Setup = set_up(loaded)
        self.experts = list(loaded.config.models.experts)
        self.items = 0
        self.alone_held = {title: each.values for title, each in (known or {}).items()}
        self._extra: dict[str, Evaluator] = {}
        self.calibration: CollectedCalibration | None = None
        self._materializer = self.setup.materializer
        self._known: dict[tuple[str, Split], Evaluation | None] = {}
        self._worker = InlineWorker(self._materializer, self.setup.engine, self.setup.evaluators)

    def samples(self, family: Family, count: int | None = None, seed: int = 0) -> dict[str, Samples]:
        """Expert -> inputs: what its evaluator's search items ask of it, and what it answers itself.

        Args:
            family: says which evaluator's.
            count: inputs of each expert at most; as many as there are if None.
            seed: which of them.
        """
        return {expert: self.inputs(family, expert, family.asked(expert), count, seed) for expert in self.experts}

    def inputs(self, family: Family, expert: str, asked: str, count: int | None, seed: int) -> Samples:
        """What an expert is asked by search items of an evaluator, and what it answers.

        Args:
            family: knows evaluators that the config does not.
            expert: whose answers they are.
            asked: the evaluator.
            count, seed: as in :meth:`samples`.
        """
        from evaluators.calibration import record_inputs
        from merging.calibration import Samples

        evaluator = self._asked(family, asked)
        self._materializer.apply(self.alone(expert))
        self.setup.engine.weights_changed()
        ids = drawn(evaluator.items("search").ids, count, seed)
        return Samples.of(record_inputs(evaluator, self.setup.engine, ids, prepared=True))

    def calibrate(self, samples: Mapping[str, Samples], cache: Path | None = None) -> None:
        """From now on calibrated methods see these inputs.

        Args:
            samples: expert -> inputs.
            cache: where statistics are kept; the user's cache folder if None.
        """
        from merging.calibration import CollectedCalibration

        refs = self.setup.sources.refs
        contents = {refs[expert].content: each for expert, each in samples.items()}
        self.calibration = CollectedCalibration(contents, cache)

    def recipe(self, assignment: Assignment) -> Recipe:
        """The same assignment for every group, its statistics collected."""
        needs = get(assignment.method).needs
        if needs.calibration:
            if self.calibration is None:
                raise SystemExit(f"{assignment.method} needs calibration inputs; call calibrate first")
            given = (*assignment.parameters, (CALIBRATION.name, self.calibration.fingerprint))
            assignment = Assignment(assignment.method, assignment.sources, tuple(sorted(given)))
            self.calibration.collect(self._materializer, [assignment])
        sources = self.setup.sources
        return canonical_recipe(Recipe("base", sources.refs, dict.fromkeys(sources.layout.groups, assignment)))

    def base(self) -> Recipe:
        """The base itself."""
        return self.recipe(Assignment.of("task_arithmetic", {}))

    def alone(self, expert: str) -> Recipe:
        """One expert alone."""
        return self.recipe(Assignment.of("task_arithmetic", {expert: {"coefficient": 1.0}}))

    def evaluation(self, recipe: Recipe, split: Split) -> Evaluation | None:
        """Scores of a merge; None where it gives no usable output."""
        key = (recipe.hash, split)
        if key not in self._known:
            try:
                self._known[key] = self._worker.evaluate(recipe, split)
            except CandidateFailed as failed:
                if isinstance(failed.__cause__, MergingError) and not isinstance(failed.__cause__, MergeFailed):
                    raise SystemExit(f"{self.family}, seed {self.seed}: {failed.reason}") from failed
                print(f"{self.family}, seed {self.seed}, {split}: {failed.reason}", flush=True)
                self._known[key] = None
        return self._known[key]

    def utility(self, recipe: Recipe) -> float:
        """Mean utility over the objectives on search and selection items together; counts the items."""
        total = weight = 0.0
        for split in CHOSEN_ON:
            found = self.evaluation(recipe, split)
            if found is None:
                return -1.0
            utilities = self.setup.objectives.utilities(found.values)
            total += found.items * sum(utilities) / len(utilities)
            weight += found.items
            self.items += found.items
        return total / weight

    def tuned(self, arm: Arm) -> tuple[Recipe, dict[str, Value]]:
        """The merge with the parameters of an arm chosen on search data, one after another, and what was chosen."""
        chosen: dict[str, Value] = {}
        for name, grid in arm.steps:
            utility = {
                value: self.utility(self.recipe(arm.assignment(self.experts, {**chosen, name: value})))
                for value in grid
            }  # fmt: skip
            chosen[name] = max(grid, key=lambda value: utility[value])
        return self.recipe(arm.assignment(self.experts, chosen)), chosen

    def method(self, arm: Arm) -> Outcome:
        """An arm, tuned on search data and scored on the holdout."""
        start, before = time.process_time(), self.items
        recipe, chosen = self.tuned(arm)
        spent = time.process_time() - start
        return self.outcome(arm.title, recipe, chosen, self.items - before, spent, arm.ours)

    def outcome(
        self, arm: str, recipe: Recipe, chosen: Mapping[str, Value], items: int, seconds: float, ours: bool
    ) -> Outcome:
        """A merge's holdout scores. What gives no usable output counts as the worst that there is."""
        objectives = self.setup.objectives
        found = self.evaluation(recipe, "holdout")
        count = len(objectives.names)
        values: Mapping[str, float] = {}
        utilities = retention = (0.0,) * count
        if found is not None:
            values, utilities = found.values, objectives.utilities(found.values)
            own = {name: self.held(f"expert {name}") for name in self.experts}
            retention = objectives.retention(values, self.held("base"), own)
        return Outcome(self.family, self.seed, arm, values, utilities, retention, chosen, items, seconds, ours)

    def held(self, title: str) -> Mapping[str, float]:
        """Holdout scores of ``base``, or of ``expert NAME``."""
        if title not in self.alone_held:
            recipe = self.base() if title == "base" else self.alone(title.removeprefix("expert "))
            found = self.evaluation(recipe, "holdout")
            if found is None:
                raise SystemExit(f"{self.family}, seed {self.seed}: {title} gives no usable output")
            self.alone_held[title] = found.values
        return self.alone_held[title]

    def _asked(self, family: Family, name: str) -> Evaluator:
        """An evaluator of the config, or one that only gives inputs."""
        if name in self.setup.evaluators:
            return self.setup.evaluators[name]
        if name in self._extra:
            return self._extra[name]
        options = dict(family.extra[name])
        kind = str(options.pop("type"))
        options["data"] = str(self.loaded.resolve(str(options["data"])))
        evaluator = registry.build(kind, options, folder=self.loaded.path.parent)
        evaluator.prepare(self.setup.engine)
        self._extra[name] = evaluator
        return evaluator


def drawn(ids: Sequence[str], count: int | None, seed: int) -> list[str]:
    """Some of the items: the same for the same seed, more of them with a larger count."""
    order = list(ids)
    random.Random(seed).shuffle(order)
    return order[:count]
