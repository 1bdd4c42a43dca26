"""A live model that runs one source after the other, and what was found out about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from merging.calibration.linears import LiveWeights
from merging.calibration.samples import Samples
from merging.calibration.store import key_of
from merging.calibration.survey import Survey, survey
from merging.code import code_hash
from merging.recipe import Assignment, Group, Recipe

if TYPE_CHECKING:
    from torch import nn

    from merging.materialize import Materializer
    from merging.sources import Sources

# Of config.json, what has no part in what a model computes.
_IDLE = frozenset({"_name_or_path", "transformers_version", "architectures", "use_cache"})


class Live:
    """A materializer's model, with the weights in it.

    Attributes:
        materializer: of the model.
        sources: the models.
        weights: the live weights.
        base: the assignment that is the base.
    """

    def __init__(self, materializer: Materializer):
        self.materializer = materializer
        self.sources: Sources = materializer.sources
        self.weights = LiveWeights(materializer.tensors)
        self.base = Assignment.of("task_arithmetic", {})
        self._surveys: dict[str, Survey] = {}

    @property
    def model(self) -> nn.Module:
        """The live model."""
        return self.materializer.model

    def context(self) -> dict[str, str]:
        """What statistics depend on besides the source and its samples; the base matters to sequential ones only."""
        return {
            "config": key_of(type(self.model).__name__, _plain(self.sources.config), self.sources.tokenizer),
            "dtype": "+".join(sorted(self._dtypes())),
            "base": self.sources.refs[self.sources.base].content,
            "code": code_hash(Path(__file__).parents[1]),  # layout, live mapping and, behind merged layers, methods too
        }

    def alone(self, alias: str) -> Assignment:
        """The assignment that is one source."""
        return Assignment.of("linear", {alias: {"coefficient": 1.0}})

    def run(self, assignment: Assignment) -> None:
        """Bring the live model to an assignment, the same everywhere."""
        self.materializer.apply(self.recipe(dict.fromkeys(self.sources.layout.groups, assignment)))

    def recipe(self, groups: Mapping[Group, Assignment], tensors: Mapping[str, Assignment] | None = None) -> Recipe:
        """A recipe in the live model's dtype."""
        live, stored = self.materializer.tensors, self.sources.tensors
        as_stored = all(stored[name].dtype == each.dtype for name, each in live.items())
        return Recipe(
            self.sources.base,
            self.sources.refs,
            groups,
            tensors or {},
            dtype=None if as_stored else next(iter(self._dtypes())),
            tokenizer=self.sources.tokenizer,
        )

    def survey(self, alias: str, samples: Samples) -> Survey:
        """How the live model runs a source's samples: looked at once, since that does not depend on the weights."""
        key = f"{alias}/{samples.hash}"
        if key not in self._surveys:
            self._surveys[key] = survey(self.model, self.sources, self.weights, samples, alias)
        return self._surveys[key]

    def _dtypes(self) -> set[str]:
        return {str(each.dtype).removeprefix("torch.") for each in self.materializer.tensors.values()}


def _plain(config: object) -> object:
    """Without what no computation depends on, at any level."""
    if isinstance(config, dict):
        return {str(name): _plain(value) for name, value in config.items() if name not in _IDLE}
    return [_plain(each) for each in config] if isinstance(config, list | tuple) else config
