"""Nested subsets, e-values under continuous monitoring, opponents, halving."""

import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special

from evaluators.contract import Items, ItemScores, Metric
from search.fidelity import (
    Comparison,
    FidelityError,
    betting_e,
    capped,
    choose_opponent,
    compare,
    decide,
    halve,
    mcnemar_e,
    nested_order,
    roles,
    rung_sizes,
    suggest_cap,
)

LIMIT = math.log(20)  # 1 / alpha, alpha 0.05


def make_items(strata):
    ids = tuple(f"i{k}" for k in range(len(strata)))
    return Items(ids, tuple(strata), tuple(hashlib.sha256(each.encode()).hexdigest() for each in ids))


STRATA = st.lists(st.sampled_from("aaaaabbbcd"), min_size=1, max_size=150)


# -- subsets ----------------------------------------------------------------------------------------------------------


@given(STRATA, st.integers(0, 5))
@settings(deadline=None)
def test_every_prefix_has_every_stratum_in_its_share_to_less_than_one_item(strata, seed):
    items = make_items(strata)
    order = nested_order(items, seed)
    assert sorted(order.tolist()) == list(range(len(items)))
    sizes = np.arange(1, len(items) + 1)
    for name in set(strata):
        here = np.array([strata[place] == name for place in order])
        assert np.abs(np.cumsum(here) - sizes * here.mean()).max() < 1


def test_many_strata_stay_fair():
    strata = [f"s{k}" for k, size in enumerate(range(1, 25)) for _ in range(size)]
    order = nested_order(make_items(strata), 0)
    for name in set(strata):
        here = np.array([strata[place] == name for place in order])
        assert np.abs(np.cumsum(here) - np.arange(1, len(order) + 1) * here.mean()).max() < 1


@given(STRATA, st.randoms())
@settings(deadline=None)
def test_the_order_is_of_the_content_not_of_the_list(strata, random):
    items = make_items(strata)
    places = list(range(len(items)))
    random.shuffle(places)
    mixed = Items(*(tuple(column[place] for place in places) for column in (items.ids, items.strata, items.hashes)))
    one, two = nested_order(items, 3), nested_order(mixed, 3)
    assert [items.ids[place] for place in one] == [mixed.ids[place] for place in two]
    promotes = dict(zip(items.ids, roles(items, one), strict=True))
    assert promotes == dict(zip(mixed.ids, roles(mixed, two), strict=True))


def test_another_seed_is_another_shuffle_and_items_are_not_in_file_order():
    items = make_items(["a"] * 200)
    one, two = nested_order(items, 0), nested_order(items, 1)
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.25
    assert abs(np.corrcoef(one, np.arange(200))[0, 1]) < 0.25


@given(STRATA)
@settings(deadline=None)
def test_one_in_four_promotes_in_every_prefix_and_stratum(strata):
    items = make_items(strata)
    order = nested_order(items, 0)
    promotes = roles(items, order)[order]
    sizes = np.arange(1, len(items) + 1)
    assert np.abs(np.cumsum(promotes) - sizes / 4).max() <= 0.75 + len(set(strata)) / 2
    for name in set(strata):
        here = np.array([strata[place] == name for place in order])
        counts = np.cumsum(promotes[here])
        assert (counts >= np.arange(1, here.sum() + 1) // 4).all()
        assert (counts <= np.ceil(np.arange(1, here.sum() + 1) / 4)).all()


@pytest.mark.parametrize("strata", [["a"] * 400, ["a", "b", "c", "d"] * 100, [f"s{k % 7}" for k in range(400)]])
def test_the_first_rung_has_its_quarter_of_promoting_items(strata):
    items = make_items(strata)
    order = nested_order(items, 0)
    promotes = roles(items, order)[order]
    assert promotes[:4].any()
    for size in (40, 120, 360):
        assert abs(promotes[:size].sum() - size / 4) <= 2


def test_rungs_are_capped():
    assert rung_sizes(1000) == (40, 120, 360, 1000)
    assert rung_sizes(360) == (40, 120, 360)
    assert rung_sizes(100) == (40, 100)
    assert rung_sizes(7) == (7,)
    assert rung_sizes(50, [10, 20]) == (10, 20, 50)
    for n, rungs in ((0, (40,)), (100, (40, 40)), (100, (0, 40))):
        with pytest.raises(FidelityError):
            rung_sizes(n, rungs)


# -- evidence ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (5, 0), (0, 5), (12, 3), (40, 38), (3, 30)])
def test_mcnemar_e_is_the_mixture_over_better_than_even(wins, losses):
    mixture, _ = integrate.quad(
        lambda p: 2 * p**wins * (1 - p) ** losses * 2.0 ** (wins + losses), 0.5, 1, epsabs=1e-14
    )
    assert math.exp(mcnemar_e(wins, losses)) == pytest.approx(mixture, rel=1e-6)


@given(st.integers(0, 150), st.integers(0, 150))
def test_mcnemar_e_is_fair_under_the_null(wins, losses):
    """A martingale: with even odds the next discordant item leaves the expectation as it is."""
    now, won, lost = (
        math.exp(mcnemar_e(*counts)) for counts in ((wins, losses), (wins + 1, losses), (wins, losses + 1))
    )
    assert (won + lost) / 2 == pytest.approx(now, rel=1e-6)


def test_mcnemar_e_is_finite_everywhere():
    counts = np.array([0, 1, 10, 1000, 100_000])
    found = mcnemar_e(counts[:, None], counts[None, :])
    assert np.isfinite(found).all()
    assert (np.diff(found, axis=0) >= 0).all()
    assert (np.diff(found, axis=1) <= 0).all()
    assert (found[0, 1:] < 0).all()


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 30))
def test_betting_on_wins_and_losses_is_mcnemars_mixture(wins, losses, ties):
    differences = np.r_[np.ones(wins), -np.ones(losses), np.zeros(ties)]
    assert betting_e(differences, 1.0) == pytest.approx(float(mcnemar_e(wins, losses)), abs=1e-6)


