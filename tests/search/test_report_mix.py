"""What the mix chooser chooses by: the very numbers of the rule. That the page's script comes to the same candidates is
a test of the browser's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_pages import page_with, shared_run

from evaluators.contract import Metric
from search.choice import Wish, bound_on, choose, eligible, metric_name
from search.constraints import Constraint
from search.report.facts import Facts
from search.report.mix import CONFIDENCES, mix_section
from search.results import Results
from search.store import Store

SyntheticRun = Callable[..., Results]
METRICS = [Metric("accuracy", "maximize", 0.0, 1.0), Metric("error", "minimize", 0.0, 1.0)]


def mix_of(results: Results) -> dict[str, Any]:
    section = mix_section(Facts(results))
    assert section is not None
    return dict(section.data["mix"])


def test_the_numbers_are_those_of_the_rule_to_the_last_bit(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = shared_run(synthetic_run, tmp_path, metrics=METRICS)
    mix = page_with(results, mix_section).data["mix"]  # through JSON
    scores = results.scores["selection"]
    assert mix["ids"] == sorted(eligible(results)) and len(mix["ids"]) > 3
    assert mix["retention"] == [list(results.judge.retention(scores, id)) for id in mix["ids"]]
    assert mix["utility"] == results.judge.utilities(scores, mix["ids"]).tolist()
    assert mix["chosen"] == choose(results, Wish())
    assert mix["opened"] == [id for id in mix["ids"] if id in results.scores["holdout"]]


def test_bounds_are_the_confidence_bounds_of_the_items(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = shared_run(synthetic_run, tmp_path, metrics=METRICS)
    mix = mix_of(results)
    assert [each["side"] for each in mix["metrics"]] == ["at_least", "at_most"]
    store = Store.open(results.folder, read_only=True)
    items = {id: store.item_scores(id, "selection") for id in mix["ids"]}
    store.close()
    for metric in mix["metrics"]:
        assert metric["bounds"].keys() == set(CONFIDENCES)
        for place, id in enumerate(mix["ids"]):
            value = results.scores["selection"][id][metric["name"]][0]
            for confidence in CONFIDENCES:
                found = metric["bounds"][confidence][place]
                limit = 0.5
                constraint = bound_on(results, metric["name"], limit, float(confidence))
                kept = found >= limit if metric["side"] == "at_least" else found <= limit
                assert kept == (constraint.violation(items[id]) <= 0.0)
            plain, likely, sure = (metric["bounds"][each][place] for each in CONFIDENCES)
            assert plain == pytest.approx(value)
            further = [plain, likely, sure] if metric["side"] == "at_most" else [sure, likely, plain]
            assert further == sorted(further)


def test_words_are_what_a_command_understands(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = shared_run(synthetic_run, tmp_path, metrics=METRICS)
    mix = mix_of(results)
    assert mix["objectives"] == ["string", "language"]
    assert [metric_name(results, each["word"]) for each in mix["metrics"]] == [each["name"] for each in mix["metrics"]]


def test_only_finalists_that_keep_the_constraints(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    limits = [Constraint("language.accuracy", "at_least", 0.6, 0.5, 0.0, 1.0)]
    results = synthetic_run(tmp_path / "run", limits=limits)
    broken = [id for id in results.finalists if results.judge.violation(id, "selection") > 0.0]
    mix = mix_of(results)
    assert sorted([*mix["ids"], *broken]) == sorted(results.finalists)
    none = dict.fromkeys(results.finalists, (1.0,))
    closed = replace(results, violations={**results.violations, "selection": none})
    section = mix_section(Facts(closed))
    assert section is not None and "No finalist keeps the constraints" in section.body and not section.data


def test_before_the_finals_it_says_why_there_is_none(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    section = mix_section(Facts(shared_run(synthetic_run, tmp_path, finished=False, candidates=24)))
    assert section is not None and "no selection scores" in section.body
    assert not section.data and not section.scripts


def test_one_objective_has_bounds_and_no_sliders(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    page = page_with(shared_run(synthetic_run, tmp_path, objectives=1, candidates=24), mix_section)
    kinds = [each.get("type") for tag, each in page.elements if tag == "input"]
    assert "range" not in kinds and "number" in kinds
    assert "With one objective there is nothing to mix" in page.text


def test_a_bound_that_cannot_be_judged_is_kept_by_none(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = shared_run(synthetic_run, tmp_path, metrics=METRICS)
    mix = mix_of(results)
    assert not any(math.isnan(each) for metric in mix["metrics"] for row in metric["bounds"].values() for each in row)
    assert json.loads(json.dumps(mix)) == mix
