"""``paretomerge power``: a config's items alone, and with a run whose baselines say how much merges differ."""

import json
import math

import numpy as np
import pytest

from evaluators.contract import Items, Metric
from search.cli import run_command
from search.cli.power import _measured, _sentences, _spread, _tests, facts
from search.config import LoadedConfig, load_config
from search.errors import SearchError
from search.statistics import detectable_difference
from search.store import Store

CONFIG = """
name: small
models: {base: nowhere/base, experts: {a: nowhere/a, b: nowhere/b}}
evaluators:
  a: {type: exact_match, data: data}
objectives: [a.accuracy]
search: {optimizer: random, budget: {candidates: 20}, finalists: 5, per_expert_share: 0.0}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for split, n in (("search", 250), ("selection", 30), ("holdout", 1000)):
        lines = [json.dumps({"prompt": f"{split} {k} =", "answer": str(k)}) for k in range(n)]
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(lines))
    (tmp_path / "small.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_numbers_come_from_the_items_and_no_model_is_needed(project, capsys):
    assert run_command(["power", "small.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["split"]: row for row in found["rows"]}
    assert {split: row["items"] for split, row in rows.items()} == {"search": 250, "selection": 30, "holdout": 1000}
    assert rows["search"]["half_width"] == pytest.approx(0.0615, abs=1e-3)
    for split, n in (("search", 250), ("holdout", 1000)):
        for discordance in (0.1, 0.2, 0.3):
            plain, adjusted = (rows[split][name][str(discordance)] for name in ("resolves", "resolves_adjusted"))
            assert plain == pytest.approx(detectable_difference(n, discordance=discordance))
            expected = detectable_difference(n, discordance=discordance, alpha=0.05 / found["tests"])
            assert adjusted is None if math.isnan(expected) else adjusted == pytest.approx(expected)
    assert rows["selection"]["resolves"]["0.1"] is None
    assert found["tests"] == found["finalists"] * found["objectives"] * found["baselines"]
    assert (found["finalists"], found["objectives"], found["run"]) == (5, 1, None)


def test_a_sentence_for_people(project, capsys):
    assert run_command(["power", "small.yaml", "--finalists", "2"]) == 0
    out = capsys.readouterr().out
    assert "a.accuracy, search: with 250 items, differences below 5.6 to 9.7 points cannot be told apart." in out
    assert (
        "selection: with 30 items, differences below 26.9 points cannot be told apart, and none at all where two" in out
    )


def test_more_finalists_cost_power(project, capsys):
    adjusted = []
    for count in ("1", "50"):
        assert run_command(["power", "small.yaml", "--finalists", count, "--json"]) == 0
        adjusted.append(json.loads(capsys.readouterr().out)["rows"][2]["resolves_adjusted"]["0.2"])
    assert adjusted[0] < adjusted[1]


def minibatch_rows(capsys, *overrides):
    assert run_command(["power", "small.yaml", "--json", *(f"--set={each}" for each in overrides)]) == 0
    return [row for row in json.loads(capsys.readouterr().out)["rows"] if "minibatch" in row]


def test_a_minibatch_resolves_what_its_items_do(project, capsys):
    (row,) = minibatch_rows(capsys, "search.fidelity={minibatch: 100, redraw: 32}")
    assert (row["split"], row["items"]) == ("search", 100)
    assert row["resolves"]["0.2"] == pytest.approx(detectable_difference(100, discordance=0.2))
    apart = row["minibatch"].pop("apart")
    assert row["minibatch"] == {"of": "", "size": 100, "redraw": 32, "out_of": 250}
    # two independent samples of 0/1 items, half of them right, by the textbook
    assert apart == pytest.approx((1.959964 + 0.841621) * math.sqrt(2 * 0.25 / 100), rel=1e-4)
    assert apart > row["resolves"]["0.3"]


def test_one_minibatch_for_the_run_is_shared_by_all(project, capsys):
    (row,) = minibatch_rows(capsys, "search.fidelity={minibatch: 100}")
    assert row["minibatch"]["apart"] is None
    assert minibatch_rows(capsys, "search.fidelity={minibatch: 250}") == []  # that is everything


def test_both_searches_of_a_hybrid_have_minibatches_of_their_own(project, capsys):
    first = "{name: new, space: {}, search: {budget: {candidates: 20}, fidelity: {minibatch: 50, redraw: 9}}}"
    rows = minibatch_rows(capsys, f"first={first}", "search.fidelity={minibatch: 100, redraw: 32}")
    assert [(row["minibatch"]["of"], row["items"]) for row in rows] == [("first", 50), ("", 100)]


def test_minibatches_in_words(project, capsys):
    given = ["--set", "search.fidelity={minibatch: 100, redraw: 32}"]
    assert run_command(["power", "small.yaml", *given]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "a.accuracy, minibatch for 32 candidates: with 100 items, differences below" in out
    assert "between candidates of two minibatches, below 19.8." in out
    assert "are decided among on all selection items" in out
    assert run_command(["power", "small.yaml"]) == 0
    assert "minibatch" not in capsys.readouterr().out


def test_a_run_that_is_not_there_is_one_paragraph(project, capsys):
    assert run_command(["power", "small.yaml", "--run", "runs/none"]) == 2
    assert "runs/none" in capsys.readouterr().err


class ItemsOnly:
    """What `power` asks of an evaluator."""

    def __init__(self, ids, metric):
        self.metrics = (metric,)
        self._ids = ids

    def items(self, split):
        ids = self._ids[split]
        return Items(ids, ("",) * len(ids), ids)


def loaded_from(results):
    return LoadedConfig(results.config, results.folder / "config.yaml", source=None)


def evaluators_of(results):
    return {
        name: ItemsOnly({split: tuple(ids) for split, ids in splits.items()}, Metric("accuracy", "maximize", 0, 1))
        for name, splits in results.started.items.items()
    }


@pytest.mark.slow
def test_a_run_says_how_much_its_baselines_differ(synthetic_run, tmp_path):
    results = synthetic_run(tmp_path / "run")
    evaluators = evaluators_of(results)
    measured = _measured(results.folder, loaded_from(results), evaluators)
    store = Store.open(results.folder, read_only=True)
    labelled = [each.id for each in results.candidates if each.label and each.state == "complete"]
    values = [store.item_scores(each, "search")["string"].values["accuracy"] for each in labelled]
    store.close()
    pairs = [float((one != two).mean()) for k, one in enumerate(values) for two in values[k + 1 :]]
    pairs = [each for each in pairs if each > 0]
    assert measured["string.accuracy"]["kind"] == "discordance"
    assert measured["string.accuracy"]["value"] == pytest.approx(np.median(pairs))
    assert measured["string.accuracy"]["pairs"] == len(pairs)

    tests = _tests(loaded_from(results), results.folder, None)
    assert tests["baselines"] == len(results.baselines)
    assert tests["finalists"] == len(results.finalists)
    found = {"run": str(results.folder), **facts(loaded_from(results), evaluators, measured, tests)}
    row = next(row for row in found["rows"] if row["metric"] == "string.accuracy" and row["split"] == "search")
    expected = detectable_difference(row["items"], discordance=measured["string.accuracy"]["value"])
    assert row["measured"]["resolves"] == pytest.approx(expected)
    assert f"differences below {100 * expected:.1f} points" in _sentences(found)[0]


def test_a_run_of_other_items_is_refused(synthetic_run, tmp_path):
    results = synthetic_run(tmp_path / "run")
    evaluators = evaluators_of(results)
    evaluators["string"] = ItemsOnly(dict.fromkeys(("search", "selection", "holdout"), ("x",)), None)
    with pytest.raises(SearchError, match="'string' are not those"):
        _measured(results.folder, loaded_from(results), evaluators)


def test_error_rates_have_a_spread_instead_of_a_discordance():
    """The median pair of three systems, by the variance of a ratio of sums; the standard error is sd / sqrt(n)."""
    generator = np.random.default_rng(1)
    words = np.tile(generator.integers(3, 15, 400).astype(float), (3, 1))
    rates = generator.poisson(0.2 * words) / words
    found = _spread(rates, words)
    assert found["kind"] == "sd"
    assert found["pairs"] == 3
    # var(errors_a − errors_b) = 2 · 0.2 · words, over the mean number of words
    assert found["value"] == pytest.approx(math.sqrt(2 * 0.2 * words[0].mean()) / words[0].mean(), rel=0.1)


def test_a_metric_without_bounds_needs_a_run_to_be_judged(project):
    config = load_config(project / "small.yaml")
    ids = dict.fromkeys(("search", "selection", "holdout"), tuple("abcdef"))
    evaluators = {"ppl": ItemsOnly(ids, Metric("bits", "minimize", 0, math.inf))}
    tests = {"finalists": 1, "objectives": 1, "baselines": 1, "tests": 1}
    found = facts(config, evaluators, {}, tests)
    assert found["rows"][0]["resolves"] is None
    assert "--run RUN measures" in _sentences(found)[0]
    spread = {"kind": "sd", "value": 0.4, "low": 0.4, "high": 0.4, "pairs": 1}
    found = facts(config, evaluators, {"ppl.bits": spread}, tests)
    assert found["rows"][0]["measured"]["resolves"] == pytest.approx(detectable_difference(6, sd=0.4))
    assert "differences below 0.457 cannot" in _sentences(found)[0]
