"""Export to mergekit's YAML: the same merge in the interchange form, where there is one.

What is written is read back by our own import before it is handed out: every tensor means the same, or there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from merging.dataflow import folded
from merging.layout import Layout
from merging.mergekit import Plan, layers_of_config, narrows, promoted, stored
from merging.mergekit_config import check
from merging.mergekit_methods import METHODS
from merging.mergekit_slices import Writer
from merging.methods.registry import canonical, canonical_recipe
from merging.opening import is_adapter, is_vector
from merging.recipe import Assignment, Layers, MergingError, Recipe, Value
from merging.restack import pruned, restack
from merging.sources import Sources

# What a config of mergekit cannot say, and an import therefore does not tell apart: its random masks are its own.
_FREE = ("seed",)


def to_mergekit(recipe: Recipe, sources: Sources) -> str:
    """The merge as a config for mergekit 0.1.5.

    Random masks (dare, della) are then drawn by mergekit: another draw from the same distribution.

    Args:
        recipe: any. Scales of its blocks become mergekit's ``scale`` filters, on the tensors that they are folded into.
        sources: the models that it was made from.

    Returns:
        YAML. Imported again, it is a recipe of the same assignments; of the same hash, too, if the recipe was imported.

    Raises:
        MergingError: mergekit has no equivalent; says why.
    """
    original = recipe
    recipe = _with_aliases(canonical_recipe(folded(recipe, sources)), sources.bind(recipe))
    view = restack(sources, recipe.layers)
    recipe = pruned(recipe, view.layout)
    _check_folders(recipe, sources)
    assignments = {name: recipe.for_tensor(name, view.layout.group(name)) for name in view.tensors}
    method = _one_method(assignments)
    for name, assignment in assignments.items():
        _check_expressible(name, assignment, recipe.base)
    data = Writer(recipe, view, assignments, method).write() | _dtypes(recipe, sources) | _tokenizer(recipe, sources)
    _verify(data, recipe, view, assignments)
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)
    identity = recipe.hash if original.scales is None else canonical_recipe(original).hash
    return "".join(f"# {line}\n" for line in _remarks(method, recipe, data, identity)) + text


def _check_folders(recipe: Recipe, sources: Sources) -> None:
    folders = {alias: sources.checkpoints[alias].path for alias in recipe.sources}
    composed = [alias for alias, path in folders.items() if is_vector(path) or is_adapter(path)]
    if composed:
        raise MergingError(
            f"mergekit merges model folders, and no adapters or task vectors, as {', '.join(composed)} here; write "
            "each as a model first (`paretomerge vector equip`)"
        )


def _with_aliases(recipe: Recipe, bound: Mapping[str, str]) -> Recipe:
    """The recipe by the aliases of the sources."""
    if len(set(bound.values())) < len(bound) or len({ref.path for ref in recipe.sources.values()}) < len(bound):
        raise MergingError("two sources of the recipe are the same model, which a mergekit config cannot tell apart")
    assigned = {alias for each in (*recipe.groups.values(), *recipe.tensors.values()) for alias, _ in each.sources}
    if not assigned <= bound.keys():
        raise MergingError(f"the recipe merges {', '.join(sorted(assigned - bound.keys()))}, which it does not list")
    virtual = sorted(alias for alias in assigned if recipe.sources[alias].made_by is not None)
    if virtual:
        raise MergingError(f"{virtual[0]!r} is a virtual expert, which mergekit would want as a model folder")
    if all(alias == own for alias, own in bound.items()):
        return recipe

    def renamed(assignment: Assignment) -> Assignment:
        return replace(assignment, sources=tuple((bound[alias], values) for alias, values in assignment.sources))

    layers = recipe.layers
    return replace(
        recipe,
        base=bound[recipe.base],
        sources={bound[alias]: ref for alias, ref in recipe.sources.items()},
        groups={group: canonical(renamed(each)) for group, each in recipe.groups.items()},
        tensors={name: canonical(renamed(each)) for name, each in recipe.tensors.items()},
        layers=None if layers is None else tuple({bound[a]: at for a, at in block.items()} for block in layers),
    )


def _one_method(assignments: Mapping[str, Assignment]) -> str:
    found = sorted({assignment.method for assignment in assignments.values()})
    if len(found) > 1:
        raise MergingError(f"a mergekit config has one method, and this recipe has {', '.join(found)}")
    if found[0] not in METHODS:
        raise MergingError(f"mergekit has no method {found[0]}")
    return found[0]


def _check_expressible(name: str, assignment: Assignment, base: str) -> None:
    method, shared = METHODS[assignment.method], dict(assignment.parameters)
    vectors = method.base == "origin" or (method.base == "optional" and shared.get("on") == "task_vectors")
    if vectors and base in dict(assignment.sources):
        raise MergingError(
            f"mergekit's {assignment.method} begins task vectors at the base_model and does not merge it; {name} has "
            "the base among its sources"
        )
    if method.convention and shared.get("convention") != "mergekit":
        raise MergingError(
            f"{assignment.method} of {name} follows the paper, from which mergekit's differs; only recipes with "
            "convention: mergekit have an equivalent"
        )
    spoken = {term.ours for term in (*method.per_source.values(), *method.shared.values())}
    spoken |= {"convention", *_FREE} | ({"coefficient"} if method.base == "arc" else set())
    spoken |= {"on"} if method.base == "optional" else set()
    for values in (shared, *(dict(each) for _, each in assignment.sources)):
        for parameter, value in values.items():
            if parameter not in spoken and _without(parameter, assignment) != assignment:
                raise MergingError(f"mergekit's {assignment.method} has no {parameter}, and {name} has {value} for it")


def _without(parameter: str, assignment: Assignment) -> Assignment:
    """The assignment with a parameter's default for the parameter."""

    def kept(values: tuple[tuple[str, Value], ...]) -> tuple[tuple[str, Value], ...]:
        return tuple(each for each in values if each[0] != parameter)

    sources = tuple((alias, kept(values)) for alias, values in assignment.sources)
    return canonical(replace(assignment, sources=sources, parameters=kept(assignment.parameters)))


