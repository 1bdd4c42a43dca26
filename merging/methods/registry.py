"""Method name -> method. Nothing is imported before it is asked for.

A name is one of the built-in ones, an entry point of the group ``paretomerge.methods`` in an installed package, or a
file: ``path/to/file.py:ClassName``, relative to the working directory. Of the last two the source is part of what a
recipe says: its canonical assignments hold the hash of the file under :data:`SOURCE`, and are refused where that file
has changed.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import logging
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple

from merging.bounded import printable
from merging.methods.contract import Method, suggest
from merging.recipe import Assignment, MergingError, Recipe

ENTRY_POINTS = "paretomerge.methods"

_LOG = logging.getLogger("paretomerge")

# Shared parameter of a plug-in's canonical assignments: sha256 of the file that defines it.
SOURCE = "source"

BUILT_IN = {
    "arcee_fusion": "merging.methods.scored:ArceeFusion",
    "breadcrumbs": "merging.methods.sparse:Breadcrumbs",
    "breadcrumbs_ties": "merging.methods.sparse:BreadcrumbsTies",
    "consensus_ta": "merging.methods.pointwise:ConsensusTA",
    "core_dare_ties": "merging.methods.joint:CoreDareTies",
    "core_ties": "merging.methods.joint:CoreTies",
    "dare_linear": "merging.methods.sparse:DareLinear",
    "dare_ties": "merging.methods.sparse:DareTies",
    "della": "merging.methods.sparse:Della",
    "della_linear": "merging.methods.sparse:DellaLinear",
    "iso_c": "merging.methods.spectral:IsoC",
    "iso_cts": "merging.methods.spectral:IsoCts",
    "fisher": "merging.methods.fisher:Fisher",
    "karcher": "merging.methods.geometry:Karcher",
    "knots_dare_ties": "merging.methods.joint:KnotsDareTies",
    "knots_ties": "merging.methods.joint:KnotsTies",
    "linear": "merging.methods.linear:Linear",
    "magmax": "merging.methods.pointwise:MagMax",
    "model_stock": "merging.methods.geometry:ModelStock",
    "multislerp": "merging.methods.geometry:MultiSlerp",
    "nearswap": "merging.methods.pointwise:NearSwap",
    "nuslerp": "merging.methods.geometry:NuSlerp",
    "passthrough": "merging.methods.pointwise:Passthrough",
    "pcb": "merging.methods.scored:Pcb",
    "ram": "merging.methods.pointwise:Ram",
    "ramplus_tl": "merging.methods.pointwise:RamPlus",
    "regmean": "merging.methods.regression:RegMean",
    "regmean_plus": "merging.methods.regression:RegMeanPlus",
    "sce": "merging.methods.scored:Sce",
    "slerp": "merging.methods.geometry:Slerp",
    "task_arithmetic": "merging.methods.task_arithmetic:TaskArithmetic",
    "ties": "merging.methods.sparse:Ties",
    "tsv_m": "merging.methods.spectral:TsvM",
    "wudi": "merging.methods.wudi:Wudi",
}


class _Loaded(NamedTuple):
    """A method, and the hash of the file that defines it; None for built-in ones: the package's version names them."""

    method: Method
    source: str | None


def names() -> tuple[str, ...]:
    """All methods that are built in or installed, sorted."""
    return tuple(sorted(BUILT_IN.keys() | _plug_ins().keys()))


def get(name: str) -> Method:
    """The method of a name; a built-in one wins over a plug-in of the same name.

    Args:
        name: built in, installed, or ``path/to/file.py:ClassName``. The file is executed, once a process.

    Raises:
        MergingError: no such method, or a plug-in that cannot be loaded.
    """
    return _find(name).method


def source_hash(name: str) -> str | None:
    """``sha256:…`` of the file that defines a plug-in, None for a built-in method.

    Raises:
        MergingError: as :func:`get`.
    """
    return _find(name).source


def canonical(assignment: Assignment) -> Assignment:
    """The one spelling of an assignment: see :meth:`merging.methods.contract.Method.canonical`; idempotent.

    A plug-in's holds the hash of its file, so that it enters the recipe's hash.

    Raises:
        MergingError: no such method, parameters that it does not take, or a plug-in that is not the one the recipe was
            made with.
    """
    every = (*assignment.parameters, *(each for _, values in assignment.sources for each in values))
    for name, value in every:
        if isinstance(value, list | dict | set):  # what YAML may hold, and no hash
            raise MergingError(
                f"expected one value as {name} of {assignment.method}, found {printable(repr(value), 80)}; give one "
                "number, or one for each source by its name"
            )
    return _canonical(assignment, tuple(type(value) for _, value in every))


