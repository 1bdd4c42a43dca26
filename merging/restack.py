"""Models put together from blocks of others: frankenmerges, depth up-scaling, block expansion, layers left out.

A recipe's ``layers`` says for every block of the result which block of each model it is made from. :func:`restack`
shows the sources as if the models had those blocks, in that order; methods, exports and statistics work as always.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor

from merging.composed import Factors
from merging.layout import Layout
from merging.methods.contract import DELTA_SCALE, Values
from merging.methods.registry import get
from merging.recipe import Layers, MergingError, Recipe
from merging.sources import Sources

# Names under which configs keep the number of blocks: num_hidden_layers, n_layer, decoder_layers, num_layers, …
_DEPTH = re.compile(r"^(n|num)_(hidden_|decoder_|encoder_|transformer_)?layers?$|^(de|en)coder_layers$")

# Lists of block numbers: mlp_only_layers, full_attn_idxs, … A list 0/1 for every block is none: it is not increasing.
_NUMBERS = re.compile(r"layers?$|_idxs?$|_indices$")

# Lists as long as the model is deep by chance: they are about tokens, classes and labels.
_NOT_PER_LAYER = re.compile(r"token|architectures|label|bad_words|suppress")


def restack(sources: Sources, layers: Layers | None) -> Sources:
    """The sources with the blocks of the result.

    Args:
        sources: models of one stack of blocks.
        layers: as :attr:`merging.recipe.Recipe.layers`, with these sources' aliases; None changes nothing.

    Raises:
        MergingError: a block that a model does not have, blocks of different tensors, or several stacks.
    """
    return sources if layers is None else Restacked(sources, layers)


def for_recipe(sources: Sources, recipe: Recipe) -> Sources:
    """:func:`restack` for a recipe, whose aliases may be others than the sources'.

    Raises:
        MergingError: as :func:`restack`, or models that are not the recipe's.
    """
    if recipe.layers is None:
        return sources
    bound = sources.bind(recipe)
    layers = []
    for number, block in enumerate(recipe.layers):
        own: dict[str, int] = {}
        for alias, at in block.items():
            if alias not in bound:
                raise MergingError(f"block {number} of the recipe's layers is made from {alias!r}, no source of it")
            if own.setdefault(bound[alias], at) != at:
                raise MergingError(
                    f"block {number} of the recipe is made from two blocks of one model ({alias!r}); load it twice, "
                    "under the recipe's aliases"
                )
        layers.append(own)
    return Restacked(sources, tuple(layers))


def pruned(recipe: Recipe, layout: Layout) -> Recipe:
    """The recipe with layers of those models alone from which a block is really made.

    Args:
        recipe: canonical: sources without effect are left out.
        layout: of the result.
    """
    if recipe.layers is None:
        return recipe
    used: list[set[str]] = [set() for _ in recipe.layers]
    for name in layout.names:
        group = layout.group(name)
        if group.depth is not None:
            assignment = recipe.for_tensor(name, group)
            used[group.depth] |= {alias for alias, _ in assignment.sources}
            if get(assignment.method).reads_base(Values.of(assignment)) or DELTA_SCALE.name in dict(
                assignment.parameters
            ):
                used[group.depth].add(recipe.base)
    layers = (
        {alias: at for alias, at in block.items() if alias in kept}
        for block, kept in zip(recipe.layers, used, strict=True)
    )
    return replace(recipe, layers=tuple(layers))


class Restacked(Sources):
    """A view of sources in which block i is what ``layers[i]`` says. Build with :func:`restack`.

    Attributes:
        layers: [blocks] alias -> block of that model.
        inner: the sources as they are.
    """

    def __init__(self, inner: Sources, layers: Layers):
        # What a model is (paths, hashes, notes, vocabulary) stays; what its tensors are called is the view's own.
        self.__dict__.update({key: each for key, each in inner.__dict__.items() if key != "canonical_content"})
        self._pools = {}
        self.inner = inner
        self.layers = layers
        self._prefix = blocks_prefix(inner)
        self._blocks = blocks_of(inner, self._prefix)
        _check_layers(layers, inner, len(self._blocks))
        names = {name: (inner.base, name) for name in (*inner.tensors, *inner.frozen) if self._split(name) is None}
        for number, block in enumerate(layers):
            origin = self._origin(block)
            self._check_alike(block, origin)
            names |= {self._name(name, number): (origin, name) for name in self._blocks[block[origin]]}
        self.frozen = tuple(name for name, (_, own) in names.items() if own in inner.frozen)
        merged = {name: inner.info(*found) for name, found in names.items() if found[1] not in inner.frozen}
        self.layout = Layout.of({name: info.shape for name, info in merged.items()})
        self.tensors = dict(sorted(merged.items()))

    def tensor(self, alias: str, name: str) -> Tensor:
        """As :meth:`Sources.tensor`, by the names of the result.

        Raises:
            MergingError: the layers give this block nothing of that model.
        """
        found = self._split(name)
        if name in self.frozen and found is not None and alias not in self.layers[found[0]]:
            alias = self._origin(self.layers[found[0]])  # what is copied is the base's, where it takes part
        return super().tensor(alias, name)

    def factors(self, alias: str, name: str) -> Factors | None:
        """As :meth:`Sources.factors`; None where a block stands beside another of the base's than its own, from which
        it differs by more than what was learned."""
        found = self._split(name)
        block = {} if found is None else self.layers[found[0]]
        aside = found is not None and block.get(alias) != block.get(self.base)
        return None if aside else super().factors(alias, name)

    def source_name(self, alias: str, name: str) -> str:
        """What a tensor of the result is called in a model that it is made from.

        Raises:
            MergingError: it is not made from that model.
        """
        found = self._split(name)
        if found is None:
            return name
        block = self.layers[found[0]]
        if alias not in block:
            raise MergingError(
                f"the recipe merges {alias!r} into {name}, but its layers give block {found[0]} no block of that "
                f"model, only of {', '.join(block)}"
            )
        return self._name(name, block[alias])

    def from_block(self, number: int, names: Sequence[Iterable[str]]) -> list[str]:
        """Tensors of a block of the result.

        Args:
            number: of the block.
            names: [blocks of the base] names of tensors there; those of the block that this one is made from count.
        """
        block = self.layers[number]
        return sorted(self._name(name, number) for name in names[block[self._origin(block)]])

    @cached_property
    def restacked(self) -> dict[str, Any]:
        """The base's ``config.json`` for these blocks."""
        origins = [block[self._origin(block)] for block in self.layers]
        return restacked_config(with_layer_types(self.inner.config), len(self._blocks), origins)

    @property
    def config(self) -> dict[str, Any]:
        """See :attr:`restacked`."""
        return self.restacked

    def _origin(self, block: Mapping[str, int]) -> str:
        """The model that says what a block looks like: the base if it takes part."""
        return self.base if self.base in block else next(iter(block))

    def _split(self, name: str) -> tuple[int, str] | None:
        """(number of the block, what stands after it); None outside the blocks."""
        number, dot, rest = name.removeprefix(self._prefix).partition(".")
        return (int(number), rest) if dot and number.isdecimal() and name.startswith(self._prefix) else None

    def _name(self, name: str, number: int) -> str:
        found = self._split(name)
        assert found is not None  # only called for tensors of blocks
        return f"{self._prefix}{number}.{found[1]}"

    def _check_alike(self, block: Mapping[str, int], origin: str) -> None:
        """The blocks that are merged into one have the same tensors and shapes."""
        wanted = self._shapes(block[origin])
        for alias, at in block.items():
            odd = sorted(dict(wanted.items() ^ self._shapes(at).items()))
            if odd:
                raise MergingError(
                    f"block {at} of {alias!r} and block {block[origin]} of {origin!r} are to be merged, but differ in "
                    f"{', '.join(odd[:5])}; only blocks of the same tensors and shapes can be"
                )

    def _shapes(self, at: int) -> dict[str, tuple[int, ...]]:
        stored = self.inner.checkpoints[self.inner.base].tensors
        return {name.removeprefix(f"{self._prefix}{at}."): stored[name].shape for name in self._blocks[at]}


