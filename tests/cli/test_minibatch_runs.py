"""A search on minibatches, the whole way: check, plan, run, growing budget, report, doctor."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from search.cli import run_command
from search.config import load_config
from search.errors import SearchError
from search.report.facts import Facts
from search.report.wins import splits_of
from search.results import Results
from search.store import Store

SETTINGS = (
    "search.fidelity={minibatch: 8, redraw: 6}",
    "search.optimizer={name: cma, start: middle, popsize: 6}",
    "space={granularity: model, methods: [dare_ties]}",
)


def told(folder: Path) -> dict[int, dict[str, tuple[float, float]]]:
    return dict(Results.load(folder).scores["search"])


@pytest.mark.slow
def test_a_search_on_minibatches_goes_the_whole_way(
    tiny_project: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_project("llama", 20)
    options = [word for each in SETTINGS for word in ("--set", each)]
    assert run_command(["check", "config.yaml", *options]) == 0
    shown = capsys.readouterr().out
    assert "16 items a candidate, drawn anew for every 6 candidates" in " ".join(shown.split())
    assert run_command(["plan", "config.yaml", "--no-measure", *options]) == 0
    assert "minibatches of 8, 8" in " ".join(capsys.readouterr().out.split())
    run = ["run", "config.yaml", "--display", "none", *options]
    assert run_command(run) == 0
    # a finished run goes on with the items that an undisturbed one has
    longer = ["--set", "search.budget.candidates=28"]
    assert run_command([*run, *longer]) == 0
    assert run_command([*run, *longer, "--name", "calm"]) == 0
    assert told(Path("runs/tiny")) == told(Path("runs/calm"))

    results = Results.load(Path("runs/tiny"))
    labelled = {each.id for each in results.candidates if each.label}
    whole = len(results.started.items["a"]["search"])
    store = Store.open(results.folder, read_only=True)
    scored = {id: len(store.item_scores(id, "search")["a"]) for id in results.scores["search"]}
    for id in results.finalists:
        assert len(store.item_scores(id, "selection")["a"]) == len(results.started.items["a"]["selection"])
    store.close()
    assert whole > 8
    assert {id for id, count in scored.items() if count == whole} == labelled
    assert {count for id, count in scored.items() if id not in labelled} == {8}
    assert results.items == 2 * sum(scored.values())

    # an interval is of the items that were scored: wider on 8 of them than on all
    other = next(
        id for id in scored if id not in labelled and 0.0 < results.scores["search"][id]["a.accuracy"][0] < 1.0
    )
    found = results.interval(other, "search", "a.accuracy")
    assert found.high - found.low > 0.4
    assert splits_of(Facts(results)) == ("holdout", "selection")
    assert "8 items of each evaluator, drawn anew for every 6 candidates" in Path("runs/tiny/report.html").read_text()
    capsys.readouterr()
    assert run_command(["doctor", "runs/tiny"]) == 0
    capsys.readouterr()
    assert run_command(["status", "runs/tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"] == results.items


def test_minibatches_beside_rungs_are_refused_with_their_place(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "name: x\nmodels: {base: base, experts: {a: a}}\nevaluators: {a: {type: exact_match, data: a}}\n"
        "objectives: [a.accuracy]\nsearch:\n  budget: {candidates: 9}\n  fidelity: {minibatch: 8, rungs: [4]}\n"
    )
    with pytest.raises(SearchError, match=r"config\.yaml:7:\d+: search\.fidelity: rungs: these stop candidates"):
        load_config(config)
