"""Optimism, failures, time and environment of a report: the numbers are those of the log."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from report_pages import Page

from evaluators.contract import Metric
from search.events import BudgetSpent, Failed, Incident, Opened, Salvaged
from search.report.environment import environment_section
from search.report.facts import Facts
from search.report.failures import MOST_REASONS, failures_section
from search.report.history import History, Rung, Start, Step
from search.report.optimism import flattered, optimism_section
from search.report.timing import by_phase, time_section
from search.results import Results

SyntheticRun = Callable[..., Results]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, synthetic_run: SyntheticRun) -> Results:
    metrics = [Metric("accuracy", "maximize", 0.0, 1.0), Metric("error", "minimize", 0.0, 1.0)]
    fidelity = {"fidelity": {"rungs": [30, 120]}}
    run = synthetic_run(
        tmp_path_factory.mktemp("course") / "run", candidates=40, metrics=metrics, search=fidelity,
        failures=lambda id: f"loss is {id}.5" if id in (20, 21) else "out of memory" if id == 22 else None,
    )  # fmt: skip
    assert run.state == "finished"
    return run


@pytest.fixture
def facts(results: Results) -> Facts:
    return Facts(results)


def with_history(facts: Facts, **changes: object) -> Facts:
    facts.__dict__["history"] = replace(facts.history, **changes)  # type: ignore[arg-type]
    return facts


# -- optimism ---------------------------------------------------------------------------------------------------------


def test_optimism_is_positive_where_a_split_flattered(results: Results) -> None:
    chosen = results.chosen
    assert chosen is not None
    changed = dict(results.scores)
    for split, values in (("search", (0.7, 0.2)), ("selection", (0.65, 0.3)), ("holdout", (0.6, 0.4))):
        few = dict(zip(results.objectives.names, ((each, 0.03) for each in values), strict=True))
        changed[split] = {**changed[split], chosen: few}  # type: ignore[index]
    facts = Facts(replace(results, scores=changed))
    section = optimism_section(facts)
    assert section is not None
    rows = Page(section.body).tables["Optimism of the chosen merge"][1:]
    assert [(row[0], [float(cell.split()[0]) for cell in row[1:]]) for row in rows] == [
        ("string.accuracy", [0.1, 0.05]),
        ("language.error", [0.2, 0.1]),
    ]
    found = flattered(facts, chosen, "search", facts.targets[0])
    assert found is not None and found.low < 0.1 < found.high
    # about 1.96 standard errors of the difference, but inside what a share can be
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.hypot(0.03, 0.03), rel=0.05)


def test_the_figure_and_the_averages_have_all_finalists(results: Results, facts: Facts) -> None:
    section = optimism_section(facts)
    assert section is not None
    scores = results.scores
    for plot, target in zip(section.figures[0].plots, facts.targets, strict=True):
        drawn = [(x, y) for trace in plot.traces for x, y in zip(trace["x"], trace["y"], strict=True)]
        expected = [
            (scores["search"][id][target.name][0], scores["selection"][id][target.name][0])
            for id in {*results.finalists, *(each.id for each in facts.baselines)}
            if id in scores["selection"]
        ]
        assert sorted(drawn) == sorted(expected)
    rows = Page(section.body).tables["Search − selection, on average"]
    sign = {"string.accuracy": 1.0, "language.error": -1.0}
    for place, name in enumerate(rows[0][2:], start=2):
        gains = [
            sign[name] * (scores["search"][id][name][0] - scores["selection"][id][name][0]) for id in results.finalists
        ]
        assert float(rows[1][place].replace("−", "-")) == pytest.approx(sum(gains) / len(gains), abs=5.1e-4)


def test_no_optimism_before_the_finals(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    assert optimism_section(Facts(synthetic_run(tmp_path / "run", candidates=24, finished=False))) is None


# -- failures ---------------------------------------------------------------------------------------------------------


def test_failures_and_early_stops_are_grouped(results: Results, facts: Facts) -> None:
    found = Page(failures_section(facts).body).tables
    assert found["What failed, and why"][1:] == [
        ["failed: loss is 20.5 (and alike)", "2", "20, 21"],
        ["failed: out of memory", "1", "22"],
    ]
    stopped = [each.id for each in results.candidates if each.state == "censored"]
    if stopped:
        rows = found["What was stopped early, and why"][1:]
        assert sum(int(row[1]) for row in rows) == len(stopped)


def test_what_was_mended_is_told(facts: Facts) -> None:
    lost = [Incident(id, "worker lost", "its process ended", None) for id in (3, 9)]
    halved = Incident(4, "batch halved", "it did not fit", 512.0)
    late = Failed(7, "holdout", "NaN <b>")
    body = failures_section(
        with_history(facts, incidents=[*lost, halved], failed=[late], salvaged=[Salvaged(2, 1, "a torn page")])
    ).body
    found = Page(body).tables
    assert found["What was mended on the way"][1:] == [
        ["worker lost: its process ended", "2", "3, 9"], ["batch halved: it did not fit", "1", "4"],
    ]  # fmt: skip
    assert ["failed on holdout: NaN <b>", "1", "7"] in found["What failed, and why"] and "<b>" not in body
    assert "repaired: a torn page (2 events and 1 candidate lost)" in body


def test_many_reasons_are_counted_together(results: Results) -> None:
    letters = [f"{chr(97 + k % 26)}{chr(97 + k // 26)}" for k in range(MOST_REASONS + 7)]
    some = [replace(results.candidates[0], id=k, state="failed", reason=each) for k, each in enumerate(letters)]
    facts = Facts(replace(results, candidates=tuple(some)))
    rows = Page(failures_section(facts).body).tables["What failed, and why"][1:]
    assert len(rows) == MOST_REASONS + 1
    assert rows[-1][:2] == ["7 other reasons", "7"] and sum(int(row[1]) for row in rows) == len(letters)


def test_a_run_without_failures_says_so(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    run = synthetic_run(tmp_path / "run", candidates=14, finished=False)
    assert "No candidate failed." in failures_section(Facts(run)).body


# -- time -------------------------------------------------------------------------------------------------------------


def test_phases_add_up_to_what_the_log_has(results: Results, facts: Facts) -> None:
    phases = by_phase(facts)
    assert list(phases) == ["baselines", "per-expert", "full", "finals, selection", "finals, holdout"]
    for part, value in results.seconds.items():
        assert sum(each.get(part, 0.0) for each in phases.values()) == pytest.approx(value)
    rows = Page(time_section(facts).body).tables
    totals = next(each for caption, each in rows.items() if caption.startswith("Wall time of"))
    assert {row[0] for row in totals[1:]} == {"evaluate", "materialise", "optimise", "store", "all"}
    figure = time_section(facts).figures[0]
    drawn = sum(sum(trace["x"]) for trace in figure.plots[0].traces)
    assert drawn == pytest.approx(sum(results.seconds.values()))


def test_what_racing_saved_is_what_stopped_candidates_were_not_asked(results: Results, facts: Facts) -> None:
    whole = sum(len(splits["search"]) for splits in results.started.items.values())
    steps = [
        Step(0, 0, "complete", 0.0, whole, 1),
        Step(1, 0, "censored", 0.0, whole + 60, 2),
        Step(2, 0, "failed", 0.0, whole + 60, 3),
        Step(3, 0, "censored", 0.0, whole + 180, 4),
    ]
    changed = with_history(facts, steps=steps, rungs={0: Rung(3, 1, 60), 1: Rung(2, 1, 120)})
    body = time_section(changed).body
    assert f"{2 * whole - 180} items more than the {whole + 180} that were" in body
    rows = Page(body).tables["Rungs: who went on, and who was stopped"]
    assert rows[1:] == [["1", "60", "3", "1"], ["2", "120", "2", "1"]]


def test_pauses_and_finals_are_told(facts: Facts) -> None:
    starts = [Start(0.0, 0, 0.0), Start(9e5, 10, 1.0)]
    body = time_section(with_history(facts, hours=2.0, finals=0.5, starts=starts)).body
    assert "at work for 2 h by the clock, in 2 starts" in body and "30 min of it went to the finals" in body


# -- environment ------------------------------------------------------------------------------------------------------


def test_everything_that_identifies_the_run_is_there(results: Results, facts: Facts) -> None:
    found = Page(environment_section(facts).body).tables
    assert {row[0]: row[2] for row in found["Models, by the content of their tensors"][1:]} == results.started.sources
    for row in found["Items per split"][1:]:
        splits = results.started.items[row[0]]
        assert row[1:] == [*(str(len(splits[each])) for each in ("search", "selection", "holdout")),
                           results.started.evaluators[row[0]]]  # fmt: skip
    assert ["paretomerge", "0.1.0"] in found["Environment when the run started"]
    opened = found["Openings of the holdout"][1:]
    assert len(opened) == results.openings == 1
    assert {int(id) for id in opened[0][2].split(", ")} == set(results.scores["holdout"])


def test_starts_and_a_grown_budget(facts: Facts) -> None:
    starts = [Start(0.0, 0, 0.0), Start(7200.0, 12, 1.5, budget=40, different=0), Start(9000.0, 20, 2.0, 80, 3)]
    spent = BudgetSpent("plateau", "50 candidates without a gain")
    body = environment_section(with_history(facts, starts=starts, spent=spent)).body
    assert Page(body).tables["Starts of the run"][1:] == [
        ["1", "1970-01-01 00:00 UTC", "0", "0.0 s", "40", "–"],
        ["2", "1970-01-01 02:00 UTC", "12", "1 h 30 min", "40", "0"],
        ["3", "1970-01-01 02:30 UTC", "20", "2 h", "40 → 80", "3"],
    ]
    assert "the search ended at 50 candidates without a gain (plateau)" in body


def test_the_ledger_tells_of_other_runs(results: Results, facts: Facts) -> None:
    ledger = results.folder.parent / "holdouts.jsonl"
    lines = ledger.read_text(encoding="utf-8")
    entry = json.loads(lines.splitlines()[0])
    try:
        ledger.write_text(lines + json.dumps({**entry, "run": "another", "recipes": ["0" * 64]}) + "\n")
        body = environment_section(facts).body
        recipes = len(entry["recipes"]) + 1
        assert f"2 runs looked at these holdout items, for {recipes} different merges" in body
        ledger.unlink()
        assert "There is no ledger beside this run" in environment_section(facts).body
    finally:
        ledger.write_text(lines)


def test_an_unopened_holdout_and_odd_times(facts: Facts) -> None:
    assert "The holdout has not been opened." in environment_section(with_history(facts, openings=[])).body
    odd = with_history(facts, openings=[(math.inf, Opened([1], "<x>"))], began=(0.0, 1e30))
    body = environment_section(odd).body
    assert "unknown" in body and "<x>" not in body


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"packages": 3}', "[" * 5000, '{"packages": {"a": null}, "b": [1]}'])
def test_any_environment_file_is_survived(facts: Facts, tmp_path: Path, text: str) -> None:
    (tmp_path / "environment.json").write_text(text, encoding="utf-8")
    other = Facts(replace(facts.results, folder=tmp_path))
    other.__dict__["history"] = History()
    body = environment_section(other).body
    assert ("not installed" in body) == text.endswith("[1]}")