def blocks_prefix(sources: Sources) -> str:
    """What stands before the numbers of the blocks, in names on disk.

    Raises:
        MergingError: several stacks of blocks, or none.
    """
    layout = sources.layout
    if len(layout.stacks) != 1:
        raise MergingError(
            f"layers can be taken from models with one stack of blocks; {sources.path} has "
            f"{', '.join(map(repr, layout.stacks)) or 'none'}"
        )
    name, depth = next((name, depth) for name in sources.tensors if (depth := layout.group(name).depth) is not None)
    tokens = name.split(".")
    return ".".join(tokens[: tokens.index(str(depth), 1)]) + "."


def blocks_of(sources: Sources, prefix: str) -> list[list[str]]:
    """[blocks] the tensors of each block, merged and frozen."""
    blocks: list[list[str]] = [[] for _ in range(sources.layout.depth(sources.layout.stacks[0]))]
    for name in (*sources.tensors, *sources.frozen):
        number, dot, _ = name.removeprefix(prefix).partition(".")
        if name.startswith(prefix) and dot and number.isdecimal():
            blocks[int(number)].append(name)
    return blocks


def _check_layers(layers: Layers, sources: Sources, depth: int) -> None:
    if not layers:
        raise MergingError("expected layers for at least one block, found none")
    for number, block in enumerate(layers):
        if not block:
            raise MergingError(f"block {number} of the layers is made from no model")
        for alias, at in block.items():
            if alias not in sources.checkpoints:
                known = ", ".join(sources.checkpoints)
                raise MergingError(f"block {number} of the layers names the model {alias!r}; there are {known}")
            if not 0 <= at < depth:
                raise MergingError(
                    f"block {number} of the layers is made from block {at} of {alias!r}, which has {depth}: 0 to "
                    f"{depth - 1}"
                )


