"""The runs below a folder, each in a line: read from their databases, without their scores."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from search.errors import SearchError

Facts = dict[str, Any]


def runs_in(folder: Path) -> list[Facts]:
    """All runs that lie directly in a folder, and the first searches of hybrids, the latest last.

    Args:
        folder: such as ``runs``.

    Returns:
        name, path, state ("running", "interrupted", "finished"), candidates, budget, objectives, chosen (a candidate's
        number; None before), began and latest (unix times); of a run that cannot be read name, path and error.

    Raises:
        SearchError: there is no such folder.
    """
    from search.store import DATABASE, FIRST

    if not folder.is_dir():
        raise SearchError(
            f"{folder}: expected a folder with runs, found nothing there; `paretomerge run CONFIG` makes runs/NAME"
        )
    places = [(each, each.name) for each in folder.iterdir()]
    places += [(each / FIRST, f"{name}/{FIRST}") for each, name in places]
    found = [_facts(each, name) for each, name in places if (each / DATABASE).is_file()]
    return sorted(found, key=lambda each: (each.get("latest") or 0.0, each["name"]))


def _facts(folder: Path, name: str) -> Facts:
    facts: Facts = {"name": name, "path": str(folder)}
    try:
        return facts | _read(folder)
    except SearchError as error:  # one damaged run must not hide the others
        return facts | {"error": str(error)}


def _read(folder: Path) -> Facts:
    from search.events import Asked, Chosen, Finished, Resumed
    from search.lock import is_held
    from search.store import Store

    store = Store.open(folder, read_only=True)
    try:
        held = is_held(folder)
        started = store.started()
        times = store.times()
        chosen, finished, budget = None, 0, 1
        if started is not None:
            budget = int(started.config["search"]["budget"]["candidates"])
        for event in store.events(Chosen, Finished, Resumed):
            match event:
                case Chosen():
                    chosen = event.candidate
                case Finished():
                    finished = event.budget
                case Resumed():
                    budget = max(budget, event.budget)
        counts = Counter(kind for _, kind in times)
        return {
            "state": "running" if held else "finished" if finished >= budget else "interrupted",
            "candidates": counts[Asked.kind], "budget": None if started is None else budget,
            "objectives": [] if started is None else [each["name"] for each in started.objectives],
            "chosen": chosen, "began": times[0][0] if times else None, "latest": times[-1][0] if times else None,
        }  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise SearchError(
            f"{folder}: its log lacks what every run's has ({error!r}); see `paretomerge doctor`"
        ) from error
    finally:
        store.close()
