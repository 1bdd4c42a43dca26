"""What every tracker shares: from events, in any order, to rows, one per candidate, in the order of their ids."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from search.events import Event, Finished, Interrupted, RunStarted, Scored, Told
from search.growing_front import GrowingFront
from search.optimizers.contract import Outcome
from search.store import DATABASE, Store


@dataclass(frozen=True)
class Row:
    """A candidate as a tracker shows it.

    Attributes:
        candidate: its id: the step.
        state: "complete", "censored", "failed" or "duplicate".
        values: ``evaluator.metric`` -> aggregate on the search split; empty unless it was scored on all of it.
        errors: ``evaluator.metric`` -> standard error.
        seconds: "materialize", "evaluate", "optimize", "store" -> wall seconds.
        hypervolume: of the feasible candidates up to this id, in utilities.
        front: how many of those are non-dominated.
        counts: state -> candidates up to this id.
    """

    candidate: int
    state: str
    values: dict[str, float]
    errors: dict[str, float]
    seconds: dict[str, float]
    hypervolume: float
    front: int
    counts: dict[str, int]


@dataclass(frozen=True)
class FrontTable:
    """The front at the end.

    Attributes:
        columns: "candidate", "label", "chosen", then ``metric (split)``.
        rows: one per candidate of the front; None where it was not scored.
    """

    columns: list[str]
    rows: list[list[int | str | bool | float | None]]


class Sink(Protocol):
    """Where rows go."""

    def open(self, started: RunStarted, told: Collection[int]) -> int:
        """Make ready.

        Args:
            started: the run's first event.
            told: ids that the log has an outcome of.

        Returns:
            The id from which on rows are to be written; what is there already of earlier ones stands.
        """
        ...

    def write(self, row: Row) -> None:
        """The next candidate; ids ascend."""
        ...

    def finish(self, table: FrontTable, last: int) -> None:
        """The run is finished; ``last`` is the last candidate's id."""
        ...

    def flush(self) -> None:
        """Bring what was written to disk."""
        ...

    def close(self) -> None:
        """Flush and let go."""
        ...


@dataclass
class _Trend:
    """The front of what was released so far."""

    front: GrowingFront
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("complete", "censored", "failed", "duplicate"), 0)
    )

    def take(self, outcome: Outcome) -> None:
        self.counts[outcome.state] += 1
        self.front.add(outcome)


class Mirror:
    """A listener that keeps a sink in step with the run's log. See :mod:`search.trackers`.

    The first event that it hears opens the sink, and makes up leeway from the log. Whatever a tracker raises comes out
    of :meth:`on`: the run then says so once and goes on without it.
    """

    def __init__(self, folder: Path, make: Callable[[], Sink], name: str = "a tracker") -> None:
        """Args:
        folder: the run directory.
        make: the sink; called at the first event.
        name: of the tracker, for people.
        """
        self.name = name
        self._folder = folder
        self._make = make
        self._sink: Sink | None = None
        self._trend = _Trend(GrowingFront(()))  # its reference comes with the sink
        self._scored: dict[int, Scored] = {}
        self._told: dict[int, Told] = {}
        self._next = 0
        self._from = 0
        self._finished = False

    def on(self, event: Event) -> None:
        """See :class:`search.events.Listener`."""
        if self._sink is None:
            if not self._open():
                return
        else:
            self._take(event)
        sink = self._opened
        self._release()
        match event:
            case Finished():
                self._release(all=True)
                sink.finish(front_table(self._folder), self._next - 1)
                sink.flush()
            case Interrupted():
                sink.flush()
            case _:
                pass

    def close(self) -> None:
        """Bring everything to disk and let go. May be called twice."""
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()

    @property
    def _opened(self) -> Sink:
        if self._sink is None:
            raise RuntimeError("the tracker is not open")
        return self._sink

    def _open(self) -> bool:
        """Read the log, this event included, and make the sink; False while the run has not begun."""
        if not (self._folder / DATABASE).is_file():
            return False
        store = Store.open(self._folder, read_only=True)
        try:
            started = store.started()
            if started is None:
                return False
            for event in store.events(Scored, Told):
                self._take(event)
        finally:
            store.close()
        self._trend = _Trend(GrowingFront(started.reference))
        sink = self._make()
        self._sink = sink
        self._from = sink.open(started, frozenset(self._told))
        return True

    def _take(self, event: Event) -> None:
        match event:
            case Scored(split="search"):
                self._scored[event.candidate] = event
            case Told() if event.candidate >= self._next:
                self._told[event.candidate] = event
            case _:
                pass

    def _release(self, all: bool = False) -> None:
        """Write the candidates whose turn it is: those before whom nobody is missing, or, at the end, all."""
        while self._told and (self._next in self._told or all):
            self._next = self._next if self._next in self._told else min(self._told)
            told = self._told.pop(self._next)
            self._write(told)
            self._next += 1

    def _write(self, told: Told) -> None:
        trend = self._trend
        trend.take(told.outcome)
        scored = self._scored.pop(told.candidate, None)
        if told.candidate < self._from:
            return
        self._opened.write(
            Row(
                told.candidate,
                told.outcome.state,
                dict(scored.values) if scored else {},
                dict(scored.errors) if scored else {},
                {**(scored.seconds if scored else {}), **told.seconds},
                trend.front.hypervolume,
                len(trend.front),
                dict(trend.counts),
            )
        )


def front_table(folder: Path) -> FrontTable:
    """The front of a finished run with its scores on every split."""
    from search.results import Results  # reads stages and recipes, which a tracker does without until the end

    results = Results.load(folder)
    places = [(name, split) for name in results.objectives.names for split in ("search", "selection", "holdout")]
    rows: list[list[int | str | bool | float | None]] = []
    for id in results.front:
        scores: list[float | None] = [results.values(id, split).get(name) for name, split in places]  # type: ignore[arg-type]
        rows.append([id, results.candidate(id).label, id == results.chosen, *scores])
    return FrontTable(["candidate", "label", "chosen", *(f"{name} ({split})" for name, split in places)], rows)
