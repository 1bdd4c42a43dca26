"""The diagnostics' experiment: what correlates, what chance gives, and what is kept. No model is loaded."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from experiments.diagnosing import tables
from experiments.diagnosing.correlate import Pair, _weighted, chance, correlation, family_ranks, read, within
from experiments.diagnosing.families import FAMILIES
from experiments.diagnosing.gaps import Records, retention


def pair(family: str, seed: int, gap: float, **values: float) -> Pair:
    return Pair(family, seed, f"{family}{gap}", gap, 0.7, 1.0, values)


def test_ranks_within_families_see_through_a_shift_between_them() -> None:
    # In both families the gap rises with x; the family with the larger x has the smaller gaps.
    pairs = [pair("one", n, 0.1 * n, x=10.0 + n) for n in range(6)]
    pairs += [pair("two", n, 5 + 0.1 * n, x=float(n)) for n in range(6)]
    found = correlation(pairs, "x", draws=200)
    assert found.within == pytest.approx(1.0) and found.overall < 0.0
    assert found.low == pytest.approx(1.0) and found.high == pytest.approx(1.0)
    alone = correlation(pairs[:6], "x", draws=0)
    assert alone.overall == pytest.approx(spearmanr(range(6), range(6))[0]) and math.isnan(alone.low)


def test_a_family_of_two_says_nothing() -> None:
    assert list(family_ranks(np.array([1.0, 2.0]), ["a", "a"])) == [0.0, 0.0]
    assert list(family_ranks(np.array([5.0, 7.0, 7.0]), ["a"] * 3)) == pytest.approx([-1 / 3, 1 / 6, 1 / 6])
    assert math.isnan(within(np.array([1.0, 2.0]), np.array([1.0, 2.0]), ["a", "a"]))


def test_weights_are_repetitions() -> None:
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(2, 7))
    counts = np.array([[2, 0, 1, 3, 1, 0, 1], [1, 1, 1, 1, 1, 1, 1]])
    repeated = np.repeat(np.arange(7), counts[0])
    expected = [np.corrcoef(x[repeated], y[repeated])[0, 1], np.corrcoef(x, y)[0, 1]]
    assert _weighted(x, y, counts) == pytest.approx(expected)


def test_the_best_of_many_useless_numbers_looks_good() -> None:
    generator = np.random.default_rng(0)
    names = [f"x{n}" for n in range(12)]
    pairs = [
        pair("one", n, gap, **dict(zip(names, generator.normal(size=12), strict=True)))
        for n, gap in enumerate(generator.normal(size=30))
    ]
    one, many = chance(pairs, names[:1], draws=200), chance(pairs, names, draws=200)
    # Of one number at 30 pairs the two-sided 5 % bound is 0.36.
    assert one == pytest.approx(0.36, abs=0.04) and many > one + 0.08


def test_rows_are_kept_and_pairs_that_learned_nothing_are_put_aside(tmp_path: Path) -> None:
    records = Records(tmp_path)
    held = {"own": {"a": 0.9, "b": 0.8}, "base": {"a": 0.1, "b": 0.2}, "gap": 0.3, "lambda": 0.7}
    records.add("gaps", "digits", 0, "a+b", held)
    records.add("gaps", "digits", 0, "a+c", held | {"own": {"a": 0.9, "b": 0.25}})
    records.add("predictors", "digits", 0, "a+b", {"cosine": 0.1, "seconds": 3.0, "diagnosis": {}})
    kept, out = read(records)
    assert [(each.name, each.gap, dict(each.values)) for each in kept] == [("a+b", 0.3, {"cosine": 0.1})]
    assert [each.name for each in out] == ["a+c"] and not list(tmp_path.glob("*.partial"))
    table = tables.pairs_table(kept)
    assert "| digits | 0 | a+b | 0.30 | 0.7 |" in table


def test_retention_and_utilities() -> None:
    assert retention(0.5, 0.1, 0.9) == pytest.approx(0.5) and retention(0.5, 0.3, 0.3) == 0.0
    assert FAMILIES["speech"].task.utility(0.25) == 0.75 and FAMILIES["skills"].task.utility(0.25) == 0.25
    assert len(FAMILIES["skills"].pairs) == 6
