"""Which events of a damaged log still make sense without those that are lost.

A candidate needs the event that asked for it, a conclusion needs the scores that it was drawn from, and scores need
every item. What is left out is evaluated again when the run goes on, so nothing is ever made up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from search.events import (
    Asked,
    BudgetSpent,
    Chosen,
    EvaluationStarted,
    Event,
    Failed,
    FinalistsNamed,
    Finished,
    Incident,
    Picked,
    RungReached,
    RunStarted,
    Scored,
    Settled,
    Told,
)
from search.store.digests import EventRow, ItemRow
from search.store.pages import ItemSet
from search.store.payloads import event_of


@dataclass
class Found:
    """What could be read, whole, from a damaged database.

    Attributes:
        events: number -> rows; more than one where an aborted transaction left its own behind.
        items: digest -> item scores.
        sets: hash -> ids, as JSON.
    """

    events: dict[int, dict[bytes, EventRow]] = field(default_factory=dict)
    items: dict[bytes, ItemRow] = field(default_factory=dict)
    sets: dict[str, str] = field(default_factory=dict)

    def add(self, rows: Iterable[EventRow | ItemRow | ItemSet]) -> None:
        """Take rows; the same one may come several times."""
        for row in rows:
            match row:
                case EventRow():
                    self.events.setdefault(row.seq, {})[row.digest] = row
                case ItemRow():
                    self.items[row.digest] = row
                case ItemSet():
                    self.sets[row.hash] = row.ids

    @property
    def last(self) -> int:
        """Number of the last event that there was, as far as can be known."""
        return max(self.events, default=0)

    def log(self) -> list[EventRow]:
        """One row per number, in order: of several, the one that its neighbours name."""
        result: list[EventRow] = []
        after: EventRow | None = None
        for seq in sorted(self.events, reverse=True):
            rows = self.events[seq]
            before = self.events.get(seq - 1, {})
            named = rows.get(after.previous) if after is not None and after.seq == seq + 1 else None
            following = [row for row in rows.values() if row.previous in before]
            after = named or (following or list(rows.values()))[-1]
            result.append(after)
        return result[::-1]

    def complete(self, row: EventRow) -> bool:
        """Whether all item scores are there that came with an event."""
        found = [self.items.get(digest) for digest in row.item_digests.values()]
        return all(each is not None and each.item_set in self.sets for each in found)


@dataclass(frozen=True)
class Kept:
    """What goes into the new database.

    Attributes:
        events: rows with their events, in order; numbers and digests are still the old ones.
        items: number of an event -> the item scores to be written with it.
        candidates_lost: those that have to be evaluated again, or to be proposed again.
        left_out: kinds of events that were read, but made no sense any more.
    """

    events: list[tuple[EventRow, Event]]
    items: dict[int, list[ItemRow]]
    candidates_lost: list[int]
    left_out: list[str]


def keep(found: Found) -> Kept | None:
    """Leave out what makes no sense; None where not even the run's beginning is there."""
    log = [(row, event) for row in found.log() if (event := _read(row)) is not None]
    if not any(isinstance(event, RunStarted) for _, event in log):
        return None
    asked = {event.candidate for _, event in log if isinstance(event, Asked)}
    scored = _scored(found, [each for each in log if _candidate(each[1]) in asked], log)
    told = _concluded(log, asked, scored)
    concluded = {event.candidate for _, event in log if isinstance(event, Told)}
    known = asked | {each for _, event in log if (each := _candidate(event)) is not None}
    unsupported = {
        e.candidate for row, e in log if isinstance(e, Scored) and e.split == "search" and row.seq not in scored
    }
    lost = sorted((set(range(max(known, default=-1) + 1)) - asked) | (known - asked) | (concluded - told) | unsupported)
    whole = not lost and len(log) == found.last and all(row.seq in scored or not _brings(e) for row, e in log)
    kept = [(row, event) for row, event in log if _makes_sense(row, event, asked, scored, told, whole)]
    seqs = {row.seq for row, _ in kept}
    items = {seq: [found.items[each] for each in digests] for seq, digests in scored.items() if seq in seqs}
    return Kept(kept, items, lost, [row.kind for row, _ in log if row.seq not in seqs])