def _dtypes(recipe: Recipe, sources: Sources) -> dict[str, str]:
    """``dtype`` and ``out_dtype`` that round the sources and the result as the recipe does."""
    wide = promoted(sources)
    own = sorted({str(info.dtype).removeprefix("torch.") for info in sources.tensors.values()})
    result = recipe.dtype
    if result is None and (wide is not None or recipe.source_dtype is not None):
        if len(own) > 1:
            raise MergingError(
                f"the recipe keeps the base's dtypes, tensor by tensor ({', '.join(own)}); a mergekit config has one"
            )
        result = own[0]
    if recipe.source_dtype is not None:
        dtype: str | None = recipe.source_dtype
    elif result is not None and narrows(sources, result):
        dtype = wide or str(next(iter(stored(sources)))).removeprefix("torch.")
    else:
        dtype = result
    if dtype is None:
        return {}
    return {"dtype": dtype} if result in {None, dtype} else {"dtype": dtype, "out_dtype": str(result)}


def _tokenizer(recipe: Recipe, sources: Sources) -> dict[str, str]:
    choice = recipe.tokenizer or sources.tokenizer  # a recipe that says nothing means the base's
    return {} if choice is None else {"tokenizer_source": recipe.tokenizer_path or choice}


def _remarks(method: str, recipe: Recipe, data: Mapping[str, Any], identity: str) -> list[str]:
    remarks = [f"For mergekit 0.1.5; from the paretomerge recipe {identity[:12]}."]
    if method.startswith(("dare", "della")):
        remarks.append("mergekit draws its own random masks: the weights are another draw, not the same numbers.")
    first = (data["models"] if "models" in data else data["slices"][0]["sources"])[0]["model"]
    if data.get("base_model", first) != recipe.sources[recipe.base].path:
        remarks.append("mergekit takes config and tokenizer from its first model, the recipe from its base.")
    return remarks


def _verify(data: Mapping[str, Any], recipe: Recipe, view: Sources, assignments: Mapping[str, Assignment]) -> None:
    """Read the config as our import does, and compare every block and tensor."""
    config = check(yaml.safe_load(yaml.safe_dump(data)), Path("mergekit.yaml"))
    aliases = {ref.path: alias for alias, ref in recipe.sources.items()}
    plan = Plan(config, aliases, view)
    for name, assignment in assignments.items():
        if _plain(canonical(plan.assignment(name))) != _plain(assignment):
            raise MergingError(f"mergekit has no equivalent of this recipe: {name} would be merged in another way")
    layout = getattr(view, "inner", view).layout
    found = pruned(replace(recipe, layers=layers_of_config(config, aliases, layout)), view.layout).layers
    if _moved(found, layout) != _moved(recipe.layers, layout):
        raise MergingError("mergekit has no equivalent of this recipe: its blocks would be made from others")


def _moved(layers: Layers | None, layout: Layout) -> Layers | None:
    """The layers; None where every block is made from those of its own number, and there are as many."""
    numbers = [set(block.values()) for block in layers or ()]
    return None if numbers == [{at} for at in range(max(map(layout.depth, layout.stacks), default=0))] else layers


def _plain(assignment: Assignment) -> Assignment:
    return replace(assignment, parameters=tuple(each for each in assignment.parameters if each[0] not in _FREE))
