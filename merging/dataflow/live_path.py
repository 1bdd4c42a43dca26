"""The path that a recipe stands for, as a live model can be laid out: whose layer each hop is, and its scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from merging.methods.registry import canonical
from merging.recipe import Assignment, Group, MergingError, Recipe
from merging.restack import blocks_of, blocks_prefix
from merging.sources import Sources


class LiveHop(NamedTuple):
    """One application of a layer.

    Attributes:
        alias: of the sources.
        layer: which of that model's, from 0.
        scale: what the hidden state is multiplied by before it; finite, > 0.
    """

    alias: str
    layer: int
    scale: float = 1.0


class LivePath(NamedTuple):
    """A path, and what stands around it.

    Attributes:
        hops: in the order in which they are run.
        outside: canonical tensor outside the blocks -> alias of the sources.
    """

    hops: tuple[LiveHop, ...]
    outside: Mapping[str, str]


@dataclass(frozen=True)
class Anatomy:
    """What of a model's tensors belongs to which of its layers. Build with :meth:`of`.

    Attributes:
        prefix: what stands before a layer's number in canonical names, its dot included.
        stack: as groups name it; "" where a model has one stack, and that is all that there are paths through.
        layers: [layers] the merged tensors of each, by canonical name.
        outside: the merged tensors outside the layers.
        kinds: [layers] kinds of groups of each.
    """

    prefix: str
    stack: str
    layers: tuple[tuple[str, ...], ...]
    outside: tuple[str, ...]
    kinds: tuple[frozenset[str], ...]

    @staticmethod
    def of(sources: Sources) -> Anatomy:
        """Read it from the names of the base's tensors.

        Raises:
            MergingError: no stack of layers, or several.
        """
        prefix = blocks_prefix(sources)
        merged = sources.tensors.keys()
        layers = tuple(tuple(name for name in names if name in merged) for names in blocks_of(sources, prefix))
        inside = {name for names in layers for name in names}
        kinds = tuple(frozenset(sources.layout.group(name).kind for name in names) for names in layers)
        outside = tuple(name for name in sources.tensors if name not in inside)
        return Anatomy(prefix, sources.layout.stacks[0], layers, outside, kinds)

    def renamed(self, name: str, layer: int, number: int) -> str:
        """What a tensor of a layer is called as that of another block."""
        return self.named(self.rest(name, layer), number)

    def rest(self, name: str, layer: int) -> str:
        """What is left of the name of a layer's tensor without the layer."""
        return name.removeprefix(f"{self.prefix}{layer}.")

    def named(self, rest: str, number: int) -> str:
        """The name of a tensor of a block, from what :meth:`rest` leaves."""
        return f"{self.prefix}{number}.{rest}"


def path_of(recipe: Recipe, sources: Sources, anatomy: Anatomy) -> LivePath:
    """The path of a recipe.

    Args:
        recipe: every block is one layer of one model as it is, and so is every tensor outside the blocks. Without
            ``layers``, each block is the layer of its own number.
        sources: the models.
        anatomy: theirs.

    Raises:
        MergingError: it merges weights, says nothing about a group, or too much; it was made from other models, or
            names a layer that there is none of.
    """
    bound = sources.bind(recipe)
    _check_plain(recipe)
    inside, outside = _by_depth(recipe, anatomy, bound)
    blocks = len(anatomy.layers) if recipe.layers is None else len(recipe.layers)
    if not blocks:
        raise MergingError("expected layers for at least one block, found none")
    surplus = sorted(set(inside) - set(range(blocks)))
    if surplus:
        raise MergingError(f"the recipe has {blocks} blocks and names groups of block {surplus[0]}")
    scales = recipe.scales or (1.0,) * blocks
    hops = tuple(
        _hop(number, inside.get(number, {}), recipe.layers, scale, anatomy, bound)
        for number, scale in zip(range(blocks), scales, strict=True)
    )
    missing = [name for name in anatomy.outside if sources.layout.group(name) not in outside]
    if missing:
        raise MergingError(
            f"the recipe says nothing about tensor {missing[0]} (group {sources.layout.group(missing[0])}). Was it "
            "made for another architecture?"
        )
    return LivePath(hops, {name: outside[sources.layout.group(name)] for name in anatomy.outside})