@lru_cache(maxsize=65536)
def _canonical(assignment: Assignment, types: tuple[type, ...]) -> Assignment:
    """As :func:`canonical`; with the types, since True equals 1.0, and one of the two may be an error."""
    method, source = _find(assignment.method)
    if source is None:
        return method.canonical(assignment)
    shared = dict(assignment.parameters)
    wanted = shared.pop(SOURCE, source)
    if wanted != source:
        raise MergingError(
            f"the recipe was made with another version of the merge method {assignment.method}: it names {SOURCE} "
            f"{wanted!s:.19}…, the plug-in's file is now {source:.19}…. Bring that version back, or remove {SOURCE} "
            "from the recipe to merge with this one"
        )
    spelled = method.canonical(replace(assignment, parameters=tuple(sorted(shared.items()))))
    return replace(spelled, parameters=tuple(sorted((*spelled.parameters, (SOURCE, source)))))


def canonical_recipe(recipe: Recipe) -> Recipe:
    """The same recipe with every assignment canonical and no scales where all are 1, so that equal merges have equal
    hashes.

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
        scales=None if set(recipe.scales or ()) <= {1} else recipe.scales,
    )


def forget() -> None:
    """Look for methods afresh when they are next asked for: files are read again, installed packages too."""
    _find.cache_clear()
    _loaded.clear()
    _canonical.cache_clear()


def is_ready(name: str) -> bool:
    """Whether :func:`get` runs no code that has not run before: a built-in method, or a plug-in that was loaded."""
    return name in BUILT_IN or name in _loaded


_loaded: set[str] = set()


@cache
def _find(name: str) -> _Loaded:
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name].split(":")
        return _Loaded(getattr(importlib.import_module(module), attribute)(), None)
    found = _plug_in(name)
    _loaded.add(name)
    return found


def _plug_in(name: str) -> _Loaded:
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(name, Path(path), attribute)
    plug_in = _plug_ins().get(name)
    if plug_in is None:
        raise MergingError(
            f"there is no merge method {name!r}{suggest(name, names())} (one of your own is named "
            "path/to/file.py:ClassName)"
        )
    return _from_package(plug_in)


def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _from_package(point: EntryPoint) -> _Loaded:
    _LOG.warning("note: the code of a plug-in is run: %s, of an installed package", point.value)
    method = _checked(point.name, point.value, _tried(point.name, point.value, point.load))
    file = getattr(sys.modules.get(type(method).__module__), "__file__", None)
    try:
        content = Path(str(file)).read_bytes()
    except OSError as error:
        raise MergingError(
            f"the merge method {point.name!r} of {point.value} has no file that could be read, so a recipe could not "
            f"say which version it means: {error}"
        ) from error
    return _Loaded(method, _digest(content))


def _from_file(name: str, path: Path, attribute: str) -> _Loaded:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise MergingError(f"expected a Python file with the merge method {attribute} at {path}; {error}") from error
    source = _digest(content)
    # What runs is what was hashed. A module of its own for each content, so that pickle and dataclasses find it.
    module = types.ModuleType(f"paretomerge_method_{source[7:23]}")
    module.__file__ = str(path.resolve())

    _LOG.warning("note: the code of a plug-in is run: %s (%s…)", path.resolve(), source[:19])

    def execute() -> Any:
        sys.modules[module.__name__] = module
        exec(compile(content, str(path), "exec"), module.__dict__)
        return module

    _tried(name, str(path), execute)
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, vars(module), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise MergingError(f"{path} defines no {attribute}{hint}")
    method = _checked(name, str(path), _tried(name, str(path), lambda: getattr(module, attribute)))
    # Recipes know it by this name, and so do cached statistics: two files may each hold a method called "mine".
    setattr(method, "name", name)  # noqa: B010
    return _Loaded(method, source)


def _tried(name: str, where: str, load: Callable[[], Any]) -> Any:
    """What a stranger's code gives; a class is built."""
    try:
        found = load()
        return found() if isinstance(found, type) else found
    except (Exception, SystemExit) as error:  # it may raise anything, and must not end the run
        raise MergingError(
            f"the merge method {name!r} of {where} failed to load ({type(error).__name__}): {error}"
        ) from error


def _checked(name: str, where: str, method: Any) -> Method:
    if not isinstance(method, Method):
        raise MergingError(f"expected a merging.methods.Method for {name!r} in {where}, found {type(method).__name__}")
    if any(parameter.name == SOURCE for parameter in method.parameters):
        raise MergingError(
            f"the merge method {name!r} of {where} declares a parameter {SOURCE!r}, which recipes use for the hash of "
            "its file; call it something else"
        )
    return method


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
