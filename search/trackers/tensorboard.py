"""TensorBoard: event files under ``tensorboard/`` in the run directory; ``tensorboard --logdir runs`` shows every run.

One record holds all numbers of a candidate, so a torn last record, which readers leave out, is a candidate that is
written again. Where the files say otherwise than the log (a run begun anew under an old name), a session start with the
first such step tells readers to forget what is there from it on.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from search.events import RunStarted
from search.trackers.mirror import FrontTable, Row

FOLDER = "tensorboard"


class TensorboardOptions(BaseModel):
    """Options of ``trackers: tensorboard``.

    Attributes:
        flush_seconds: after so many at most, what was written is on disk.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    flush_seconds: float = Field(default=30.0, gt=0.0, le=3600.0)


class TensorboardSink:
    """See the module docstring, and :class:`search.trackers.mirror.Sink`."""

    def __init__(self, folder: Path, options: TensorboardOptions) -> None:
        self._folder = folder / FOLDER
        self._options = options
        self._writer: Any = None
        self._objectives: frozenset[str] = frozenset()

    def open(self, started: RunStarted, told: Collection[int]) -> int:
        """See :class:`search.trackers.mirror.Sink`."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from torch.utils.tensorboard import FileWriter

        self._objectives = frozenset(each["name"] for each in started.objectives)
        there = written_steps(self._folder)
        lacking = next(step for step in itertools.count() if step not in there)
        first = min(lacking, min(there.difference(told), default=lacking))
        self._folder.mkdir(exist_ok=True)
        self._writer = FileWriter(str(self._folder), flush_secs=self._options.flush_seconds)
        if any(step >= first for step in there):
            self._writer.add_event(Event(step=first, file_version="brain.Event:2"))
            self._writer.add_event(Event(step=first, session_log=SessionLog(status=SessionLog.START)))
        return first

    def write(self, row: Row) -> None:
        """See :class:`search.trackers.mirror.Sink`."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = tagged(row, self._objectives)
        values = [Summary.Value(tag=tag, simple_value=number) for tag, number in numbers.items()]
        self._writer.add_summary(Summary(value=values), row.candidate)

    def finish(self, table: FrontTable, last: int) -> None:
        """See :class:`search.trackers.mirror.Sink`."""
        from torch.utils.tensorboard import summary

        as_text: Any = summary.text  # it has no types
        self._writer.add_summary(as_text("front", markdown(table)), last)

    def flush(self) -> None:
        """See :class:`search.trackers.mirror.Sink`."""
        self._writer.flush()

    def close(self) -> None:
        """See :class:`search.trackers.mirror.Sink`."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def tagged(row: Row, objectives: Collection[str]) -> dict[str, float]:
    """Tag -> number: what both trackers plot."""
    numbers = {"search/hypervolume": row.hypervolume, "search/front": float(row.front)}
    for name, value in row.values.items():
        kind = "objective" if name in objectives else "metric"
        numbers[f"{kind}/{name}"] = value
    numbers |= {f"error/{name}": error for name, error in row.errors.items()}
    numbers |= {f"seconds/{what}": spent for what, spent in row.seconds.items()}
    numbers |= {f"candidates/{state}": float(count) for state, count in row.counts.items()}
    return numbers


def written_steps(folder: Path) -> set[int]:
    """Candidates that readers of the event files in a folder would show."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    steps: set[int] = set()
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for record in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(record)
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                steps = {step for step in steps if step < event.step}
            elif event.HasField("summary") and any(value.HasField("simple_value") for value in event.summary.value):
                steps.add(event.step)
    return steps


def markdown(table: FrontTable) -> str:
    """A table as TensorBoard's text plug-in shows it."""
    lines = ["| " + " | ".join(table.columns) + " |", "|---" * len(table.columns) + "|"]
    lines += ["| " + " | ".join(_cell(each) for each in row) + " |" for row in table.rows]
    return "\n".join(lines)


def _cell(value: float | str | bool | None) -> str:
    if value is None or value is False:
        return ""
    if value is True:
        return "yes"
    return f"{value:.4f}" if isinstance(value, float) else str(value).replace("|", "\\|")
