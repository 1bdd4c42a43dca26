"""The dashboard: a study of Optuna that says what the run's log says, follows it, and leaves it alone."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import TrialState

from evaluators.contract import Metric
from search.cli import run_command
from search.constraints import Constraint
from search.dashboard import genes
from search.dashboard.figures import figures
from search.dashboard.genes import Parameters
from search.dashboard.mirror import Mirror
from search.dashboard.server import ADDRESS, Dashboard
from search.dashboard.trials import CONSTRAINTS
from search.errors import SearchError
from search.events import Asked, Event, Failed, Told
from search.optimizers.contract import Genome, Outcome
from search.results import Results
from search.stages import translate
from search.store import DATABASE, Store

MIXED = ("accuracy", Metric("errors", "minimize", 0.0, 5.0, unit="errors"))
LIMIT = Constraint("string.accuracy", "at_least", 0.3, 0.5, 0.0, 1.0)


def content(folder: Path) -> dict[str, str]:
    return {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in sorted(folder.iterdir())}


_BUILT: dict[str, Any] = {}
"""The run that tests only look at, made once, and its mirror."""


@pytest.fixture
def finished(tmp_path_factory: pytest.TempPathFactory, synthetic_run: Any) -> Results:
    if "run" not in _BUILT:
        _BUILT["run"] = synthetic_run(
            tmp_path_factory.mktemp("dashboard") / "run",
            metrics=MIXED,
            failures=lambda id: "RuntimeError: [b]boom[/b]" if id == 21 else None,
            limits=[LIMIT],
            search={"fidelity": {"rungs": [20]}},
        )
    found: Results = _BUILT["run"]
    return found


@pytest.fixture
def mirror(finished: Results) -> Mirror:
    if "mirror" not in _BUILT:
        _BUILT["mirror"] = Mirror(finished.folder)
    found: Mirror = _BUILT["mirror"]
    return found


def test_trials_say_what_the_run_says(finished: Results) -> None:
    before = content(finished.folder)
    mirror = Mirror(finished.folder)
    study = mirror.storage.study
    assert [each.name.lower() for each in study.directions] == ["maximize", "minimize"]
    rows = study.get_trials(deepcopy=False)
    states = {
        "complete": TrialState.COMPLETE, "censored": TrialState.PRUNED, "failed": TrialState.FAIL,
        "duplicate": TrialState.COMPLETE,
    }  # fmt: skip
    assert [each.state for each in rows] == [states[each.state] for each in finished.candidates]
    assert {each.state for each in rows} >= {TrialState.COMPLETE, TrialState.FAIL}
    names = finished.objectives.names
    for row, candidate in zip(rows, finished.candidates, strict=True):
        assert row.number == candidate.id
        values = finished.values(candidate.id, "search")
        if row.state == TrialState.COMPLETE:
            assert dict(zip(names, row.values, strict=True)) == {name: values[name] for name in names}
        own = finished.violations["search"].get(candidate.id, ())
        assert candidate.duplicate_of is not None or row.system_attrs.get(CONSTRAINTS, []) == list(own)
        if row.state == TrialState.PRUNED:
            assert row.values is None and f"partial {names[0]}" in row.user_attrs
    assert "boom" in rows[21].user_attrs["reason"]
    assert rows[0].user_attrs["label"] == "base" and rows[0].user_attrs["stage"] == "baselines"
    assert content(finished.folder) == before


def test_the_holdout_is_shown_where_it_was_opened_and_nowhere_else(finished: Results, mirror: Mirror) -> None:
    rows = mirror.storage.study.get_trials(deepcopy=False)
    for split in ("selection", "holdout"):
        shown = {row.number for row in rows if any(name.startswith(f"{split} ") for name in row.user_attrs)}
        repeats = {each.id for each in finished.candidates if each.duplicate_of in finished.scores[split]}  # type: ignore[index]
        assert shown == set(finished.scores[split]) | repeats  # type: ignore[index]
        assert len(shown) < len(rows)


def test_the_best_trials_are_the_feasible_front(finished: Results, mirror: Mirror) -> None:
    from search.dashboard.storage import front_of

    rows = mirror.storage.study.get_trials(deepcopy=False)
    best = front_of(rows, mirror.storage.study.directions)
    expected = set(finished.judge.front(finished.scores["search"]))
    repeats = {each.id for each in finished.candidates if each.duplicate_of in expected}
    assert {each.number for each in best} == expected | repeats
    broken = [each for each in rows if any(value > 0 for value in each.system_attrs.get(CONSTRAINTS, ()))]
    assert broken and not {each.number for each in broken} & {each.number for each in best}
    assert any("breaks" in name for name in broken[0].user_attrs)
    # where nothing keeps the constraints, there still is something to look at
    assert front_of(broken, mirror.storage.study.directions)


def test_genes_are_points_of_the_last_stage_s_space(finished: Results, mirror: Mirror) -> None:
    rows = mirror.storage.study.get_trials(deepcopy=False)
    last = finished.stages[-1].space
    compared = 0
    for row, candidate in zip(rows, finished.candidates, strict=True):
        stage = finished.stages[candidate.stage]
        point = translate(candidate.genome, stage.space, last) if stage.index < 2 else candidate.genome
        if point is None:
            assert row.params == {}
            continue
        named = last.named(point)
        assert set(row.params) <= set(named) and row.params
        assert row.params == pytest.approx({name: named[name] for name in row.params})
        assert set(row.params) == set(row.distributions)
        compared += stage.index == 1
    assert compared > 3
    strange = Genome((0.5,) * 99)  # a log may say anything
    assert mirror.parameters.of(2, strange) == {} == mirror.parameters.of(7, strange)


def test_genes_without_effect_are_left_out(finished: Results) -> None:
    from search.space import Bounds, Space
    from search.space import Knots as KnotGranularity
    from search.stages import Stage

    first = finished.stages[-1].space
    space = Space(
        base="base", sources=first.sources, experts=first.experts, groups=first.groups,
        granularity=KnotGranularity(2), kinds=[["attention", "mlp", "norm", "embedding"]],
        coefficient=Bounds(0.0, 1.0), methods=("task_arithmetic", "ties"),
    )  # fmt: skip
    shown = Parameters([Stage(0, "full", space)], 10)
    values = tuple(np.linspace(0.1, 0.9, space.box.continuous).tolist())
    plain, dense = shown.of(0, Genome(values, (0,))), shown.of(0, Genome(values, (1,)))
    assert plain["method"] == "task_arithmetic" and dense["method"] == "ties"
    assert {name for name in dense if name.startswith("density")} and not any("density" in name for name in plain)


def test_many_genes_are_brought_together_and_it_is_said(finished: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    every = Parameters(finished.stages, 40)
    candidate = next(each for each in finished.candidates if each.stage == 2)
    fine = every.of(2, candidate.genome)
    assert every.thinned == "" and len(fine) == len(every)
    monkeypatch.setattr(genes, "MOST_CELLS", 40 * 9)
    tracks = Parameters(finished.stages, 40)
    coarse = tracks.of(2, candidate.genome)
    assert "over the depth" in tracks.thinned and set(coarse) == set(tracks.distributions)
    assert coarse["string.attention"] == pytest.approx(
        np.mean([value for name, value in fine.items() if name.startswith("string.attention@")])
    )
    monkeypatch.setattr(genes, "MOST_CELLS", 40 * 3)
    assert set(Parameters(finished.stages, 40).of(2, candidate.genome)) == {"string", "language"}
    assert len(Parameters(finished.stages, 40, everything=True)) == len(every)


# -- following a run ---------------------------------------------------------------------------------------------------


def append(folder: Path, *events: Event) -> None:
    store = Store.open(folder)
    store.append(*events)
    store.close()


@pytest.mark.slow
def test_a_run_that_goes_on_is_followed(tmp_path: Path, synthetic_run: Any) -> None:
    results = synthetic_run(tmp_path / "run", candidates=34, finished=False)
    mirror = Mirror(results.folder)
    id, genome, stage = len(results.candidates), results.candidates[-1].genome, results.candidates[-1].stage
    assert mirror.poll() is False
    append(results.folder, Asked(id, stage, genome, "f" * 64))
    assert mirror.poll() is True
    (*_, last) = mirror.storage.study.get_trials(deepcopy=False)
    assert last.number == id and last.state == TrialState.RUNNING and last.values is None and last.params
    append(
        results.folder,
        Failed(id, "search", "not finite", {"materialize": 0.1}),
        Told(id, stage, Outcome("failed", reason="not finite")),
    )
    mirror.poll()
    (*_, last) = mirror.storage.study.get_trials(deepcopy=False)
    assert last.state == TrialState.FAIL and last.user_attrs["reason"] == "not finite"
    assert mirror.poll() is False


def test_a_database_that_is_away_for_a_while_is_said_once_and_tried_again(tmp_path: Path, synthetic_run: Any) -> None:
    results = synthetic_run(tmp_path / "run", candidates=34, finished=False)
    said: list[str] = []
    mirror = Mirror(results.folder, say=said.append)
    away = tmp_path / "away"
    (results.folder / DATABASE).rename(away)
    stop = threading.Event()
    polls = iter(range(3))

    def wait(seconds: float) -> bool:
        return next(polls, None) is None

    stop.wait = wait  # type: ignore[method-assign, assignment]
    mirror.follow(stop)
    assert len(said) == 1 and "not up to date" in said[0]
    away.rename(results.folder / DATABASE)
    mirror.poll()
    assert len(mirror.storage.study.trials) == len(results.candidates)


@pytest.mark.slow
def test_another_database_in_its_place_is_read_from_the_start(tmp_path: Path, synthetic_run: Any) -> None:
    results = synthetic_run(tmp_path / "run", candidates=20, finished=False)
    mirror = Mirror(results.folder)
    longer = synthetic_run(tmp_path / "longer", candidates=30)
    for each in results.folder.glob(f"{DATABASE}*"):
        each.unlink()
    shutil.copy(longer.folder / DATABASE, results.folder / "new")
    (results.folder / "new").rename(results.folder / DATABASE)
    mirror.poll()
    assert len(mirror.storage.study.trials) == len(longer.candidates)


def test_nothing_can_be_changed_through_it(mirror: Mirror) -> None:
    storage = mirror.storage
    for change in (
        lambda: storage.create_new_trial(0),
        lambda: storage.delete_study(0),
        lambda: storage.set_trial_user_attr(0, "a", 1),
        lambda: storage.set_trial_state_values(0, TrialState.FAIL),
    ):
        with pytest.raises(RuntimeError, match="mirrors a run"):
            change()


# -- figures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objectives", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_figures_of_any_number_of_objectives(tmp_path: Path, synthetic_run: Any, objectives: int) -> None:
    results = synthetic_run(tmp_path / "run", objectives=objectives, candidates=26)
    found = dict(figures(results))
    assert set(found) == {"front", "convergence", "recipe"}
    marks = {each.name: each for each in found["front"].data[:4]}
    assert marks["chosen"].text[0].startswith(f"candidate {results.chosen}")
    values = results.scores["selection"][results.chosen]
    assert marks["chosen"].x == (values["string.accuracy"][0],)
    course = found["convergence"].data[0]
    assert course.y[-1] == pytest.approx(results.hypervolume) and list(course.y) == sorted(course.y)
    json.loads(found["recipe"].to_json())
    assert all(math.isfinite(each) for row in found["recipe"].data[0].z for each in row if each is not None)


def test_a_run_without_a_score_has_trials_and_no_figures(tmp_path: Path, synthetic_run: Any) -> None:
    results = synthetic_run(tmp_path / "run", candidates=12, finished=False, failures=lambda id: "RuntimeError: boom")
    mirror = Mirror(results.folder)
    mirror.poll()
    assert dict(figures(Results.load(results.folder))) == {}
    assert {each.state for each in mirror.storage.study.trials} == {TrialState.FAIL}


# -- the server --------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(mirror: Mirror) -> Iterator[Dashboard]:
    dashboard = Dashboard(mirror, port=0)
    thread = threading.Thread(target=dashboard.serve, daemon=True)
    thread.start()
    yield dashboard
    dashboard.close()
    thread.join(10.0)


def ask(dashboard: Dashboard, path: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(f"http://{ADDRESS}:{dashboard.port}{path}", method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_the_page_and_its_data_are_served(served: Dashboard, finished: Results) -> None:
    status, page = ask(served, "/dashboard")
    assert status == 200 and b"<html" in page.lower()
    status, body = ask(served, "/api/studies/0")
    found = json.loads(body)
    assert status == 200 and len(found["trials"]) == len(finished.candidates)
    front = finished.judge.front(finished.scores["search"])
    assert {each["number"] for each in found["best_trials"]} >= set(front)
    broken = {each.id for each in finished.candidates if finished.judge.violation(each.id, "search") > 0}
    assert not broken & {each["number"] for each in found["best_trials"]}
    served._mirror.poll()
    found = json.loads(ask(served, "/api/studies/0")[1])
    pinned = {each["id"]: json.loads(each["graph_object"]) for each in found["plotly_graph_objects"]}
    assert set(pinned) == {"front", "convergence", "recipe"} and pinned["front"]["data"]
    note = found["note"]["body"]
    assert f"candidate {finished.chosen}" in note and "string\\.accuracy" in note
    status, body = ask(served, "/api/studies/0/param_importances")
    assert status == 200 and len(json.loads(body)["param_importances"]) == 2


def test_only_reading_and_only_by_its_own_name(served: Dashboard) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        status, body = ask(served, "/api/studies/0", method)
        assert status == 403 and "mirrors a run" in json.loads(body)["reason"]
    assert ask(served, "/api/studies", Host="evil.example")[0] == 403
    assert ask(served, "/api/studies", Host=f"localhost:{served.port}")[0] == 200


def test_it_listens_on_the_loopback_address_alone(served: Dashboard, mirror: Mirror) -> None:
    assert served._server.socket.getsockname() == (ADDRESS, served.port) and ADDRESS == "127.0.0.1"
    with pytest.raises(SearchError, match="expected a free port"):
        Dashboard(mirror, served.port)


def test_the_command_says_where_and_ends_with_ctrl_c(
    finished: Results, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: Dashboard) -> None:
        self._server.server_close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Dashboard, "serve", interrupted)
    assert run_command(["dashboard", str(finished.folder), "--port", "0", "--no-browser"]) == 0
    shown = capsys.readouterr().out
    assert "http://127.0.0.1:" in shown and "Ctrl-C" in shown and "ssh -L" in shown


def test_without_the_package_there_is_one_paragraph(
    finished: Results, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run_command(["dashboard", str(finished.folder)]) == 2
    message = capsys.readouterr().err
    assert "pip install 'paretomerge[dashboard]'" in message and message.count("\n") == 1


def test_no_run_is_a_user_s_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["dashboard", str(tmp_path), "--no-browser"]) == 2
    assert "expected a run directory" in capsys.readouterr().err
