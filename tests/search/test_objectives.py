"""Utilities, retention and standard errors against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.contract import ItemScores, Metric, weighted_mean
from search.objectives import Objectives, Target, standard_errors

ACCURACY = Target("a.accuracy", Metric("accuracy", "maximize", 0.0, 1.0), 0.0, 1.0, "a")
WER = Target("b.wer", Metric("wer", "minimize", 0.0, 4.0), 0.0, 2.0, "b")


def test_utilities_turn_every_metric_into_larger_is_better() -> None:
    targets = Objectives([ACCURACY, WER])
    assert targets.utilities({"a.accuracy": 0.25, "b.wer": 0.5}) == (0.25, 0.75)
    assert targets.utilities({"a.accuracy": 0.25, "b.wer": 3.0}) == (0.25, 0.0)  # beyond the bounds that count
    assert targets.errors({"a.accuracy": 0.1, "b.wer": 0.1}) == (0.1, 0.05)
    assert targets.reference == (0.0, 0.0)


@given(st.floats(0.0, 2.0))
def test_value_is_the_inverse_of_utility(value: float) -> None:
    assert math.isclose(WER.value(WER.utility(value)), value, abs_tol=1e-12)


def test_retention_is_the_share_of_the_experts_gain() -> None:
    targets = Objectives([ACCURACY, WER])
    base = {"a.accuracy": 0.2, "b.wer": 0.8}
    experts = {"a": {"a.accuracy": 0.6, "b.wer": 1.0}, "b": {"a.accuracy": 0.1, "b.wer": 0.4}}
    kept = targets.retention({"a.accuracy": 0.5, "b.wer": 0.5}, base, experts)
    assert kept == pytest.approx((0.75, 0.75))
    assert targets.retention(base, base, experts) == (0.0, 0.0)
    assert targets.retention({"a.accuracy": 0.1, "b.wer": 1.0}, base, experts) == pytest.approx((-0.25, -0.5))


def test_without_a_scale_the_utility_stands_in_for_retention() -> None:
    targets = Objectives([ACCURACY, WER])
    values = {"a.accuracy": 0.5, "b.wer": 0.5}
    assert targets.retention(values, None, {}) == (0.5, 0.75)
    useless = {"a": {"a.accuracy": 0.2}, "b": {"b.wer": 0.9}}  # no better than the base, and worse
    assert targets.retention(values, {"a.accuracy": 0.2, "b.wer": 0.8}, useless) == (0.5, 0.75)


def test_objectives_round_trip_as_data() -> None:
    targets = Objectives([ACCURACY, WER])
    again = Objectives.from_data(targets.as_data())
    values = {"a.accuracy": 0.3, "b.wer": 0.7}
    assert again.names == targets.names
    assert again.utilities(values) == targets.utilities(values)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_the_standard_error_of_equal_weights_is_s_over_root_n(values: list[float]) -> None:
    n = len(values)
    scores = ItemScores(tuple(map(str, range(n))), {"x": np.array(values)}, {"x": np.full(n, 3.0)}, ("ok",) * n)
    assert math.isclose(standard_errors("e", scores)["e.x"], np.std(values, ddof=1) / math.sqrt(n), abs_tol=1e-12)


def test_the_standard_error_of_a_ratio_agrees_with_the_bootstrap() -> None:
    rng = np.random.default_rng(0)
    words = rng.integers(1, 12, 400).astype(np.float64)
    errors = rng.binomial(words.astype(int), 0.2) / words
    scores = ItemScores(tuple(map(str, range(400))), {"wer": errors}, {"wer": words}, ("ok",) * 400)
    draws = rng.integers(0, 400, (4000, 400))
    bootstrap = (errors[draws] * words[draws]).sum(1) / words[draws].sum(1)
    assert standard_errors("e", scores)["e.wer"] == pytest.approx(bootstrap.std(), rel=0.05)


def test_unscored_items_leave_numerator_and_denominator() -> None:
    scores = ItemScores(
        ("a", "b", "c"), {"x": np.array([1.0, 0.0, 1.0])}, {"x": np.ones(3)}, ("ok", "failed", "unscored")
    )  # fmt: skip
    assert weighted_mean(scores, "x") == 0.5
    nothing = ItemScores(("a",), {"x": np.array([1.0])}, {"x": np.ones(1)}, ("unscored",))
    assert math.isnan(weighted_mean(nothing, "x"))
    assert standard_errors("e", nothing)["e.x"] == math.inf
