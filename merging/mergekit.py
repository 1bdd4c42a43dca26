"""Import of mergekit's YAML: the interchange form of a merge. Only its documented conventions, none of its code.

A source's own parameters win over the slice's, these over the top level's. The embedding has the sources and parameters
of the first slice, what follows the blocks (final norm, head) those of the last: so does mergekit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from merging.configs import Resolve, find_model, find_tokenizer, load_yaml, read_text, tokenizer_path
from merging.kernel import torch_dtype
from merging.layout import Layout
from merging.mergekit_config import Config, Input, Slice, check
from merging.mergekit_methods import METHODS
from merging.mergekit_values import evaluate, number, position_of, typed
from merging.methods.contract import suggest
from merging.methods.registry import canonical_recipe
from merging.recipe import DTYPES, Assignment, Group, Layers, MergingError, Recipe, Value
from merging.restack import Restacked, pruned, restack
from merging.sources import BASE, Sources


def read_mergekit(
    path: Path | str, resolve: Resolve | None = None, *, tokenizer: str | None = None, allow_pickle: bool = False
) -> tuple[Recipe, Sources]:
    """Read a mergekit config, and load its models.

    Args:
        path: the YAML file. Model paths in it are relative to its folder, or else to the working directory.
        resolve: finds a model that is named in another way than by its folder; None for what it does not know.
        tokenizer: ``base``, ``union`` or a folder, instead of what the config says.
        allow_pickle: also read pickled weights.

    Returns:
        The recipe, tensor by tensor what mergekit's conventions say, and its sources.

    Raises:
        MergingError: not a mergekit config, a method or feature that is not supported, an unknown key.
    """
    path = Path(path)
    config = check(load_yaml(read_text(path), path), path)
    references = [config.base, *config.references]
    paths = {reference: find_model(reference, path.parent, resolve) for reference in references}
    aliases = _aliases(config.base, paths)
    aligned = find_tokenizer(tokenizer or config.tokenizer, path.parent, resolve)
    sources = Sources.load(
        paths[config.base],
        {alias: paths[reference] for reference, alias in aliases.items() if alias != BASE},
        tokenizer=aligned,
        allow_pickle=allow_pickle,
    )
    layers = layers_of_config(config, aliases, sources.layout)
    plan = Plan(config, aliases, restack(sources, layers))
    groups, tensors = _grouped({name: plan.assignment(name) for name in plan.view.tensors}, plan.view.layout)
    dtype = _dtype(config.dtype, "dtype")
    recipe = Recipe(
        base=BASE,
        sources=sources.refs,
        groups=groups,
        tensors=tensors,
        dtype=_dtype(config.out_dtype, "out_dtype") or dtype or promoted(sources),
        source_dtype=dtype if dtype and narrows(sources, dtype) else None,
        layers=layers,
        tokenizer=sources.tokenizer,
        tokenizer_path=tokenizer_path(sources, aligned),
    )
    return pruned(canonical_recipe(recipe), plan.view.layout), sources


@dataclass(frozen=True)
class Place:
    """Where a tensor of the result stands in a config.

    Attributes:
        slice: number of the slice.
        position: on the gradients of that slice.
    """

    slice: int
    position: float


def places(layout: Layout, lengths: tuple[int, ...] | None) -> dict[str, Place]:
    """Tensor -> its place in mergekit's order of things.

    Args:
        layout: of the result.
        lengths: [slices] blocks of each; None for one slice that covers every stack.
    """
    return {name: _place(name, layout.group(name), layout, lengths) for name in layout.names}


def _place(name: str, group: Group, layout: Layout, lengths: tuple[int, ...] | None) -> Place:
    if group.depth is None:
        leads = group.kind == "embedding" or (group.kind != "head" and "embed" in name)
        return Place(0 if leads else len(lengths or (0,)) - 1, 0.0)
    if lengths is None:
        return Place(0, position_of(group.depth, layout.depth(group.stack)))
    index = group.depth
    for at, length in enumerate(lengths):
        if index < length:
            return Place(at, position_of(index, length))
        index -= length
    raise MergingError(f"block {group.depth} of {name} lies behind the last slice")


class Plan:
    """What a config says about each tensor of the result."""

    def __init__(self, config: Config, aliases: Mapping[str, str], view: Sources):
        self.view = view
        self._config = config
        self._aliases = aliases
        self._method = METHODS[config.method]
        lengths = None
        if len(config.slices) > 1 or isinstance(view, Restacked):
            depth = view.layout.depth(view.layout.stacks[0])
            lengths = tuple(slice_.length or depth for slice_ in config.slices)
        self._places = places(view.layout, lengths)

    def assignment(self, name: str) -> Assignment:
        """What mergekit would do to one tensor."""
        config, place = self._config, self._places[name]
        slice_ = config.slices[place.slice]
        base = slice_.base or config.base
        shared = {term.ours: self._value(key, name, slice_, place, None) for key, term in self._method.shared.items()}
        if self._method.base == "arc":
            other = next(each for each in slice_.inputs if each.reference != base)
            t = number(shared["t"], "t")
            ends = {self._aliases[base]: {"coefficient": 1.0 - t}, self._aliases[other.reference]: {"coefficient": t}}
            return Assignment.of("slerp", ends)
        if self._method.convention:
            shared["convention"] = "mergekit"
        if self._method.base == "optional":
            shared["on"] = "task_vectors" if config.has_base or slice_.base else "weights"
        merged = [each for each in slice_.inputs if self._takes(each, slice_)]
        values = {
            self._aliases[each.reference]: {
                term.ours: self._value(key, name, slice_, place, each) for key, term in self._method.per_source.items()
            }
            for each in merged
        }
        if config.method == "passthrough":
            if len(values) != 1:
                raise MergingError(
                    f"passthrough expects one model for each slice, found {len(values)} for tensor {name}; a "
                    "base_model counts as one: leave it out, and put models one after another as slices"
                )
            ((alias, shared),) = values.items()
            values = {alias: {}}
        return Assignment.of(config.method, values, **shared)

    def _takes(self, each: Input, slice_: Slice) -> bool:
        """Whether a model is among the sources, or only where task vectors begin."""
        if self._method.base == "model":
            return True
        named = slice_.base or (self._config.base if self._config.has_base else None)
        return each.reference != named

    def _value(self, key: str, name: str, slice_: Slice, place: Place, source: Input | None) -> Value:
        """A parameter at one tensor: of a source if one is given, else shared."""
        method = self._config.method
        if source is not None and isinstance(self.view, Restacked):
            name = self.view.source_name(self._aliases[source.reference], name)
        term = (self._method.shared if source is None else self._method.per_source)[key]
        levels = [slice_.parameters, self._config.parameters]
        for level in levels if source is None else [source.parameters, *levels]:
            found = evaluate(level[key], name, place.position) if key in level else None
            if found is not None:
                return typed(found, term.type, key)
        if term.default is not None:
            return term.default
        if source is not None and source.appended:
            raise MergingError(
                f"{method} merges the base_model {source.reference!r} as well, and nothing gives it a {key}; list it "
                f"under models with its {key} (0 leaves it out), or write no base_model"
            )
        of = "" if source is None else f" of {source.reference}"
        raise MergingError(f"{method} needs a {key}{of} for tensor {name}, and nothing in the config gives one")


def _aliases(base: str, paths: Mapping[str, Path]) -> dict[str, str]:
    """Reference -> alias: ``base``, and the names of the other folders, numbered where they are the same."""
    aliases = {base: BASE}
    for reference, path in paths.items():
        if reference not in aliases:
            stem = re.sub(r"[^\w.-]+", "-", path.resolve().name) or "model"
            alias, count = stem, 2
            while alias in aliases.values():
                alias, count = f"{stem}-{count}", count + 1
            aliases[reference] = alias
    return aliases


def layers_of_config(config: Config, aliases: Mapping[str, str], layout: Layout) -> Layers | None:
    """The recipe's layers; None where every block stays where it is."""
    depth = max((layout.depth(stack) for stack in layout.stacks), default=0)
    if len(config.slices) > 1 and len(layout.stacks) != 1:
        found = ", ".join(map(repr, layout.stacks)) or "none"
        raise MergingError(f"slices need models with one stack of blocks; these have {found}. Write models instead")
    layers: list[dict[str, int]] = []
    for slice_ in config.slices:
        block = {each.reference: each.layers or (0, depth) for each in slice_.inputs}
        for reference, (first, end) in block.items():
            if end > depth:
                raise MergingError(f"{reference} gives layers [{first}, {end}], but has {depth}: at most [0, {depth}]")
        base = slice_.base or config.base
        if METHODS[config.method].base != "model" and base not in block and (config.has_base or slice_.base):
            ranges = set(block.values())
            if len(ranges) > 1:
                raise MergingError(
                    f"a slice takes other layers of each model ({', '.join(map(str, block.values()))}); list the "
                    f"base_model {base!r} among its sources with the layers that task vectors begin at"
                )
            block[base] = ranges.pop()
        length = next(end - first for first, end in block.values())
        layers += [{aliases[each]: first + step for each, (first, _) in block.items()} for step in range(length)]
    same = len(layers) == depth and all(at == number for number, each in enumerate(layers) for at in each.values())
    return None if same else tuple(layers)


