"""Convergence: the front's hypervolume as it grew, exactly and estimated; the best so far; control and stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_pages import Page

from search import pareto
from search.constraints import Constraint
from search.report import progress as progress_module
from search.report.convergence import control_of, convergence_section, stage_starts
from search.report.facts import Facts, better
from search.report.progress import progress
from search.results import Results
from search.store import CONTROL

SyntheticRun = Callable[..., Results]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, synthetic_run: SyntheticRun) -> Results:
    return synthetic_run(tmp_path_factory.mktemp("convergence") / "run", objectives=3, candidates=28)


def told(results: Results) -> list[int]:
    return [each.candidate for each in Facts(results).history.steps]


def test_hypervolume_and_best_are_those_of_the_candidates_so_far(results: Results) -> None:
    found = progress(Facts(results))
    scores = results.scores["search"]
    assert found.exact and found.hypervolume == sorted(found.hypervolume)
    assert found.hypervolume[-1] == pytest.approx(results.hypervolume)
    order = [id for id in told(results) if results.candidate(id).state == "complete"]
    assert found.ids[-1] == order[-1]
    for id, volume, leaders in zip(found.ids, found.hypervolume, found.best, strict=True):
        so_far = order[: order.index(id) + 1]
        utilities = results.judge.utilities(scores, so_far)
        assert volume == pytest.approx(pareto.hypervolume(utilities, results.objectives.reference))
        for target, leader in zip(results.objectives.targets, leaders, strict=True):
            assert leader in so_far
            assert not any(better(target, scores[e][target.name][0], scores[leader][target.name][0]) for e in so_far)


def test_every_improvement_is_there(results: Results) -> None:
    found = progress(Facts(results))
    scores, known = results.scores["search"], 0.0
    order = [id for id in told(results) if results.candidate(id).state == "complete"]
    for place, id in enumerate(order):
        volume = pareto.hypervolume(results.judge.utilities(scores, order[: place + 1]), results.objectives.reference)
        assert volume <= known + 1e-12 or id in found.ids
        known = volume


def test_many_objectives_are_estimated_within_what_is_said(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = progress(Facts(results))
    monkeypatch.setattr(progress_module, "EXACT", {})
    found = progress(Facts(results))
    assert not found.exact and found.ids == exact.ids and found.best == exact.best
    assert found.hypervolume == sorted(found.hypervolume)
    assert np.abs(np.array(found.hypervolume) - exact.hypervolume).max() < 0.006
    section = convergence_section(Facts(results))
    assert section is not None and "estimated from 65536 random points" in section.body


def test_what_breaks_a_constraint_is_not_followed(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    limit = Constraint("string.accuracy", "at_least", 0.5, 0.5, 0.0, 1.0)
    run = synthetic_run(tmp_path / "run", candidates=20, limits=[limit])
    found = progress(Facts(run))
    assert found.hypervolume[-1] == pytest.approx(run.hypervolume)
    kept = [id for id in run.scores["search"] if run.judge.violation(id, "search") <= 0.0]
    assert 0 < len(kept) < len(run.scores["search"])
    assert {id for leaders in found.best for id in leaders} <= set(kept)


def test_nothing_feasible_is_said(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    limit = Constraint("string.accuracy", "at_least", 0.999, 0.5, 0.0, 1.0)
    run = synthetic_run(tmp_path / "run", candidates=16, limits=[limit])
    assert progress(Facts(run)).steps == []
    section = convergence_section(Facts(run))
    assert section is None or "no front to follow" in section.body


def test_the_table_and_the_lines_have_the_same_numbers(results: Results) -> None:
    facts = Facts(results)
    found = progress(facts)
    section = convergence_section(facts)
    assert section is not None
    rows = next(
        each for caption, each in Page(section.body).tables.items() if caption.startswith("The candidates after")
    )
    assert [int(row[0]) for row in rows[1:]] == found.ids
    assert [float(row[4]) for row in rows[1:]] == pytest.approx(found.hypervolume, abs=5.1e-5)
    data = section.data["convergence"]
    assert data["run"]["id"] == found.ids
    assert data["run"]["items"] == [each.items for each in found.steps]
    assert data["run"]["hours"] == pytest.approx([each.hours for each in found.steps], rel=1e-5)
    assert data["end"]["evaluations"] == facts.history.steps[-1].evaluations
    for index, best in enumerate(data["best"]):
        target = facts.targets[index]
        expected = [target.utility(results.scores["search"][each[index]][target.name][0]) for each in found.best]
        assert best["value"] == pytest.approx(expected, abs=1e-5) and best["name"] == target.name


def test_stages_begin_where_the_log_says(results: Results) -> None:
    facts = Facts(results)
    starts = dict(stage_starts(facts))
    stages = {each.candidate: each.stage for each in facts.history.steps}
    assert list(starts) == ["per-expert", "full"]
    for index, (name, step) in enumerate(starts.items(), start=1):
        order = list(stages)
        place = order.index(step.candidate)
        assert stages[order[place + 1]] == index and all(stages[each] < index for each in order[: place + 1]), name


def test_a_control_is_drawn_where_there_is_one(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    run = synthetic_run(tmp_path / "run", candidates=15)
    assert control_of(run) is None
    control = synthetic_run(tmp_path / "run" / CONTROL, candidates=15, search={"optimizer": "random"})
    section = convergence_section(Facts(run))
    assert section is not None
    line = section.data["convergence"]["control"]
    assert line["value"][-1] == pytest.approx(control.hypervolume, abs=1e-5)
    assert line["id"] == progress(Facts(control)).ids
    assert "random search over the same space with the same budget;" in section.body


def test_a_damaged_control_costs_the_report_nothing(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    run = synthetic_run(tmp_path / "run", candidates=16)
    (tmp_path / "run" / CONTROL).mkdir()
    (tmp_path / "run" / CONTROL / "run.db").write_bytes(b"no database at all" * 100)
    section = convergence_section(Facts(run))
    assert section is not None and section.data["convergence"]["control"] is None
    assert "The control cannot be drawn" in section.body and str(tmp_path) not in section.body


def test_hours_of_old_logs_are_marked_as_such(results: Results) -> None:
    facts = Facts(results)
    new = convergence_section(facts)
    facts.__dict__["history"] = replace(facts.history, exact=False)
    old = convergence_section(facts)
    assert new is not None and old is not None
    assert "of a version that did not keep them" in old.body and "did not keep them" not in new.body
