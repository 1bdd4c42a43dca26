"""One merge after another on a live model, for curves and probes: the same rule for every tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import TYPE_CHECKING

from merging.configs import tokenizer_path
from merging.materialize import Materializer, MergeFailed
from merging.methods.registry import canonical
from merging.recipe import Assignment, MergingError, Recipe, Value

if TYPE_CHECKING:
    from torch import nn

Score = Callable[["nn.Module"], float]
"""What a live model is worth, or what it loses, on data that only the caller knows. It is called after every change of
weights, and must keep nothing of earlier ones (an engine is told by ``weights_changed``)."""

Progress = Callable[[int, int, str], None]
"""Told (points that are done, points in all, what was measured last)."""


class Candidates:
    """Brings a live model to merges that give every tensor the same assignment."""

    def __init__(self, materializer: Materializer) -> None:
        """Over a live model.

        Raises:
            MergingError: the live tensors are of several dtypes that are not the base's.
        """
        self.materializer = materializer
        sources = materializer.sources
        self._template = Recipe(
            sources.base,
            sources.refs,
            {},
            dtype=_live_dtype(materializer),
            tokenizer=sources.tokenizer,
            tokenizer_path=tokenizer_path(sources, sources.companions),
        )

    @property
    def experts(self) -> tuple[str, ...]:
        """Aliases of the experts, in order."""
        sources = self.materializer.sources
        return tuple(alias for alias in sources.checkpoints if alias != sources.base)

    def known(self, aliases: Collection[str] | None, least: int = 1) -> tuple[str, ...]:
        """These experts; all of them if None.

        Raises:
            MergingError: one is no expert, or comes twice, or there are fewer than ``least``.
        """
        chosen = self.experts if aliases is None else tuple(aliases)
        wrong = [alias for alias in chosen if alias not in self.experts]
        if wrong or len(set(chosen)) < len(chosen) or len(chosen) < least:
            raise MergingError(
                f"expected {'different' if least < 2 else f'at least {least} different'} experts of "
                f"{', '.join(self.experts) or 'a model that has none'}, found {', '.join(chosen) or 'none'}"
            )
        return chosen

    def apply(self, method: str, experts: Mapping[str, Mapping[str, Value]], **shared: Value) -> bool:
        """Merge by a method.

        Args:
            method: registered name.
            experts: alias -> parameters of this source.
            shared: the method's other parameters.

        Returns:
            Whether the weights are finite; where not, the live model must not be asked.

        Raises:
            MergingError: the method does not take these parameters.
        """
        sources = self.materializer.sources
        assignment = canonical(Assignment.of(method, experts, **shared))
        template = self._template
        recipe = Recipe(
            template.base,
            template.sources,
            dict.fromkeys(sources.layout.groups, assignment),
            dtype=template.dtype,
            tokenizer=template.tokenizer,
            tokenizer_path=template.tokenizer_path,
        )
        try:
            self.materializer.apply(recipe)
        except MergeFailed:
            return False
        return True

    def add(self, coefficients: Mapping[str, float]) -> bool:
        """θ0 + Σ λ_t·τ_t, in float32 with one rounding; as :meth:`apply`. Without coefficients it is the base."""
        return self.apply("task_arithmetic", {alias: {"coefficient": value} for alias, value in coefficients.items()})

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Leave the live model as the base, whatever happens within."""
        try:
            yield
        finally:
            self.add({})


def measured(ask: Score, model: nn.Module, finite: bool, what: str) -> float:
    """What a callable says of the live model; nan where its weights or its answer are not finite.

    Args:
        ask: score or loss.
        model: the live model.
        finite: whether its weights are.
        what: the merge, for the error.

    Raises:
        MergingError: the answer is not a number.
    """
    if not finite:
        return math.nan
    found = ask(model)
    if isinstance(found, bool) or not isinstance(found, Real):
        raise MergingError(f"expected the score of {what} to be a number, found {found!r}; return a float")
    return float(found) if math.isfinite(found) else math.nan


def plain(value: float) -> float | None:
    """A number for JSON: None for nan and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def _live_dtype(materializer: Materializer) -> str | None:
    """What a recipe has to say of the dtype: nothing where the live model has the base's."""
    stored = materializer.sources.tensors
    live = {name: tensor.dtype for name, tensor in materializer.tensors.items()}
    if all(dtype == stored[name].dtype for name, dtype in live.items()):
        return None
    kinds = set(live.values())
    if len(kinds) > 1:
        raise MergingError(
            f"expected the live model in the base's dtypes or in one, found {', '.join(sorted(map(str, kinds)))}; load "
            "it with load_model"
        )
    return str(kinds.pop()).removeprefix("torch.")
