"""The report's section on what went wrong: failed candidates by their reasons, and what was mended on the way."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from search.report.facts import Facts, without_paths
from search.report.markup import Html, count, element, join, table
from search.report.section import Section

TITLE = "Failures"
MOST_IDS = 20
"""Candidate numbers that are named for one reason."""
MOST_REASONS = 100
"""Rows of a table; reasons that differ in their numbers alone are one."""


def failures_section(facts: Facts) -> Section:
    """Failures, early stops, and incidents.

    Raises:
        SearchError: the log is damaged.
    """
    return Section(TITLE, join([*_failed(facts), *_stopped(facts), *_incidents(facts), *_repairs(facts)]))


def _failed(facts: Facts) -> list[Html]:
    found: dict[str, list[int]] = {}
    for each in facts.results.candidates:
        if each.state == "failed":
            reason = without_paths(each.reason, facts.results) or "no reason was recorded"
            found.setdefault(f"failed: {reason}", []).append(each.id)
    for failed in facts.history.failed:
        if failed.split != "search":
            reason = without_paths(failed.reason, facts.results) or "no reason was recorded"
            found.setdefault(f"failed on {failed.split}: {reason}", []).append(failed.candidate)
    if not found:
        return [element("p", "No candidate failed.")]
    return [table("What failed, and why", ["reason", "how often", "candidates"], _rows(found), tall=True)]


def _stopped(facts: Facts) -> list[Html]:
    """Candidates that racing, or a halving, has dropped: no failures, but no full scores either."""
    found: dict[str, list[int]] = {}
    for each in facts.results.candidates:
        if each.state == "censored":
            reason = without_paths(each.reason, facts.results) or "it was beaten before all items were scored"
            found.setdefault(reason, []).append(each.id)
    if not found:
        return []
    note = (
        "Stopped early, since they were clearly beaten on the items scored so far. They count as evaluated, never "
        "enter the front, and have no score on all items."
    )
    header = ["reason", "how often", "candidates"]
    return [
        element("p", note, class_="note"),
        table("What was stopped early, and why", header, _rows(found), tall=True),
    ]


def _incidents(facts: Facts) -> list[Html]:
    found: dict[str, list[int]] = {}
    for each in facts.history.incidents:
        detail = without_paths(each.detail, facts.results)
        found.setdefault(f"{each.what}: {detail}" if detail else each.what, []).append(each.candidate)
    if not found:
        return []
    note = "What went wrong with machine or memory and was mended: these evaluations were repeated, nothing is lost."
    header = ["what", "how often", "while evaluating"]
    return [element("p", note, class_="note"), table("What was mended on the way", header, _rows(found), tall=True)]


def _repairs(facts: Facts) -> list[Html]:
    said = [
        f"The database was damaged and repaired: {without_paths(each.detail, facts.results)} "
        f"({count(each.events_lost, 'event')} and {count(each.candidates_lost, 'candidate')} lost)."
        for each in facts.history.salvaged
    ]
    return [element("p", each) for each in said]


def _rows(found: Mapping[str, Sequence[int]]) -> list[list[str]]:
    """Reasons, the most frequent first; those that differ in numbers alone stand in one row, in the first's words."""
    alike: dict[str, tuple[str, list[int]]] = {}
    for reason, ids in found.items():
        shown, all_ids = alike.setdefault(re.sub(r"\d+(\.\d+)?", "#", reason), (reason, []))
        all_ids.extend(ids)
        if shown != reason and not shown.endswith(" (and alike)"):
            alike[re.sub(r"\d+(\.\d+)?", "#", reason)] = (f"{shown} (and alike)", all_ids)
    ordered = sorted(alike.values(), key=lambda item: (-len(item[1]), item[1]))
    rows = [[reason, str(len(ids)), _named(ids)] for reason, ids in ordered[:MOST_REASONS]]
    if len(ordered) > MOST_REASONS:
        rest = [id for _, ids in ordered[MOST_REASONS:] for id in ids]
        rows.append([f"{len(ordered) - MOST_REASONS} other reasons", str(len(rest)), _named(rest)])
    return rows


def _named(ids: Iterable[int]) -> str:
    every = sorted(ids)
    more = f" and {len(every) - MOST_IDS} more" if len(every) > MOST_IDS else ""
    return ", ".join(str(each) for each in every[:MOST_IDS]) + more
