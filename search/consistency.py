"""Whether a run's log agrees with itself. One that was written by this program does; a stranger's may say anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from search.constraints import Constraints
from search.errors import SearchError
from search.objectives import Objectives
from search.schema import Config
from search.stages import stage_names

if TYPE_CHECKING:
    from search.events import RunStarted
    from search.results import Results

T = TypeVar("T")


def config_of(started: RunStarted, folder: object) -> Config:
    """The config of a run, validated again.

    Raises:
        SearchError: it is none.
    """
    try:
        return Config.model_validate(started.config)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(each) for each in first["loc"])
        raise contradicts(folder, f"its config is none ({where}: {first['msg']})") from error


def check_consistent(results: Results) -> None:
    """Check what a report or a status relies on.

    Raises:
        SearchError: names the first thing that cannot be.
    """
    folder, started = results.folder, results.started
    check_started(started, folder)
    names = {each["name"] for each in started.objectives}
    stages = stage_names(results.config)
    ids = [each.id for each in results.candidates]
    if ids != list(range(len(ids))):
        raise contradicts(folder, "its candidates are not numbered from 0 on")
    for each in results.candidates:
        if not 0 <= each.stage < len(stages):
            raise contradicts(folder, f"candidate {each.id} is of stage {each.stage}, and there are {len(stages)}")
        if each.duplicate_of is not None and not 0 <= each.duplicate_of < each.id:
            raise contradicts(folder, f"candidate {each.id} repeats one that was not there")
    chosen = [] if results.chosen is None else [results.chosen]
    named = [*results.finalists, *chosen, *(id for id, _ in results.picks)]
    if not _within(named, len(ids)):
        raise contradicts(folder, "it names finalists, or has chosen candidates, that there are not")
    if not _within(results.notes, len(stages)):
        raise contradicts(folder, "it has notes on stages that there are not")
    for split, scores in results.scores.items():
        if not _within(scores, len(ids)) or not all(names <= set(each) for each in scores.values()):
            raise contradicts(folder, f"its scores on {split} are not those of its candidates and objectives")
        rows = results.violations[split]
        if not all(len(row) == len(started.constraints) for row in rows.values()):
            raise contradicts(folder, f"its violations on {split} are not those of its constraints")


def check_started(started: RunStarted, folder: object) -> None:
    """Check what is read from a run's first event.

    Raises:
        SearchError: names the first thing that cannot be.
    """
    objectives = _made(lambda: Objectives.from_data(started.objectives), "objectives", folder)
    _made(lambda: Constraints.from_data(started.constraints, started.clusters), "constraints", folder)
    ranges = [_is_number(each.low) and _is_number(each.high) and each.low < each.high for each in objectives.targets]
    if not ranges or not all(ranges) or not all(isinstance(each, str) for each in objectives.names):
        raise contradicts(folder, "its objectives are none")
    for metric, facts in started.metrics.items():
        if not all(_is_number(facts.get(end)) for end in ("low", "high")):
            raise contradicts(folder, f"its metric {metric} has no range")
    if not started.sources.keys() >= {"base"} or started.sources.keys() != started.paths.keys():
        raise contradicts(folder, "its models have no paths")


def _made(make: Callable[[], T], what: str, folder: object) -> T:
    try:
        return make()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise contradicts(folder, f"its {what} are none") from error


def _within(ids: Iterable[int] | Mapping[int, Any], count: int) -> bool:
    return all(0 <= id < count for id in ids)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def contradicts(folder: object, why: str) -> SearchError:
    """The paragraph for a log that cannot be."""
    return SearchError(
        f"{folder}: this run contradicts itself: {why}. It was changed since it was written, or not written by "
        "paretomerge; restore it from a copy"
    )
