"""The first search of a hybrid as a config of its own, and what is wrong with what a file says of it.

A hybrid is two searches, one after the other, over the same models, evaluators, engine and workers. ``first`` gives the
first one its space, its settings and perhaps its objectives; what it chooses is one more expert of the second one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.positions import Location, Problem
from search.schema import Config, FirstConfig, Models
from search.store.connecting import FIRST, is_run

if TYPE_CHECKING:
    from search.events import RunStarted


def alone(config: Config) -> Config:
    """The config of a hybrid's first search: of the second one it knows nothing, and it leaves the holdout closed.

    Args:
        config: a hybrid's.
    """
    first = _first(config)
    settings = first.search.model_copy(update={"holdout": False})
    update: dict[str, Any] = {"first": None, "space": first.space, "search": settings, "trackers": {}}
    update["models"] = _without_heirs(config.models, first.name)
    if first.objectives is not None:
        update["objectives"] = first.objectives
    return config.model_copy(update=update)


def is_first(folder: Path, config: Config, started: RunStarted) -> bool:
    """Whether a run is the first search of a hybrid.

    Args:
        folder: its directory.
        config: its own.
        started: its first event, which says so wherever it was moved or copied; where an older version wrote it, it is
            known by its place in the hybrid's run directory.
    """
    closed = config.first is None and not config.search.holdout
    return started.of_hybrid or (closed and in_place_of_first(folder))


def in_place_of_first(folder: Path) -> bool:
    """Whether a folder lies where a hybrid's first search does. A run that somebody calls ``first`` does not."""
    place = folder.resolve()
    return place.name == FIRST and is_run(place.parent)


def name_of(folder: Path, *, first: bool) -> str:
    """What to call a run: by its directory, and a hybrid's first search by the hybrid's.

    Args:
        folder: its directory.
        first: whether it is one.
    """
    place = folder.resolve()
    if first:
        return f"{(place.parent if in_place_of_first(place) else place).name}, first search"
    return place.name


def _first(config: Config) -> FirstConfig:
    if config.first is None:
        raise ValueError("this config has no first search")
    return config.first


def _without_heirs(models: Models, name: str) -> Models:
    """Without the virtual experts that are made of what the first search is to choose."""
    virtual = {alias: each for alias, each in models.virtual.items() if name not in (each.of or ())}
    return models.model_copy(update={"virtual": virtual})


def data_of_first(data: dict[str, Any]) -> dict[str, Any] | None:
    """A file's data as the first search would have them in a file of its own; None where there is no such section."""
    section = data.get("first")
    if not isinstance(section, dict):
        return None
    own = ("space", "search", "objectives")
    found = {key: each for key, each in data.items() if key not in ("first", "space", "search")}
    models = found.get("models")
    virtual = models.get("virtual") if isinstance(models, dict) else None
    if isinstance(models, dict) and isinstance(virtual, dict):
        kept = {alias: each for alias, each in virtual.items() if not _is_heir(each, section.get("name"))}
        found["models"] = models | {"virtual": kept}
    return found | {key: section[key] for key in own if key in section}


def _is_heir(virtual: Any, name: Any) -> bool:
    """Whether a virtual expert, as a file says it, is made of what the first search chooses."""
    of = virtual.get("of") if isinstance(virtual, dict) else None
    return isinstance(of, list) and name in of


def problems(config: Config) -> Iterator[Problem]:
    """What is wrong with the first search of a config whose single keys are right."""
    if config.first is None:
        return
    first, models = config.first, config.models
    others = {"base": "the base model"} | dict.fromkeys(models.experts, "an expert")
    others |= dict.fromkeys(models.derived, "a derived expert") | dict.fromkeys(models.virtual, "a virtual expert")
    if first.name in others:
        yield Problem(
            ("first", "name"),
            f"{first.name!r} is the name of {others[first.name]}; what the first search chooses needs one of its own",
        )
    if first.space.data_flow is not None:
        yield Problem(
            ("first", "space", "data_flow"),
            "the first search chooses an expert of the second one, which has to have the layers of the others; search "
            "paths in the second one (space.data_flow), and weights in the first",
            at_key=True,
        )
    place: Location = ("first", "search")
    if first.search.control:
        message = "the control is one of the search that ends the run; set search.control in its place"
        yield Problem((*place, "control"), message, at_key=True)
    if "holdout" in first.search.model_fields_set and first.search.holdout:
        message = "the first search chooses on the selection split and always leaves the holdout closed; leave this out"
        yield Problem((*place, "holdout"), message, at_key=True)