@given(st.lists(st.floats(-2, 2), max_size=40), st.randoms())
@settings(deadline=None)
def test_betting_does_not_mind_the_order_nor_the_unit(differences, random):
    found = betting_e(differences, 2.0)
    mixed = list(differences)
    random.shuffle(mixed)
    assert betting_e(mixed, 2.0) == pytest.approx(float(found), abs=1e-9)
    assert betting_e(np.array(differences) * 100, 200.0) == pytest.approx(float(found), abs=1e-9)


def test_betting_is_finite_at_the_bound_and_refuses_what_lies_beyond():
    assert math.isfinite(betting_e(-np.ones(5000), 1.0))
    assert betting_e(np.ones(5000), 1.0) > 1000
    assert betting_e(np.zeros((3, 0)), 1.0).tolist() == [0, 0, 0]
    for bad in ([1.1], [math.nan]):
        with pytest.raises(FidelityError, match="cap them"):
            betting_e(bad, 1.0)


def running_mcnemar(solved_by_opponent, solved_by_candidate):
    """[races, items] log e-value after every item."""
    difference = solved_by_opponent.astype(int) - solved_by_candidate
    return mcnemar_e(np.cumsum(difference > 0, axis=1), np.cumsum(difference < 0, axis=1))


def running_betting(differences, bound):
    """[races, items] log e-value after every item; spot-checked against `betting_e` by the caller."""
    nodes, weights = np.polynomial.legendre.leggauss(32)
    total = np.full(differences.shape, -np.inf)
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        total = np.logaddexp(total, math.log(weight) + np.cumsum(np.log1p(node * differences / bound), axis=1))
    return total


def equals(generator, races, items, share, alike, systems=2):
    """Equally able systems on common items: [systems, races, items] solved or not."""
    ease = generator.normal(size=(races, items))
    luck = generator.normal(size=(systems, races, items))
    bar = special.ndtri(share)
    return math.sqrt(alike) * ease + math.sqrt(1 - alike) * luck < bar


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("alike", [0.0, 0.8])
def test_equal_candidates_are_hardly_ever_dropped_however_often_one_looks(share, alike):
    opponent, candidate = equals(np.random.default_rng(1), 1000, 400, share, alike)
    assert (running_mcnemar(opponent, candidate).max(axis=1) >= LIMIT).mean() <= 0.05


def test_a_naive_test_at_every_look_drops_many_equals():
    """What the e-process is for: the same races, by a z-test at 5 % after every ten items."""
    opponent, candidate = equals(np.random.default_rng(1), 1000, 400, 0.5, 0.5)
    difference = np.cumsum(opponent.astype(int) - candidate, axis=1)[:, 19::10]
    discordant = np.cumsum(opponent != candidate, axis=1)[:, 19::10]
    assert (difference / np.sqrt(np.maximum(discordant, 1)) > 1.645).any(axis=1).mean() > 0.15


def test_equal_graded_scores_and_equal_error_counts():
    generator = np.random.default_rng(2)
    graded = generator.beta(0.6, 0.4, (1000, 250)) - generator.beta(0.6, 0.4, (1000, 250))
    running = running_betting(graded, 1.0)
    assert running[0, -1] == pytest.approx(float(betting_e(graded[0], 1.0)), abs=1e-9)
    assert (running.max(axis=1) >= LIMIT).mean() <= 0.05
    rate = generator.gamma(0.3, 3.0, (1000, 250))
    counts = capped(generator.poisson(rate) - generator.poisson(rate), 3)
    assert (running_betting(counts, 3.0).max(axis=1) >= LIMIT).mean() <= 0.05


