"""One candidate for a wish: against brute force over the finalists, and what is no wish."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.choice import Wish, choose, metric_name
from search.errors import NothingFeasible, SearchError
from search.events import Asked, Told
from search.finals import Finals
from search.optimizers.contract import Outcome
from search.results import Results
from search.store import Store
from search.workers.inline import InlinePool

SyntheticRun = Callable[..., Results]
NAMES = ("string.accuracy", "language.accuracy", "sums.accuracy")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Results]:
    return {}


@pytest.fixture
def run(synthetic_run: SyntheticRun, tmp_path_factory: pytest.TempPathFactory, made: dict[int, Results]) -> Results:
    """A finished run with three objectives and many finalists; nothing here writes to it."""
    if not made:
        folder = tmp_path_factory.mktemp("choice") / "run"
        made[3] = synthetic_run(folder, objectives=3, candidates=90, search={"finalists": 40, "reserve": 0.9})
    return made[3]


def brute(results: Results, weights: dict[str, float], pool: list[int]) -> int:
    """Augmented Tchebycheff of retention, written out, with plain loops."""
    scores = results.scores["selection"]
    names = results.objectives.names
    base = results.judge.labelled("base")
    total = sum(weights.values())
    best = (math.inf, -1)
    for id in sorted(pool):
        distances = []
        for name in names:
            own = results.judge.labelled(f"expert {name.split('.')[0]}")
            low, high, value = (scores[each][name][0] for each in (base, own, id))
            retention = (value - low) / (high - low)
            distances.append(len(names) * weights.get(name, 0.0) / total * (1.0 - retention))
        best = min(best, (round(max(distances) + 0.05 * sum(distances), 12), id))
    return best[1]


def front(results: Results) -> list[int]:
    """Finalists that no other one dominates on selection."""
    scores = results.scores["selection"]
    rows = {id: [scores[id][name][0] for name in results.objectives.names] for id in results.finalists}
    return [
        id for id, row in rows.items()
        if not any(all(np.greater_equal(o, row)) and any(np.greater(o, row)) for o in rows.values())
    ]  # fmt: skip


def test_a_mix_is_the_brute_force_choice(run: Results) -> None:
    assert len(front(run)) >= 6
    chance = np.random.default_rng(0)
    found = set()
    for _ in range(200):
        drawn = chance.dirichlet([0.7] * 3).tolist()
        weights = dict(zip(NAMES, drawn, strict=True))
        choice = choose(run, Wish(mix=weights))
        assert choice == brute(run, weights, front(run))
        found.add(choice)
    assert len(found) >= 4  # different mixes are different merges


def test_the_knee_and_equal_weights_are_the_runs_own_choice(run: Results) -> None:
    assert choose(run, Wish()) == run.chosen
    assert choose(run, Wish.parse("string=2,language=2,sums=2", [], None)) == run.chosen


def test_more_weight_never_takes_retention_away(run: Results) -> None:
    """Along every line from another mix to one skill alone."""
    chance = np.random.default_rng(1)
    for index, name in enumerate(NAMES):
        for rest in chance.dirichlet([1.0, 1.0], 6):
            kept = []
            for weight in np.linspace(0.02, 0.98, 25):
                others = dict(zip([each for each in NAMES if each != name], (1 - weight) * rest, strict=True))
                choice = choose(run, Wish(mix={name: float(weight), **{n: float(w) for n, w in others.items()}}))
                kept.append(run.judge.retention(run.scores["selection"], choice)[index])
            assert all(two >= one - 1e-9 for one, two in itertools.pairwise(kept))
            assert kept[-1] > kept[0]


def test_a_skill_that_the_mix_leaves_out_counts_for_nothing(run: Results) -> None:
    choice = choose(run, Wish.parse("sums=1", [], None))
    scores = run.scores["selection"]
    assert scores[choice]["sums.accuracy"][0] == max(scores[id]["sums.accuracy"][0] for id in front(run))


def test_maximize_takes_the_best_and_among_equals_none_that_another_dominates(run: Results) -> None:
    scores = run.scores["selection"]
    for name in NAMES:
        choice = choose(run, Wish(maximize=name))
        assert scores[choice][name][0] == max(scores[id][name][0] for id in run.finalists)
        assert choice in front(run)


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
def test_a_bound_is_kept_by_the_lower_confidence_bound(run: Results, confidence: float) -> None:
    from statistics import NormalDist

    z = NormalDist().inv_cdf(confidence)
    store = Store.open(run.folder, read_only=True)
    kept = {}
    for id in run.finalists:
        values = store.item_scores(id, "selection")["language"].values["accuracy"]
        n, share = len(values), float(values.mean())
        middle = share + z * z / (2 * n) - z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        kept[id] = middle / (1 + z * z / n)
    store.close()
    for bound in np.quantile(list(kept.values()), [0.2, 0.5, 0.9]) - 1e-6:
        able = [id for id in run.finalists if kept[id] >= bound]
        wish = Wish(at_least={"language": float(bound)}, maximize="string", confidence=confidence)
        best = max(run.scores["selection"][id]["string.accuracy"][0] for id in able)
        choice = choose(run, wish)
        assert choice in able and run.scores["selection"][choice]["string.accuracy"][0] == best
        mixed = choose(run, Wish(mix={"string": 1.0}, at_least={"language": float(bound)}, confidence=confidence))
        assert mixed in able


def test_a_bound_that_nobody_keeps_says_what_can_be_had(run: Results) -> None:
    with pytest.raises(NothingFeasible) as refused:
        choose(run, Wish.parse(None, ["language=0.99"], "string"))
    text = str(refused.value)
    assert "language.accuracy >= 0.99" in text and "the best 90 % bound is 0." in text and "\n" not in text


def test_of_a_metric_to_minimise_at_least_means_at_most(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    from evaluators.contract import Metric

    metrics = [Metric("wer", "minimize", 0.0, 1.0), Metric("accuracy", "maximize", 0.0, 1.0)]
    results = synthetic_run(tmp_path / "run", candidates=40, metrics=metrics)
    scores = results.scores["selection"]
    best = choose(results, Wish(maximize="string"))
    assert scores[best]["string.wer"][0] == min(scores[id]["string.wer"][0] for id in results.finalists)
    limit = sorted(scores[id]["string.wer"][0] for id in results.finalists)[1]
    wish = Wish(at_least={"string.wer": limit}, maximize="language", confidence=0.5)
    assert scores[choose(results, wish)]["string.wer"][0] <= limit


@pytest.mark.parametrize(
    ("mix", "at_least", "maximize", "says"),
    [
        ("string=1", [], "language", "found both"),
        ("string", [], None, "expected NAME=NUMBER"),
        ("=1", [], None, "expected NAME=NUMBER"),
        ("string=x", [], None, "expected NAME=NUMBER"),
        ("string=nan", [], None, "expected NAME=NUMBER"),
        ("string=1,", [], None, "expected NAME=NUMBER"),
        ("", [], None, "expected NAME=NUMBER"),
        ("string=-1,language=2", [], None, "weights >= 0"),
        ("string=0,language=0", [], None, "not all 0"),
        ("string=inf", [], None, "finite weights"),
        ("strnig=1", [], None, "did you mean 'string"),
        (None, ["language=95"], None, r"lies in \[0, 1\]"),
        (None, ["language=inf"], None, r"lies in \[0, 1\]"),
        (None, [], "nothing", "there is no metric 'nothing'"),
    ],
)
def test_what_is_no_wish_is_one_paragraph(
    run: Results, mix: str | None, at_least: list[str], maximize: str | None, says: str
) -> None:
    with pytest.raises(SearchError, match=f"(?i){says}") as refused:
        choose(run, Wish.parse(mix, at_least, maximize))
    assert not isinstance(refused.value, NothingFeasible)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("confidence", [0.4, 1.0, math.nan])
def test_a_confidence_is_between_a_half_and_one(confidence: float) -> None:
    with pytest.raises(SearchError, match="confidence"):
        Wish.parse(None, ["a=0.5"], None, confidence)


def test_before_the_finish_there_is_nothing_honest_to_choose_on(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    results = synthetic_run(tmp_path / "run", finished=False)
    with pytest.raises(SearchError, match="no selection scores yet"):
        choose(results, Wish())


def test_names_are_short_where_that_is_clear(run: Results) -> None:
    assert metric_name(run, "string") == metric_name(run, "string.accuracy") == "string.accuracy"


def test_a_wish_says_what_it_is(run: Results) -> None:
    assert Wish.parse("string=0.7,language=0.3", ["sums=0.5"], None).rule() == (
        "sums at least 0.5 (confidence 0.9); mix of string 0.7, language 0.3 (augmented Tchebycheff of retention), on "
        "the selection split"
    )


def test_a_grown_budget_that_names_the_same_finalists_still_has_a_choice(
    synthetic_run: SyntheticRun, tmp_path: Path
) -> None:
    """Decisions are logged again after more candidates, also where they come out the same."""
    results = synthetic_run(tmp_path / "run", candidates=30)
    conftest = synthetic_run.__globals__  # type: ignore[attr-defined]
    skills: Any = {
        target.name.partition(".")[0]: conftest["PlantedSkill"](target.name.partition(".")[0], target.metric)
        for target in results.objectives.targets
    }
    store = Store.open(results.folder)
    last = results.candidates[-1]
    store.append(
        Asked(30, last.stage, last.genome, "another recipe"), Told(30, last.stage, Outcome("failed", reason="NaN"))
    )
    assert Results.load(results.folder).chosen is None
    worker = conftest["PlantedWorker"](skills, lambda id: None)
    Finals(store, results.stages, InlinePool(worker), skills, results.objectives, store.append).run(
        results.config.search, 9999
    )
    store.close()
    again = Results.load(results.folder)
    assert again.chosen == results.chosen is not None
    assert set(results.finalists) <= set(again.finalists)
    assert again.claims is not None
