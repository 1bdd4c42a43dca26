"""Holm, the set around the winner, scalars of several objectives, optimism, power."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from search.statistics import (
    StatisticsError,
    Table,
    adjust,
    detectable_difference,
    half_width,
    holm,
    indistinguishable,
    indistinguishable_by,
    interval,
    items_needed,
    optimism,
    scalar_difference,
)

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def binary_table(generator, shares, n=250, alike=0.6, **options):
    """Systems that solve items of one difficulty, each with some luck of its own."""
    ease = generator.normal(size=n)
    luck = generator.normal(size=(len(shares), n))
    solved = math.sqrt(alike) * ease + math.sqrt(1 - alike) * luck < stats.norm.ppf(shares)[:, None]
    return Table(solved.astype(float), np.ones((len(shares), n)), **options)


# -- multiplicity -----------------------------------------------------------------------------------------------------


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.6]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


@given(P_VALUES)
def test_holm_rejects_what_closed_testing_with_bonferroni_rejects(p):
    """The closure: a hypothesis is rejected if every intersection that holds it is."""
    adjusted = holm(p)
    for index in range(len(p)):
        worst = 0.0
        for size in range(1, len(p) + 1):
            for subset in itertools.combinations(range(len(p)), size):
                if index in subset:
                    worst = max(worst, min(1.0, size * min(p[each] for each in subset)))
        assert adjusted[index] == pytest.approx(worst)


def test_missing_tests_cost_nothing():
    found = holm([0.02, math.nan, 0.03])
    assert found[[0, 2]].tolist() == pytest.approx([0.04, 0.04])
    assert math.isnan(found[1])
    with pytest.raises(StatisticsError, match="between 0 and 1"):
        holm([0.5, 1.5])


def test_adjusting_keeps_the_nesting():
    nested = {"a": {"x": {0: 0.01, 1: 0.04}}, "b": {"x": {0: 0.03}, "y": {0: 0.005}}}
    found = adjust(nested)
    assert found["a"]["x"] == pytest.approx({0: 0.03, 1: 0.06})
    assert found["b"] == {"x": {0: pytest.approx(0.06)}, "y": {0: pytest.approx(0.02)}}


# -- the set around the winner ----------------------------------------------------------------------------------------


def test_the_best_stays_in_the_set_even_if_the_winner_was_the_luckiest():
    """Twenty equal systems, the winner picked on the items that test it."""
    generator = np.random.default_rng(1)
    lost = 0
    for _ in range(100):
        table = binary_table(generator, np.full(20, 0.6))
        winner = int(table.values.mean(axis=1).argmax())
        lost += 0 not in indistinguishable(table, winner).members
    assert lost / 100 <= 0.05


def test_what_is_far_behind_leaves_the_set():
    table = binary_table(np.random.default_rng(2), np.array([0.8, 0.79, 0.5, 0.3]), n=400)
    found = indistinguishable(table, 0)
    assert found.members == (0, 1)
    assert found.p[0] == 1.0
    assert found.p[3] < found.p[2] < 0.05
    errors = Table(1 - table.values, table.weights)
    assert indistinguishable(errors, 0, direction="minimize") == found


def test_several_objectives_by_the_worst_of_them():
    """0 and 1 are traded off, 2 is worse in one objective; rows 3 and 4 only set the scale."""
    generator = np.random.default_rng(3)
    tables = [
        binary_table(generator, np.array([0.7, 0.7, 0.72, 0.2, 0.9]), n=500, evaluator="math"),
        binary_table(generator, np.array([0.7, 0.68, 0.4, 0.2, 0.9]), n=500, evaluator="code"),
    ]

    def worst_retention(aggregates):
        base, expert = aggregates[..., [3], :], aggregates[..., [4], :]
        return ((aggregates - base) / (expert - base)).min(axis=-1)

    found = indistinguishable_by(tables, worst_retention, 0, rivals=[1, 2])
    assert found.members == (0, 1)
    assert math.isnan(found.p[3])
    far = scalar_difference(tables, worst_retention, 0, 2)
    assert far.low > 0
    assert far.p < 0.01
    assert far.p_greater <= far.p / 2 + 1e-9
    assert far.n == {"math": 500, "code": 500}


def test_a_scalar_of_one_objective_agrees_with_the_paired_test():
    table = binary_table(np.random.default_rng(4), np.array([0.66, 0.6]), n=400, evaluator="e")
    found = scalar_difference([table], lambda means: means[..., 0])
    difference = table.values[0] - table.values[1]
    error = difference.std(ddof=1) / 20
    assert found.difference == pytest.approx(difference.mean())
    assert (found.low, found.high) == pytest.approx(
        (difference.mean() - 1.96 * error, difference.mean() + 1.96 * error), abs=0.006
    )
    exact = stats.ttest_1samp(difference, 0).pvalue
    assert found.p == pytest.approx(exact, abs=0.015)


def test_scalar_differences_keep_their_level_and_cover():
    generator = np.random.default_rng(5)
    p, hits = [], 0
    for _ in range(200):
        tables = [
            binary_table(generator, np.array([0.6, 0.6, 0.5]), n=120, evaluator=name) for name in ("math", "code")
        ]
        p.append(scalar_difference(tables, lambda means: means.min(axis=-1), resamples=500).p)
        found = scalar_difference(tables, lambda means: means.mean(axis=-1), 0, 2, resamples=500)
        hits += found.low <= 0.1 <= found.high
    assert np.mean(np.array(p) <= 0.05) <= 0.08
    assert 0.92 <= hits / 200 <= 0.98


def test_metrics_of_one_evaluator_are_drawn_together_and_of_two_apart():
    """The difference of two copies of one metric does not vary if their items are drawn together."""
    values = np.random.default_rng(6).random((2, 100))
    together = [Table(values, np.ones((2, 100)), evaluator="e") for _ in range(2)]
    apart = [Table(values, np.ones((2, 100)), evaluator=name) for name in "ef"]

    def gap(means):
        return means[..., 0] - means[..., 1]

    same, different = scalar_difference(together, gap), scalar_difference(apart, gap)
    assert same.high - same.low == pytest.approx(0, abs=1e-6)
    assert different.high - different.low > 0.05
    assert same.p == 1.0


def test_clusters_widen_a_scalar_difference():
    generator = np.random.default_rng(7)
    values = np.repeat(generator.normal(size=(2, 40)), 10, axis=1)
    labels = tuple(np.repeat(np.arange(40), 10).tolist())
    plain, clustered = (
        scalar_difference([Table(values, np.ones((2, 400)), clusters=each)], lambda means: means[..., 0])
        for each in (None, labels)
    )
    assert (clustered.high - clustered.low) / (plain.high - plain.low) == pytest.approx(math.sqrt(10), rel=0.1)


def test_very_many_items_vary_as_few_resampled_ones_would():
    values = np.random.default_rng(8).random((2, 12_001))
    found = scalar_difference([Table(values, np.ones(values.shape))], lambda means: means[..., 0], resamples=400)
    expected = 2 * 1.96 * (values[0] - values[1]).std() / math.sqrt(12_001)
    assert found.high - found.low == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda table: indistinguishable(table, 5), "row between 0 and 1"),
        (lambda table: indistinguishable(table, 0, alpha=5), "alpha"),
        (lambda table: scalar_difference([], lambda each: each), "all with the same systems"),
        (lambda table: scalar_difference([table], lambda each: each), "gives"),
        (lambda table: scalar_difference([Table(np.ones((2, 0)), np.ones((2, 0)))], lambda each: each[..., 0]), "none"),
        (lambda table: Table(np.ones((2, 3)), np.ones((2, 2))), "each"),
    ],
)
def test_mistakes_are_explained(call, message):
    with pytest.raises(StatisticsError, match=message):
        call(Table(np.array([[1.0, 0.0], [0.0, 0.0]]), np.ones((2, 2))))


# -- optimism ---------------------------------------------------------------------------------------------------------


def test_optimism_by_hand():
    """Newcombe 1998, method 10: 56/70 against 48/80 differ by 0.2 (0.0524, 0.3339)."""
    search, holdout = (interval(np.arange(n) < k) for k, n in ((56, 70), (48, 80)))
    found = optimism(search, holdout)
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    turned = optimism(search, holdout, "minimize")
    assert (turned.value, turned.low, turned.high) == pytest.approx((-0.2, -0.3339, -0.0524), abs=1e-4)


def test_optimism_of_a_fixed_candidate_covers_zero_and_of_a_selected_one_is_positive():
    generator = np.random.default_rng(9)
    covered, values = 0, []
    for _ in range(400):
        search, holdout = binary_table(generator, np.full(30, 0.6), n=100), binary_table(generator, [0.6], n=300)
        of_holdout = interval(holdout.values[0])
        fixed = optimism(interval(search.values[0]), of_holdout)
        covered += fixed.low <= 0 <= fixed.high
        best = search.values[search.values.mean(axis=1).argmax()]
        values.append(optimism(interval(best), of_holdout).value)
    assert 0.92 <= covered / 400 <= 0.98
    assert 0.04 < np.mean(values) < 0.12


def test_optimism_without_scores_is_unknown():
    found = optimism(interval([], bounds=(0, 1)), interval([1.0, 0.0]))
    assert math.isnan(found.value)
    assert (found.low, found.high) == (-math.inf, math.inf)
    with pytest.raises(StatisticsError, match="one level"):
        optimism(interval([1.0]), interval([1.0], level=0.9))


# -- power ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "discordance", "n"), [(0.02, 0.1, 1960), (0.02, 0.2, 3922), (0.05, 0.1, 312), (0.05, 0.2, 626)]
)
def test_items_needed_are_the_known_ones(points, discordance, n):
    assert abs(items_needed(points, discordance=discordance) - n) <= 1
    assert detectable_difference(n, discordance=discordance) == pytest.approx(points, rel=2e-3)


@given(
    st.integers(10, 5000), st.floats(0.02, 1.0), st.sampled_from([0.05, 0.001]), st.sampled_from([0.8, 0.95]),
    st.sampled_from([1, 2]),
)  # fmt: skip
@settings(deadline=None)
def test_detectable_difference_inverts_items_needed(n, discordance, alpha, power, sides):
    options = {"discordance": discordance, "alpha": alpha, "power": power, "sides": sides}
    found = detectable_difference(n, **options)
    if math.isnan(found):  # then even the largest possible difference needs more items
        assert items_needed(discordance, **options) > n
    else:
        assert abs(items_needed(found, **options) - n) <= 1


def test_power_is_what_simulation_finds():
    generator = np.random.default_rng(10)
    n, discordance = 250, 0.2
    difference = detectable_difference(n, discordance=discordance)
    cells = [(discordance + difference) / 2, (discordance - difference) / 2, 1 - discordance]
    wins, losses, _ = generator.multinomial(n, cells, size=20_000).T
    found = np.abs(wins - losses) / np.sqrt(np.maximum(wins + losses, 1)) > 1.96
    assert found.mean() == pytest.approx(0.8, abs=0.02)


def test_graded_scores_go_by_their_standard_deviation():
    assert items_needed(0.1, sd=0.5) == math.ceil((1.959964 + 0.841621) ** 2 * 25)
    assert detectable_difference(196, sd=0.5) == pytest.approx(0.1, rel=0.01)


def test_half_width_of_accuracies():
    assert half_width(100) == pytest.approx(0.0962, abs=1e-4)
    assert half_width(250) == pytest.approx(1.96 * math.sqrt(0.25 / 250), rel=0.01)
    assert math.isnan(half_width(0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: items_needed(0.3, discordance=0.2),
        lambda: items_needed(0.1),
        lambda: items_needed(0.1, discordance=0.2, sd=0.3),
        lambda: detectable_difference(100, discordance=1.2),
        lambda: detectable_difference(100, sd=0.0),
        lambda: detectable_difference(100, sd=1.0, power=1.0),
    ],
)
def test_impossible_questions_are_refused(call):
    with pytest.raises(StatisticsError):
        call()