def restacked_config(config: Mapping[str, Any], depth: int, origins: Sequence[int]) -> dict[str, Any]:
    """A ``config.json`` for other blocks.

    The number of blocks is set, lists with an entry for every block are put together anew, and lists of block numbers
    (``mlp_only_layers``) are renumbered. Parts of a config (``text_config``) that state the same depth as well.

    Args:
        config: of a model of ``depth`` blocks.
        depth: as the model's layout says.
        origins: [blocks of the result] the block that each is made from.
    """
    found = _rebuilt(config, depth, origins)
    if found is None:  # the architecture's class has this depth by default
        found = {**config, "num_hidden_layers": len(origins)}
    return found


def _rebuilt(config: Mapping[str, Any], depth: int, origins: Sequence[int]) -> dict[str, Any] | None:
    """The config rebuilt; None where it states no such depth."""
    parts = {
        key: found
        for key, value in config.items()
        if isinstance(value, dict) and (found := _rebuilt(value, depth, origins)) is not None
    }
    counts = {key: len(origins) for key, value in config.items() if _DEPTH.match(key) and value == depth}
    if not parts and not counts:
        return None
    lists = {
        key: _relisted(key, value, depth, origins)
        for key, value in config.items()
        if counts and isinstance(value, list) and not _NOT_PER_LAYER.search(key)
    }
    return {**config, **lists, **parts, **counts}


def _relisted(key: str, value: list[Any], depth: int, origins: Sequence[int]) -> list[Any]:
    increasing = all(type(each) is int for each in value) and value == sorted(set(value))
    if _NUMBERS.search(key) and increasing and set(value) <= set(range(depth)) and (len(value) != depth or depth > 2):
        return [at for at, origin in enumerate(origins) if origin in value]
    return [value[origin] for origin in origins] if len(value) == depth else value


def with_layer_types(config: dict[str, Any]) -> dict[str, Any]:
    """The config with the kind of every block written out, where its class derives it from the block's number."""
    from transformers import AutoConfig

    try:
        known = AutoConfig.for_model(**copy.deepcopy(config)).get_text_config()
        own = getattr(type(known), "layer_types", None)
        kinds = None if isinstance(own, property) and own.fset is None else known.layer_types
    except Exception:  # an architecture that this transformers does not know, or one without kinds of blocks
        return config
    text = config.get("text_config")
    if isinstance(text, dict) and kinds is not None:
        return {**config, "text_config": {"layer_types": kinds, **text}}
    return {"layer_types": kinds, **config} if kinds is not None else config
