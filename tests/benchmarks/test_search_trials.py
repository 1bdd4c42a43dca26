"""The search benchmark's runs: contenders behave, results are kept and resumed, tables say what the numbers say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.searching import contenders, tables, trials
from benchmarks.searching.landscapes import landscape
from benchmarks.searching.trials import Result, Task, read, run, run_all

LANDSCAPE = "smooth-4d-2o"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random", "sms_emoa", *contenders.OUTSIDE])
@pytest.mark.filterwarnings("ignore")  # the libraries' experimental features
def test_contenders_begin_with_the_starts_and_stay_in_the_box(name: str) -> None:
    if name.startswith("pymoo"):
        pytest.importorskip("pymoo")
    problem = landscape(LANDSCAPE, 0)
    count = 8 if name == "optuna/gp" else 60
    contender = contenders.build(name, problem, count, 0)
    asked = []
    for number in range(count):
        genome = contender.ask(number)
        asked.append(genome)
        contender.tell(number, genome, problem.observe(number, genome), None)
    assert set(asked[: len(problem.starts)]) == set(problem.starts)
    assert all(genome in problem.box for genome in asked)
    assert len(set(asked)) > count / 2


def test_two_contenders_meet_the_same_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[list[float]]] = {}

    class Spy(contenders.Ours):
        def tell(self, number: int, genome: object, utilities: object, repeats: int | None) -> None:
            seen.setdefault(self.name, []).append(utilities.tolist())  # type: ignore[attr-defined]
            super().tell(number, genome, utilities, repeats)  # type: ignore[arg-type]

    def build(name: str, *more: object) -> Spy:
        spy = Spy(name, *more, None)  # type: ignore[arg-type]
        spy.name = name  # type: ignore[attr-defined]
        return spy

    monkeypatch.setattr(contenders, "build", build)
    for name in ("random", "sms_emoa"):
        run(Task(LANDSCAPE, name, 3, 20, (20,), 60.0))
    starts = len(landscape(LANDSCAPE, 3).starts)
    assert seen["random"][:starts] == seen["sms_emoa"][:starts]
    assert seen["random"][starts:] != seen["sms_emoa"][starts:]


def test_a_run_is_repeatable_and_scored_at_its_checkpoints() -> None:
    task = Task(LANDSCAPE, "sms_emoa", 1, 40, (10, 40), 60.0)
    one, again = run(task), run(task)
    assert one.shares == again.shares
    assert list(one.shares) == ["10", "40"] and 0.0 < one.shares["10"] <= 1.0
    assert one.left_out == "" and one.cpu_ms["40"] > 0.0


def test_a_slow_contender_is_left_out_and_that_is_said() -> None:
    result = run(Task(LANDSCAPE, "random", 0, 40, (1, 40), 0.0))
    assert list(result.shares) == ["1"]
    assert result.left_out.startswith(trials.STOPPED) and "CPU-seconds" in result.left_out


def test_budget_aware_contenders_get_a_run_for_each_checkpoint() -> None:
    assert contenders.budgets("random", (100, 50)) == [(100, [50, 100])]
    assert contenders.budgets("auto", (100, 50)) == [(50, [50]), (100, [100])]


@pytest.mark.parametrize("name", ["cma", "catcma", "tpe", "random"])
def test_who_is_said_not_to_know_the_budget_does_not(name: str) -> None:
    """So that the first part of its long run may stand for its short one."""
    assert name in contenders.BLIND
    short, long = (run(Task(LANDSCAPE, name, 0, budget, (20,), 60.0)) for budget in (20, 25))
    assert short.shares == long.shares and short.shares


def test_results_are_kept_and_not_computed_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    tasks = [Task(LANDSCAPE, "random", seed, 10, (10,), 60.0) for seed in range(2)]
    said: list[str] = []
    run_all(tasks[:1], out, 1, said.append)
    first = out.read_text()
    with out.open("a") as file:
        file.write('{"torn')
    run_all(tasks, out, 1, said.append)
    assert out.read_text().startswith(first)
    assert {each.key for each in read(out)} == {task.key for task in tasks}
    assert "1 of 2 runs are in" in said[-2]


def test_what_could_not_be_built_is_tried_again(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    task = Task(LANDSCAPE, "random", 0, 10, (10,), 60.0)
    gone = Result(*task.key, left_out="ModuleNotFoundError: No module named 'x'")
    out.write_text(json.dumps(gone.__dict__) + "\n")
    run_all([task], out, 1, lambda line: None)
    assert read(out)[0].shares


def results(shares: dict[str, list[float]]) -> list[Result]:
    return [
        Result("cell", name, seed, 100, {"100": value}, {"100": 1.0})
        for name, values in shares.items()
        for seed, value in enumerate(values)
    ]


def test_intervals_are_students() -> None:
    values = [0.1, 0.4, 0.35, 0.8]
    found = tables.Interval.of(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))


def test_differences_are_paired_by_seed() -> None:
    """Seeds differ much, contenders by the same little everywhere: only a paired difference shows it."""
    rows = tables.rows(tables.cells(results({"auto": [0.2, 0.5, 0.8], "x": [0.21, 0.51, 0.811]}))["cell", 100])
    assert [row.contender for row in rows] == ["x", "auto"]
    ahead = rows[0].ahead
    assert ahead is not None and ahead.mean == pytest.approx(-0.0103, abs=1e-4) and ahead.half < 0.002
    assert rows[0].share.half > 0.5


def test_the_verdict_names_who_wins_beyond_the_interval() -> None:
    text = tables.markdown(results({"auto": [0.2, 0.5, 0.8], "x": [0.21, 0.51, 0.811], "y": [0.9, 0.1, 0.6]}))
    assert "It loses to x on cell at 100" in text and "loses to y" not in text
    assert "best mean in 0 of 1 cells" in text
    better = tables.markdown(results({"auto": [0.3, 0.6, 0.9], "x": [0.21, 0.51, 0.811]}))
    assert "best mean in 1 of 1 cells" in better and "It loses to none" in better
