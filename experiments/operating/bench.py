"""Merges by expressions, scored: each expression becomes a short merge config, as a person would write it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evaluators import open_engine, registry
from evaluators.contract import Evaluator, Split
from experiments.diagnosing.gaps import Records
from merging.configs import read_config
from merging.materialize import Materializer, load_model
from merging.recipe import Recipe
from merging.sources import Sources


def merge_config(
    base: str | Path, experts: Mapping[str, str | Path], vectors: str, derived: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A short merge config, the input of ``paretomerge merge``.

    Args:
        base, experts: folders or references.
        vectors: an expression of experts and derived ones.
        derived: further experts, as expressions.
    """
    config: dict[str, Any] = {"base": str(base), "experts": {name: str(path) for name, path in experts.items()}}
    if derived:
        config["derived"] = dict(derived)
    return config | {"method": "task_arithmetic", "vectors": vectors}


class Bench:
    """One family and seed: models by name, evaluators by name, and every score that was measured, kept."""

    def __init__(
        self,
        records: Records,
        part: str,
        family: str,
        seed: int,
        models: Mapping[str, Path],
        evaluators: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Say what there is; models are loaded only where a score is not known yet.

        Args:
            records: where scores are kept.
            part: of the records: the operation.
            family, seed: of the models.
            models: name -> folder; ``base`` is the base.
            evaluators: name -> ``type``, ``data`` and options, as in a config, and ``metric``, the one that is meant.
        """
        self.seed = seed
        self._records, self._part, self._family = records, part, family
        self._models, self._specs = dict(models), {name: dict(spec) for name, spec in evaluators.items()}
        self._known = records.read(part, family, seed)
        self._live: tuple[Materializer, Any] | None = None
        self._evaluators: dict[str, Evaluator] = {}
        self._recipes: dict[str, Recipe] = {}

    def score(
        self,
        merge: str | Recipe,
        name: str,
        split: Split,
        derived: Mapping[str, str] | None = None,
        *,
        metric: str | None = None,
        stratum: str | None = None,
    ) -> float:
        """A metric of a merge.

        Args:
            merge: an expression of task vectors, ``base``, or a recipe over the same models.
            name: the evaluator.
            split: its items.
            derived: what the expression may name beside the models.
            metric: another one than the evaluator's own.
            stratum: of its items alone, for metrics that are means of items.
        """
        named = merge.hash if isinstance(merge, Recipe) else merge
        written = named + "".join(f"; {alias}: {each}" for alias, each in (derived or {}).items())
        key = f"{written} | {name} | {split}"
        if key not in self._known:
            recipe = merge if isinstance(merge, Recipe) else self._recipe(merge, written, derived)
            self._known[key] = self._measured(recipe, name, split)
            self._records.add(self._part, self._family, self.seed, key, self._known[key])
        found = self._known[key]
        if stratum is not None:
            return float(found["strata"][stratum])
        return float(found["values"][metric or self._specs[name]["metric"]])

    def _measured(self, recipe: Recipe, name: str, split: Split) -> dict[str, Any]:
        materializer, engine = self._opened()
        if materializer.apply(recipe).changed_tensors:
            engine.weights_changed()
        evaluator = self._evaluator(name, engine)
        items = evaluator.items(split)
        scores = evaluator.score(engine, items.ids)
        each, strata = scores.values[self._specs[name]["metric"]], np.array(items.strata)
        return {
            "values": {key: float(value) for key, value in evaluator.aggregate(scores).items()},
            "strata": {str(stratum): float(each[strata == stratum].mean()) for stratum in dict.fromkeys(items.strata)},
            "items": len(items),
        }

    def _recipe(self, expression: str, written: str, derived: Mapping[str, str] | None) -> Recipe:
        if written not in self._recipes:
            experts = {name: path for name, path in self._models.items() if name != "base"}
            config = merge_config(self._models["base"], experts, expression, derived)
            path = self._records.folder / f"{self._part}-{self._family}-{self.seed}.merge.yaml"
            path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
            self._recipes[written] = read_config(path)[0]
        return self._recipes[written]

    def _opened(self) -> tuple[Materializer, Any]:
        if self._live is None:
            base = self._models["base"]
            sources = Sources.load(base, {name: path for name, path in self._models.items() if name != "base"})
            materializer = Materializer(sources, load_model(base), compile="never")
            self._live = materializer, open_engine(materializer.model, base)
        return self._live

    def _evaluator(self, name: str, engine: Any) -> Evaluator:
        if name not in self._evaluators:
            options = {key: value for key, value in self._specs[name].items() if key not in {"type", "metric"}}
            self._evaluators[name] = registry.build(self._specs[name]["type"], options)
            self._evaluators[name].prepare(engine)
        return self._evaluators[name]
