"""Constraints: judged by a confidence bound, in closed form where there is one, and kept out of every front."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.contract import Items, ItemScores, Metric, Split, Status
from search.config import load_config
from search.constraints import Constraint, Constraints
from search.errors import SearchError
from search.events import Chosen, Finished, Told
from search.judge import Judge
from search.objectives import Objectives, Target
from search.optimizers.contract import Genome
from search.results import Results
from search.store import Candidate, Store

SyntheticRun = Callable[..., Results]
Side = Literal["at_least", "at_most"]


def limit(
    value: float, side: Side = "at_least", confidence: float = 0.9, low: float = 0.0, high: float = 1.0, **more: Any
) -> Constraint:
    return Constraint("safety.rate", side, value, confidence, low, high, **more)


def scored(values: Sequence[float], statuses: Sequence[Status] = ()) -> dict[str, ItemScores]:
    ids = tuple(str(k) for k in range(len(values)))
    given = tuple(statuses) or ("ok",) * len(values)
    return {"safety": ItemScores(ids, {"rate": np.array(values)}, {"rate": np.ones(len(values))}, given)}  # type: ignore[arg-type]


def wilson(hits: int, n: int, confidence: float, side: Side) -> float:
    """One-sided, as Wilson solved it: the root p of n (hits/n − p)² = z² p (1 − p) on that side."""
    z = NormalDist().inv_cdf(confidence)
    roots = sorted(np.roots([n + z * z, -(2.0 * hits + z * z), hits * hits / n]).real)
    return float(roots[0] if side == "at_least" else roots[1])


@given(
    st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.floats(0.55, 0.99),
    st.floats(0.0, 1.0),
    st.sampled_from(["at_least", "at_most"]),
)
def test_a_violation_is_the_distance_of_wilsons_bound(
    counts: tuple[int, int], confidence: float, value: float, side: Side
) -> None:
    hits, n = counts
    found = limit(value, side, confidence).violation(scored([1.0] * hits + [0.0] * (n - hits)))
    bound = wilson(hits, n, confidence, side)
    assert found == pytest.approx(value - bound if side == "at_least" else bound - value, abs=1e-6)


@given(st.integers(1, 60), st.integers(0, 60))
def test_a_scale_of_its_own_changes_nothing(n: int, hits: int) -> None:
    """Scores in [0, 5], minimised or not: the violation is in units of the range."""
    unit = [1.0] * min(hits, n) + [0.0] * (n - min(hits, n))
    plain = limit(0.8).violation(scored(unit))
    assert limit(4.0, low=0.0, high=5.0).violation(scored([5.0 * each for each in unit])) == pytest.approx(plain)
    turned = limit(1.0, "at_most", low=0.0, high=5.0).violation(scored([5.0 - 5.0 * each for each in unit]))
    assert turned == pytest.approx(plain)


def test_the_published_example_48_of_50_does_not_show_95_percent() -> None:
    safe = scored([1.0] * 48 + [0.0] * 2)
    assert limit(0.95, confidence=0.5).violation(safe) <= 0.0
    assert limit(0.95, confidence=0.9).violation(safe) > 0.0
    assert limit(0.95, confidence=0.9).violation(scored([1.0] * 480 + [0.0] * 5)) <= 0.0


def test_what_has_no_verdict_is_not_counted_and_none_at_all_breaks_everything() -> None:
    values, statuses = [1.0] * 30 + [0.0] * 30, ["ok"] * 30 + ["unscored"] * 30
    assert limit(0.9).violation(scored(values, statuses)) == limit(0.9).violation(scored([1.0] * 30))  # type: ignore[arg-type]
    nothing = scored([0.0] * 4, ["unscored"] * 4)
    for confidence in (0.5, 0.9):
        assert limit(0.5, confidence=confidence).violation(nothing) > 0.0


def test_a_failed_item_counts_as_its_worst_value() -> None:
    values = [1.0] * 30 + [0.0] * 10
    failed = scored(values, ["ok"] * 30 + ["failed"] * 10)  # type: ignore[list-item]
    assert limit(0.9).violation(failed) == limit(0.9).violation(scored(values))


def test_clusters_make_the_same_score_prove_less() -> None:
    values = [1.0] * 90 + [0.0] * 10
    clusters = {str(k): f"text {k // 10}" for k in range(100)}
    alone, together = limit(0.95), limit(0.95, clusters=clusters)
    assert together.violation(scored(values)) > alone.violation(scored(values)) + 0.02
    # clusters of one are no clusters, but for the method
    single = limit(0.95, clusters={str(k): str(k) for k in range(100)})
    assert single.violation(scored(values)) == pytest.approx(alone.violation(scored(values)), abs=0.03)


def test_an_unbounded_metric_is_in_its_own_unit() -> None:
    chance = np.random.default_rng(0)
    losses = chance.normal(2.0, 0.4, 400)
    found = limit(1.9, "at_most", low=0.0, high=math.inf).violation(scored(losses.tolist()))
    normal = losses.mean() + NormalDist().inv_cdf(0.9) * losses.std(ddof=1) / 20
    assert found == pytest.approx(normal - 1.9, abs=0.005)


def test_what_is_logged_is_read_back() -> None:
    clusters = {"safety": {"0": "x"}}
    both = Constraints([limit(0.9, clusters={"0": "x"}), Constraint("b.loss", "at_most", 2.0, 0.8, 0.0, math.inf)])
    again = Constraints.from_data(json.loads(json.dumps(both.as_data())), clusters)
    assert again.all == both.all
    assert again.names == ("safety.rate >= 0.9 (with confidence 0.9)", "b.loss <= 2 (with confidence 0.8)")


# -- from a config ----------------------------------------------------------------------------------------------------

CONFIG = """name: x
models: {base: base, experts: {a: a}}
evaluators:
  safety: {type: exact_match, data: data}
