"""Who has looked at which holdout: one file beside the runs, because a holdout wears out across runs.

Every look from which something is learnt makes a holdout a little less of one, whichever run took it. The ledger counts
looks by the content of the data, so a renamed file or another run's name changes nothing.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.errors import SearchError
from search.store import CONTROL, DATABASE

LEDGER = "holdouts.jsonl"


@dataclass(frozen=True)
class Openings:
    """How often a holdout was looked at.

    Attributes:
        runs: different runs that did.
        recipes: different merges whose scores on it are known.
    """

    runs: int
    recipes: int


class Ledger:
    """The ledger of a folder of runs: JSON lines, appended under a lock.

    Args:
        run: a run directory; the ledger lies beside it. A control's is its run's.
    """

    def __init__(self, run: Path) -> None:
        run = run.absolute()
        if run.name == CONTROL and (run.parent / DATABASE).is_file():
            run = run.parent  # a run and its control are one look at the data, by one person
        self._run = run.name
        self.path = run.parent / LEDGER

    def enter(self, data: Mapping[str, str], recipes: Sequence[str]) -> None:
        """Write an opening down, before it happens; one that this run has entered before is not entered twice.

        Args:
            data: evaluator -> sha256 of its holdout.
            recipes: hashes of the recipes that are scored.

        Raises:
            SearchError: the ledger cannot be written.
        """
        entry = {"run": self._run, "data": dict(data), "recipes": sorted(recipes)}
        if any({key: each.get(key) for key in entry} == entry for each in self._lines()):
            return
        text = json.dumps({**entry, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}) + "\n"
        try:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                size = os.fstat(handle).st_size
                torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"  # a line that a crash cut off
                line = (("\n" if torn else "") + text).encode()
                if os.write(handle, line) < len(line):  # the disk took a part of it
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(handle)
            finally:
                os.close(handle)
        except OSError as error:
            raise SearchError(
                f"{self.path}: the ledger of holdout openings cannot be written ({error.strerror}). The holdout stays "
                "closed; make the folder writable, then run the same command."
            ) from error

    def openings(self, data: Mapping[str, str]) -> Openings:
        """Looks at any of these holdouts, over all runs of the folder.

        Args:
            data: evaluator -> sha256 of its holdout.
        """
        hashes = set(data.values())
        found = [each for each in self._lines() if hashes & set(each["data"].values())]
        return Openings(
            len({each["run"] for each in found}), len({recipe for each in found for recipe in each["recipes"]})
        )

    def _lines(self) -> Iterator[dict[str, Any]]:
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        except OSError as error:
            raise SearchError(f"{self.path}: the ledger cannot be read ({error.strerror})") from error
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue  # a torn line was never acknowledged
            if isinstance(record, dict) and _is_entry(record):
                yield record


def _is_entry(record: Mapping[str, Any]) -> bool:
    run, data, recipes = (record.get(key) for key in ("run", "data", "recipes"))
    if not isinstance(run, str) or not isinstance(data, dict) or not isinstance(recipes, list):
        return False
    return all(isinstance(each, str) for each in (*data.values(), *recipes))