def test_the_best_of_fifty_as_opponent_if_it_was_chosen_on_other_items():
    """Chosen on a quarter of the items and tested on the rest: the level holds. Chosen on the tested ones: it does
    not."""
    generator = np.random.default_rng(3)
    fair = unfair = races = 0
    for _ in range(150):
        systems = equals(generator, 1, 200, 0.5, 0.5, systems=51)[:, 0]
        candidate, archive = systems[0], systems[1:]
        promoting = np.arange(200) % 4 == 0
        chosen = archive[choose_opponent([candidate[promoting].mean()], archive[:, promoting].mean(axis=1)[:, None])]
        fair += (running_mcnemar(chosen[None, ~promoting], candidate[None, ~promoting]).max() >= LIMIT).sum()
        luckiest = archive[archive.mean(axis=1).argmax()]
        unfair += (running_mcnemar(luckiest[None, ~promoting], candidate[None, ~promoting]).max() >= LIMIT).sum()
        races += 1
    assert fair / races <= 0.05
    assert unfair / races > 0.08


def test_a_candidate_that_equals_its_opponent_in_one_objective_stays():
    """Intersection-union: far worse in one objective, equal in the other."""
    generator = np.random.default_rng(4)
    dropped = 0
    for _ in range(400):
        equal = equals(generator, 1, 240, 0.5, 0.5)[:, 0].astype(float)
        worse = Comparison((generator.random(240) < 0.6).astype(float), 1.0)
        sizes = (30, 90, 240)
        comparisons = [[Comparison(each.differences[:n], 1.0) for n in sizes] for each in (
            worse, Comparison(equal[0] - equal[1], 1.0))]  # fmt: skip
        dropped += any(decide(7, list(pair)).dropped for pair in zip(*comparisons, strict=True))
    assert dropped / 400 <= 0.05


def test_a_dominated_candidate_is_dropped_early():
    generator = np.random.default_rng(5)
    dropped = 0
    for _ in range(400):
        pairs = []
        for _ in range(2):
            won = generator.random(120)
            pairs.append((won < 0.35).astype(float) - (won > 0.95))
        comparisons = [Comparison(each[np.arange(120) % 4 > 0], 1.0) for each in pairs]
        dropped += decide(3, comparisons).dropped
    assert dropped / 400 > 0.9


def test_more_errors_in_every_utterance_are_noticed():
    generator = np.random.default_rng(6)
    counts = capped(generator.poisson(2.0, (300, 90)) - generator.poisson(1.0, (300, 90)), 3)
    assert (betting_e(counts, 3.0) >= LIMIT).mean() > 0.9


def test_caps():
    assert capped([-9, -1, 0, 2, 9], 2).tolist() == [-2, -1, 0, 2, 2]
    assert suggest_cap(np.r_[np.zeros(500), np.ones(95), np.full(4, 40)]) == 1
    assert suggest_cap([0.0, 0.0]) == 1
    with pytest.raises(FidelityError):
        capped([1], 0)


# -- decisions --------------------------------------------------------------------------------------------------------


def scores(ids, values, weights=None, statuses=None):
    n = len(ids)
    counts = np.ones(n) if weights is None else np.array(weights, dtype=float)
    return ItemScores(tuple(ids), {"m": np.array(values, float)}, {"m": counts}, tuple(statuses or ["ok"] * n))


def test_comparisons_are_of_common_items_with_a_verdict_and_turned_to_the_better():
    opponent = scores("abcde", [1, 1, 0, 1, 1], statuses=["ok", "ok", "ok", "unscored", "ok"])
    candidate = scores("edca", [0, 0, 1, 0])
    found = compare(opponent, candidate, Metric("m", "maximize", 0, 1), ["a", "c", "d", "e"])
    assert found.differences.tolist() == [1, -1, 1]
    assert found.bound == 1
    turned = compare(opponent, candidate, Metric("m", "minimize", 0, 2), ["a", "c", "d", "e"])
    assert turned.differences.tolist() == [-1, 1, -1]
    assert turned.bound == 2
    assert found.log_e() == pytest.approx(float(mcnemar_e(2, 1)))


def test_ratios_of_sums_compare_by_capped_counts():
    rates = Metric("m", "minimize", 0, math.inf)
    opponent, candidate = scores("ab", [0.1, 0.5], [10, 4]), scores("ab", [0.2, 3.0], [10, 4])
    found = compare(opponent, candidate, rates, "ab", cap=3)
    assert found.differences == pytest.approx([1, 3])
    assert found.bound == 3
    with pytest.raises(FidelityError, match="a cap for m"):
        compare(opponent, candidate, rates, "ab")


