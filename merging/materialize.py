"""A recipe into a live model, in place: only what changed since the last recipe is computed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from merging.arena import Home, hold, layout_order, rehome
from merging.calibration.contract import Calibration
from merging.checkpoint import content_hash
from merging.compiled import Mode
from merging.dataflow import folded
from merging.kernel import (
    MergeFailed,
    Piece,
    Resolver,
    Task,
    check_finite_result,
    compiles,
    merge_tensors,
    torch_dtype,
)
from merging.live import load_model, map_live
from merging.methods.registry import canonical
from merging.recipe import Assignment, Group, MergingError, Recipe
from merging.sources import Sources

__all__ = ["Applied", "Materializer", "MergeFailed", "Sources", "load_model"]


@dataclass(frozen=True)
class Applied:
    """What one :meth:`Materializer.apply` did.

    Attributes:
        changed_groups: groups with a tensor that was rewritten, in the layout's order.
        changed_tensors: canonical names of the tensors that were rewritten, in the order of the layout.
        seconds: wall time.
    """

    changed_groups: tuple[Group, ...]
    changed_tensors: tuple[str, ...]
    seconds: float


# How many candidates a search is expected to make at least: what compiling has to be earned back by.
CANDIDATES = 100


class _Written(NamedTuple):
    """What a live tensor holds: the outcome of this assignment over these aliases' contents."""

    assignment: Assignment
    contents: tuple[str, ...]
    source_dtype: str | None


