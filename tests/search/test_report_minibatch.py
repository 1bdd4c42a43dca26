"""Reports of searches that score every candidate on some of the items: like is compared with like, and it is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from report_pages import page_of

from search.report.facts import Facts
from search.report.wins import duels_on
from search.results import Results
from search.store import Store

SyntheticRun = Callable[..., Results]
SIZE = 40
SAID = f"Search scores of candidates are of {SIZE} items of each evaluator, drawn anew for every 6 candidates"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, synthetic_run: SyntheticRun) -> Results:
    folder = tmp_path_factory.mktemp("minibatches") / "run"
    search = {"fidelity": {"minibatch": SIZE, "redraw": 6}}
    return synthetic_run(folder, candidates=60, finished=False, search=search)


def test_a_comparison_is_on_the_items_of_the_candidate(results: Results) -> None:
    facts = Facts(results)
    found = duels_on(facts, "search")
    baselines = {each.candidate: each.label for each in results.baselines}
    store = Store.open(results.folder, read_only=True)
    items = {id: store.item_scores(id, "search") for id in {*found.duels, *baselines}}
    store.close()
    assert len({items[id]["string"].ids for id in found.duels if not results.candidate(id).label}) > 1
    compared = 0
    for merge, duels in found.duels.items():
        for duel in duels:
            own = items[merge][duel.measure.evaluator]
            assert duel.won + duel.lost + duel.same == len(own.ids)  # nobody costs the others items
            if duel.other is None:
                continue
            other = items[duel.other][duel.measure.evaluator]
            place = {id: row for row, id in enumerate(other.ids)}
            theirs = other.values["accuracy"][[place[id] for id in own.ids]]
            assert duel.won == int(np.sum(own.values["accuracy"] > theirs))
            assert duel.test.difference == pytest.approx(float(np.mean(own.values["accuracy"] - theirs)))
            compared += len(own.ids) == SIZE
    assert compared > 20


def test_who_has_other_items_is_not_compared(results: Results) -> None:
    """The best with one coefficient per expert was found by the search: it has a minibatch of its own."""
    best = next(each.candidate for each in results.baselines if each.label == "best per-expert")
    found = duels_on(Facts(results), "search")
    against = {merge for merge, duels in found.duels.items() if any(each.other == best for each in duels)}
    assert not results.candidate(best).label and len(found.duels) - 1 > len(against)
    store = Store.open(results.folder, read_only=True)
    ids = {id: store.item_scores(id, "search")["string"].ids for id in {*found.duels, best}}
    store.close()
    assert against == {merge for merge in found.duels if merge != best and ids[merge] == ids[best]}


def test_the_page_says_what_the_scores_are_of(results: Results) -> None:
    page = page_of(results)
    assert page.text.count(SAID) >= 3  # the front, its table, the convergence
    assert f"Each candidate was scored on {SIZE} of the search items, baselines on all of them" in page.text


def test_a_finished_search_says_it_beside_its_optimism(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    search = {"fidelity": {"minibatch": SIZE, "redraw": "never"}, "finalists": 4}
    page = page_of(synthetic_run(tmp_path / "run", candidates=20, search=search))
    said = f"Search scores of candidates are of {SIZE} items of each evaluator; those of baselines are of all items."
    assert page.text.count(said) >= 4
    assert "baselines on all of them" not in page.text  # items are compared on selection and holdout, which all share