def test_the_opponent_leads_by_most_where_it_leads_least():
    archive = [[0.9, 0.5], [0.7, 0.7], [0.6, 0.6], [0.5, 0.9]]
    assert choose_opponent([0.5, 0.5], archive) == 1
    assert choose_opponent([0.5, 0.2], archive) == 0
    assert choose_opponent([0.9, 0.9], archive) == 1
    assert choose_opponent([0.5, 0.5], np.zeros((0, 2))) is None
    assert choose_opponent([0.5, 0.5], [[0.7, 0.6], [0.6, 0.8], [0.6, 0.7]]) == 1


def test_a_verdict_needs_every_objective_and_an_opponent():
    strong, weak = Comparison(np.ones(30), 1.0), Comparison(np.array([1.0, -1.0]), 1.0)
    assert decide(4, [strong, strong]).dropped
    kept = decide(4, [strong, weak])
    assert not kept.dropped
    assert kept.opponent == 4
    assert kept.log_e == pytest.approx((strong.log_e(), weak.log_e()))
    assert not decide(None, [strong]).dropped
    assert not decide(4, [strong, Comparison(np.zeros(0), 1.0)]).dropped


def test_the_evidence_needed_is_one_over_alpha():
    wins = next(n for n in itertools.count() if mcnemar_e(n, 0) >= LIMIT)
    assert not decide(0, [Comparison(np.ones(wins - 1), 1.0)], alpha=0.05).dropped
    assert decide(0, [Comparison(np.ones(wins), 1.0)], alpha=0.05).dropped
    assert not decide(0, [Comparison(np.ones(wins), 1.0)], alpha=0.01).dropped


def test_halving_keeps_the_best_third_by_rank_and_then_by_what_they_add():
    front = [[0.9, 0.1], [0.5, 0.5], [0.49, 0.51], [0.1, 0.9]]
    behind = [[0.4, 0.4], [0.3, 0.3], [0.05, 0.05], [0.2, 0.2], [0.1, 0.1]]
    reached = front + behind
    going = [row for row in range(9) if halve(reached, row)]
    assert going == [0, 1, 3]
    assert [row for row in range(9) if halve(reached, row, 1.0)] == list(range(9))


def test_halving_one_objective_is_a_ranking():
    values = np.random.default_rng(7).permutation(30)[:, None] / 30
    assert {row for row in range(30) if halve(values, row)} == set(np.argsort(-values[:, 0])[:10].tolist())


def test_the_first_goes_on_and_equals_share_their_place():
    assert halve([[0.0, 0.0]], 0)
    assert all(halve([[0.5, 0.5]] * 5, row) for row in range(5))
    assert not halve([[0.5, 0.5]] * 2 + [[0.4, 0.4]] * 4, 5)


def test_infeasible_candidates_come_after_all_feasible_ones():
    reached, broken = [[0.9, 0.9], [0.2, 0.2], [0.1, 0.1]], [0.3, 0.0, 0.0]
    assert [halve(reached, row, violations=broken) for row in range(3)] == [False, True, False]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12), st.floats(0.1, 1.0))
@settings(deadline=None)
def test_halving_never_stops_one_that_dominates_one_it_keeps(points, keep):
    reached = np.array(points) / 4
    going = [halve(reached, row, keep) for row in range(len(reached))]
    assert any(going)
    for one, two in itertools.permutations(range(len(reached)), 2):
        if (reached[one] >= reached[two]).all() and (reached[one] > reached[two]).any():
            assert going[one] or not going[two]


def test_a_share_beyond_one_is_a_mistake():
    with pytest.raises(FidelityError, match="share"):
        halve([[1.0]], 0, 3.0)


@pytest.mark.slow
@pytest.mark.parametrize("objectives", [1, 2])
def test_whole_searches_over_equal_candidates_drop_few(objectives):
    """Candidates that differ by luck alone; archive, opponent and rungs as in a search."""
    generator = np.random.default_rng([8, objectives])
    items = make_items(["a", "b"] * 250)
    order = nested_order(items, 0)
    promotes = roles(items, order)[order]
    dropped = tested = 0
    for _ in range(20):
        ease = generator.normal(size=(objectives, 500))
        archive = []
        for _ in range(100):
            solved = (math.sqrt(0.7) * ease + math.sqrt(0.3) * generator.normal(size=ease.shape) > 0).astype(float)
            gone = False
            if archive:
                first = promotes[:40]
                means = [each[:, :40][:, first].mean(axis=1) for each in archive]
                opponent = archive[choose_opponent(solved[:, :40][:, first].mean(axis=1), means)]
                tested += 1
                for size in rung_sizes(500):
                    tests = ~promotes[:size]
                    rows = [Comparison((opponent - solved)[row, :size][tests], 1.0) for row in range(objectives)]
                    gone = decide(0, rows).dropped
                    if gone:
                        dropped += 1
                        break
            if not gone:
                archive.append(solved)
    assert dropped / tested <= 0.05