def _read(row: EventRow) -> Event | None:
    try:
        row.item_digests  # noqa: B018 - whether it has any is asked later, and a stranger's may be anything
        return event_of(row.kind, row.payload)
    except (KeyError, TypeError, ValueError):
        return None


def _candidate(event: Event) -> int | None:
    """The candidate that must have been asked for; decisions name theirs otherwise."""
    about = Asked | EvaluationStarted | RungReached | Scored | Failed | Told | Settled | Incident
    return event.candidate if isinstance(event, about) else None


def _brings(event: Event) -> bool:
    return isinstance(event, RungReached | Scored)


def _scored(
    found: Found, known: list[tuple[EventRow, Event]], log: list[tuple[EventRow, Event]]
) -> dict[int, list[bytes]]:
    """Number of every event whose scores are there -> digests of the item scores to be written with it.

    Item scores of a rung are replaced by those of the next one, which hold them; so with the last event of a candidate
    whose item scores are there, its rungs before are there too.
    """
    complete = {
        event.candidate for _, event in log if isinstance(event, Told | Settled) and event.outcome.state == "complete"
    }
    brought: dict[tuple[int, str], list[tuple[EventRow, Event]]] = {}
    for row, event in known:
        if isinstance(event, RungReached):
            brought.setdefault((event.candidate, "search"), []).append((row, event))
        # on the search split, scores without their conclusion would be scores twice
        elif isinstance(event, Scored) and (event.split != "search" or event.candidate in complete):
            brought.setdefault((event.candidate, event.split), []).append((row, event))
    result: dict[int, list[bytes]] = {}
    for rows in brought.values():
        climbed = _without_gaps(rows)
        while climbed and not found.complete(climbed[-1][0]):
            climbed.pop()
        for row, _ in climbed:
            result[row.seq] = []
        if climbed:
            result[climbed[-1][0].seq] = list(climbed[-1][0].item_digests.values())
    return result


def _without_gaps(rows: list[tuple[EventRow, Event]]) -> list[tuple[EventRow, Event]]:
    """Rungs one after the other from the first one, and the scores on everything, if they are there."""
    result = []
    rung = 0
    for row, event in rows:
        if isinstance(event, RungReached):
            if event.rung != rung:
                continue
            rung += 1
        result.append((row, event))
    return result


def _concluded(log: list[tuple[EventRow, Event]], asked: set[int], scored: Mapping[int, object]) -> set[int]:
    """Candidates whose conclusion stands on something."""
    complete = {e.candidate for row, e in log if isinstance(e, Scored) and e.split == "search" and row.seq in scored}
    dropped = {e.candidate for row, e in log if isinstance(e, RungReached) and e.dropped and row.seq in scored}
    result = set()
    for _, event in log:
        if not isinstance(event, Told | Settled) or event.candidate not in asked:
            continue
        of = event.outcome.of
        stands_on = {"complete": complete, "censored": dropped}.get(event.outcome.state, asked)
        if (event.candidate in stands_on) if of is None else (of in asked):
            result.add(event.candidate)
    return result


def _makes_sense(
    row: EventRow, event: Event, asked: set[int], scored: Mapping[int, object], told: set[int], whole: bool
) -> bool:
    if (candidate := _candidate(event)) is not None and candidate not in asked:
        return False
    match event:
        case RungReached() | Scored():
            return row.seq in scored
        case Told() | Settled():
            return event.candidate in told
        case Failed():
            return event.split != "search" or event.candidate in told
        case Chosen() | Picked():
            return event.candidate in asked
        case FinalistsNamed():
            return asked.issuperset([*event.finalists, *event.baselines])
        case Finished() | BudgetSpent():
            return whole  # the run goes on, and comes to its end again
        case _:
            return True
