"""One family and training seed, loaded: merges of two of its experts, scored on the experts' own tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import zoo
from evaluators import open_engine, registry
from evaluators.contract import Split
from experiments.diagnosing.families import Family
from merging.materialize import Materializer, load_model
from merging.methods.registry import canonical_recipe
from merging.recipe import Assignment, Recipe
from merging.sources import Sources

if TYPE_CHECKING:
    from torch import nn

CHOSEN_ON: tuple[Split, ...] = ("search", "selection")
"""What λ is chosen on."""


class Bench:
    """Merges by task arithmetic and their utilities, each measured once."""

    def __init__(self, name: str, family: Family, seed: int) -> None:
        """Load models, data and engine.

        Args:
            name: of the family.
            family: says what is scored.
            seed: of training.
        """
        where = f"zoo://{name}@{seed}"
        base = zoo.resolve(f"{where}/base")
        self._paths = {each: zoo.resolve(f"{where}/{each}") for each in family.experts}
        self.sources = Sources.load(base, self._paths)
        self.materializer = Materializer(self.sources, load_model(base), compile="never")
        self.engine = open_engine(self.materializer.model, base)
        self.task = family.task
        self.items = family.items
        self.evaluators = {}
        for expert in family.experts:
            options = {**family.task.options, "data": str(zoo.resolve(f"{where}/data/{expert}"))}
            self.evaluators[expert] = registry.build(family.task.kind, options)
            self.evaluators[expert].prepare(self.engine)
        self._known: dict[tuple[str, str, Split], tuple[float, int]] = {}

    @property
    def model(self) -> nn.Module:
        """The live model."""
        return self.materializer.model

    def pair(self, a: str, b: str) -> Sources:
        """The base and two of the experts."""
        return Sources.load(self.sources.path, {each: self._paths[each] for each in (a, b)})

    def asked(self, expert: str, items: int) -> float:
        """Utility of the live model, whatever it holds, on an expert's first search items."""
        self.engine.weights_changed()
        evaluator = self.evaluators[expert]
        found = evaluator.score(self.engine, evaluator.items("search").ids[:items])
        return self.task.utility(evaluator.aggregate(found)[self.task.metric])

    def recipe(self, coefficients: Mapping[str, float]) -> Recipe:
        """θ0 + Σ λ_t·τ_t."""
        assignment = Assignment.of("task_arithmetic", {alias: {"coefficient": c} for alias, c in coefficients.items()})
        return canonical_recipe(
            Recipe("base", self.sources.refs, dict.fromkeys(self.sources.layout.groups, assignment))
        )

    def apply(self, coefficients: Mapping[str, float]) -> None:
        """Bring the live model to a merge."""
        self._bring(self.recipe(coefficients))

    def utility(self, coefficients: Mapping[str, float], expert: str, *splits: Split) -> float:
        """Utility of a merge on an expert's own task, over the items of all these splits together."""
        recipe = self.recipe(coefficients)
        found = [self.scored(recipe, expert, split) for split in splits]
        return sum(value * items for value, items in found) / sum(items for _, items in found)

    def scored(self, recipe: Recipe, expert: str, split: Split) -> tuple[float, int]:
        """Utility of any merge of the experts on the task of one, and on how many items."""
        key = (recipe.hash, expert, split)
        if key not in self._known:
            self._bring(recipe)
            evaluator = self.evaluators[expert]
            ids = evaluator.items(split).ids[: self.items[split]]
            found = evaluator.aggregate(evaluator.score(self.engine, ids))[self.task.metric]
            self._known[key] = self.task.utility(found), len(ids)
        return self._known[key]

    def _bring(self, recipe: Recipe) -> None:
        if self.materializer.apply(recipe).changed_tensors:
            self.engine.weights_changed()
