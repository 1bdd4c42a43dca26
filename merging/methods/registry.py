"""Method name -> method. Built-in methods and those of installed packages, imported when first asked for."""

from __future__ import annotations

import importlib
from dataclasses import replace
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points

from merging.methods.contract import Method, suggest
from merging.recipe import Assignment, MergingError, Recipe

ENTRY_POINTS = "paretomerge.methods"

BUILT_IN = {
    "linear": "merging.methods.linear:Linear",
    "slerp": "merging.methods.slerp:Slerp",
    "task_arithmetic": "merging.methods.task_arithmetic:TaskArithmetic",
}


def names() -> tuple[str, ...]:
    """All method names, sorted."""
    return tuple(sorted(BUILT_IN.keys() | _plug_ins().keys()))


@cache
def get(name: str) -> Method:
    """The method of a name; a built-in one wins over a plug-in of the same name.

    Raises:
        MergingError: no such method, or a plug-in that cannot be loaded.
    """
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name].split(":")
        found: Method = getattr(importlib.import_module(module), attribute)()
        return found
    plug_in = _plug_ins().get(name)
    if plug_in is None:
        raise MergingError(f"there is no merge method {name!r}{suggest(name, names())}")
    return _load(plug_in)


@lru_cache(maxsize=65536)
def canonical(assignment: Assignment) -> Assignment:
    """The one spelling of an assignment: see :meth:`merging.methods.contract.Method.canonical`.

    Raises:
        MergingError: no such method, or parameters that it does not take.
    """
    return get(assignment.method).canonical(assignment)


def canonical_recipe(recipe: Recipe) -> Recipe:
    """The same recipe with every assignment canonical, so that equal merges have equal hashes.

    Raises:
        MergingError: as :func:`canonical`; names the group or tensor.
    """

    def checked(where: object, assignment: Assignment) -> Assignment:
        try:
            return canonical(assignment)
        except MergingError as error:
            raise MergingError(f"{where}: {error}") from error

    return replace(
        recipe,
        groups={group: checked(f"group {group}", each) for group, each in recipe.groups.items()},
        tensors={name: checked(f"tensor {name}", each) for name, each in recipe.tensors.items()},
    )


def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _load(point: EntryPoint) -> Method:
    try:
        found = point.load()
        method = found() if isinstance(found, type) else found
    except Exception as error:  # whatever a third party's module does on import
        raise MergingError(f"the merge method {point.name!r} of {point.value} failed to load: {error}") from error
    if not isinstance(method, Method):
        raise MergingError(f"expected a merging.methods.Method at {point.value}, found {type(method).__name__}")
    return method
