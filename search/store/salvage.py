"""A damaged database, and what of it can be brought back: a new one, in its place, from the rows that are whole."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from merging.durable import flush
from search.errors import SearchError
from search.events import Salvaged
from search.store.connecting import DATABASE, JOURNAL, LEFT_BEHIND, SALVAGED, WRITE_AHEAD, Reported, build
from search.store.digests import GENESIS, chained
from search.store.keeping import Found, Kept, keep
from search.store.pages import carve
from search.store.payloads import payload_of
from search.store.tables import derive, insert_event, insert_items
from search.store.verify import verify

_HALF = f"{DATABASE}.salvaging"


@dataclass(frozen=True)
class Salvage:
    """What was brought back.

    Attributes:
        events: in the new database, without the one that says so.
        lost: what is gone, as the new log says it.
        kept_at: where the damaged file is now.
    """

    events: int
    lost: Salvaged
    kept_at: Path


def salvage(folder: Path) -> Salvage:
    """Replace a damaged database; the damaged one stays beside it.

    Args:
        folder: the run directory, locked by the caller.

    Raises:
        SearchError: nothing can be brought back, or the new database cannot be written; then nothing has changed.
    """
    try:
        path = folder / DATABASE
        if not (folder / SALVAGED).exists():
            found = Found()
            found.add(carve(path, folder / WRITE_AHEAD))
            kept = keep(found)
            if kept is None:
                raise SearchError(
                    f"{path}: the event that begins the run cannot be read, and without it nobody knows what the "
                    "scores belong to. Restore the file from a copy, or start over under another --name."
                )
            beside = _free_name(folder)
            _build(folder / _HALF, found, kept, _lost(found, kept, beside))
            (folder / _HALF).replace(folder / SALVAGED)
        return _swap(folder)
    except OSError as error:
        raise SearchError(f"{folder}: the database cannot be salvaged here: {error.strerror or error}") from error


def _lost(found: Found, kept: Kept, beside: Path) -> Salvaged:
    unread = found.last - len(found.events)
    left_out = ", ".join(f"{kept.left_out.count(kind)} {kind}" for kind in dict.fromkeys(kept.left_out))
    candidates = ", ".join(map(str, kept.candidates_lost[:20])) + (" …" if len(kept.candidates_lost) > 20 else "")
    parts = [
        f"{unread} events could not be read" if unread else "",
        f"left out, for want of what they stand on: {left_out}" if left_out else "",
        f"to be evaluated again: {candidates}" if candidates else "",
        f"the damaged file is {beside.name}",
    ]
    return Salvaged(found.last - len(kept.events), len(kept.candidates_lost), "; ".join(part for part in parts if part))


def _build(path: Path, found: Found, kept: Kept, lost: Salvaged) -> None:
    """The new database, verified and on disk.

    Raises:
        SearchError: it cannot be written.
    """

    def fill(connection: sqlite3.Connection) -> None:
        previous = GENESIS
        for seq, (row, event) in enumerate(kept.events, 1):
            now = chained(seq, row.at, row.kind, row.candidate, row.payload, row.items, previous)
            insert_event(connection, now)
            derive(connection, event)
            for each in kept.items.get(row.seq, ()):
                insert_items(connection, each, found.sets[each.item_set])
            previous = now.digest
        last = len(kept.events) + 1
        insert_event(connection, chained(last, time.time(), lost.kind, None, payload_of(lost), "", previous))
        if problems := verify(connection).problems:
            raise SearchError(f"{path}: what was brought back does not hold together: {'; '.join(problems[:3])}")

    path.unlink(missing_ok=True)
    with Reported(path):
        build(path, fill)


def _swap(folder: Path) -> Salvage:
    """Put the new database in its place. May be interrupted anywhere, and is then ended by the next call."""
    path, beside = folder / DATABASE, _name_of_this(folder) or _free_name(folder)
    with contextlib.closing(sqlite3.connect(folder / SALVAGED)) as connection:
        events, payload = connection.execute("SELECT seq, payload FROM events ORDER BY seq DESC LIMIT 1").fetchone()
    for name in (DATABASE, WRITE_AHEAD, JOURNAL):
        target = folder / name.replace(DATABASE, beside.name)
        if _size(folder / name) and not target.exists():
            _copy(folder / name, target)
    # an old journal beside the new database would be played into it
    for name in LEFT_BEHIND:
        (folder / name).unlink(missing_ok=True)
    flush(folder)
    (folder / SALVAGED).replace(path)
    flush(folder)
    return Salvage(events - 1, _said(payload), beside)


def _said(payload: str) -> Salvaged:
    return Salvaged(**json.loads(payload))


def _name_of_this(folder: Path) -> Path | None:
    """Where an interrupted call has put the damaged file already."""
    path = folder / DATABASE
    beside = folder.glob(f"{DATABASE}.damaged-*")
    return next((each for each in beside if path.exists() and each.samefile(path)), None)


def _free_name(folder: Path) -> Path:
    taken = {each.name for each in folder.glob(f"{DATABASE}.damaged-*")}
    return folder / next(name for number in count(1) if (name := f"{DATABASE}.damaged-{number}") not in taken)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _copy(source: Path, target: Path) -> None:
    """A second name for the file where there are such, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
