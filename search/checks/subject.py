"""What is being checked, and how much of the config can be trusted while it is."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merging.recipe import MergingError
from search.checks.findings import Findings
from search.config import LoadedConfig, with_calibration
from search.config_problems import validate
from search.errors import SearchError
from search.positions import Location, Problem, YamlSource
from search.schema import Config

_ROUNDS = 8
"""Times that wrong values are taken out: each may uncover others."""

_REFERRED_TO: tuple[Location, ...] = (("models",), ("evaluators",), ("objectives",), ("first",))

_TOGETHER: frozenset[Location] = frozenset({("space", "expression"), ("space", "variables")})
"""What means nothing without each other."""

_BUDGET = {"candidates": 100}
_STAND_INS: dict[Location, Any] = {
    ("name",): "unnamed",
    ("objectives",): ["missing.missing"],
    ("search",): {"budget": _BUDGET},
    ("search", "budget"): _BUDGET,
    ("search", "budget", "candidates"): _BUDGET["candidates"],
    ("first", "search"): {"budget": _BUDGET},
    ("first", "search", "budget"): _BUDGET,
    ("first", "search", "budget", "candidates"): _BUDGET["candidates"],
}
"""What stands for something that is missing, while the rest is looked at."""


@dataclass
class Subject:
    """A config under check.

    Attributes:
        loaded: the config, or what could be saved of it.
        findings: where to say what is found.
        wrong: places with errors of the file itself: what depends on them is not judged.
    """

    loaded: LoadedConfig
    findings: Findings
    wrong: frozenset[Location] = field(default_factory=frozenset)

    @property
    def config(self) -> Config:
        """The config."""
        return self.loaded.config

    def sound(self, *location: str | int) -> bool:
        """Whether the file has no error at a place, in it, or around it."""
        return not _touches(location, self.wrong)


def read_subject(source: YamlSource, findings: Findings) -> Subject | None:
    """Validate a config, and save what can be saved of one with errors: what is wrong is left out, so that it hides
    nothing of the rest.

    Args:
        source: the file, overrides applied to its data.
        findings: gets all errors of the file.

    Returns:
        None where nothing can be saved.
    """
    folder = source.path.parent
    config, problems = validate(source.data, folder)
    findings.problems(problems)
    wrong = {each.location for each in problems}
    left_out: set[Location] = set()
    data = copy.deepcopy(source.data)
    for _ in range(_ROUNDS):
        if config is not None:
            break
        now = _saved(data, problems)
        if not now:
            return None
        left_out |= now
        config, problems = validate(data, folder)
        # what is left out may be missed elsewhere: that is no error of the file
        if not any(place[:1] in _REFERRED_TO for place in left_out):
            unknown = left_out | (_TOGETHER if any(_touches(place, left_out) for place in _TOGETHER) else set())
            findings.problems([each for each in problems if not _touches(each.location, unknown)])
        wrong |= left_out | {each.location for each in problems}
    if config is None:
        return None
    config = _without_algebra(config, wrong)
    with contextlib.suppress(MergingError, SearchError):  # an unknown method, or expression, which was said
        config = with_calibration(config)
    return Subject(LoadedConfig(config, Path(source.path), source), findings, frozenset(wrong))


def _without_algebra(config: Config, wrong: Iterable[Location]) -> Config:
    """Without expressions where one of them is wrong: nobody can say what they come to."""
    places = {each[:2] for each in wrong}
    space, models = config.space, config.models
    if ("models", "derived") in places:
        models = models.model_copy(update={"derived": {}})
    if places & {("models", "derived"), ("space", "expression"), ("space", "experts")}:
        space = space.model_copy(update={"expression": None, "variables": {}, "experts": None})
    return config.model_copy(update={"space": space, "models": models})


def _touches(location: Location, others: Iterable[Location]) -> bool:
    """Whether a place lies in one of the others, around it, or is it."""
    return any(one == two for one, two in ((location[: len(each)], each[: len(location)]) for each in others))


def _saved(data: dict[str, Any], problems: Iterable[Problem]) -> set[Location]:
    """Take wrong values out of plain data, and put something where one is missing.

    Returns:
        What cannot be judged any more; empty where nothing could be done.
    """
    done: set[Location] = set()
    for problem in sorted(problems, key=lambda each: str(each.location), reverse=True):  # from the ends of lists
        location = problem.location
        if location[:1] == ("evaluators",) and len(location) > 2:
            continue  # whoever is wrong is left out as a whole where evaluators are built
        if location in _STAND_INS and "required and missing" in problem.message:
            place = _found(data, location[:-1])
            if isinstance(place, dict):
                place[location[-1]] = copy.deepcopy(_STAND_INS[location])
                done.add(location)
            continue
        for depth in range(len(location), 0, -1):
            place, last = _found(data, location[: depth - 1]), location[depth - 1]
            if isinstance(place, dict) and last in place:
                del place[last]
                done.add(location[:depth])
                break
            if isinstance(place, list) and isinstance(last, int) and last < len(place):
                del place[last]
                done.add(location[: depth - 1])  # the others have other places now
                break
    return done


def _found(data: Any, location: Location) -> Any:
    for part in location:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data
