import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from search import pareto

SETS = st.integers(1, 3).flatmap(
    lambda k: arrays(np.float64, st.tuples(st.integers(1, 12), st.just(k)), elements=st.integers(0, 6).map(float))
)


def dominates(one, two):
    return np.all(one >= two) and np.any(one > two)


@given(SETS)
def test_the_front_is_what_the_definition_says(points):
    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert pareto.nondominated(points).tolist() == expected


@given(SETS, st.data())
def test_feasibility_comes_before_dominance(points, data):
    violations = np.asarray(data.draw(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=12, max_size=12)))
    violations = violations[: len(points)]
    front = pareto.nondominated(points, violations)
    ranks = pareto.ranks(points, violations)
    feasible = violations <= 0
    assert not front[~feasible].any()
    assert front.any() == feasible.any()
    if feasible.any():
        assert (front == (feasible & (ranks == 0))).all()
    for one, two in itertools.permutations(range(len(points)), 2):
        broken, worse = max(violations[one], 0), max(violations[two], 0)
        if broken < worse or (broken == worse and dominates(points[one], points[two])):
            assert ranks[one] < ranks[two]


@given(SETS)
@settings(max_examples=50)
def test_hypervolume_counts_unit_cells(points):
    k = points.shape[1]
    cells = sum(any(all(cell < point) for point in points) for cell in itertools.product(range(6), repeat=k))
    assert pareto.hypervolume(points, [0.0] * k) == pytest.approx(cells)


@given(SETS)
def test_a_contribution_is_what_is_lost_among_points_of_the_front(points):
    front = points[pareto.nondominated(points)]
    reference = [-1.0] * points.shape[1]
    everything = pareto.hypervolume(front, reference)
    lost = [everything - pareto.hypervolume(np.delete(front, i, axis=0), reference) for i in range(len(front))]
    assert pareto.contributions(front, reference) == pytest.approx(lost)


def test_closed_form_volumes():
    assert pareto.hypervolume([[1, 3], [2, 2], [3, 1]], [0, 0]) == 6.0
    assert pareto.hypervolume([[1, 3], [2, 2], [3, 1]], [1, 1]) == 1.0
    assert pareto.contributions([[1, 3], [2, 2], [3, 1]], [0, 0]).tolist() == [1.0, 1.0, 1.0]
    assert pareto.contributions([[2.0], [5.0], [4.0]], [1.0]).tolist() == [0.0, 1.0, 0.0]
    assert pareto.contributions([[5.0], [5.0]], [1.0]).tolist() == [0.0, 0.0]
    assert pareto.contributions([[0.5], [0.2]], [1.0]).tolist() == [0.0, 0.0]


def test_nothing_has_no_front_and_no_knee():
    nothing = np.zeros((0, 2))
    assert pareto.nondominated(nothing).tolist() == []
    assert pareto.ranks(nothing).tolist() == []
    assert pareto.hypervolume([], [0, 0]) == 0.0
    assert pareto.contributions(nothing, [0, 0]).tolist() == []
    assert pareto.knee(nothing, []) is None
    assert pareto.max_min([], []) is None


def test_a_single_point_is_the_front_and_the_knee():
    assert pareto.nondominated([[0.2, 0.4]]).tolist() == [True]
    assert pareto.knee([[0.2, 0.4]], [7]) == 7
    assert pareto.max_min([[0.2, 0.4]], [7]) == 7


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused(bad):
    for function in (pareto.nondominated, pareto.ranks):
        with pytest.raises(pareto.ParetoError, match="finite"):
            function([[1.0, bad], [0.0, 0.0]])
    with pytest.raises(pareto.ParetoError, match="finite"):
        pareto.hypervolume([[1.0, bad]], [0, 0])
    with pytest.raises(pareto.ParetoError, match="NaN"):
        pareto.nondominated([[1.0, 1.0]], [np.nan])


def test_shapes_that_do_not_fit_are_refused():
    for call in (
        lambda: pareto.hypervolume([[1, 2]], [0]),
        lambda: pareto.contributions([[1, 2]], [0, 0, 0]),
        lambda: pareto.nondominated([1, 2]),
        lambda: pareto.knee([[1, 2]], [1, 2]),
        lambda: pareto.knee([[1, 2]], [1], ideal=[0, 0], nadir=[1, 1]),
        lambda: pareto.knee([[1, 2]], [1], weights=[-1, 1]),
        lambda: pareto.knee([[1, 2]], [1], weights=[0, 0]),
    ):
        with pytest.raises(pareto.ParetoError, match="expected"):
            call()


def test_the_knee_is_the_balanced_point_also_where_no_weighted_sum_reaches_it():
    concave = [[1.0, 0.0], [0.45, 0.45], [0.0, 1.0]]  # every weighted sum prefers one of the ends
    assert pareto.knee(concave, [1, 2, 3], ideal=[1, 1], nadir=[0, 0]) == 2
    assert pareto.max_min(concave, [1, 2, 3], ideal=[1, 1], nadir=[0, 0]) == 2


def test_the_scale_decides_what_is_balanced():
    points = [[0.5, 10.0], [0.9, 2.0]]
    assert pareto.knee(points, [1, 2], ideal=[1, 20], nadir=[0, 0]) == 1
    assert pareto.knee(points, [1, 2], ideal=[1, 2], nadir=[0, 0]) == 2


def test_weights_move_the_knee():
    points = [[0.9, 0.4], [0.6, 0.6], [0.4, 0.9]]
    found = [pareto.knee(points, [1, 2, 3], ideal=[1, 1], nadir=[0, 0], weights=w) for w in ([5, 1], [1, 1], [1, 5])]
    assert found == [1, 2, 3]


def test_ties_go_to_the_smallest_id_in_any_order():
    points = np.asarray([[0.8, 0.2], [0.2, 0.8], [0.5, 0.5], [0.5, 0.5]])
    for order in itertools.permutations(range(4)):
        ids = [40 - 10 * i for i in order]
        assert pareto.knee(points[list(order)], ids) == 10
        assert pareto.max_min(points[list(order)], ids) == 10


def test_the_augmentation_separates_a_weakly_dominated_point():
    assert pareto.knee([[0.5, 0.5], [0.5, 0.7]], [1, 2], ideal=[1, 1], nadir=[0, 0]) == 2
    assert pareto.max_min([[0.5, 0.5], [0.5, 0.7]], [1, 2], ideal=[1, 1], nadir=[0, 0]) == 2


def test_an_objective_that_cannot_be_scaled_still_counts():
    assert pareto.tchebycheff([[1.0, 3.0]], [1, 3], [0, 3]).tolist() == [0.0]
    assert pareto.knee([[1.0, 2.0], [1.0, 3.0]], [1, 2]) == 2


@given(SETS, st.data())
def test_the_knee_is_never_dominated(points, data):
    k = points.shape[1]
    weights = data.draw(st.lists(st.floats(0.1, 3.0), min_size=k, max_size=k))
    ids = list(range(len(points)))
    chosen = pareto.knee(points, ids, ideal=[7.0] * k, nadir=[0.0] * k, weights=weights)
    assert not any(dominates(other, points[chosen]) for other in points)
    chosen = pareto.max_min(points, ids)
    assert not any(dominates(other, points[chosen]) for other in points)
