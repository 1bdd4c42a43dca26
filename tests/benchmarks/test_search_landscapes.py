"""The search benchmark's landscapes: their fronts are exact, their luck is paired, their tables replay."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize

from benchmarks.searching.landscapes import ITEMS, Recorded, Synthetic, landscape, share
from benchmarks.searching.quadratics import CURVED, SCALE, Quadratics, quadratics, ripples
from benchmarks.searching.table import Items, Lattice, Table, TableError
from search import pareto
from search.optimizers.contract import Genome

Array = npt.NDArray[np.float64]
UNIT = st.floats(0.0, 1.0, allow_nan=False)


def line(first: float, second: float, penalty: Array | None = None) -> Quadratics:
    """Two tasks on one coefficient, with optima there."""
    none = np.zeros((2, 0, 1)) if penalty is None else penalty
    return Quadratics(np.ones((2, 1, 1)), np.array([[first], [second]]), none)


def volume(points: Array) -> float:
    return pareto.hypervolume(points, (0.0,) * points.shape[1])


@cache
def with_front() -> tuple[Synthetic, Synthetic, Array]:
    """A smooth landscape, its rough sister, and the front that bounds both."""
    smooth, rough = landscape("smooth-10d-2o", 0), landscape("rough-10d-2o", 0)
    assert isinstance(smooth, Synthetic) and isinstance(rough, Synthetic)
    return smooth, rough, smooth.tasks.front(1000)


def test_the_front_of_two_tasks_on_a_line_has_the_volume_of_the_integral() -> None:
    """u1 = exp(-15 (x − a)²), u2 = exp(-15 (x − b)²) for x in [a, b]: the area under the curve, and left of it."""
    a, b = 0.2, 0.7
    scale = SCALE * CURVED

    def one(x: float) -> float:
        return float(np.exp(-scale * (x - a) ** 2))

    def two(x: float) -> float:
        return float(np.exp(-scale * (x - b) ** 2))

    under, _ = integrate.quad(lambda x: two(x) * 2 * scale * (x - a) * one(x), a, b)  # ∫ u2 d(−u1)
    exact = under + one(b) * 1.0
    assert volume(line(a, b).front(4000)) == pytest.approx(exact, abs=1e-3)


def test_categories_add_to_the_front_what_enumeration_finds() -> None:
    random = np.random.default_rng(3)
    penalty = random.exponential(0.1, size=(2, 3, 3))
    problem = line(0.3, 0.6, penalty)
    every = [
        problem.loss(np.array([x]), choices) for x in np.linspace(0.3, 0.6, 200) for choices in np.ndindex(3, 3, 3)
    ]
    assert volume(problem.front(2000)) == pytest.approx(volume(np.exp(-np.array(every))), abs=1e-3)


def test_minimisers_that_would_leave_the_box_stop_at_it() -> None:
    problem = quadratics(6, 1)
    tight = Quadratics(problem.curvature, np.clip(problem.optimum * 3.0 - 1.0, 0.0, 1.0), problem.penalty)
    roots = [np.linalg.cholesky(each).T for each in tight.curvature]
    for share_of_first, found in zip(np.linspace(0.0, 1.0, 5), tight._minimisers(5), strict=True):
        weights = np.sqrt([share_of_first, 1.0 - share_of_first])
        rows = np.concatenate([weight * root for weight, root in zip(weights, roots, strict=True)])
        wanted = np.concatenate(
            [weight * root @ optimum for weight, root, optimum in zip(weights, roots, tight.optimum, strict=True)]
        )
        assert found == pytest.approx(optimize.lsq_linear(rows, wanted, (0.0, 1.0), tol=1e-12).x, abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.lists(UNIT, min_size=10, max_size=10), st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_nothing_lies_beyond_the_front(values: list[float], categories: list[int]) -> None:
    smooth, rough, front = with_front()
    for problem in (smooth, rough):
        truth = problem.truth(Genome(tuple(values), tuple(categories)))
        assert volume(np.vstack([front, truth])) <= smooth.best + 1e-3


@settings(max_examples=50, deadline=None)
@given(st.lists(UNIT, min_size=10, max_size=10))
def test_a_rough_landscape_is_the_smooth_one_with_a_bounded_loss_more(values: list[float]) -> None:
    genome = Genome(tuple(values), (0,) * 8)
    smooth, rough = landscape("smooth-10d-2o", 4).truth(genome), landscape("rough-10d-2o", 4).truth(genome)
    more = np.log(smooth / rough)
    assert (more >= -1e-12).all() and (more <= 0.6 + 1e-12).all()


def test_ripples_have_several_valleys_along_a_line() -> None:
    """In any dimension: local minima between random points of the box, counted."""
    for n in (10, 64, 200):
        ripple = ripples(n, 0, 2)
        random = np.random.default_rng(n)
        counts = []
        for _ in range(20):
            start, end = random.random((2, n))
            heights = np.array([ripple(start + t * (end - start))[0] for t in np.linspace(0, 1, 200)])
            counts.append(((heights[1:-1] < heights[:-2]) & (heights[1:-1] < heights[2:])).sum())
        assert np.mean(counts) >= 1.5


def test_luck_belongs_to_the_evaluation_not_to_who_asks() -> None:
    problem, again = landscape("smooth-10d-2o", 7), landscape("smooth-10d-2o", 7)
    one, other = problem.starts[0], problem.starts[1]
    for number in (0, 5, 3):
        again.observe(number + 100, other)
        assert problem.observe(number, one).tolist() == again.observe(number, one).tolist()
        better = problem.truth(one) >= problem.truth(other)
        assert ((problem.observe(number, one) >= problem.observe(number, other)) == better).all()
    seen = {tuple(problem.observe(number, one)) for number in range(30)}
    assert len(seen) > 20
    assert problem.observe(0, one).tolist() != landscape("smooth-10d-2o", 8).observe(0, one).tolist()


@pytest.mark.slow
def test_observations_are_binomial_around_the_truth() -> None:
    problem = landscape("smooth-10d-3o", 2)
    genome = problem.starts[0]
    truth = problem.truth(genome)
    seen = np.array([problem.observe(number, genome) for number in range(2000)])
    error = np.sqrt(truth * (1 - truth) / ITEMS)
    assert (np.abs(seen.mean(axis=0) - truth) < 5 * error / np.sqrt(2000)).all()
    assert seen.std(axis=0) == pytest.approx(error, rel=0.1)


def test_the_share_is_of_true_values_of_what_was_chosen_on_observed_ones() -> None:
    problem = landscape("smooth-10d-2o", 0)
    one, other = problem.starts[:2]
    found = share(problem, [one, other], [np.array([0.9, 0.9]), np.array([0.1, 0.1])])
    assert found == pytest.approx(np.prod(problem.truth(one)) / problem.best)


@pytest.fixture()
def table() -> Table:
    """Two genes of three levels, two methods, 40 + 60 items: items of growing difficulty, answered up to a level."""
    lattice = Lattice(("a", "b"), (0.0, 0.5, 1.0), ("m", "n"))
    random = np.random.default_rng(0)
    verdicts = {}
    for gene in (0, 1):
        steps = np.array(np.unravel_index(np.arange(len(lattice)), lattice.shape))
        ability = steps[gene] / 2 - 0.3 * steps[1 - gene] / 2 + 0.1 * steps[2]
        verdicts["ab"[gene]] = ability[:, None] > random.random((1, 100)) - 0.2
    ids = tuple(f"s{i}" for i in range(40)), tuple(f"h{i}" for i in range(60))
    items = {skill: Items(*ids, ("",) * 100) for skill in "ab"}
    return Table(lattice, items, verdicts, {"made": "here"})


def test_a_table_is_read_back_as_it_was_written(table: Table, tmp_path: Path) -> None:
    table.save(tmp_path / "t.npz")
    read = Table.load(tmp_path / "t.npz")
    assert (read.lattice, read.items, read.origin) == (table.lattice, table.items, table.origin)
    assert all((read.verdicts[skill] == table.verdicts[skill]).all() for skill in "ab")


def test_what_is_no_table_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="record"):
        Table.load(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"not a table")
    with pytest.raises(TableError, match="not a recorded table"):
        Table.load(tmp_path / "bad.npz")


def test_lattice_points_are_their_own_nearest(table: Table) -> None:
    assert [table.lattice.row(table.lattice.genome(row)) for row in range(len(table.lattice))] == list(range(18))


def test_replay_is_deterministic_and_true_at_lattice_points(table: Table) -> None:
    one, again, other = Recorded(table, 1, 30), Recorded(table, 1, 30), Recorded(table, 2, 30)
    for row in range(len(table.lattice)):
        genome = table.lattice.genome(row)
        assert one.truth(genome) == pytest.approx(table.truth("holdout")[row])
        assert one.observe(row, genome).tolist() == again.observe(99 - row, genome).tolist()
    observed = [[each.observe(0, table.lattice.genome(row)).tolist() for row in range(18)] for each in (one, other)]
    assert observed[0] != observed[1]


def test_all_items_asked_at_a_lattice_point_give_the_search_score(table: Table) -> None:
    every = Recorded(table, 3, 40)
    for row in range(len(table.lattice)):
        expected = [table.part(skill, "search")[row].mean() for skill in "ab"]
        assert every.observe(0, table.lattice.genome(row)).tolist() == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(UNIT, UNIT, st.integers(0, 1))
def test_between_lattice_points_dithered_verdicts_follow_the_interpolation(x: float, y: float, method: int) -> None:
    lattice = Lattice(("a", "b"), (0.0, 0.5, 1.0), ("m", "n"))
    heights = np.random.default_rng(5).random(len(lattice))
    dither = np.random.default_rng(6).random((4000, 2))
    genome = Genome((x, y), (method,))
    rows, weights = lattice.corners(np.array([[x, y]]))
    interpolated = (heights.reshape(-1, 2)[rows[0], method] * weights[0]).sum()
    assert weights.sum() == pytest.approx(1.0)
    assert heights[lattice.dithered(genome, dither)].mean() == pytest.approx(interpolated, abs=0.04)


def test_an_unknown_landscape_is_a_message() -> None:
    with pytest.raises(TableError, match="smooth-10d-2o"):
        landscape("flat-10d-2o", 0)
