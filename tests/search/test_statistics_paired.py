"""Paired tests: exact values, levels under the null, power, what joins by id."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from evaluators.contract import ItemScores
from search.statistics import StatisticsError, paired, paired_scores, tabulate
from search.statistics.paired import contributions, mcnemar, sign_flip, tango
from search.statistics.samples import Table


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_mid_p_from_the_binomial(wins, losses):
    n = wins + losses
    half = 0.5 * stats.binom.pmf(wins, n, 0.5)
    below, above = stats.binom.cdf(wins, n, 0.5) - half, stats.binom.sf(wins - 1, n, 0.5) - half
    assert mcnemar(wins, losses, "less") == pytest.approx(below, rel=1e-9)
    assert mcnemar(wins, losses, "greater") == pytest.approx(above, rel=1e-9)
    assert mcnemar(wins, losses) == pytest.approx(min(1.0, 2 * min(below, above)), rel=1e-9)
    assert mcnemar(wins, losses) == mcnemar(losses, wins)


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.05 / 12])
def test_mcnemar_keeps_its_level_at_every_discordance(alpha):
    """Exact: over all tables that n items can give."""
    for n, discordance in itertools.product((20, 80), (0.05, 0.2, 0.5)):
        level = 0.0
        for discordant in range(1, n + 1):
            wins = np.arange(discordant + 1)
            p = np.array([mcnemar(w, discordant - w) for w in wins.tolist()])
            given = stats.binom.pmf(wins, discordant, 0.5)[p <= alpha].sum()
            level += stats.binom.pmf(discordant, n, discordance) * given
        assert level <= alpha


@pytest.mark.parametrize(("wins", "losses", "n"), [(43, 12, 100), (5, 0, 30), (2, 9, 200)])
def test_the_ends_of_tangos_interval_are_where_the_score_test_is_just_significant(wins, losses, n):
    """The rarer cell's share under each difference by numeric maximum likelihood, not by Tango's quadratic."""
    for end in tango(wins, losses, n, 0.9):
        same = n - wins - losses

        def loss(share, end=end, same=same):
            cells = np.array([share + end, share, 1 - 2 * share - end])
            return -(np.array([wins, losses, same]) * np.log(np.maximum(cells, 1e-300))).sum()

        low, high = max(0.0, -end), (1 - end) / 2
        share = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        score = (wins - losses - n * end) / math.sqrt(n * (2 * share + end - end**2))
        assert abs(score) == pytest.approx(stats.norm.ppf(0.95), rel=1e-3)


def test_tango_of_no_discordant_items():
    z = stats.norm.ppf(0.975)
    assert tango(0, 0, 50) == pytest.approx((-(z**2) / (50 + z**2), z**2 / (50 + z**2)))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 80))
@settings(deadline=None)
def test_tango_contains_the_estimate_and_mirrors(wins, losses, same):
    n = wins + losses + same
    if n:
        low, high = tango(wins, losses, n)
        assert -1 <= low <= (wins - losses) / n <= high <= 1
        assert tango(losses, wins, n) == pytest.approx((-high, -low), abs=1e-9)


def test_coverage_of_tango():
    generator = np.random.default_rng(1)
    for gain, loss in ((0.1, 0.1), (0.25, 0.05), (0.02, 0.1)):
        tables = generator.multinomial(80, [gain, loss, 1 - gain - loss], size=1000)
        ends = np.array([tango(int(w), int(lost), 80) for w, lost, _ in tables])
        hits = (ends[:, 0] <= gain - loss) & (gain - loss <= ends[:, 1])
        assert 0.93 <= hits.mean() <= 0.975


def enumerate_signs(values):
    signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
    sums, observed = signs @ values, values.sum()
    return np.mean(sums > observed + 1e-9) + 0.5 * np.mean(np.abs(sums - observed) <= 1e-9)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
@settings(max_examples=50, deadline=None)
def test_sign_flip_of_few_units_goes_through_all_patterns(values):
    values = np.array(values, dtype=float)
    assert sign_flip(values, "greater") == pytest.approx(enumerate_signs(values))
    assert sign_flip(values, "greater") + sign_flip(values, "less") == pytest.approx(1)


@pytest.mark.parametrize("kind", ["graded", "counts", "skewed"])
@pytest.mark.parametrize("units", [20, 60])
def test_saddlepoint_against_random_signs(kind, units):
    generator = np.random.default_rng([2, units])
    signs = 2 * generator.integers(0, 2, (200_000, units), dtype=np.int8) - 1
    for _ in range(3):
        values = {
            "graded": generator.normal(0.3, 1, units),
            "counts": generator.integers(1, 4, units) * generator.choice([-1.0, 1.0], units, p=[0.4, 0.6]),
            "skewed": generator.exponential(1, units) - 0.8,
        }[kind]
        sums, observed = signs.astype(np.float32) @ values.astype(np.float32), values.sum()
        drawn = np.mean(sums > observed + 1e-3) + 0.5 * np.mean(np.abs(sums - observed) <= 1e-3)
        assert sign_flip(values, "greater") == pytest.approx(drawn, rel=0.05, abs=2e-3)


@given(st.integers(0, 200), st.integers(0, 200))
def test_saddlepoint_of_equal_units_is_mcnemar(wins, losses):
    if wins + losses > 16:
        values = np.r_[np.full(wins, 0.3), np.full(losses, -0.3)]
        exact = mcnemar(wins, losses, "greater")
        assert sign_flip(values, "greater") == pytest.approx(exact, rel=0.1, abs=1e-12)


def test_p_values_are_uniform_where_there_is_no_difference():
    """Graded, counts per word, and clustered: level at 5 % and 20 %."""
    generator = np.random.default_rng(3)
    p = {"graded": [], "counts": [], "clusters": []}
    labels = tuple(np.repeat(np.arange(30), 4).tolist())
    for _ in range(900):
        a, b = generator.beta(1, 2, (2, 60))
        p["graded"].append(sign_flip(a - b))
        words = 1 + generator.poisson(6, 60)
        errors = generator.poisson(generator.gamma(0.5, 0.4, 60) * words, (2, 60))
        p["counts"].append(sign_flip(contributions(Table(errors / words, np.stack([words, words])))))
        effect = np.repeat(generator.normal(0, 0.2, 30), 4)
        difference = effect + generator.normal(0, 0.2, 120)
        table = Table(np.stack([difference, np.zeros(120)]), np.ones((2, 120)), clusters=labels)
        p["clusters"].append(sign_flip(contributions(table)))
    for found in p.values():
        assert 0.03 <= np.mean(np.array(found) <= 0.05) <= 0.07
        assert 0.16 <= np.mean(np.array(found) <= 0.2) <= 0.24


def test_ignoring_clusters_finds_differences_that_are_none():
    generator = np.random.default_rng(4)
    effect = [np.repeat(generator.normal(0, 0.2, 30), 4) + generator.normal(0, 0.2, 120) for _ in range(300)]
    assert np.mean([sign_flip(each) <= 0.05 for each in effect]) > 0.12


def test_intervals_of_differences_cover():
    generator = np.random.default_rng(5)
    hits = {"graded": 0, "counts": 0}
    for _ in range(400):
        ease = generator.beta(1, 1, 50)
        a, b = np.clip(ease + generator.normal(0.0, 0.1, 50), -1, 2), ease + generator.normal(-0.05, 0.2, 50)
        found = paired(a, b)
        hits["graded"] += found.low <= 0.05 <= found.high
        words = 1 + generator.poisson(6, 50)
        rates = generator.gamma(0.5, 0.4, 50)
        one, two = generator.poisson(rates * words), generator.poisson(2 * rates * words)
        found = paired(one / words, two / words, words)
        hits["counts"] += found.low <= -0.2 <= found.high
    for count in hits.values():
        assert 0.92 <= count / 400 <= 0.98


def test_a_real_difference_is_found_more_often_paired_than_not():
    generator = np.random.default_rng(6)
    found = 0
    for _ in range(200):
        ease = generator.normal(size=250)
        a, b = (ease + generator.normal(0, 0.4, 250) > bar for bar in (0.0, 0.3))
        found += paired(a, b).p <= 0.05
        assert paired(a, b).method == "mcnemar"
    assert found > 190


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_swapping_the_systems_mirrors_everything(seed, weighted):
    generator = np.random.default_rng(seed)
    a, b = generator.random((2, 20))
    weights = generator.integers(1, 5, (2, 20)) if weighted else np.ones((2, 20))
    one, two = paired(a, b, *weights), paired(b, a, *weights[::-1])
    assert one.difference == pytest.approx(-two.difference)
    assert one.p == pytest.approx(two.p)
    assert one.p_greater == pytest.approx(two.p_less)
    assert (one.wins, one.losses) == (two.losses, two.wins)
    assert one.low <= one.difference <= one.high


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_contributions_sum_to_the_difference_of_ratios(seed):
    generator = np.random.default_rng(seed)
    values, weights = generator.random((2, 15)), generator.integers(1, 9, (2, 15)).astype(float)
    clusters = tuple(generator.integers(0, 6, 15).tolist())
    means = (values * weights).sum(axis=1) / weights.sum(axis=1)
    for table in (Table(values, weights), Table(values, weights, clusters=clusters)):
        assert contributions(table).sum() == pytest.approx(means[0] - means[1])


def test_equal_systems_differ_by_nothing_and_still_have_an_interval():
    accuracy = paired(np.ones(60), np.ones(60))
    assert (accuracy.difference, accuracy.p, accuracy.discordant) == (0, 1, 0)
    assert accuracy.low < 0 < accuracy.high < 0.1
    scores = np.random.default_rng(7).random(60)
    weights = np.random.default_rng(8).random(60)
    graded = paired(scores, scores, weights, bounds=(0, 1))
    assert (graded.difference, graded.p) == (0, 1)
    assert -0.15 < graded.low < 0 < graded.high < 0.15


def test_no_common_items():
    nothing = paired([], [])
    assert math.isnan(nothing.difference)
    assert (nothing.n, nothing.p, nothing.method) == (0, 1.0, "none")


def scores(ids, values, statuses=None, weights=None):
    n = len(ids)
    weights = np.ones(n) if weights is None else np.array(weights, dtype=float)
    return ItemScores(tuple(ids), {"m": np.array(values, float)}, {"m": weights}, tuple(statuses or ["ok"] * n))


def test_systems_are_joined_by_id_and_only_where_both_have_a_verdict():
    a = scores("abcde", [1, 0, 1, 1, 0], ["ok", "ok", "ok", "unscored", "failed"])
    b = scores("edcb", [1, 0, 0, 1])
    table = tabulate([a, b], "m")
    assert table.ids == ("b", "c", "e")
    assert table.values.tolist() == [[0, 1, 0], [1, 0, 1]]
    found = paired_scores(a, b, "m")
    assert (found.n, found.wins, found.losses) == (3, 1, 2)


def test_clusters_are_given_by_id_and_the_rest_stand_alone():
    a, b = scores("abcd", [1, 1, 0, 1]), scores("dcba", [0, 0, 0, 0])
    table = tabulate([a, b], "m", clusters={"a": "text", "b": "text"})
    assert table.sums()[0].tolist() == [[2, 0, 1], [0, 0, 0]]
    assert table.sums()[1].tolist() == [[2, 1, 1], [2, 1, 1]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired([1, 0], [1]), "same items"),
        (lambda: paired([1, math.nan], [1, 0]), "finite"),
        (lambda: paired([1, 0], [1, 0], [1, -1]), "weights >= 0"),
        (lambda: tabulate([], "m"), "at least one system"),
        (lambda: tabulate([scores("ab", [1, 0])], "wer"), "found m"),
    ],
)
def test_mistakes_are_explained(call, message):
    with pytest.raises(StatisticsError, match=message):
        call()
