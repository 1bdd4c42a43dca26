"""A plan as people read it, and as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from search.forecast.outline import RACED, RACED_AT_RANDOM, Outline
from search.ranges import Range, duration, precise, size_text

if TYPE_CHECKING:
    from rich.table import Table

    from search.forecast.costs import Sample
    from search.forecast.disk import Disk
    from search.forecast.plan import Plan


def facts_of(plan: Plan) -> dict[str, Any]:
    """Everything that a plan says but for memory; every estimate as {low, middle, high}. Seconds and bytes."""
    outline, found = plan.outline, plan.found
    timed = plan.costs is not None
    return {
        "search": {
            "stages": [
                {
                    "name": each.name,
                    "candidates": each.candidates.as_data(),
                    "items": each.items.as_data(),
                    **_genes(outline, each.name),
                    **({"seconds": each.seconds.as_data()} if timed else {}),
                }
                for each in found.stages
            ],
            "candidates": found.candidates.as_data(),
            "items": found.items.as_data(),
            "evaluations": found.evaluations.as_data(),
            "finalists": found.finalists.as_data(),
            "baselines_in_finals": outline.compared,
            "rungs": [dict(each.of) for each in outline.rungs],
            "splits": {split: dict(each.of) for split, each in outline.splits.items()},
            "workers": outline.workers,
        },
        "time": _time(plan) if timed else None,
        "disk": _disk(plan.disk),
        "notes": list(plan.notes),
        "sources": dict(_sources(plan)),
        **({} if plan.first is None else {"first": facts_of(plan.first)}),
    }


def _genes(outline: Outline, stage: str) -> dict[str, int]:
    found = next((each for each in outline.stages if each.name == stage), None)
    return {} if found is None else {"numbers": found.numbers, "categories": found.categories}


def _time(plan: Plan) -> dict[str, Any]:
    costs, found, timed = plan.costs, plan.found, plan.timed
    assert costs is not None and timed is not None
    return {
        "seconds": found.seconds.as_data(),
        "start": found.start.as_data(),
        "busy": found.busy.as_data(),
        "gpu_hours": found.busy.scaled(plan.outline.gpus / 3600.0).as_data(),
        "merge": costs.merge.as_data(),
        "scoring": {
            name: {str(count): each.as_data() for count, each in pace.measured.items()}
            for name, pace in costs.paces.items()
        },
        "propose": {name: each.as_data() for name, each in costs.propose.items()},
        "store": costs.store.as_data(),
        "measured": {
            "merges": list(timed.merges),
            "scored": {
                name: {str(count): list(each) for count, each in sizes.items()} for name, sizes in timed.scored.items()
            },
            "first": timed.first,
            "failed": list(timed.failed),
            "threads": plan.threads,
        },
    }


def _disk(disk: Disk) -> dict[str, Any]:
    ranges = {
        name: getattr(disk, name).as_data()
        for name in ("run", "database", "report", "export", "virtual", "read_first", "read_each")
    }
    return {**ranges, "free": disk.free, "free_cache": disk.free_cache, "enough": disk.enough}


# -- for people -------------------------------------------------------------------------------------------------------


def work_table(plan: Plan, title: str = "Search") -> Table:
    """Stages, and what each comes to: the middle of every figure, and the range of the time."""
    from rich.table import Table

    timed = plan.costs is not None
    table = Table("stage", "genes", "tried", "items", *(["time", "range"] if timed else []), title=title)
    table.columns[0].no_wrap = True
    table.columns[0].min_width = 10
    for column in table.columns[1:]:
        column.justify = "right"
        column.no_wrap = True
    for each in plan.found.stages:
        if each.name == "holdout" and not plan.outline.holdout:
            continue
        number = sum(_genes(plan.outline, each.name).values())
        start = [each.name, str(number) if number else "", _count(each.candidates), _count(each.items)]
        table.add_row(*start, *(_times(each.seconds) if timed else []))
    if timed:
        table.add_row("loading", "", "", "", *_times(plan.found.start))
    table.add_section()
    whole = ["in all", "", _count(plan.found.evaluations), _count(_all_items(plan))]
    table.add_row(*whole, *(_times(plan.found.seconds) if timed else []))
    return table


def _count(found: Range) -> str:
    return grouped(found.middle)


def _times(seconds: Range) -> list[str]:
    return [duration(seconds.middle), f"{duration(seconds.low)} – {duration(seconds.high)}"]


def _all_items(plan: Plan) -> Range:
    total = Range.exactly(0.0)
    for each in plan.found.stages:
        total += each.items
    return total


def disk_table(plan: Plan) -> Table:
    """Where bytes go."""
    from rich.table import Table

    disk = plan.disk
    table = Table("what", "size", "free there", title="Disk")
    table.columns[1].justify = table.columns[2].justify = "right"
    table.add_row("run directory: log, item scores, report", stored(disk.run), size_text(disk.free))
    table.add_row("each export", stored(disk.export), size_text(disk.free))
    if disk.virtual.high:
        table.add_row("virtual experts, in the cache", stored(disk.virtual), size_text(disk.free_cache))
    table.add_row("read from models at the start", stored(disk.read_first), "")
    if disk.read_each.high:
        table.add_row("read from models for each candidate", stored(disk.read_each), "")
    return table


def plan_sentences(plan: Plan) -> Iterator[str]:
    """What the tables do not say: what is scored, where each number comes from, what is left out."""
    outline, found = plan.outline, plan.found
    for split, what in (("search", "searched on"), ("selection", "re-ranked on"), ("holdout", "opened at the end")):
        if split == "holdout" and not outline.holdout:
            continue
        each = ", ".join(f"{name} {grouped(count)}" for name, count in outline.splits[split].of.items())
        rungs = f"; rungs of {', '.join(grouped(each) for each in _steps(outline))}" if outline.staged else ""
        if outline.rungs[0].total < outline.splits["search"].total and not outline.staged:
            rungs = f"; minibatches of {', '.join(grouped(count) for count in outline.rungs[0].of.values())}"
        yield f"Items {what}: {each}{rungs if split == 'search' else ''}."
    if found.candidates.low < found.candidates.high:
        yield f"Candidates: {counted(found.candidates)}; the budget is {grouped(outline.budget.candidates)}."
    for name, text in _sources(plan):
        yield f"{name[0].upper()}{name[1:]}: {text}"
    yield from plan.notes
    if not plan.disk.enough:
        yield "The disk has no room for all of this: free some, or put --runs elsewhere."


def _steps(outline: Outline) -> list[int]:
    """Items of the longest evaluator that are scored by the end of each rung."""
    longest = max(outline.splits["search"].of, key=lambda name: outline.splits["search"].of[name])
    total, steps = 0, []
    for each in outline.rungs:
        total += each.of[longest]
        steps.append(total)
    return steps


def _sources(plan: Plan) -> Iterator[tuple[str, str]]:
    """Where figures come from."""
    outline = plan.outline
    if plan.timed is not None and plan.costs is not None:
        yield "time", _timed(plan.timed, plan.threads)
        if any(each.high >= 0.01 for each in plan.costs.propose.values()):
            slowest = max(plan.costs.propose.values(), key=lambda each: each.high)
            yield "optimizer", f"{brief(slowest)} a candidate, in a made-up landscape."
    if outline.staged and outline.rule == "halving":
        yield "early stopping", f"from {outline.keep:.0%} of the candidates going on at each rung, to all of them."
    elif outline.staged:
        share = RACED_AT_RANDOM if outline.at_random else RACED
        yield (
            "early stopping",
            (
                f"a race stops {1 - share.middle:.0%} of the candidates, and from {1 - share.high:.0%} to "
                f"{1 - share.low:.0%} of them: as it was in runs of this package."
            ),
        )
    opened = f"is scored for {outline.compared + 1} of them, once" if outline.holdout else "stays closed"
    yield (
        "finals",
        (
            f"{counted(plan.found.finalists)} finalists and {outline.compared} baselines on the selection split; the "
            f"holdout {opened}."
        ),
    )
    if outline.budget.plateau is not None:
        yield "plateau", "the shortest time is that of a search which stops growing at once; the middle never does."


def _timed(timed: Sample, threads: int) -> str:
    scored = []
    for name, sizes in timed.scored.items():
        largest = max(sizes)
        times = sizes[largest]
        scored.append(f"{largest} items of {name} in {_span(times)}")
    merges = f"{len(timed.merges)} merges in {_span(timed.merges)}"
    failed = f"; {len(timed.failed)} more failed" if timed.failed else ""
    with_threads = f"{threads} thread{'s' * (threads > 1)}"
    return f"measured here, with {with_threads}: {merges}{failed}; {'; '.join(scored)}. More items take in proportion."


def _span(times: tuple[float, ...]) -> str:
    low, high = precise(min(times)), precise(max(times))
    return low if low == high else f"{low} to {high}"


def counted(found: Range) -> str:
    """``5 072 (3 900 to 5 120)``: whole numbers; the range is left out where it says nothing."""
    low, middle, high = grouped(found.low), grouped(found.middle), grouped(found.high)
    return middle if low == middle == high else f"{middle} ({low} to {high})"


def grouped(number: float) -> str:
    """``12 480``."""
    return f"{round(number):,}".replace(",", " ")


def stored(found: Range) -> str:
    """Sizes with their range."""
    low, middle, high = size_text(found.low), size_text(found.middle), size_text(found.high)
    return middle if low == middle == high else f"{middle} ({low} to {high})"


def brief(found: Range) -> str:
    """A short duration with its range."""
    return f"{precise(found.middle)} ({precise(found.low)} to {precise(found.high)})"
