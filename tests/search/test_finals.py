"""Finalists, choice and holdout: who is named, on which scores, and what is opened when."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from search import pareto
from search.events import Chosen, Event, FinalistsNamed, Finished, Opened, Scored
from search.report.console import print_results
from search.report.displays import JsonDisplay, PlainDisplay, RichDisplay
from search.results import Results
from search.store import Store

SyntheticRun = Callable[..., Results]


def log(results: Results) -> list[Event]:
    store = Store.open(results.folder, read_only=True)
    events = list(store.events())
    store.close()
    return events


def test_finalists_are_the_search_front_and_the_choice_is_the_selection_knee(
    synthetic_run: SyntheticRun, tmp_path: Path
) -> None:
    results = synthetic_run(tmp_path / "run", candidates=60)
    search = results.scores["search"]
    complete = [each.id for each in results.candidates if each.state == "complete"]
    points = results.judge.utilities(search, complete)
    front = {id for id, keep in zip(complete, pareto.nondominated(points), strict=True) if keep}
    assert set(results.finalists) <= front
    assert len(results.finalists) == min(8, len(front))
    selection = results.scores["selection"]
    kept = {id: min(results.judge.retention(selection, id)) for id in results.front}
    # the augmentation is small: the chosen one's smallest retention is the largest, or next to it
    assert results.chosen is not None
    assert kept[results.chosen] >= max(kept.values()) - 0.1
    for id in results.finalists:
        dominated = [
            other
            for other in results.finalists
            if np.all(results.judge.utilities(selection, [other]) >= results.judge.utilities(selection, [id]))
            and np.any(results.judge.utilities(selection, [other]) > results.judge.utilities(selection, [id]))
        ]
        assert (id in results.front) == (not dominated)


def test_the_holdout_is_opened_after_the_choice_for_the_chosen_and_the_baselines_only(
    synthetic_run: SyntheticRun, tmp_path: Path
) -> None:
    results = synthetic_run(tmp_path / "run")
    events = log(results)
    kinds = [type(each) for each in events]
    chosen, opened = kinds.index(Chosen), kinds.index(Opened)
    on_holdout = [index for index, each in enumerate(events) if isinstance(each, Scored) and each.split == "holdout"]
    assert kinds.index(FinalistsNamed) < chosen < opened < min(on_holdout) < kinds.index(Finished)
    allowed = {results.chosen, *(each.candidate for each in results.baselines)}
    assert set(results.scores["holdout"]) == allowed
    assert results.openings == 1


def test_baselines_have_their_names_and_the_best_of_their_kind(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    results = synthetic_run(tmp_path / "run", candidates=60)
    labels = [each.label for each in results.baselines]
    assert labels[:4] == ["base", "expert string", "expert language", "average"]
    assert labels[4:6] == ["ties λ=1", "dare_ties λ=1"]
    assert labels[6].startswith("best single λ (")
    assert labels[7:] == ["best per-expert"]
    per_expert = results.candidate(results.baselines[7].candidate)
    assert results.stages[per_expert.stage].name in ("baselines", "per-expert")


def test_an_unfinished_run_has_a_search_front_and_no_choice(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    results = synthetic_run(tmp_path / "run", finished=False)
    status = results.status(candidates=True)
    assert (status["state"], status["chosen"], results.split) == ("interrupted", None, "search")
    assert results.knee() in results.front
    assert len(status["candidates"]["list"]) == 20
    assert all(not each["selection"] for each in status["front"])


def test_recipes_are_rebuilt_and_checked_against_their_hash(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    results = synthetic_run(tmp_path / "run")
    for each in results.candidates:
        assert results.recipe(each.id).hash == each.recipe_hash
    store = Store.open(results.folder)
    store._connection.execute("UPDATE candidates SET recipe_hash = 'another' WHERE id = 7")
    store.close()
    from search.errors import SearchError

    with pytest.raises(SearchError, match="candidate 7 was scored as recipe another"):
        Results.load(results.folder).recipe(7)


def test_plain_and_json_displays_say_every_candidate(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    results = synthetic_run(tmp_path / "run", failures=lambda id: "not a number" if id == 13 else None)
    plain, machine = io.StringIO(), io.StringIO()
    displays = PlainDisplay(plain, 40), JsonDisplay(machine)
    for event in log(results):
        for display in displays:
            display.on(event)
    lines = plain.getvalue().splitlines()
    for id in range(40):
        assert sum(line.startswith(f"[{id + 1}/40] candidate {id}") for line in lines) == 1
    assert "[14/40] candidate 13: failed: not a number" in lines
    assert any(line.startswith(f"chosen: candidate {results.chosen}") for line in lines)
    records = [json.loads(line) for line in machine.getvalue().splitlines()]
    assert [each["event"] for each in records] == [each.kind for each in log(results)]


@pytest.mark.parametrize("width", [80, 200])
def test_the_terminal_tables_fit_and_hold_the_front(synthetic_run: SyntheticRun, tmp_path: Path, width: int) -> None:
    results = synthetic_run(tmp_path / "run")
    out = io.StringIO()
    print_results(results, Console(file=out, width=width))
    text = out.getvalue()
    assert all(len(line) <= width for line in text.splitlines())
    front_part, holdout_part = text.split("Holdout", 1)
    for id in results.front:
        assert any(line.split()[:1] == [str(id)] for line in front_part.splitlines())
    assert "chosen" in holdout_part and "best single" in holdout_part


def test_the_bar_survives_a_whole_run_on_a_terminal(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    results = synthetic_run(tmp_path / "run", failures=lambda id: "not a number" if id == 13 else None)
    out = io.StringIO()
    display = RichDisplay(Console(file=out, force_terminal=True, width=80), 40)
    for event in log(results):
        display.on(event)
    display.close()
    assert "candidate 13 failed: not a number" in out.getvalue()


def test_a_baseline_may_be_chosen_where_candidates_are_scored_on_minibatches(
    synthetic_run: SyntheticRun, tmp_path: Path
) -> None:
    few = {"finalists": 2, "fidelity": {"minibatch": 8, "redraw": 4}}
    results = synthetic_run(tmp_path / "run", candidates=40, search=few)
    baselines = {each.candidate for each in results.baselines}
    assert baselines <= set(results.finalists)
    selection = results.scores["selection"]
    front = results.judge.front(selection, results.finalists, "selection")
    assert results.chosen == results.judge.knee(selection, front)
    assert len(set(results.finalists) - baselines) <= 2


def test_finalists_of_minibatches_are_named_by_levelled_scores(
    synthetic_run: SyntheticRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: list[int] = []

    def last_is_best(
        store: Store, evaluators: object, objectives: object, baselines: list[int], scores: Mapping[int, Any]
    ) -> dict[int, Any]:
        whole.extend(baselines)
        best = max(scores)
        return {id: dict.fromkeys(each, (1.0, 0.01)) if id == best else dict(each) for id, each in scores.items()}

    monkeypatch.setattr("search.finals.levelled", last_is_best)
    few = {"finalists": 1, "fidelity": {"minibatch": 8, "redraw": 4}}
    results = synthetic_run(tmp_path / "run", candidates=40, search=few)
    labelled = {each.id for each in results.candidates if each.label}
    assert set(whole) == labelled
    assert set(results.finalists) - {each.candidate for each in results.baselines} == {max(results.scores["search"])}
