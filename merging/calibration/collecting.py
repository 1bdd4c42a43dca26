"""Collecting: every source into the live model in turn, its samples through it, the statistics to disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from merging.calibration.contents import by_content
from merging.calibration.contract import Statistic
from merging.calibration.fisher import collect_fisher, plan_fisher
from merging.calibration.grams import CalibrationPlan, collect_grams, plan_grams
from merging.calibration.live import Live
from merging.calibration.sequential import collect_sequential
from merging.calibration.store import Entry
from merging.memory import free_memory
from merging.methods.contract import CALIBRATION
from merging.methods.registry import canonical, get
from merging.recipe import Assignment, MergingError

if TYPE_CHECKING:
    from merging.calibration.collected import CollectedCalibration
    from merging.materialize import Materializer

Notify = Callable[[str], None]

# Of what is free, how much statistics may take where nobody says: activations need some too.
_SHARE = 0.5


@dataclass(frozen=True)
class Wanted:
    """One thing to collect.

    Attributes:
        statistic: what.
        content: of the source.
        assignment: by content, of sequential statistics.
    """

    statistic: Statistic
    content: str
    assignment: Assignment | None = None


class _Asked(NamedTuple):
    """Who asks for something: the alias of the source, and the assignment that has it."""

    alias: str
    assignment: Assignment


def silent(line: str) -> None:
    """Nobody listens."""


def collect(
    calibration: CollectedCalibration,
    materializer: Materializer,
    assignments: Iterable[Assignment],
    memory: int | None,
    notify: Notify,
) -> None:
    """See :meth:`merging.calibration.collected.CollectedCalibration.collect`."""
    live = Live(materializer)
    room = memory if memory is not None else _free(live)
    wanted = _wanted(calibration, live, assignments)
    calibration.bind(live.context())
    materializer.calibration = calibration
    missing = [each for each in wanted if not _there(calibration, each)]
    try:
        for each in missing:
            if each.assignment is None:
                _collect_one(calibration, live, each, wanted[each].alias, room, notify)
        for assignment in dict.fromkeys(each.assignment for each in missing):
            if assignment is not None:
                theirs = {each: wanted[each].alias for each in missing if each.assignment == assignment}
                _collect_sequence(calibration, live, theirs, wanted[next(iter(theirs))].assignment, room, notify)
    finally:
        if missing:
            live.run(live.base)
    for each, asked in wanted.items():
        _note_rank(calibration, each, asked, notify)


def plan(
    calibration: CollectedCalibration, materializer: Materializer, assignments: Iterable[Assignment], memory: int | None
) -> CalibrationPlan:
    """See :meth:`merging.calibration.collected.CollectedCalibration.plan`."""
    live = Live(materializer)
    room = memory if memory is not None else _free(live)
    plans = []
    for each, asked in _wanted(calibration, live, assignments).items():
        samples = calibration.samples(each.content)
        if each.statistic == "fisher":
            plans.append(plan_fisher(live.model, materializer.tensors, room))
        else:
            found = live.survey(asked.alias, samples)
            plans.append(plan_grams(found, room, one_by_one=each.assignment is not None))
    return CalibrationPlan(
        sum(each.passes for each in plans),
        max((each.bytes_in_memory for each in plans), default=0),
        sum(each.bytes_on_disk for each in plans),
        plans[0].depths if plans else {},
    )


def _wanted(calibration: CollectedCalibration, live: Live, assignments: Iterable[Assignment]) -> dict[Wanted, _Asked]:
    """What assignments need, each once -> who first asks for it; refuses those over other data."""
    contents = {alias: ref.content for alias, ref in live.sources.refs.items()}
    wanted: dict[Wanted, _Asked] = {}
    for assignment in assignments:
        spelled = canonical(assignment)
        statistics = get(spelled.method).needs.statistics
        named = dict(spelled.parameters).get(CALIBRATION.name, calibration.fingerprint)
        if named != calibration.fingerprint:
            raise MergingError(
                f"method {spelled.method} is over the calibration data {named!r}, but {calibration.fingerprint!r} are "
                "to be collected; give the data of the recipe, or the fingerprint of these"
            )
        merged = by_content(spelled, contents)
        for statistic in sorted(statistics):
            for alias, _ in spelled.sources:
                if contents[alias] not in calibration.contents:
                    raise MergingError(
                        f"method {spelled.method} needs calibration inputs of every model that it merges, and "
                        f"{alias!r} has none; give some"
                    )
                sequence = merged if statistic == "sequential_gram" else None
                wanted.setdefault(Wanted(statistic, contents[alias], sequence), _Asked(alias, spelled))
    return wanted


def _free(live: Live) -> int:
    """What statistics may take where the model is."""
    device = next(live.model.parameters()).device
    return int(_SHARE * (torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()))


def _there(calibration: CollectedCalibration, wanted: Wanted) -> bool:
    entry = calibration.store.intact(calibration.key(wanted))
    calibration.hold(wanted, entry)
    return entry is not None


def _collect_one(
    calibration: CollectedCalibration, live: Live, wanted: Wanted, alias: str, memory: int, notify: Notify
) -> None:
    """Gram matrices or Fisher information of one source, on its own."""
    samples = calibration.samples(wanted.content)
    what = "Gram matrices" if wanted.statistic == "gram" else "Fisher information"
    notify(f"{what} of {alias} on {len(samples)} inputs")
    live.run(live.alone(alias))
    writer = calibration.store.begin()
    try:
        if wanted.statistic == "gram":
            collect_grams(live, live.survey(alias, samples), samples, alias, writer, memory)
        else:
            collect_fisher(live.model, live.materializer.tensors, samples, alias, writer, memory)
        calibration.hold(wanted, calibration.store.commit(writer, calibration.key(wanted)))
    finally:
        calibration.store.abandon(writer)


def _collect_sequence(
    calibration: CollectedCalibration,
    live: Live,
    missing: Mapping[Wanted, str],
    assignment: Assignment,
    memory: int,
    notify: Notify,
) -> None:
    """Gram matrices of those sources of one assignment that are not there yet (-> alias), block by block."""
    samples = {alias: calibration.samples(live.sources.refs[alias].content) for alias, _ in assignment.sources}
    notify(f"Gram matrices of {', '.join(samples)} behind merged layers ({assignment.method})")
    writers = {alias: calibration.store.begin() for alias in missing.values()}
    try:
        for each, alias in missing.items():
            calibration.hold(each, writers[alias])
        collect_sequential(live, assignment, samples, writers, memory)
        for each, alias in missing.items():
            calibration.hold(each, calibration.store.commit(writers[alias], calibration.key(each)))
    finally:
        for each, alias in missing.items():
            calibration.store.abandon(writers[alias])
            if calibration.entry(each) is writers[alias]:
                calibration.hold(each, None)


def _note_rank(calibration: CollectedCalibration, wanted: Wanted, asked: _Asked, notify: Notify) -> None:
    """Say where a source's inputs cannot span what a weight takes."""
    entry = calibration.entry(wanted)
    if wanted.statistic == "fisher" or entry is None:
        return
    short = short_weights(entry)
    if short:
        name, rows, width = short[0]
        ridge = dict(asked.assignment.parameters).get("ridge")
        decides = "the ridge" if ridge is None else f"the ridge ({ridge:g})"
        notify(
            f"{asked.alias}: {len(short)} of {len(entry.names)} linear weights saw fewer inputs than "
            f"they have columns (first {name}: {rows} of {width}), so their Gram matrices are singular and "
            f"{decides} decides about the rest; more calibration inputs help"
        )


def short_weights(entry: Entry) -> list[tuple[str, int, int]]:
    """(name, rows, width) of weights that saw fewer inputs than they have columns; of a stack, its best supplied."""
    found = [(name, max(about["rows"]), int(about["width"])) for name, about in sorted(entry.names.items())]
    return [(name, rows, width) for name, rows, width in found if rows < width]
