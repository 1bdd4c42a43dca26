"""Claims: what is said of a winner holds, and of what is no winner nothing is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.contract import SPLITS, ItemScores, Split
from search import pareto
from search.claims import ALPHA, Claims
from search.objectives import standard_errors
from search.report.claim import claim_data, claim_sentences
from search.results import Results
from search.statistics import interval, interval_of_score, wilson
from search.store import CONTROL, Store

SyntheticRun = Callable[..., Results]


def number(results: Results, scores: Any, id: int) -> float:
    """What the choice was made by: minus the augmented Tchebycheff distance of the retentions."""
    retention = results.judge.retention(scores, id)
    k = len(retention)
    return -float(pareto.tchebycheff([retention], [1.0] * k, [0.0] * k)[0])


# -- a real winner ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept() -> dict[str, Results]:
    return {}


@pytest.fixture
def run(synthetic_run: SyntheticRun, tmp_path_factory: pytest.TempPathFactory, kept: dict[str, Results]) -> Results:
    if not kept:
        kept["run"] = synthetic_run(tmp_path_factory.mktemp("claims") / "run", candidates=80)
    return kept["run"]


def test_every_difference_is_that_of_the_stored_scores(run: Results) -> None:
    claims = run.claims
    assert claims is not None and len(claims.comparisons) >= 6
    holdout = run.scores["holdout"]
    for each in claims.comparisons:
        mine, theirs = (number(run, holdout, id) for id in (claims.chosen, each.baseline.candidate))
        assert each.scalar.difference == pytest.approx(mine - theirs, abs=1e-9)
        assert each.scalar.low <= each.scalar.difference <= each.scalar.high
        assert each.p_scalar >= each.scalar.p_greater
        for name, pair in each.objectives.items():
            one, other = holdout[claims.chosen][name][0], holdout[each.baseline.candidate][name][0]
            assert pair.difference == pytest.approx(one - other, abs=1e-12)
            assert pair.n == 240 and each.p[name] >= pair.p
        assert each.beaten == (each.scalar.difference > 0 and each.p_scalar <= ALPHA)
    labels = [each.baseline.label for each in claims.comparisons]
    assert len(labels) == len(set(labels)) and "base" in labels


def test_the_best_baseline_is_named_by_selection_scores(run: Results) -> None:
    claims = run.claims
    assert claims is not None and claims.best is not None
    selection = run.scores["selection"]
    rows = {each.baseline.candidate: number(run, selection, each.baseline.candidate) for each in claims.comparisons}
    assert rows[claims.best.baseline.candidate] == pytest.approx(max(rows.values()))


def test_a_planted_win_is_claimed_and_said(run: Results) -> None:
    """The planted merge keeps most of both skills; base and single experts keep nothing of one of them."""
    claims = run.claims
    assert claims is not None
    base = next(each for each in claims.comparisons if each.baseline.label == "base")
    assert base.beaten and base.p_scalar < 0.01
    data = claim_data(run)
    assert data is not None and claims.best is not None
    assert data["beats_best_baseline"] == claims.best.beaten
    text = " ".join(claim_sentences(run))
    assert ("does not beat it" in text) != claims.best.beaten
    assert claims.best.baseline.label in text and "Optimism" in text


def test_optimism_is_search_minus_holdout_with_its_interval(run: Results) -> None:
    claims = run.claims
    assert claims is not None
    for name, each in claims.optimism.items():
        search, holdout = run.scores["search"][claims.chosen][name][0], run.scores["holdout"][claims.chosen][name][0]
        assert each.value == pytest.approx(search - holdout)
        assert each.low < each.value < each.high


def test_the_indistinguishable_are_finalists_and_the_chosen_is_one(run: Results) -> None:
    claims = run.claims
    assert claims is not None
    found = claims.indistinguishable
    assert claims.chosen in found and set(found) <= set(run.finalists) and found == sorted(found)
    selection = run.scores["selection"]
    nearest = sorted(run.finalists, key=lambda id: -number(run, selection, id))
    # who is left out is worse than the nearest one that is in
    assert all(number(run, selection, id) <= number(run, selection, nearest[0]) for id in run.finalists)
    assert set(nearest[:2]) <= set(found)


@pytest.mark.slow
def test_a_control_is_one_more_baseline_once_it_has_a_choice(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    results = synthetic_run(tmp_path / "run", candidates=40)
    control = synthetic_run(results.folder / CONTROL, candidates=40, search={"optimizer": "random"}, finished=False)
    assert control.chosen is None
    before = Results.load(results.folder).claims
    assert before is not None and all(each.candidate >= 0 for each in before.baselines)
    for path in (results.folder / CONTROL).iterdir():
        path.unlink()
    control = synthetic_run(results.folder / CONTROL, candidates=40, search={"optimizer": "random"})
    claims = Results.load(results.folder).claims
    assert claims is not None
    last = claims.comparisons[-1]
    assert (last.baseline.candidate, last.baseline.label) == (-1, "random search, equal budget")
    assert control.chosen is not None
    mine = {name: value for name, (value, _) in results.scores["holdout"][claims.chosen].items()}
    theirs = {name: value for name, (value, _) in control.scores["holdout"][control.chosen].items()}
    for name, pair in last.objectives.items():
        assert pair.difference == pytest.approx(mine[name] - theirs[name])


# -- nothing to win ---------------------------------------------------------------------------------------------------


def shuffled(salt: int) -> Callable[..., ItemScores]:
    """Right or wrong by chance, whatever the recipe: labels that have nothing to do with the inputs."""

    def score(self: Any, skill: float, split: Split, recipe_hash: str, some: Any = None) -> ItemScores:
        ids = self.ids[split]
        chance = np.random.default_rng([salt, SPLITS.index(split), *self.name.encode(), int(recipe_hash[:12], 16)])
        values = (chance.random(len(ids)) < 0.4).astype(np.float64)
        if some is not None:
            values, ids = values[[ids.index(each) for each in some]], tuple(some)
        return ItemScores(ids, {self.metric.name: values}, {self.metric.name: np.ones(len(ids))}, ("ok",) * len(ids))

    return score


def near_copies(salt: int) -> Callable[..., ItemScores]:
    """Every recipe answers like every other one, but for one item in ten."""

    def score(self: Any, skill: float, split: Split, recipe_hash: str, some: Any = None) -> ItemScores:
        ids = self.ids[split]
        common = np.random.default_rng([salt, SPLITS.index(split), *self.name.encode()]).random(len(ids)) < 0.6
        own = np.random.default_rng([salt, SPLITS.index(split), *self.name.encode(), int(recipe_hash[:12], 16)])
        values = np.where(own.random(len(ids)) < 0.1, own.random(len(ids)) < 0.6, common).astype(np.float64)
        return ItemScores(ids, {self.metric.name: values}, {self.metric.name: np.ones(len(ids))}, ("ok",) * len(ids))

    return score


def wins(
    synthetic_run: SyntheticRun, folder: Path, monkeypatch: pytest.MonkeyPatch, score: Callable[[int], Any], runs: int
) -> int:
    """How many of so many searches claim to beat their best baseline."""
    claimed = 0
    for salt in range(runs):
        with monkeypatch.context() as patched:
            skill = synthetic_run.__globals__["PlantedSkill"]  # type: ignore[attr-defined]
            patched.setattr(skill, "score", score(salt))
            settings = {"optimizer": "random", "seed": salt}
            results = synthetic_run(folder / str(salt), candidates=26, search=settings)
        assert results.claims is not None and results.claims.best is not None
        claimed += results.claims.best.beaten
    return claimed


@pytest.mark.slow
def test_of_a_constant_score_no_win_is_claimed(
    synthetic_run: SyntheticRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def constant(salt: int) -> Callable[..., ItemScores]:
        def score(self: Any, skill: float, split: Split, recipe_hash: str, some: Any = None) -> ItemScores:
            ids = self.ids[split]
            ones = np.ones(len(ids))
            return ItemScores(ids, {self.metric.name: 0.25 * salt * ones}, {self.metric.name: ones}, ("ok",) * len(ids))

        return score

    assert wins(synthetic_run, tmp_path, monkeypatch, constant, 5) == 0
    results = Results.load(tmp_path / "1")
    claims = results.claims
    assert claims is not None
    for each in claims.comparisons:
        assert (each.scalar.difference, each.p_scalar) == (0.0, 1.0) or not each.beaten
        assert set(each.p.values()) == {1.0}
    assert claims.indistinguishable == list(results.finalists)
    assert "they are equal" in claim_sentences(results)[0]


@pytest.mark.slow
def test_of_shuffled_labels_no_win_is_claimed(
    synthetic_run: SyntheticRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wins(synthetic_run, tmp_path, monkeypatch, shuffled, 6) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("score", [shuffled, near_copies])
def test_over_forty_searches_wins_are_claimed_no_oftener_than_five_in_a_hundred(
    synthetic_run: SyntheticRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score: Any
) -> None:
    assert wins(synthetic_run, tmp_path, monkeypatch, score, 40) <= 5  # 5 % of 40 and two standard errors


# -- intervals --------------------------------------------------------------------------------------------------------


def test_clustered_claims_are_less_certain(run: Results) -> None:
    """Items of one text go together: the same scores, wider intervals, larger p."""
    assert run.claims is not None
    store = Store.open(run.folder, read_only=True)
    scores = store.item_scores(run.claims.chosen, "holdout")
    store.close()
    clusters = {}
    for name, each in scores.items():
        order = np.argsort(each.values["accuracy"], kind="stable")  # texts that are all right, or all wrong
        clusters[name] = {each.ids[index]: f"text {place // 8}" for place, index in enumerate(order)}
    together = Claims(replace(run, started=replace(run.started, clusters=clusters)))
    for target in run.objectives.targets:
        one, two = (each.interval(run.claims.chosen, "holdout", target) for each in (run.claims, together))
        assert two.value == pytest.approx(one.value)
        assert two.high - two.low > 2.0 * (one.high - one.low)
    # claims that were true of items need not be of texts: none is surer, and the best one is less sure
    for one, two in zip(run.claims.comparisons, together.comparisons, strict=True):
        assert two.scalar.difference == pytest.approx(one.scalar.difference, abs=1e-9)
    widths = [
        sum(each.scalar.high - each.scalar.low for each in claims.comparisons) for claims in (run.claims, together)
    ]
    assert widths[1] > 1.2 * widths[0]


def test_errors_of_clusters_of_one_are_those_of_items_and_of_copies_are_wider() -> None:
    chance = np.random.default_rng(0)
    values = (chance.random(50) < 0.7).astype(float)

    def scores(given: np.ndarray[Any, Any]) -> ItemScores:
        ids = tuple(str(k) for k in range(len(given)))
        return ItemScores(ids, {"m": given}, {"m": np.ones(len(given))}, ("ok",) * len(given))

    alone = standard_errors("e", scores(values))["e.m"]
    assert alone == pytest.approx(values.std(ddof=1) / np.sqrt(50))
    single = {str(k): f"c{k}" for k in range(50)}
    assert standard_errors("e", scores(values), single)["e.m"] == pytest.approx(alone)
    # every item four times says as much as once, and clusters know it
    copied = np.repeat(values, 4)
    clusters = {str(k): f"c{k // 4}" for k in range(200)}
    assert standard_errors("e", scores(copied), clusters)["e.m"] == pytest.approx(alone)
    assert standard_errors("e", scores(copied))["e.m"] < 0.55 * alone


@given(st.integers(2, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([1.0, 5.0]))
def test_the_interval_of_a_stored_score_is_wilsons_for_two_values(counts: tuple[int, int], width: float) -> None:
    hits, n = counts
    values = width * np.array([1.0] * hits + [0.0] * (n - hits))
    found = interval_of_score(float(values.mean()), float(values.std(ddof=1) / np.sqrt(n)), n, (0.0, width))
    low, high = wilson(hits, n)
    assert (found.low, found.high) == pytest.approx((width * low, width * high), abs=1e-9)
    exact = interval(values, bounds=(0.0, width))
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9)


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=60))
def test_other_scores_have_students_inside_the_bounds(values: list[float]) -> None:
    n, mean, error = len(values), float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
    found = interval_of_score(mean, error, n, (0.0, 1.0))
    assert 0.0 <= found.low <= mean <= found.high <= 1.0
    assert interval_of_score(mean, float("inf"), n, (0.0, 1.0)).low == 0.0
    unbounded = interval_of_score(mean, error, n, (-np.inf, np.inf))
    if n == 2:
        assert unbounded.high - mean == pytest.approx(12.706204736 * error)
