"""How far a run is, as plain data for machines."""

from __future__ import annotations

from typing import Any

from search.course import Course
from search.remaining import Remaining, remaining
from search.watching import Look


def look_data(name: str, look: Look, now: float) -> dict[str, Any]:
    """What ``paretomerge watch --json`` prints of one look.

    Args:
        name: of the run.
        look: what was found.
        now: unix time.
    """
    data: dict[str, Any] = {"name": name, "state": look.state, "at": now, "trouble": look.trouble or None}
    data["disk_free"] = look.disk
    if look.first:
        data["first"] = True
    if look.course is None:
        return data
    course = look.course
    return {
        **data,
        "phase": course.phase,
        "stage": course.name_of_stage,
        "budget": course.config.search.budget.candidates,
        "candidates": {
            "told": course.told, "complete": course.states["complete"], "censored": course.states["censored"],
            "failed": course.states["failed"], "duplicate": course.states["duplicate"],
            "infeasible": course.states["infeasible"],
        },
        "items": course.pace.items,
        "front": sorted(course.front),
        "best": {
            name: {"id": id, "value": course.values[id][name], "error": course.errors[id].get(name)}
            for name, id in course.best.items()
        },
        "hypervolume": course.volume,
        "last_gain": course.changes[-1] if course.changes else None,
        "chosen": course.chosen,
        "constraints": [{"says": says, "kept_by": kept} for says, kept in course.constraints_kept().items()],
        **progress_data(course, now if look.state == "running" else None),
    }  # fmt: skip


def progress_data(course: Course, now: float | None) -> dict[str, Any]:
    """What runs, what went wrong, and how long it may still take: of ``watch --json`` and ``status --json``.

    Args:
        course: where the run stands.
        now: unix time; None for a run that nobody works on.
    """
    return {
        "running": [
            {
                "id": each.candidate,
                "split": each.split,
                "rung": each.rung,
                "rungs": each.rungs,
                "since": each.since,
            }
            for each in course.running.values()
        ],
        "failures": dict(course.reasons.most_common()),
        "incidents": dict(course.incidents.most_common()),
        "latest": [
            {"at": each.at, "id": each.candidate, "what": each.what, "detail": each.detail} for each in course.mishaps
        ],
        "remaining": remaining_data(remaining(course, now)),
    }


def remaining_data(estimate: Remaining | None) -> dict[str, Any] | None:
    """Seconds to the end with their range; None where there is no estimate."""
    if estimate is None:
        return None
    return {
        "seconds": estimate.seconds.as_data(),
        "search": estimate.search.as_data(),
        "finals": estimate.finals.as_data(),
        "candidates": estimate.candidates.as_data(),
        "limit": estimate.limit,
        "measured": estimate.measured,
        "workers": estimate.workers,
    }
