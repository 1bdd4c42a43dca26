"""Items won and lost: counts by hand, tests as adjusted as said, the items that differ, and what they ask."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import Page

from evaluators import registry
from evaluators.contract import ItemScores, Metric, Split
from search.config import load_config
from search.constraints import Constraint, Constraints
from search.report import item_texts, items
from search.report.facts import Facts
from search.report.item_texts import LONGEST, texts_of, words
from search.report.items import items_section
from search.report.wins import BEST_EXPERT, LISTED, duels_on, measures_of, splits_of
from search.results import Results
from search.statistics import holm, paired_scores
from search.store import Store

SyntheticRun = Callable[..., Results]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, synthetic_run: SyntheticRun) -> Results:
    metrics = [Metric("accuracy", "maximize", 0.0, 1.0), Metric("error", "minimize", 0.0, 1.0)]
    return synthetic_run(tmp_path_factory.mktemp("items") / "run", candidates=30, metrics=metrics)


@pytest.fixture
def facts(results: Results) -> Facts:
    return Facts(results)


@cache
def items_of(folder: Path, id: int, split: Split) -> dict[str, ItemScores]:
    store = Store.open(folder, read_only=True)
    try:
        return store.item_scores(id, split)
    finally:
        store.close()


def scores(results: Results, id: int, split: Split, name: str) -> np.ndarray[Any, Any]:
    evaluator, _, metric = name.partition(".")
    return np.array(items_of(results.folder, id, split)[evaluator].values[metric])


def test_counts_are_those_of_the_items(results: Results, facts: Facts) -> None:
    assert splits_of(facts) == ("holdout", "selection")
    for split in splits_of(facts):
        found = duels_on(facts, split)
        assert found.merges[0] == results.chosen and not found.left_out
        for duel in found.duels[facts.pick or 0]:
            mine = scores(results, duel.merge, split, duel.measure.name)
            if duel.other is None:
                experts = [each.id for each in facts.baselines if each.name.startswith("expert ")]
                best = max if duel.measure.larger else min
                rows = [scores(results, id, split, duel.measure.name) for id in experts]
                theirs = np.array([best(values) for values in zip(*rows, strict=True)])
            else:
                theirs = scores(results, duel.other, split, duel.measure.name)
            right = 1.0 if duel.measure.larger else 0.0
            assert duel.won == int(((mine == right) & (theirs != right)).sum())
            assert duel.lost == int(((mine != right) & (theirs == right)).sum())
            assert duel.both == int(((mine == right) & (theirs == right)).sum())
            assert duel.neither == int(((mine != right) & (theirs != right)).sum())
            assert duel.won + duel.lost + duel.same == len(mine) == duel.test.n
            assert duel.test.difference == pytest.approx(float(mine.mean() - theirs.mean()))


def test_everybody_is_compared_by_every_objective(results: Results, facts: Facts) -> None:
    found = duels_on(facts, "holdout").duels[facts.pick or 0]
    held = results.scores["holdout"]
    others = {each.name for each in facts.baselines if each.id in held and each.id != results.chosen} | {BEST_EXPERT}
    names = {each.name for each in results.objectives.targets}
    assert {(each.against, each.measure.name) for each in found} == {(a, b) for a in others for b in names}


def test_p_values_on_holdout_are_those_of_the_claims(results: Results, facts: Facts) -> None:
    assert results.claims is not None
    found = {(each.other, each.measure.name): each for each in duels_on(facts, "holdout").duels[facts.pick or 0]}
    for comparison in results.claims.comparisons:
        for name, p in comparison.p.items():
            duel = found[comparison.baseline.candidate, name]
            assert duel.p == p
            assert duel.test.difference == pytest.approx(comparison.objectives[name].difference)


def test_p_values_on_selection_are_adjusted_over_all_that_is_shown(results: Results, facts: Facts) -> None:
    found = duels_on(facts, "selection")
    raw, shown = [], []
    for merge, own in found.duels.items():
        for duel in own:
            if duel.other is None:
                assert np.isnan(duel.p)  # an oracle is tested by nobody
                continue
            evaluator, _, metric = duel.measure.name.partition(".")
            one, two = (items_of(results.folder, id, "selection")[evaluator] for id in (merge, duel.other))
            raw.append(paired_scores(one, two, metric, bounds=(0.0, 1.0)).p)
            shown.append(duel.p)
    assert len(raw) > 20 and shown == pytest.approx(holm(raw).tolist())


def test_the_listed_items_are_won_and_lost_the_rarest_first(results: Results, facts: Facts) -> None:
    found = duels_on(facts, "selection")
    ids = results.started.items
    parents = [each.id for each in facts.baselines if each.id in results.scores["selection"]]
    for duel in found.duels[facts.pick or 0]:
        order = ids[duel.measure.evaluator]["selection"]
        everybody = np.mean([scores(results, id, "selection", duel.measure.name) for id in parents], axis=0)
        assert len(duel.best) == min(LISTED, duel.won) and len(duel.worst) == min(LISTED, duel.lost)
        for each in (*duel.best, *duel.worst):
            assert each.merge == scores(results, duel.merge, "selection", duel.measure.name)[order.index(each.id)]
        assert all((each.merge > each.other) == duel.measure.larger for each in duel.best)
        assert all((each.merge < each.other) == duel.measure.larger for each in duel.worst)
        if duel.measure.larger and facts.pick not in parents:
            solved = [everybody[order.index(each.id)] for each in duel.best]
            assert solved == sorted(solved)


def test_a_constraint_that_is_no_objective_is_compared_too(results: Results) -> None:
    limit = Constraint("language.error", "at_most", 0.5, 0.9, 0.0, 1.0)
    started = replace(results.started, constraints=Constraints([limit]).as_data())
    one = replace(started, objectives=started.objectives[:1])
    found = measures_of(Facts(replace(results, started=one)))
    assert [(each.name, each.larger, each.why) for each in found] == [
        ("string.accuracy", True, "objective"),
        ("language.error", False, "constraint"),
    ]
    assert [each.why for each in measures_of(Facts(replace(results, started=started)))] == ["objective"] * 2


def test_a_candidate_without_an_evaluators_items_is_left_out_there(
    facts: Facts, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = next(each.id for each in facts.baselines if each.name == "base")
    read = Store.item_scores

    def without(self: Store, id: int, split: Split) -> dict[str, ItemScores]:
        found = read(self, id, split)
        return {name: each for name, each in found.items() if id != base or name != "language"}

    monkeypatch.setattr(Store, "item_scores", without)
    found = duels_on(facts, "selection").duels[facts.pick or 0]
    assert {each.measure.name for each in found if each.against == "base"} == {"string.accuracy"}


def test_items_without_weight_in_a_metric_are_no_wins(
    facts: Facts, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = next(each.id for each in facts.baselines if each.name == "base")
    mine, theirs = (scores(results, id, "selection", "string.accuracy")[1::2] for id in (facts.pick or 0, base))
    read = Store.item_scores

    def half(self: Store, id: int, split: Split) -> dict[str, ItemScores]:
        found = read(self, id, split)
        weights = {"accuracy": np.array([k % 2 for k in range(len(found["string"]))], dtype=np.float64)}
        return {**found, "string": replace(found["string"], weights=weights)}

    monkeypatch.setattr(Store, "item_scores", half)
    duels = {(each.against, each.measure.name): each for each in duels_on(facts, "selection").duels[facts.pick or 0]}
    duel = duels["base", "string.accuracy"]
    assert duel.test.n == len(mine) == duel.won + duel.lost + duel.same
    assert (duel.won, duel.lost) == (int((mine > theirs).sum()), int((mine < theirs).sum()))
    assert duel.test.difference == pytest.approx(float(mine.mean() - theirs.mean()))


def test_effort_is_bounded_and_the_pick_is_always_there(results: Results, facts: Facts) -> None:
    found = duels_on(facts, "selection", effort=1)
    assert found.merges == (results.chosen,) and found.left_out > 0


def test_before_the_finals_the_knee_is_compared_on_search_items(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    run = synthetic_run(tmp_path / "run", finished=False, search={"fidelity": {"rungs": [30, 120]}})
    facts = Facts(run)
    assert splits_of(facts) == ("search",)
    section = items_section(facts)
    assert section is not None and "picked by their search scores" in section.body
    assert facts.pick in section.data["items"]["splits"][0]["merges"]


def test_the_page_has_what_was_found(results: Results, facts: Facts) -> None:
    section = items_section(facts)
    assert section is not None
    rows = Page(section.body).tables["Items won and lost against each parent and baseline"]
    duels = duels_on(facts, "holdout").duels[facts.pick or 0]
    assert [(row[0], row[1], row[2], row[3]) for row in rows[1:]] == [
        (each.against, each.measure.name, str(each.won), str(each.lost)) for each in duels
    ]
    data = section.data["items"]
    assert [each["name"] for each in data["splits"]] == ["holdout", "selection"]
    first = data["splits"][0]["duels"][str(results.chosen)][0]
    assert [data["items"][index][0] for index, _, _ in first[9]] == [each.id for each in duels[0].best]
    assert "Items are named by their ids alone for string (" in section.body


def test_texts_have_bounded_room(facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    long = item_texts.Said("stratum", "x" * LONGEST)
    monkeypatch.setattr(items, "texts_of", lambda results, name: (dict.fromkeys(_every(results), long), ""))
    monkeypatch.setattr(items, "ROOM", 2000)
    section = items_section(facts)
    assert section is not None
    shown = [each for each in section.data["items"]["items"] if each[2]]
    assert 0 < len(shown) <= 2000 // LONGEST + 1


def _every(results: Results) -> list[str]:
    return [id for splits in results.started.items.values() for ids in splits.values() for id in ids]


# -- what items ask ---------------------------------------------------------------------------------------------------


@pytest.fixture
def with_data(tmp_path: Path, results: Results) -> Results:
    """The same run, as if it had been started on a folder of questions."""
    for split in ("search", "selection", "holdout"):
        lines = [{"id": f"{split}-{k}", "prompt": f"{split} {k} +\n {k}", "answer": str(2 * k)} for k in range(4)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "base").mkdir()
    text = (
        "name: x\nmodels: {base: base, experts: {a: base, b: base}}\n"
        f"evaluators: {{sums: {{type: exact_match, data: {tmp_path}}}}}\nobjectives: [sums.accuracy]\n"
        "search: {budget: {candidates: 9}}\n"
    )
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    loaded = load_config(tmp_path / "config.yaml")
    fingerprint = registry.build("exact_match", {"data": tmp_path}).fingerprint
    started = replace(results.started, evaluators={"sums": fingerprint}, folder=str(tmp_path))
    return replace(results, folder=tmp_path, config=loaded.config, started=started)


def test_items_are_read_again_where_they_are_the_same(with_data: Results) -> None:
    found, reason = texts_of(with_data, "sums")
    assert not reason and len(found) == 12
    assert found["holdout-3"].text == "holdout 3 + 3 · 6"


def test_changed_data_are_not_shown(with_data: Results) -> None:
    path = with_data.folder / "holdout.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("holdout 3", "holdout three"), encoding="utf-8")
    assert texts_of(with_data, "sums") == ({}, "data or evaluator have changed since the run was started")


def test_data_that_are_gone_are_said_to_be(with_data: Results) -> None:
    (with_data.folder / "holdout.jsonl").unlink()
    found, reason = texts_of(with_data, "sums")
    assert found == {} and "no longer where the run found them" in reason


def test_large_data_are_left_alone(with_data: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_texts, "LARGEST", 10)
    assert "too large" in texts_of(with_data, "sums")[1]


def test_nobodys_code_is_run_and_no_network_is_asked(with_data: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **kwargs: object) -> None:
        raise AssertionError("a report built it")

    monkeypatch.setattr(registry, "build", refused)
    for options in (
        {"type": "python", "data": "x"},
        {"type": "evil.py:Evaluator", "data": "x"},
        {"type": "lm_eval", "tasks": ["x"]},
        {"type": "refusal", "data": str(with_data.folder), "judge": {"model": "x"}},
        {"type": "refusal", "data": str(with_data.folder), "fluency": {"reference": "x"}},
        {"type": "exact_match", "data": {"dataset": "someone/something"}},
    ):
        config = with_data.config.model_copy(update={"evaluators": {"sums": options}})
        found, reason = texts_of(replace(with_data, config=config), "sums")
        assert found == {} and reason


def test_words_of_an_item_are_cut_and_on_one_line() -> None:
    assert words(("a\n b", {"k": "c"}, 3, None, "a b")) == "a b · c"
    assert len(words("x" * 1000)) == LONGEST and words("x" * 1000).endswith("…")
    assert words(b"bytes") == "" and words(7) == ""


def test_hostile_items_stay_text(facts: Facts, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = item_texts.Said("<b>", "</script><script>alert(1)</script>")
    monkeypatch.setattr(items, "texts_of", lambda results, name: (dict.fromkeys(_every(results), evil), ""))
    section = items_section(facts)
    assert section is not None and "<script" not in section.body and "&lt;script&gt;" in section.body
