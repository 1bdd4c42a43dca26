"""What is said of a run that goes on: from its events alone, the same whether read at once or as they come."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search import pareto
from search.constraints import Constraint
from search.course import HEARD, Course
from search.errors import SearchError
from search.events import (
    Asked,
    EvaluationStarted,
    Event,
    Failed,
    Incident,
    Interrupted,
    Resumed,
    RungReached,
    RunStarted,
    Scored,
    Settled,
    Told,
)
from search.optimizers.contract import Genome, Outcome
from search.results import Results
from search.store import Store
from search.store.reading import Entry
from search.watching import Watcher

SyntheticRun = Any
NAMES = ("string.accuracy", "language.accuracy")


def entries(folder: Path) -> tuple[RunStarted, list[Entry]]:
    store = Store.open(folder, read_only=True)
    started = store.started()
    assert started is not None
    found = list(store.entries(*HEARD))
    store.close()
    return started, found


def course_of(folder: Path) -> Course:
    started, found = entries(folder)
    course = Course(started, folder)
    for entry in found:
        course.note(entry.event, entry.at)
    return course


def asked(id: int, stage: int = 2, recipe: str = "", label: str = "") -> Asked:
    return Asked(id, stage, Genome((0.5,)), recipe or f"recipe {id}", label)


def scored(id: int, split: Any = "search", value: float = 0.5) -> Scored:
    return Scored(id, split, dict.fromkeys(NAMES, value), dict.fromkeys(NAMES, 0.01), {"evaluate": 2.0})


def told(id: int, **outcome: Any) -> Told:
    given: dict[str, Any] = {"state": "complete", "utilities": (0.5, 0.5), "items": 240, **outcome}
    return Told(id, 2, Outcome(**given))


# -- truth ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_it_agrees_with_the_judge_who_reads_everything(
    synthetic_run: SyntheticRun, tmp_path: Path, objectives: int
) -> None:
    limit = Constraint("language.accuracy", "at_least", 0.1, 0.9, 0.0, 1.0)
    results: Results = synthetic_run(
        tmp_path / "run",
        objectives=objectives,
        candidates=26,
        failures=lambda id: "not a number" if id % 13 == 12 else None,
        limits=[limit] if objectives > 1 else (),
        search={"fidelity": {"rungs": [40]}},
    )
    course, scores = results.course, results.scores["search"]
    assert sorted(course.front) == results.judge.front(scores)
    assert course.volume == pytest.approx(results.hypervolume, abs=1e-12) == course.final_hypervolume
    states = [each.state for each in results.candidates]
    for state in ("complete", "censored", "failed", "duplicate"):
        assert course.states[state] == states.count(state)
    assert course.told == len(states) and course.finished and course.phase == "finished" and not course.running
    assert course.reasons["not a number"] == states.count("failed") > 0
    feasible = [id for id in scores if results.judge.violation(id, "search") <= 0.0 and states[id] == "complete"]
    for target in results.objectives.targets:
        best = max(scores[id][target.name][0] for id in feasible)
        assert scores[course.best[target.name]][target.name][0] == best
    kept = [row[0] <= 0.0 for id, row in results.violations["search"].items() if states[id] == "complete"]
    assert list(course.constraints_kept().values()) == ([sum(kept)] if objectives > 1 else [])
    found = course.most_balanced()
    assert found is not None and found[0] == results.judge.knee(scores, results.judge.front(scores))
    assert found[1] == pytest.approx(results.judge.retention(scores, found[0]))


def test_every_earlier_hypervolume_is_that_of_what_was_told(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    results = synthetic_run(tmp_path / "run", objectives=3, candidates=36, finished=False)
    started, found = entries(tmp_path / "run")
    outcomes = [entry.event.outcome for entry in found if isinstance(entry.event, Told)]
    course = results.course
    assert len(course.changes) > 3

    def volume(told: int) -> float:
        points = [each.utilities for each in outcomes[:told] if each.state == "complete" and each.feasible]
        return pareto.hypervolume(points, started.reference)

    for changes, after in enumerate(course.changes, start=1):
        assert course.volume_after(changes) == pytest.approx(volume(after), abs=1e-12)
        assert course.volume_after(changes - 1) == pytest.approx(volume(after - 1), abs=1e-12)


def test_a_metric_to_minimise_has_its_lowest_as_the_best(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    from evaluators.contract import Metric

    metrics = [Metric("accuracy", "maximize", 0.0, 1.0), Metric("wer", "minimize", 0.0, 2.0)]
    results = synthetic_run(tmp_path / "run", metrics=metrics, candidates=36, finished=False)
    values = {id: row["language.wer"][0] for id, row in results.scores["search"].items()}
    assert values[results.course.best["language.wer"]] == min(values.values())
    assert sorted(results.course.front) == results.judge.front(results.scores["search"])


# -- what is under way ------------------------------------------------------------------------------------------------


@pytest.fixture
def course(synthetic_run: SyntheticRun, tmp_path: Path) -> Course:
    """Of a run with three rungs, nothing asked yet."""
    synthetic_run(tmp_path / "run", candidates=1, finished=False, search={"fidelity": {"rungs": [40, 80]}})
    started, _ = entries(tmp_path / "run")
    return Course(started)


def feed(course: Course, *events: Event) -> None:
    for event in events:
        course.note(event, course.at + 1.0)


def running(course: Course) -> list[tuple[int, str, int, int, float]]:
    return [(each.candidate, each.split, each.rung, each.rungs, each.since) for each in course.running.values()]


def test_a_candidate_climbs_its_rungs_and_leaves(course: Course) -> None:
    assert course.rung_sizes == (40, 80, 120)
    feed(course, asked(0))
    assert running(course) == [(0, "search", 0, 3, 1.0)]
    feed(course, RungReached(0, 0, 80, {}, {"evaluate": 1.0}))
    assert running(course) == [(0, "search", 1, 3, 2.0)]
    feed(course, RungReached(0, 1, 160, {}, {"evaluate": 1.0}, dropped=True), told(0, state="censored", reason="x"))
    assert running(course) == [] and course.states["censored"] == 1 and course.front == []


def test_baselines_have_no_rungs_and_a_repeated_recipe_is_not_evaluated(course: Course) -> None:
    feed(course, asked(0, stage=0, label="base"), asked(1, recipe="recipe 0"))
    assert running(course) == [(0, "search", 0, 1, 1.0)] and course.waiting == {1}
    feed(course, scored(0), told(0), told(1, state="duplicate", of=0))
    assert course.waiting == set() and course.told == 2 and course.front == [0]


def test_what_is_settled_before_its_turn_is_no_longer_under_way(course: Course) -> None:
    feed(course, asked(0), asked(1), scored(1), Settled(1, Outcome("complete", (0.5, 0.5))))
    assert [each[0] for each in running(course)] == [0] and course.told == 0


def test_a_resumed_run_begins_again_what_was_under_way_at_the_rung_it_had_reached(course: Course) -> None:
    feed(course, asked(0), RungReached(0, 0, 80, {}, {}), Resumed(20))
    assert running(course) == [] and course.config.search.budget.candidates == 20
    feed(course, EvaluationStarted(0, "search"))
    assert running(course) == [(0, "search", 1, 3, 4.0)]
    feed(course, Interrupted("stopped by the user"))
    assert course.stopped and running(course) == []


def test_finals_are_counted_and_new_candidates_reopen_them(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    synthetic_run(tmp_path / "run", candidates=24)
    started, found = entries(tmp_path / "run")
    course = Course(started)
    phases: list[str] = []
    for entry in found:
        course.note(entry.event, entry.at)
        phases += [course.phase] if not phases or phases[-1] != course.phase else []
        if course.phase == "holdout" and course.opened:
            done = sum(id in course.on["holdout"] for id in course.opened)
            assert len(course.pending("holdout")) == len(course.opened) - done
    assert phases == ["search", "selection", "holdout", "finished"]
    last = course.asked
    feed(course, Resumed(last + 5))
    assert not course.finished and course.chosen is not None
    feed(course, asked(last), scored(last), told(last))
    assert course.phase == "search" and course.chosen is None and course.finalists == ()


def test_failures_and_incidents_are_kept_with_their_reasons(course: Course) -> None:
    feed(course, asked(0), Incident(0, "batch halved", "did not fit", 64.0))
    feed(course, Failed(0, "search", "NaN", {"evaluate": 3.0}), told(0, state="failed", utilities=(), reason="NaN"))
    feed(course, Failed(1, "selection", "out of memory"))
    assert dict(course.reasons) == {"NaN": 1, "out of memory": 1} and dict(course.incidents) == {"batch halved": 1}
    assert [(each.what, each.candidate) for each in course.mishaps] == [
        ("batch halved", 0), ("failed", 0), ("failed", 1),
    ]  # fmt: skip
    assert course.pace.recent[0].busy == 3.0  # as logs of old said it: with the failure, not with the tell


def test_a_log_that_contradicts_itself_is_the_runs_fault_and_no_traceback(course: Course) -> None:
    with pytest.raises(SearchError, match="contradicts itself: asked does not fit"):
        feed(course, asked(0, stage=7))
    with pytest.raises(SearchError, match="contradicts itself"):
        feed(course, asked(1), scored(1), told(1, utilities=(0.1, 0.2, 0.3)))


# -- following --------------------------------------------------------------------------------------------------------


def test_read_piece_by_piece_it_says_what_it_says_read_at_once(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    limit = Constraint("language.accuracy", "at_least", 0.1, 0.9, 0.0, 1.0)
    synthetic_run(tmp_path / "run", candidates=24, search={"fidelity": {"rungs": [40]}}, limits=[limit])
    started, found = entries(tmp_path / "run")
    follower = tmp_path / "follower"
    follower.mkdir()
    store = Store.create(follower)
    watcher = Watcher(follower)
    assert watcher.look().state == "setting up"
    store.append(started)
    for place in range(0, len(found), 11):
        store.append(*(entry.event for entry in found[place : place + 11]))
        look = watcher.look()
        assert look.trouble == "" and look.course is not None and look.disk
        once = course_of(follower)
        assert state(look.course) == state(once)
    store.close()
    assert watcher.look().state == "finished"


def state(course: Course) -> list[Any]:
    """Everything that it says, but for the times at which it was written."""
    plain = {key: value for key, value in vars(course).items() if key not in ("_front", "pace", "_balanced")}
    simple = {key: value for key, value in plain.items() if isinstance(value, int | tuple | list | dict | set | str)}
    pace = dict(vars(course.pace))
    return [simple, course.front, course.front_points.tolist(), pace, course.phase, course.volume, course.mishaps]


def test_only_what_is_new_is_read(synthetic_run: SyntheticRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic_run(tmp_path / "run", candidates=20)
    watcher = Watcher(tmp_path / "run")
    watcher.look()
    read: list[int] = []
    rows = Store._rows

    def counted(self: Store, *given: Any) -> list[Any]:
        found = rows(self, *given)
        read.append(len(found))
        return found

    monkeypatch.setattr(Store, "_rows", counted)
    watcher.look()
    assert sum(read) <= 2  # the one that it knew last, to see that it is still there


def test_a_database_that_goes_away_comes_back_or_is_another_one(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    synthetic_run(tmp_path / "run", candidates=24)
    synthetic_run(tmp_path / "other", candidates=20, objectives=3)
    watcher = Watcher(tmp_path / "run")
    before = watcher.look()
    database = tmp_path / "run" / "run.db"
    database.rename(tmp_path / "away")
    look = watcher.look()
    assert "run.db" in look.trouble and look.course is before.course and look.state == "finished"
    (tmp_path / "away").rename(database)
    assert watcher.look().trouble == ""
    (tmp_path / "other" / "run.db").rename(database)
    look = watcher.look()
    assert look.course is not None and look.course.told == 20 and len(look.course.objectives.names) == 3


def test_a_locked_database_is_said_and_then_read(
    synthetic_run: SyntheticRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic_run(tmp_path / "run", finished=False)
    watcher = Watcher(tmp_path / "run")

    def locked(*_: Any, **__: Any) -> Any:
        raise SearchError("run.db: database is locked. Another process is writing to it.")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "open", locked)
        look = watcher.look()
        assert "locked" in look.trouble and look.course is None
    look = watcher.look()
    assert look.course is not None and look.state == "interrupted" and look.course.told == 20


def test_no_run_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="expected a run directory"):
        Watcher(tmp_path)


def test_a_damaged_event_keeps_the_last_picture(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    synthetic_run(tmp_path / "run", candidates=20)
    watcher = Watcher(tmp_path / "run")
    told = watcher.look().course.told  # type: ignore[union-attr]
    connection = sqlite3.connect(tmp_path / "run" / "run.db")
    connection.execute("UPDATE events SET payload = '{}' WHERE seq = (SELECT max(seq) FROM events)")
    connection.commit()
    connection.close()
    look = watcher.look()
    assert "not as it was written" in look.trouble and look.course is not None and look.course.told == told


def test_the_results_of_a_run_hold_its_incidents_and_what_runs(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    results = synthetic_run(tmp_path / "run", finished=False)
    store = Store.open(tmp_path / "run")
    store.append(Resumed(40), Incident(3, "worker lost", "killed"), replace(asked(20), stage=1))
    store.close()
    again = Results.load(tmp_path / "run")
    assert results.incidents == () and again.incidents == (Incident(3, "worker lost", "killed"),)
    assert [each.candidate for each in again.running] == list(again.course.running) == [20] and np.isclose(
        again.course.at, again.course.running[20].since, atol=1.0
    )
