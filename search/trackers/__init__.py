"""Experiment trackers as listeners: TensorBoard and Weights & Biases hear of every candidate.

A tracker is a mirror of the run's log, never a part of it. It writes candidates in the order of their ids, with the id
as the step, whatever order their results arrived in. What it lacks when a run goes on (the process was killed between
the log and the tracker, or the tracker was switched on later) it takes from the log; what it has, it does not write
again.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from search.errors import SearchError
from search.schema import Config
from search.trackers.mirror import Mirror
from search.trackers.tensorboard import TensorboardOptions, TensorboardSink
from search.trackers.wandb import WandbOptions, WandbSink

OPTIONS: dict[str, type[BaseModel]] = {"tensorboard": TensorboardOptions, "wandb": WandbOptions}
"""Tracker -> what its options are."""


def open_trackers(trackers: Mapping[str, Mapping[str, Any]], folder: Path, config: Config) -> list[Mirror]:
    """The trackers that a config asks for. Nothing is imported or written before the first event.

    Args:
        trackers: tracker -> its options.
        folder: the run directory: a tracker's files lie in it.
        config: the run's.

    Raises:
        SearchError: a package is not installed, or an option is wrong.
    """
    opened = []
    for name, given in trackers.items():
        options = _checked(name, given)
        check_installed(name)
        if isinstance(options, WandbOptions):
            opened.append(Mirror(folder, lambda o=options: WandbSink(folder, config, o), name))  # type: ignore[misc]
        elif isinstance(options, TensorboardOptions):
            opened.append(Mirror(folder, lambda o=options: TensorboardSink(folder, o), name))  # type: ignore[misc]
    return opened


def check_installed(tracker: str) -> None:
    """Whether a tracker's package is there. It is not imported.

    Raises:
        SearchError: it is not.
    """
    found = importlib.util.find_spec(tracker)
    if found is None or found.origin is None:  # a folder of that name is no package
        raise SearchError(
            f"expected the package {tracker}, which is not installed; pip install 'paretomerge[trackers]', or leave "
            "the tracker out"
        )


def _checked(name: str, given: Mapping[str, Any]) -> BaseModel:
    if name not in OPTIONS:
        raise SearchError(f"trackers: expected {' or '.join(OPTIONS)}, found {name!r}")
    try:
        return OPTIONS[name].model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(each) for each in first["loc"])
        known = ", ".join(OPTIONS[name].model_fields)
        raise SearchError(f"trackers: {name}: {key}: {first['msg']}; the options are {known}") from error


__all__ = ["OPTIONS", "Mirror", "check_installed", "open_trackers"]