def _check_plain(recipe: Recipe) -> None:
    if recipe.tensors:
        raise MergingError(
            f"expected a path, which takes whole layers as they are, found exceptions for {len(recipe.tensors)} "
            f"tensors, first {next(iter(recipe.tensors))}; export the recipe, and load the result"
        )
    if recipe.source_dtype is not None:
        raise MergingError(
            f"expected a path, which takes layers as they are, found sources that are rounded to "
            f"{recipe.source_dtype} first; export the recipe, and load the result"
        )


def _by_depth(
    recipe: Recipe, anatomy: Anatomy, bound: Mapping[str, str]
) -> tuple[dict[int, dict[str, str]], dict[Group, str]]:
    """(block -> kind of group -> alias of the recipe, group outside the blocks -> alias of the sources)."""
    inside: dict[int, dict[str, str]] = {}
    outside: dict[Group, str] = {}
    owners: dict[Assignment, str] = {}
    for group, assignment in recipe.groups.items():
        owner = owners.get(assignment)
        if owner is None:
            owner = owners[assignment] = _owner(group, assignment, recipe.base)
            if owner not in bound:
                raise MergingError(
                    f"the recipe assigns source {owner!r} but lists only {', '.join(bound)} under sources"
                )
        if group.depth is None:
            outside[group] = bound[owner]
        elif group.stack == anatomy.stack:
            inside.setdefault(group.depth, {})[group.kind] = owner
        else:
            raise MergingError(f"the recipe names the group {group}, and the models have one stack of blocks only")
    return inside, outside


def _owner(group: Group, assignment: Assignment, base: str) -> str:
    """The model that an assignment takes as it is."""
    spelled = canonical(assignment)
    if spelled.method == "task_arithmetic" and not spelled.sources:
        return base
    aliases = [alias for alias, _ in spelled.sources]
    scale = dict(spelled.parameters).get("scale", 1.0)
    if spelled.method != "passthrough" or scale != 1.0:
        times = f" times {scale:g}" if spelled.method == "passthrough" else ""
        raise MergingError(
            f"expected a path, in which every block is one layer of one model as it is (passthrough of scale 1), found "
            f"{spelled.method} of {', '.join(aliases) or 'nothing'}{times} for {group}. A recipe that merges weights "
            "needs a Materializer, or an export"
        )
    return aliases[0]


def _hop(
    number: int,
    owners: Mapping[str, str],
    layers: tuple[Mapping[str, int], ...] | None,
    scale: float,
    anatomy: Anatomy,
    bound: Mapping[str, str],
) -> LiveHop:
    aliases = sorted(set(owners.values()))
    if len(aliases) != 1:
        found = f"layers of {', '.join(aliases)}" if aliases else "nothing"
        raise MergingError(f"expected block {number} of a path to be one layer of one model, found {found}")
    (alias,) = aliases
    layer = number if layers is None else layers[number].get(alias)
    if layer is None:
        raise MergingError(
            f"the recipe takes {alias!r} for block {number}, and its layers give that block no layer of that model"
        )
    if not 0 <= layer < len(anatomy.layers):
        raise MergingError(
            f"block {number} of the layers is made from block {layer} of {alias!r}, which has {len(anatomy.layers)}: 0 "
            f"to {len(anatomy.layers) - 1}"
        )
    odd = sorted(anatomy.kinds[layer] ^ set(owners))
    if odd:
        group = Group(odd[0], number, anatomy.stack)
        said = "says nothing about" if odd[0] in anatomy.kinds[layer] else "names"
        raise MergingError(
            f"the recipe {said} the group {group}; block {number} is layer {layer} of {alias!r}, which has "
            f"{', '.join(sorted(anatomy.kinds[layer]))}"
        )
    return LiveHop(bound[alias], layer, float(scale))
