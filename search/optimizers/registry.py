"""Optimizers by name: built in, an entry point of the group ``paretomerge.optimizers``, or ``path/to/file.py:Name``.

An optimizer is a class that is built from :class:`~search.optimizers.contract.Settings` alone, and may carry a pydantic
model ``Options`` that says which options it takes. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import logging
import sys
from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from search.optimizers.contract import Optimizer, OptimizerError, Settings

GROUP = "paretomerge.optimizers"

_LOG = logging.getLogger("paretomerge")

BUILT_IN = {
    "auto": "search.optimizers.auto:Auto",
    "gp": "search.optimizers.gp:Gp",
    "cma": "search.optimizers.cma:Cma",
    "catcma": "search.optimizers.catcma:CatCma",
    "como_catcma": "search.optimizers.como_catcma:ComoCatCma",
    "sms_emoa": "search.optimizers.sms_emoa:SmsEmoa",
    "nsga2": "search.optimizers.nsga:Nsga2",
    "nsga3": "search.optimizers.nsga:Nsga3",
    "tpe": "search.optimizers.tpe:Tpe",
    "random": "search.optimizers.random:Random",
    "sobol": "search.optimizers.sobol:Sobol",
    "grid": "search.optimizers.grid:Grid",
}


class NoOptions(BaseModel):
    """Options of an optimizer that declares none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def optimizers() -> tuple[str, ...]:
    """Names that can be built, in alphabetical order; nothing is imported for it."""
    return tuple(sorted({*BUILT_IN, *_plugins()}))


def options_model(name: str, *, folder: Path | None = None) -> type[BaseModel]:
    """The pydantic model of an optimizer's options.

    Args:
        name: one of :func:`optimizers`, or ``file.py:ClassName``.
        folder: where a relative file is looked for; the current folder if None.

    Raises:
        OptimizerError: no optimizer of this name, or it cannot be imported.
    """
    model = getattr(_load(name, folder), "Options", NoOptions)
    return cast(type[BaseModel], model)


def build(name: str, settings: Settings, *, folder: Path | None = None) -> Optimizer:
    """Build an optimizer, behind a model that screens its proposals where its option ``prescreen`` says so.

    Args:
        name: as in :func:`options_model`.
        settings: its options are validated here, and filled with defaults.
        folder: as in :func:`options_model`.

    Raises:
        OptimizerError: unknown name, options or settings that do not fit.
    """
    _check(settings)
    settings = replace(settings, options=validate(name, settings.options, folder=folder))
    optimizer = cast(Optimizer, _load(name, folder)(settings))
    if str(settings.options.get("prescreen", "off")) != "off":
        from search.optimizers.prescreen import Prescreened

        return Prescreened(optimizer, settings)
    return optimizer


def source_hash(name: str, *, folder: Path | None = None) -> str:
    """sha256 of the file that defines an optimizer: part of the identity of a run that uses a plug-in.

    Raises:
        OptimizerError: no such optimizer, or one that no file defines.
    """
    file = getattr(sys.modules[_load(name, folder).__module__], "__file__", None)
    if file is None:
        raise OptimizerError(f"the optimizer {name!r} has no source file, so a run with it could not be told apart")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def validate(name: str, options: dict[str, float | int | str | bool], *, folder: Path | None = None) -> dict[str, Any]:
    """Options of an optimizer with their defaults written out; those that are None by default are left out.

    Raises:
        OptimizerError: all that is wrong with them, in one message.
    """
    model = options_model(name, folder=folder)
    try:
        return model.model_validate(options).model_dump(exclude_none=True)
    except ValidationError as error:
        known = sorted(model.model_fields)
        problems = "; ".join(_problem(each, known) for each in error.errors(include_url=False))
        takes = f"it takes {', '.join(known)}" if known else "it takes no options"
        raise OptimizerError(f"the options of optimizer {name!r} do not fit: {problems}; {takes}") from error


def _problem(error: Any, known: list[str]) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "options"
    if error["type"] == "extra_forbidden":
        return f"there is no option {where!r}{_did_you_mean(where, known)}"
    return f"{where} = {error['input']!r}: {str(error['msg']).lower()}"


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


@cache
def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _load(name: str, folder: Path | None) -> Any:
    """The optimizer's class."""
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file((folder or Path()) / path, attribute)
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if name not in _plugins():
        known = list(optimizers())
        raise OptimizerError(
            f"expected an optimizer out of {', '.join(known)}, found {name!r}{_did_you_mean(name, known)}; one from "
            f"another package must be installed and declare an entry point {GROUP!r}, one of your own is named by its "
            "file, path/to/file.py:ClassName"
        )
    _announce(_plugins()[name].value)
    try:
        return _plugins()[name].load()
    except (Exception, SystemExit) as error:
        raise OptimizerError(
            f"the optimizer {name!r} is declared by the entry point {_plugins()[name].value!r}, which cannot be "
            f"imported: {type(error).__name__}: {error}; reinstall or repair that package"
        ) from error


@cache
def _announce(entry_point: str) -> None:
    _LOG.warning("note: the code of a plug-in is run: %s, of an installed package", entry_point)


def _from_file(path: Path, attribute: str) -> Any:
    if not path.is_file():
        raise OptimizerError(f"expected a Python file with the optimizer {attribute} at {path}, and there is none")
    path = path.resolve()
    source = path.read_bytes()
    digest = hashlib.sha256(str(path).encode() + b"\0" + source).hexdigest()
    name = f"paretomerge_optimizer_{digest[:16]}"
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise OptimizerError(f"{path} cannot be imported as a Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        _LOG.warning(
            "note: the code of a plug-in is run: %s (sha256:%s…)", path, hashlib.sha256(source).hexdigest()[:12]
        )
        try:
            # Not by its loader: a compiled file of the same second and size would be taken for this one.
            exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
        except (Exception, SystemExit) as error:  # a stranger's module may raise anything, and must not end the run
            del sys.modules[name]
            raise OptimizerError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(module, attribute):
        raise OptimizerError(f"{path} defines no {attribute}{_did_you_mean(attribute, dir(module))}")
    return getattr(module, attribute)


def _check(settings: Settings) -> None:
    """Settings that no optimizer can work with."""
    if settings.objectives < 1 or settings.budget < 1:
        raise OptimizerError(
            f"expected at least one objective and a budget of at least one evaluation, found {settings.objectives} "
            f"and {settings.budget}"
        )
    if len(settings.reference) != settings.objectives:
        raise OptimizerError(
            f"expected a reference point with {settings.objectives} numbers, one per objective, found "
            f"{settings.reference}"
        )
    weights = settings.weights
    if weights is not None and (len(weights) != settings.objectives or min(weights) < 0 or sum(weights) <= 0):
        raise OptimizerError(
            f"expected {settings.objectives} weights >= 0 that are not all 0, one per objective, found {weights}"
        )
    if settings.center is not None and settings.center not in settings.box:
        raise OptimizerError(
            f"expected a center inside the box ({settings.box.continuous} values in [0, 1], choices below "
            f"{settings.box.categories}), found {settings.center}"
        )
