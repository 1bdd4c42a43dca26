"""Optimizers by name: built in, or from other packages through the entry points ``paretomerge.optimizers``.

An optimizer is a class that is built from :class:`~search.optimizers.contract.Settings` alone, and may carry a pydantic
model ``Options`` that says which options it takes.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from search.optimizers.contract import Optimizer, OptimizerError, Settings

GROUP = "paretomerge.optimizers"

BUILT_IN = {
    "sms_emoa": "search.optimizers.sms_emoa:SmsEmoa",
    "cma": "search.optimizers.cma:Cma",
    "random": "search.optimizers.random:Random",
}


class NoOptions(BaseModel):
    """Options of an optimizer that declares none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def optimizers() -> tuple[str, ...]:
    """Names that can be built, in alphabetical order; nothing is imported for it."""
    return tuple(sorted({*BUILT_IN, *_plugins()}))


def options_model(name: str) -> type[BaseModel]:
    """The pydantic model of an optimizer's options.

    Raises:
        OptimizerError: no optimizer of this name, or it cannot be imported.
    """
    model = getattr(_load(name), "Options", NoOptions)
    return cast(type[BaseModel], model)


def build(name: str, settings: Settings) -> Optimizer:
    """Build an optimizer.

    Args:
        name: one of :func:`optimizers`.
        settings: its options are validated here, and filled with defaults.

    Raises:
        OptimizerError: unknown name, options or settings that do not fit.
    """
    _check(settings)
    options = validate(name, settings.options)
    return cast(Optimizer, _load(name)(replace(settings, options=options)))


def validate(name: str, options: dict[str, float | int | str | bool]) -> dict[str, Any]:
    """Options of an optimizer with their defaults written out; those that are None by default are left out.

    Raises:
        OptimizerError: all that is wrong with them, in one message.
    """
    model = options_model(name)
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


def _load(name: str) -> Any:
    """The optimizer's class."""
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if name not in _plugins():
        known = list(optimizers())
        raise OptimizerError(
            f"expected an optimizer out of {', '.join(known)}, found {name!r}{_did_you_mean(name, known)}; one from "
            f"another package must be installed and declare an entry point {GROUP!r}"
        )
    try:
        return _plugins()[name].load()
    except Exception as error:
        raise OptimizerError(
            f"the optimizer {name!r} is declared by the entry point {_plugins()[name].value!r}, which cannot be "
            f"imported: {type(error).__name__}: {error}; reinstall or repair that package"
        ) from error


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
