"""What an adapter is made from: the difference of a model, or of a merge that is written nowhere, to its base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from merging.calibration.contract import Calibration
from merging.checkpoint import Checkpoint
from merging.compatibility import check_plain, is_frozen, may_lack
from merging.composed import Factors, factors_of
from merging.differences import check_compatible
from merging.kernel import Resolver, Task, check_finite_result, merge_tensor
from merging.materialize import check_names
from merging.methods.contract import DELTA_SCALE, Values
from merging.methods.registry import canonical
from merging.recipe import Assignment, MergingError, Recipe
from merging.sources import Sources


class Difference(Protocol):
    """The task vector of a model, tensor by tensor."""

    @property
    def base(self) -> Checkpoint:
        """The model that it is a difference to."""

    @property
    def names(self) -> Sequence[str]:
        """Of the tensors that may differ, sorted."""

    def terms(self, name: str) -> tuple[Factors, ...] | None:
        """The task vector of a tensor as a sum of products, where it is one; empty where it is zero."""

    def dense(self, name: str) -> Tensor:
        """The task vector of a tensor: float32, of the tensor's shape, on the CPU."""


class OfModel:
    """A fine-tuned model minus its base.

    Args:
        base: the base.
        expert: a model folder, an adapter or a stored vector, opened.

    Raises:
        MergingError: the models do not fit each other, or their vocabularies differ in size.
    """

    def __init__(self, base: Checkpoint, expert: Checkpoint):
        for each in (base, expert):
            check_plain(each)
        check_compatible(base, expert, may_lack(base) | may_lack(expert))
        self.base = base
        self.names: Sequence[str] = tuple(
            name for name, info in base.tensors.items() if not is_frozen(name, info) and name in expert.tensors
        )
        self._expert = expert

    def terms(self, name: str) -> tuple[Factors, ...] | None:
        """See :class:`Difference`."""
        found = factors_of(self._expert, name)
        return None if found is None else (found,) if found.rank else ()

    def dense(self, name: str) -> Tensor:
        """See :class:`Difference`."""
        return _minus(self._expert.read(name), self.base.read(name))


class OfMerge:
    """A merge minus its base, computed tensor by tensor and not rounded to the model's dtype.

    Weighted sums of adapters are sums of products, and stay that.

    Args:
        recipe: the merge.
        sources: the models that it was made from.
        calibration: what was collected for methods that need it.

    Raises:
        MergingError: the result has other layers or other tokens than its base, or the recipe does not fit.
    """

    def __init__(self, recipe: Recipe, sources: Sources, calibration: Calibration | None = None):
        self.base = sources.checkpoints[sources.base]
        if recipe.layers is not None:
            raise MergingError(
                "expected a merge with the layers of its base, since an adapter changes weights and adds none, found "
                "one with layers of its own; write it as a model"
            )
        changed = [name for name, info in sources.tensors.items() if info.shape != self.base.tensors[name].shape]
        if changed:
            raise MergingError(
                f"expected a merge with the vocabulary of its base, found {changed[0]} of "
                f"{list(sources.tensors[changed[0]].shape)} instead of {list(self.base.tensors[changed[0]].shape)}: an "
                "adapter cannot add tokens; write the merge as a model, or use `tokenizer: base`"
            )
        check_names(sources, recipe)
        self.names: Sequence[str] = tuple(sources.tensors)
        self._recipe = recipe
        self._sources = sources
        self._bound = sources.bind(recipe)
        self._resolver = Resolver(sources, recipe, calibration)

    def terms(self, name: str) -> tuple[Factors, ...] | None:
        """See :class:`Difference`."""
        weights = linear_weights(canonical(self._assignment(name)))
        if weights is None or self._recipe.source_dtype is not None:  # what rounds its sources rounds their products
            return None
        found = []
        for alias, weight in weights.items():
            own = self._bound[alias]
            if own == self._sources.base or not weight:
                continue
            factors = self._sources.factors(own, name)
            if factors is None:
                return None
            if factors.rank:
                found.append(Factors(factors.left * weight, factors.right))
        return tuple(found)

    def dense(self, name: str) -> Tensor:
        """See :class:`Difference`."""
        task = self._task(name)
        merged = torch.empty(self._sources.tensors[name].shape, dtype=torch.float32)
        with torch.no_grad(), self._sources.borrowed(name):
            ends = merge_tensor(name, task, merged)
            check_finite_result({name: ends}, {name: merged})
            found = _minus(merged, self._sources.tensor(self._sources.base, name))
        task.pool.forget(name)
        return found

    def _assignment(self, name: str) -> Assignment:
        return self._recipe.for_tensor(name, self._sources.layout.group(name))

    def _task(self, name: str) -> Task:
        return self._resolver.task(self._assignment(name))


def linear_weights(assignment: Assignment) -> dict[str, float] | None:
    """alias -> weight of its task vector, of a merge that is a weighted sum of task vectors; None for any other.

    Args:
        assignment: canonical.
    """
    values = Values.of(assignment)
    if assignment.method not in {"task_arithmetic", "linear"}:
        return None
    given = values.column("coefficient")
    total = sum(given) if values.shared["normalize"] else 1.0
    if assignment.method == "linear" and abs(sum(given) / total - 1.0) > 1e-12:  # it scales the base too
        return None
    scale = float(values.shared.get("scale", 1.0)) * float(values.shared.get(DELTA_SCALE.name, 1.0))
    return {alias: scale * weight / total for (alias, _), weight in zip(assignment.sources, given, strict=True)}


def _minus(one: Tensor, other: Tensor) -> Tensor:
    """In float64, rounded once."""
    return (one.to(torch.float64) - other.to(torch.float64)).to(torch.float32)
