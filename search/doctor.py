"""What is intact of a run directory, and what is not."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search.errors import SearchError
from search.lock import RunLock, holder, is_held
from search.store import CONTROL, DATABASE, FIRST, FORMAT, is_run, schema
from search.store.connecting import ERRORS, SALVAGED, WRITE_AHEAD, connect
from search.store.salvage import Salvage, salvage
from search.store.verify import verify
from search.store.write_ahead import holds_transactions, lost_transactions

FILES = ("config.yaml", "resolved.yaml", "environment.json", "report.html")
"""What lies beside the database; all of it can be made again from there, but for config.yaml."""


@dataclass(frozen=True)
class Examination:
    """What a run's database is found to be.

    Attributes:
        folder: the run directory.
        problems: what is damaged, for people; empty if nothing is.
        facts: for people and machines: see :func:`examine`.
    """

    folder: Path
    problems: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def folders_of(run: Path) -> list[Path]:
    """The run directory, and those of its control and of its first search where there are any; the latter alone as long
    as the second search has not begun.

    Raises:
        SearchError: no run is there.
    """
    inside = (run / FIRST, run / CONTROL) if is_run(run) else ()
    found = [each for each in (run, *inside) if _has_run(each)]
    if run not in found and run / FIRST not in found:
        raise SearchError(f"{run}: expected a run directory with {DATABASE}, found none; see `paretomerge run`")
    return found


def examine(folder: Path, *, mine: bool = False) -> Examination:
    """Verify all of a database, without changing anything. Works while a search is writing to it.

    Args:
        folder: a run directory with a database.
        mine: whether the caller holds its lock.

    Returns:
        With the facts "format", "journal", "fence", "events", "candidates" (state -> how many), "scores" (split -> of
        how many candidates), "item_scores" (arrays), "bytes", "holder" (who is writing; None if nobody), "disk_free"
        (bytes), "files" (name -> whether it is there) and "damaged" (files that earlier salvages put aside); those of
        the database's inside as far as it can be read.
    """
    held = not mine and is_held(folder)
    found = Examination(folder)
    found.facts.update(
        bytes=sum(each.stat().st_size for name in (DATABASE, WRITE_AHEAD) if (each := folder / name).exists()),
        holder=holder(folder) if held else None,
        disk_free=shutil.disk_usage(folder).free,
        files={name: (folder / name).exists() for name in FILES},
        damaged=sorted(each.name for each in folder.glob(f"{DATABASE}.damaged-*") if not each.name.endswith("-wal")),
    )
    if (folder / SALVAGED).exists():
        found.problems.append("a salvage was interrupted before its end")
    if not (folder / DATABASE).exists():
        found.problems.append(f"{DATABASE} is not there")
        return found
    if (folder / DATABASE).stat().st_size == 0:  # not even to be opened: SQLite would remove a log beside it
        found.problems.append(f"{DATABASE} is empty")
        return found
    lost = 0 if held else lost_transactions(folder / WRITE_AHEAD)  # while it grows it looks torn
    if lost > 1:
        found.problems.append(f"{lost} transactions in {WRITE_AHEAD} cannot be read")
    found.facts["interrupted_transactions"] = min(lost, 1)
    try:
        with contextlib.closing(connect(folder / DATABASE, read_only=True)) as connection:
            connection.execute("BEGIN")  # one and the same state for every query
            _look_inside(connection, found)
    except (*ERRORS, SearchError) as error:
        found.problems.append(str(error))
    return found


def mend(folder: Path) -> Salvage | None:
    """Salvage a database if it is damaged; None if it is not.

    Raises:
        SearchError: somebody is writing to the run, or nothing can be brought back.
    """
    with RunLock(folder):
        return salvage(folder) if examine(folder, mine=True).problems else None


def _has_run(folder: Path) -> bool:
    return (folder / DATABASE).exists() or (folder / SALVAGED).exists() or holds_transactions(folder / WRITE_AHEAD)


def _look_inside(connection: sqlite3.Connection, found: Examination) -> None:
    written = schema.format_of(connection)
    found.facts["format"] = written
    found.facts["journal"] = connection.execute("PRAGMA journal_mode").fetchone()[0]
    if written not in schema.READABLE:
        found.problems.append(
            f"run format {written!r}: another version wrote it. If that is a newer one, read the run with it: a "
            "salvage keeps only what this version knows"
        )
        return
    if int(written) == FORMAT:
        found.problems.extend(verify(connection).problems)
        fence = connection.execute("SELECT value FROM meta WHERE key = 'fence'").fetchone()
        found.facts["fence"] = None if fence is None else int(fence[0])
    else:
        found.problems.extend(schema.differences(connection, int(written)))
        pages = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(20)")]
        found.problems.extend([] if pages == ["ok"] else pages)
    found.facts["events"] = _count(connection, "SELECT count(*) FROM events")
    found.facts["candidates"] = dict(connection.execute("SELECT state, count(*) FROM candidates GROUP BY state"))
    found.facts["scores"] = dict(connection.execute("SELECT split, count(DISTINCT candidate) FROM scores GROUP BY 1"))
    found.facts["item_scores"] = _count(connection, "SELECT count(*) FROM item_scores")


def _count(connection: sqlite3.Connection, query: str) -> int:
    return int(connection.execute(query).fetchone()[0])