objectives: [safety.rate]
constraints:
  KEY: RULE
search: {budget: {candidates: 9}, fidelity: FIDELITY}
"""


class Sized:
    metrics = (Metric("rate", "maximize", 0.0, 1.0),)

    def __init__(self, sizes: dict[str, int], metrics: tuple[Metric, ...] | None = None) -> None:
        self._sizes = sizes
        self.metrics = metrics or self.metrics

    def items(self, split: Split) -> Items:
        n = self._sizes[split]
        return Items(tuple(f"{split}{k}" for k in range(n)), ("",) * n, ("",) * n)


def resolve(
    tmp_path: Path, rule: str, key: str = "safety", n: int = 100, fidelity: str = "off", **more: Any
) -> Constraints:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.replace("KEY", key).replace("RULE", rule).replace("FIDELITY", fidelity))
    evaluators = {"safety": Sized({"search": n, "selection": 2 * n, "holdout": n}, **more)}
    return Constraints.of(load_config(path), evaluators)  # type: ignore[arg-type]


def test_a_limit_is_refused_exactly_where_perfect_scores_could_not_show_it(tmp_path: Path) -> None:
    """All of n right shows n / (n + z²)."""
    for n in (20, 40, 80):
        best = n / (n + NormalDist().inv_cdf(0.9) ** 2)
        kept = resolve(tmp_path, f"{{at_least: {best - 1e-6}}}", n=n).all[0]
        assert kept.name == "safety.rate"
        with pytest.raises(SearchError, match=f"config.yaml:7:.*with {n} search items even a perfect score"):
            resolve(tmp_path, f"{{at_least: {best + 1e-6}}}", n=n)
    assert resolve(tmp_path, "{at_least: 1.0, confidence: 0.5}").all[0].confidence == 0.5
    # 100 perfect items show 0.984, a minibatch of 40 of them 0.961
    with pytest.raises(SearchError, match="with 40 search items even a perfect score"):
        resolve(tmp_path, "{at_least: 0.97}", fidelity="{minibatch: 40}")
    assert resolve(tmp_path, "{at_least: 0.97}").all[0].limit == 0.97
    with pytest.raises(SearchError, match="no candidate could ever keep 0"):
        resolve(tmp_path, "{at_most: 0.0}")


@pytest.mark.parametrize(
    ("key", "rule", "says"),
    [
        ("safety.rat", "{at_least: 0.5}", "did you mean 'rate'"),
        ("safety", "{at_least: 95}", "lies in \\[0, 1\\], found at_least: 95"),
        ("saftey", "{at_least: 0.5}", "there is no evaluator 'saftey'"),
        ("safety", "{at_least: 0.5, at_most: 0.7}", "expected one of at_least and at_most"),
        ("safety", "{}", "expected one of at_least and at_most"),
        ("safety", "{at_least: 0.5, confidence: 1.0}", "confidence"),
    ],
)
def test_what_makes_no_constraint_is_pointed_at(tmp_path: Path, key: str, rule: str, says: str) -> None:
    with pytest.raises(SearchError, match=f"(?is)config.yaml:7:.*{says}"):
        resolve(tmp_path, rule, key)


def test_an_evaluator_with_two_metrics_must_say_which(tmp_path: Path) -> None:
    two = (Metric("rate", "maximize", 0.0, 1.0), Metric("length", "minimize", 0.0, math.inf))
    with pytest.raises(SearchError, match=r"expected evaluator\.metric.*rate, length"):
        resolve(tmp_path, "{at_least: 0.5}", metrics=two)
    found = resolve(tmp_path, "{at_most: 300}", "safety.length", metrics=two).all[0]
    assert (found.side, found.limit, found.high) == ("at_most", 300.0, math.inf)


# -- in a search ------------------------------------------------------------------------------------------------------


def test_an_infeasible_candidate_that_dominates_everything_is_on_no_front() -> None:
    names = ("a.rate", "b.rate")
    metric = Metric("rate", "maximize", 0.0, 1.0)
    objectives = Objectives([Target(name, metric, 0.0, 1.0, None) for name in names])
    points = [(0.99, 0.99), (0.5, 0.6), (0.6, 0.5), (0.4, 0.4)]
    scores = {
        id: {name: (value, 0.01) for name, value in zip(names, row, strict=True)} for id, row in enumerate(points)
    }
    candidates = [Candidate(id, 0, "", Genome(()), str(id), "complete", "", None) for id in scores]
    judge = Judge(objectives, candidates, ["full"], {"search": {0: (-0.1, 1e-9), 1: (-0.5,), 2: (0.0,)}})
    assert judge.front(scores) == [1, 2]
    assert 0 not in judge.finalists(scores, 10)
    assert judge.front(scores, split="holdout") == [0]


@pytest.mark.slow
def test_constraints_are_kept_by_finalists_on_search_and_by_the_choice_on_selection(
    synthetic_run: SyntheticRun, tmp_path: Path
) -> None:
    rule = Constraint("language.accuracy", "at_least", 0.55, 0.9, 0.0, 1.0)
    free = synthetic_run(tmp_path / "free", candidates=60)
    bound = synthetic_run(tmp_path / "bound", candidates=60, limits=[rule])
    store = Store.open(bound.folder, read_only=True)
    for split in ("search", "selection"):
        for id in bound.scores[split]:
            again = rule.violation(store.item_scores(id, split))
            assert bound.violations[split][id] == (again,)
    told = [each for each in store.events(Told) if isinstance(each, Told) and each.outcome.state == "complete"]
    store.close()
    assert all(each.outcome.violations == bound.violations["search"][each.candidate] for each in told)
    broken = {id for id, row in bound.violations["search"].items() if row[0] > 0.0}
    assert broken and not broken & {*bound.finalists, *bound.judge.front(bound.scores["search"])}
    assert bound.chosen in bound.front
    assert bound.violations["selection"][bound.chosen][0] <= 0.0
    assert not {id for id, row in bound.violations["selection"].items() if row[0] > 0.0} & set(bound.front)
    # without it somebody else would be a finalist
    assert any(rule.violation({"language": _items(free, id)["language"]}) > 0.0 for id in free.finalists)
    assert bound.status()["constraints"] == [{"says": str(rule), "kept_by": len(told) - len(broken)}]


def _items(results: Results, id: int) -> dict[str, ItemScores]:
    store = Store.open(results.folder, read_only=True)
    found = store.item_scores(id, "search")
    store.close()
    return found


def test_where_nothing_is_feasible_nothing_is_chosen_and_nothing_opened(
    synthetic_run: SyntheticRun, tmp_path: Path
) -> None:
    rules = [Constraint(f"{name}.accuracy", "at_least", 0.95, 0.9, 0.0, 1.0) for name in ("string", "language")]
    results = synthetic_run(tmp_path / "run", candidates=30, limits=rules)
    assert results.chosen is None and results.finalists == () and results.front == []
    assert results.scores["selection"] == {} and results.scores["holdout"] == {}
    store = Store.open(results.folder, read_only=True)
    assert list(store.events(Chosen, Finished)) == []
    assert len(store.candidates()) == 30  # the search itself went to its end, drawn by violations
    store.close()


@pytest.mark.slow
def test_violations_draw_the_search_inside(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    """The later half of a search breaks the constraint by less than random candidates do."""
    rule = Constraint("language.accuracy", "at_least", 0.6, 0.9, 0.0, 1.0)
    led = synthetic_run(tmp_path / "led", candidates=80, limits=[rule])
    chance = synthetic_run(tmp_path / "chance", candidates=80, limits=[rule], search={"optimizer": "random"})

    def broken(results: Results) -> float:
        later = [row[0] for id, row in results.violations["search"].items() if id >= 40]
        return float(np.maximum(later, 0.0).mean())

    assert broken(led) < 0.5 * broken(chance)