def _grouped(
    assignments: Mapping[str, Assignment], layout: Layout
) -> tuple[dict[Group, Assignment], dict[str, Assignment]]:
    """Per group what most of its tensors have, and the exceptions by name."""
    groups: dict[Group, Assignment] = {}
    tensors: dict[str, Assignment] = {}
    for group in layout.groups:
        names = layout.of_group(group)
        groups[group] = Counter(assignments[name] for name in names).most_common(1)[0][0]
        tensors |= {name: assignments[name] for name in names if assignments[name] != groups[group]}
    return groups, tensors


def _dtype(name: str | None, key: str) -> str | None:
    if name is None:
        return None
    plain = name.removeprefix("torch.")
    if plain not in DTYPES:
        raise MergingError(f"expected {key} to be one of {', '.join(DTYPES)}, found {name!r}{suggest(plain, DTYPES)}")
    return plain


def stored(sources: Sources) -> set[torch.dtype]:
    """The dtypes in which any model stores tensors that are merged."""
    return {
        each.tensors[name].dtype
        for each in sources.checkpoints.values()
        for name in sources.tensors
        if name in each.tensors
    }


def promoted(sources: Sources) -> str | None:
    """The dtype that holds every source's values where they differ; None where all have the base's."""
    dtypes = sorted(stored(sources), key=str)
    if len(dtypes) == 1:
        return None
    wide = dtypes[0]
    for dtype in dtypes[1:]:
        wide = torch.promote_types(wide, dtype)
    return str(wide).removeprefix("torch.")


def narrows(sources: Sources, dtype: str) -> bool:
    """Whether rounding the sources to a dtype loses anything: mergekit does it before it merges."""
    wanted = torch_dtype(dtype)
    assert wanted is not None
    return any(torch.promote_types(each, wanted) != wanted for each in stored(sources))