class Materializer:
    """Writes recipes into a live model that holds the base when it is handed over.

    Attributes:
        calibration: what was collected for methods that need it; may be given later.
    """

    def __init__(
        self,
        sources: Sources,
        model: nn.Module,
        *,
        compile: Mode = "auto",
        home: Home = "auto",
        calibration: Calibration | None = None,
    ) -> None:
        """Find every canonical tensor in the model, check that the two agree bit for bit, and take in the sources.

        Args:
            sources: the models to merge.
            model: as :func:`load_model` returned it, from the folder of the sources' base.
            compile: whether elementwise methods run compiled: ``auto`` where the model is large enough to earn it
                back, ``always``, ``never``. The weights are the same.
            home: where the sources are kept: see :func:`merging.arena.hold`.
            calibration: what was collected for methods that need it.

        Raises:
            MergingError: tensors without a live parameter, parameters without a tensor, other weights than the base's,
                or no room for the sources.
        """
        self._sources = sources
        self._model = model
        self.calibration = calibration
        self._mode = compile
        order = layout_order(sources)
        found = map_live(sources, model).tensors
        rehome(model, {name: found[name] for name in order if name in found})
        del found
        self._map = map_live(sources, model)
        # Only now: what from_pretrained mapped is gone, and the two never stand in memory together.
        home_of = {name: each.device for name, each in self._map.tensors.items()}
        hold(sources, {name: home_of.get(name, torch.device("cpu")) for name in order}, home)
        # What the class does not load is merged beside the model: what is exported has it, and the digest covers it.
        beside = {name: sources.tensor(sources.base, name).clone() for name in self._map.unused}
        self._live = {name: {**self._map.tensors, **beside}[name] for name in order}
        self._elements = sum(tensor.numel() for tensor in self._live.values())
        self._written: dict[str, _Written] = {}
        self._dtypes: set[str | None] = set()

    @property
    def sources(self) -> Sources:
        """The models that it merges."""
        return self._sources

    @property
    def model(self) -> nn.Module:
        """The live model."""
        return self._model

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The live tensors under their names on disk: views that every :meth:`apply` fills anew."""
        return MappingProxyType(self._live)

    @torch.no_grad()
    def apply(self, recipe: Recipe) -> Applied:
        """Bring the live model to a recipe. Afterwards its weights depend on the recipe alone, not on earlier ones.

        Raises:
            MergeFailed: the result is not finite. The model is then unusable until the next successful apply.
            MergingError: the recipe does not fit the sources, the methods or the model. Nothing was written.
        """
        start = time.perf_counter()
        self._map.check_in_place()
        changed = self._changes(recipe)
        for name in changed:
            self._written.pop(name, None)
        live = {name: self._live[name] for name in changed}
        check_finite_result(
            merge_tensors(Piece(name, task, live[name], compiled) for name, (task, _, compiled) in changed.items()),
            live,
        )
        self._written |= {name: state for name, (_, state, _) in changed.items()}
        groups = {self._sources.layout.group(name) for name in changed}
        return Applied(
            tuple(group for group in self._sources.layout.groups if group in groups),
            tuple(changed),
            time.perf_counter() - start,
        )

    def forget(self) -> None:
        """Take nothing for granted of what the live tensors hold: the next :meth:`apply` writes all of them. For after
        something else may have written to the model."""
        self._written.clear()

    def digest(self) -> str:
        """Hash of the live canonical tensors, by the scheme of :attr:`merging.checkpoint.Checkpoint.content`: equal to
        that of the recipe's export. What is never merged enters as the base stores it."""
        sources = self._sources
        return content_hash(
            [*sources.tensors, *sources.frozen],
            lambda name: self._live[name] if name in self._live else sources.tensor(sources.base, name),
        )

    def _changes(self, recipe: Recipe) -> dict[str, tuple[Task, _Written, bool]]:
        """Tensors that do not hold what the recipe says, with what to do. Checks the whole recipe first."""
        sources = self._sources
        if recipe.layers is not None and getattr(sources, "layers", None) != recipe.layers:
            raise MergingError(
                f"the recipe puts {len(recipe.layers)} blocks together from others, and the live model has the base's; "
                "export it, and load the result"
            )
        recipe = folded(recipe, getattr(sources, "inner", sources))
        resolver = Resolver(sources, recipe, self.calibration, searching=True)
        check_names(sources, recipe)
        self._check_dtype(recipe)
        states: dict[Assignment, tuple[Task, _Written, bool]] = {}
        changed = {}
        for name in self._live:
            assignment = recipe.for_tensor(name, sources.layout.group(name))
            found = states.get(assignment)
            if found is None:
                task, spelled = resolver.task(assignment), canonical(assignment)
                contents = tuple(recipe.sources[alias].content for alias, _ in spelled.sources)
                device = self._live[name].device.type
                compiled = compiles(task, self._mode, self._elements, device, candidates=CANDIDATES)
                found = states[assignment] = (task, _Written(spelled, contents, recipe.source_dtype), compiled)
            if self._written.get(name) != found[1]:
                changed[name] = found
        return changed

    def _check_dtype(self, recipe: Recipe) -> None:
        if recipe.dtype in self._dtypes:
            return
        wanted = torch_dtype(recipe.dtype)
        for name, live in self._live.items():
            expected = wanted or self._sources.tensors[name].dtype
            if live.dtype != expected:
                raise MergingError(
                    f"the recipe makes {name} in {expected}, but the live model holds it in {live.dtype}: what is "
                    "scored would not be what is exported. Give the recipe dtype "
                    f"{str(live.dtype).removeprefix('torch.')!r}, or load the model in "
                    f"{str(expected).removeprefix('torch.')}"
                )
        self._dtypes.add(recipe.dtype)


def check_names(sources: Sources, recipe: Recipe) -> None:
    """Refuse a recipe that speaks of tensors or groups which the model does not have.

    Raises:
        MergingError: names at most five.
    """
    unknown = [name for name in recipe.tensors if name not in sources.tensors]
    if unknown:
        raise MergingError(f"the recipe names tensors that are not merged in {sources.path}: {', '.join(unknown[:5])}")
    known = set(sources.layout.groups)
    missing = [str(group) for group in recipe.groups if group not in known]
    if missing:
        raise MergingError(
            f"the recipe names groups that {sources.path} does not have: {', '.join(missing[:5])}; it has "
            f"{', '.join(str(group) for group in sources.layout.groups[:5])} and so on"
        )
