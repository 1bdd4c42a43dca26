"""Paths through the layers of models: hops, the recipe that a path is, and the path that a recipe is.

The data-flow space of EvoLLM (Akiba et al., "Evolutionary optimization of model merging recipes", arXiv 2403.13187):
layers of several models one after the other, in an order of their own, the input of each multiplied by a scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from merging.methods import canonical
from merging.recipe import Assignment, Group, MergingError, Recipe, SourceRef
from search.space.scales import SpaceError

PASSTHROUGH = "passthrough"


class Hop(NamedTuple):
    """One application of a layer.

    Attributes:
        alias: whose layer.
        layer: which, from 0.
        scale: what the hidden state is multiplied by before it, > 0.
    """

    alias: str
    layer: int
    scale: float = 1.0


Path = tuple[Hop, ...]


class PathWriter:
    """Writes paths through the layers of models of one architecture as recipes.

    Args:
        base: alias of the base model, whose config and tokenizer every path has.
        sources: every model by alias, the base included.
        groups: all groups of one model.
        dtype: of the merged weights; None keeps the base's.

    Attributes:
        layers: how many layers each model has.

    Raises:
        SpaceError: models without layers, or with several stacks of them.
    """

    def __init__(
        self, base: str, sources: Mapping[str, SourceRef], groups: Sequence[Group], dtype: str | None = None
    ) -> None:
        self.base = base
        self.sources = dict(sources)
        self.dtype = dtype
        stacks = sorted({group.stack for group in groups if group.depth is not None})
        if len(stacks) != 1:
            found = ", ".join(map(repr, stacks)) or "none"
            raise SpaceError(
                f"expected models with one stack of layers, through which paths can be laid, found {found}; "
                "space.data_flow is for models such as Llama, Qwen or GPT-2"
            )
        self._outside = sorted({group for group in groups if group.depth is None}, key=lambda group: group.order)
        self._of_layer: dict[int, list[Group]] = {}
        for group in sorted(set(groups), key=lambda group: group.order):
            if group.depth is not None:
                self._of_layer.setdefault(group.depth, []).append(group)
        self.layers = len(self._of_layer)
        self._take = {alias: canonical(Assignment.of(PASSTHROUGH, {alias: {}})) for alias in self.sources}

    def recipe(self, path: Sequence[Hop], outside: str) -> Recipe:
        """The model of a path.

        Args:
            path: at least one hop.
            outside: alias of the model that gives embedding, head and final norm.

        Raises:
            SpaceError: a path without hops, an unknown model, or a layer that there is none of.
        """
        if not path:
            raise SpaceError("expected a path of one hop or more, found none")
        for alias, layer, _ in path:
            if alias not in self._take or layer not in self._of_layer:
                raise SpaceError(
                    f"expected layers 0 to {self.layers - 1} of {', '.join(self._take)}, found layer {layer} of {alias}"
                )
        groups = dict.fromkeys(self._outside, self._take[outside])
        for number, (alias, layer, _) in enumerate(path):
            for group in self._of_layer[layer]:
                groups[Group(group.kind, number, group.stack)] = self._take[alias]
        scales = tuple(float(hop.scale) for hop in path)
        return Recipe(
            self.base,
            self.sources,
            groups,
            {},
            self.dtype,
            layers=tuple({hop.alias: hop.layer} for hop in path),
            scales=None if set(scales) == {1.0} else scales,
        )


def path_of(recipe: Recipe) -> Path:
    """The hops of a recipe whose every block is one layer of one model as it is.

    Raises:
        SpaceError: it merges weights, or says nothing of layers.
    """
    if recipe.layers is None or recipe.tensors:
        raise SpaceError("expected a path through layers, found a recipe that merges weights")
    for group, assignment in recipe.groups.items():
        owners = {alias for alias, _ in assignment.sources}
        block = None if group.depth is None else recipe.layers[group.depth] if _inside(group, recipe) else {}
        alone = len(owners) == 1 and (block is None or owners == set(block))
        if not alone or not _unchanged(assignment):
            raise SpaceError(
                f"expected every layer as one model has it, found {assignment.method} of "
                f"{', '.join(sorted(owners))} for {group}"
            )
    scales = recipe.scales or (1.0,) * len(recipe.layers)
    return tuple(Hop(*next(iter(block.items())), scale) for block, scale in zip(recipe.layers, scales, strict=True))


def outside_of(recipe: Recipe) -> str:
    """The model that gives a path what lies outside its layers.

    Raises:
        SpaceError: several do, or nothing does.
    """
    owners = {alias for group, each in recipe.groups.items() if group.depth is None for alias, _ in each.sources}
    if len(owners) != 1:
        raise SpaceError(
            f"expected one model outside the layers of a path, found {', '.join(sorted(owners)) or 'none'}"
        )
    return owners.pop()


def _inside(group: Group, recipe: Recipe) -> bool:
    return group.depth is not None and recipe.layers is not None and group.depth < len(recipe.layers)


def _unchanged(assignment: Assignment) -> bool:
    try:
        return canonical(assignment) == canonical(Assignment.of(PASSTHROUGH, {assignment.sources[0][0]: {}}))
    except MergingError:
        return False
