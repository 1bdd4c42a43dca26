"""The course of a run as its log tells it: hours without pauses, items, starts, rungs, also from logs of old."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_searches import FakeWorker, Killed, config, start

from search.events import (
    Chosen,
    EvaluationStarted,
    Event,
    Failed,
    FinalistsNamed,
    Finished,
    Incident,
    Interrupted,
    Opened,
    Picked,
    Resumed,
    RungReached,
    Scored,
    Told,
)
from search.optimizers.contract import Outcome
from search.report.history import Rung, history_of, read_history
from search.store import Store

HOUR = 3600.0


def told(id: int, elapsed: float = 0.0, state: str = "complete", items: int = 10) -> Told:
    return Told(id, 0, Outcome(state, (0.5,), items=items), elapsed=elapsed)  # type: ignore[arg-type]


def scored(id: int, split: str) -> Scored:
    return Scored(id, split, {}, {}, {})  # type: ignore[arg-type]


def test_a_pause_between_two_starts_is_no_time_of_searching() -> None:
    log: list[tuple[float, Event]] = [
        (0.0, told(0, 600.0)),
        (1200.0, told(1, 1200.0)),
        (1500.0, Interrupted("stopped by the user")),
        (1500.0 + 48 * HOUR, Resumed(4, [7])),
        (1800.0 + 48 * HOUR, told(2, 300.0)),
        (1900.0 + 48 * HOUR, told(3, 100.0)),
    ]
    found = history_of(log)
    assert [each.hours * HOUR for each in found.steps] == pytest.approx([600.0, 1800.0, 2100.0, 2200.0])
    assert found.exact
    assert found.hours * HOUR == pytest.approx(1900.0)  # by the clock: without the two days
    assert [(each.after, each.budget, each.different) for each in found.starts] == [(2, 4, 1)]
    assert found.starts[0].hours * HOUR == pytest.approx(1800.0)


def test_a_log_of_old_is_told_by_the_times_of_its_events() -> None:
    log = [(100.0, scored(0, "search")), (100.0, told(0)), (160.0, told(1)), (1000.0, Resumed(9)), (1090.0, told(2))]
    found = history_of(log)
    assert not found.exact
    assert [each.hours * HOUR for each in found.steps] == pytest.approx([0.0, 60.0, 150.0])


def test_a_run_that_went_on_under_a_newer_version_uses_what_each_start_knew() -> None:
    log = [(0.0, scored(0, "search")), (50.0, told(0)), (500.0, Resumed(9)), (600.0, told(1, 40.0))]
    assert [each.hours * HOUR for each in history_of(log).steps] == pytest.approx([50.0, 90.0])


def test_a_clock_that_is_set_back_takes_no_time_away() -> None:
    log = [(1000.0, told(0)), (400.0, told(1)), (430.0, told(2))]
    found = history_of(log)
    assert [each.hours * HOUR for each in found.steps] == pytest.approx([0.0, 0.0, 30.0])
    assert found.hours * HOUR == pytest.approx(30.0)


def test_the_finals_are_counted_apart_and_a_later_wish_is_not_the_run() -> None:
    log: list[tuple[float, Event]] = [
        (0.0, told(0, 5.0)),
        (10.0, FinalistsNamed([0], [])),
        (10.0, EvaluationStarted(0, "selection")),
        (40.0, scored(0, "selection")),
        (40.0, Chosen(0, "knee")),
        (41.0, Opened([0], "x")),
        (60.0, scored(0, "holdout")),
        (60.0, Finished(1, 0.5)),
        (60.0 + 30 * HOUR, Picked(0, "mix")),
        (61.0 + 30 * HOUR, Opened([0], "x")),
        (65.0 + 30 * HOUR, scored(0, "holdout")),
    ]
    found = history_of(log)
    assert found.finals * HOUR == pytest.approx(60.0)
    assert found.hours * HOUR == pytest.approx(65.0)
    assert [at for at, _ in found.openings] == [41.0, 61.0 + 30 * HOUR] and len(found.picks) == 1


def test_items_and_evaluations_count_no_repetition() -> None:
    log = [(0.0, told(0)), (1.0, told(1, state="duplicate")), (2.0, told(2, state="failed", items=0)), (3.0, told(3))]
    found = history_of(log)
    assert [each.items for each in found.steps] == [10, 10, 10, 20]
    assert [each.evaluations for each in found.steps] == [1, 1, 2, 3]


def test_rungs_incidents_and_failures() -> None:
    log: list[tuple[float, Event]] = [
        (0.0, RungReached(0, 0, 40, {}, {})),
        (0.0, RungReached(1, 0, 42, {}, {}, dropped=True)),
        (0.0, RungReached(0, 1, 120, {}, {})),
        (1.0, Incident(0, "worker lost", "it ended", None)),
        (2.0, Failed(0, "holdout", "NaN")),
    ]
    found = history_of(log)
    assert found.rungs == {0: Rung(2, 1, 42), 1: Rung(1, 0, 120)}
    assert found.incidents[0].what == "worker lost" and found.failed[0].split == "holdout"


def test_an_empty_log() -> None:
    found = history_of([])
    assert found.steps == [] and found.hours == 0.0 and found.exact


def test_a_real_log_that_was_killed_and_resumed(tmp_path: Path) -> None:
    settings = config("random", 24)
    with pytest.raises(Killed):
        start(tmp_path, settings, FakeWorker(), kill_at=21, after=True)
    start(tmp_path, settings, FakeWorker())
    found = read_history(tmp_path)
    store = Store.open(tmp_path, read_only=True)
    logged = [each for each in store.events(Told) if isinstance(each, Told)]
    store.close()
    assert [each.candidate for each in found.steps] == [each.candidate for each in logged]
    assert found.steps[-1].hours * HOUR == pytest.approx(sum(each.elapsed for each in logged), abs=1e-6)
    assert found.steps[-1].items == sum(each.outcome.items for each in logged if each.outcome.state != "duplicate")
    assert [each.hours for each in found.steps] == sorted(each.hours for each in found.steps)
    assert len(found.starts) == 1 and 0 < found.starts[0].after < 24  # the fakes write no beginning
