"""The search benchmark's simulated searches: items behave as their truth says, and the bookkeeping is right."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import integrate, special, stats

from benchmarks.searching import studies
from benchmarks.searching.items import (
    CAP,
    Interference,
    Kind,
    RecordedItems,
    SyntheticItems,
    ability_of,
    coefficients,
)
from benchmarks.searching.simulation import Decision, config, simulate
from benchmarks.searching.studies import Outcome, Study
from benchmarks.searching.summaries import honesty_markdown, items_markdown, items_needed, rate
from benchmarks.searching.table import Items, Lattice, Table
from evaluators.contract import Split
from merging.recipe import Assignment, Group, Recipe, SourceRef
from search import pareto

GROUPS = tuple(Group(kind, depth) for depth in range(3) for kind in ("attention", "mlp"))
SIZES: dict[Split, int] = {"search": 60, "selection": 60, "holdout": 300}


def made(kind: Kind = "normal", sizes: Mapping[Split, int] = SIZES, seed: int = 0) -> SyntheticItems:
    return SyntheticItems(Interference(2, GROUPS, seed, studies.METHODS), ("a", "b"), GROUPS, sizes, seed, kind=kind)


def recipe(a: float, b: float, groups: tuple[Group, ...] = GROUPS, method: str = "task_arithmetic") -> Recipe:
    sources = {alias: SourceRef(alias, f"sha256:{alias}") for alias in ("base", "a", "b")}
    assignment = Assignment.of(method, {"a": {"coefficient": a}, "b": {"coefficient": b}})
    return Recipe("base", sources, dict.fromkeys(groups, assignment))


@pytest.mark.parametrize("ability", [-3.0, -0.5, 0.0, 1.0, 4.0])
def test_ability_is_the_inverse_of_the_expected_share(ability: float) -> None:
    share, _ = integrate.quad(lambda b: special.expit(1.7 * (ability - b)) * stats.norm.pdf(b), -12, 12)
    assert ability_of(share) == pytest.approx(ability, abs=1e-3)


def test_verdicts_have_the_true_mean() -> None:
    many = made(sizes={"search": 40_000, "selection": 1, "holdout": 1})
    for a, b in ((0.5, 0.5), (1.0, 0.2), (0.0, 0.0)):
        merge = recipe(a, b)
        for index, skill in enumerate(many.skills):
            truth = many.truth(merge)[index]
            error = np.sqrt(truth * (1 - truth) / 40_000)
            assert abs(many.verdicts(merge, skill, "search").mean() - truth) < 5 * error


def test_near_candidates_answer_alike_and_splits_are_different_items() -> None:
    many = made(sizes={"search": 5000, "selection": 5000, "holdout": 1})
    one, near, far = (many.verdicts(recipe(a, 0.5), "a", "search") for a in (0.8, 0.82, 0.0))
    assert (one != near).mean() < 0.1 < (one != far).mean()
    assert (one == many.verdicts(recipe(0.8, 0.5), "a", "search")).all()
    assert (one != many.verdicts(recipe(0.8, 0.5), "a", "selection")).mean() > 0.2


def test_the_interference_front_is_the_front() -> None:
    """Coordinate-wise optima in closed form: no coefficients in the box lie beyond it."""
    problem = Interference(2, GROUPS, 3)
    front = problem.front(0.0, 1.5, 2000)
    best = pareto.hypervolume(front, (0.0, 0.0))
    random = np.random.default_rng(0)
    tried = np.array([problem.accuracies(random.uniform(0.0, 1.5, (2, len(GROUPS)))) for _ in range(2000)])
    assert pareto.hypervolume(np.vstack([front, tried]), (0.0, 0.0)) == pytest.approx(best, abs=1e-4)
    # and it is reached: the best of one skill alone
    assert front[:, 0].max() == pytest.approx(1.0, abs=1e-6)


def test_experts_are_good_alone_and_disturb_each_other() -> None:
    problem = Interference(2, GROUPS, 1)
    ones, zeros = np.ones(len(GROUPS)), np.zeros(len(GROUPS))
    base = problem.accuracies(np.stack([zeros, zeros]))
    own = problem.accuracies(np.stack([ones, zeros]))
    both = problem.accuracies(np.stack([ones, ones]))
    assert base[0] == pytest.approx(np.exp(-1.9)) and own[0] > 0.85
    assert own[1] < base[1] and both[0] == pytest.approx(own[0] * np.exp(-0.8))


def test_a_plateau_is_flat_where_it_is_high() -> None:
    flat, normal = made("plateau"), made()
    for a in np.linspace(0, 1.5, 7):
        merge = recipe(float(a), 0.6)
        assert flat.truth(merge).tolist() == np.minimum(normal.truth(merge), CAP).tolist()


def test_nothing_to_find_is_nothing_to_find() -> None:
    constant, shuffled = made("constant"), made("shuffled")
    one, other = recipe(0.2, 0.4), recipe(1.0, 0.1)
    assert (constant.verdicts(one, "a", "search") == constant.verdicts(other, "a", "search")).all()
    assert constant.verdicts(one, "a", "search").mean() == 0.5
    assert 0.3 < (shuffled.verdicts(one, "a", "holdout") != shuffled.verdicts(other, "a", "holdout")).mean() < 0.7
    assert (shuffled.verdicts(one, "a", "search") == shuffled.verdicts(one, "a", "search")).all()


def test_a_recorded_table_is_read_through_recipes() -> None:
    lattice = Lattice(("a/attention+rest", "a/mlp", "b/attention+rest", "b/mlp"), (0.0, 0.8, 1.6), ("task_arithmetic",))
    random = np.random.default_rng(0)
    verdicts = {skill: random.random((len(lattice), 60)) < 0.5 for skill in "ab"}
    ids = tuple(f"s{i}" for i in range(20)), tuple(f"h{i}" for i in range(40))
    table = Table(lattice, {skill: Items(*ids, ("",) * 60) for skill in "ab"}, verdicts, {})
    items = RecordedItems(table, 0)
    merge = recipe(0.8, 1.6, items.groups)
    row = int(np.ravel_multi_index((1, 1, 2, 2, 0), lattice.shape))
    assert items.verdicts(merge, "a", "search").tolist() == verdicts["a"][row, :20].tolist()
    columns = [int(id.partition("-")[2]) for id in items.ids("b", "holdout")]
    assert items.truth(merge)[1] == pytest.approx(verdicts["b"][row, columns].mean())
    assert len(set(items.ids("a", "selection")) & {f"selection-{c}" for c in columns}) < 20
    assert not {id.partition("-")[2] for id in items.ids("a", "selection")} & {
        id.partition("-")[2] for id in items.ids("a", "holdout")
    }


def test_coefficients_of_experts_that_are_left_out_are_zero() -> None:
    sources = {alias: SourceRef(alias, alias) for alias in ("base", "a", "b")}
    only = Assignment.of("task_arithmetic", {"b": {"coefficient": 0.7}})
    found = coefficients(Recipe("base", sources, {GROUPS[0]: only}), ("a", "b"), GROUPS[:1])
    assert found.tolist() == [[0.0], [0.7]]


@pytest.mark.parametrize("fidelity", ["full", "race"])
def test_a_simulated_search_counts_its_items(fidelity: str) -> None:
    landscape = made(sizes={"search": 60, "selection": 50, "holdout": 80})
    search = {
        "optimizer": "random",
        "budget": {"candidates": 24},
        "fidelity": "off" if fidelity == "full" else {"rungs": [10, 30]},
    }
    done = simulate(landscape, config(landscape, 0, search, {"granularity": "model"}))
    states = [each.state for each in done.results.candidates]
    scored = states.count("complete") + states.count("censored")
    assert len(done.truths) == 24 and scored + states.count("duplicate") == 24
    if fidelity == "full":
        assert done.items["search"] == 2 * 60 * scored and not done.decisions
    else:
        assert done.items["search"] <= 2 * 60 * scored and done.decisions
    assert done.items["selection"] % 100 == 0 and done.items["holdout"] % 160 == 0
    assert done.reported is not None and done.reported.chosen in done.results.finalists
    assert 0.0 < done.share(done.results.front) <= 1.0


def test_drops_are_false_where_the_opponent_is_not_better_in_everything() -> None:
    done = SimpleNamespace(
        decisions=(Decision(1, 0, False), Decision(1, 0, True), Decision(2, 0, True), Decision(3, 0, False),
                     Decision(4, None, False), Decision(5, 0, True)),
        truths={
            0: np.array([0.6, 0.6]), 1: np.array([0.5, 0.5]), 2: np.array([0.7, 0.5]),
            3: np.array([0.6, 0.6]), 4: np.array([0.9, 0.9]), 5: np.array([0.6, 0.6]),
        },
    )  # fmt: skip

    outcome = Outcome(Study("s", "normal", "race", True, 10, "random", 0), 0.5, 1, 0)
    studies._count_drops(done, outcome)  # type: ignore[arg-type]
    assert (outcome.nulls, outcome.false_drops) == (3, 2)
    assert (outcome.equals, outcome.equals_dropped) == (2, 1)


def test_items_needed_interpolates_in_the_logarithm() -> None:
    curve = np.array([[100.0, 0.2], [400.0, 0.6], [1600.0, 0.5]])
    assert items_needed(curve, 0.4) == pytest.approx(200.0)
    assert items_needed(curve, 0.2) == pytest.approx(100.0)
    assert np.isnan(items_needed(curve, 0.7)) and np.isnan(items_needed(curve, 0.1))


def outcome(fidelity: str, candidates: int, share: float, items: int) -> Outcome:
    found = Outcome(Study("synthetic-2", "normal", fidelity, True, candidates, "random", 0), share, items, 0)
    found.optimism = {"search": 0.06, "selection": 0.001, "holdout": -0.001}
    found.covered = {"holdout": [2, 2], "baselines": [9, 10]}
    found.win = True
    return found


def test_summaries_say_what_the_outcomes_say() -> None:
    given = [outcome("full", 100, 0.5, 1000), outcome("full", 200, 0.7, 2000)]
    given += [outcome("race", 100, 0.5, 500), outcome("race", 200, 0.7, 1000)]
    text = items_markdown(given)
    assert "race, finalists re-scored: items for the share of full, re-scored, as a part of its items: 0.50 at" in text
    honest = honesty_markdown(given)
    assert "+6.00" in honest and "90.0 % [" in honest and "2 of 2" in honest


def test_rates_have_the_interval_of_searches_not_of_candidates() -> None:
    """Ten searches that are all right or all wrong say as much as ten candidates, not as a hundred."""

    def width(text: str) -> float:
        low, high = text[text.index("[") + 1 : text.index("]")].split(", ")
        return float(high) - float(low)

    alike = rate([(10, 10)] * 8 + [(0, 10)] * 2)
    mixed = rate([(8, 10)] * 6 + [(7, 10), (9, 10)] * 2)
    assert alike.startswith("80.0 % [") and mixed.startswith("80.0 % [")
    assert width(alike) > 3 * width(mixed)
    assert rate([(0, 0)]) == "none" and rate([]) == "none"
