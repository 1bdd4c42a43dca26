import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.stats import qmc

from search.optimizers import registry
from search.optimizers.contract import Box, OptimizerError, Settings
from search.optimizers.grid import affordable, size


def build(name, box, budget=100, seed=0, **options):
    return registry.build(name, Settings(box, 2, seed, budget, (0.0, 0.0), options=options))


def asked(optimizer, count):
    return [optimizer.ask(id, ()) for id in range(count)]


# sobol


@pytest.mark.parametrize("seed", [0, 7])
def test_sobol_is_balanced_in_every_gene(seed):
    """Of 64 points each gene has one in each of 64 equal parts, each category its equal share; so has the next 64."""
    optimizer = build("sobol", Box(5, (4, 2)), seed=seed)
    for points in (asked(optimizer, 64), asked(optimizer, 64)):
        cells = np.floor(64 * np.asarray([point.values for point in points])).astype(int)
        assert all(sorted(column) == list(range(64)) for column in cells.T.tolist())
        assert np.bincount([point.categories[0] for point in points]).tolist() == [16] * 4
        assert np.bincount([point.categories[1] for point in points]).tolist() == [32] * 2


def test_sobol_is_more_even_than_random():
    found = {
        name: np.mean(
            [
                qmc.discrepancy(np.asarray([point.values for point in asked(build(name, Box(4), seed=seed), 100)]))
                for seed in range(5)
            ]
        )
        for name in ("sobol", "random")
    }
    assert found["sobol"] < 0.3 * found["random"]


def test_sobol_has_an_end_to_its_dimensions():
    assert len(build("sobol", Box(2000)).ask(0, ()).values) == 2000
    with pytest.raises(OptimizerError, match="granularity"):
        build("sobol", Box(30_000))


# grid


@hypothesis_settings(max_examples=40)
@given(
    st.integers(0, 3),
    st.lists(st.integers(1, 3), max_size=2).map(tuple),
    st.integers(1, 4),
    st.integers(0, 5),
)
def test_grid_is_its_lattice_each_point_once(continuous, categories, levels, seed):
    box = Box(continuous, categories)
    count = size(box, levels)
    points = asked(build("grid", box, seed=seed, levels=levels), count)
    axis = [0.5] if levels == 1 else np.linspace(0, 1, levels).tolist()
    lattice = set(
        itertools.product(itertools.product(axis, repeat=continuous), itertools.product(*map(range, categories)))
    )
    assert {(point.values, point.categories) for point in points} == lattice
    assert len(set(points)) == count == len(lattice)


def test_grid_is_refined_when_it_is_used_up():
    points = asked(build("grid", Box(2), levels=2), 4 + 5 + 16)
    assert sorted(points[:4], key=repr) == sorted(asked(build("grid", Box(2), seed=3, levels=2), 4), key=repr)
    assert len(set(points)) == 25
    assert {value for point in points[:9] for value in point.values} == {0.0, 0.5, 1.0}
    assert {value for point in points for value in point.values} == {0.0, 0.25, 0.5, 0.75, 1.0}


def test_grid_of_choices_alone_begins_again():
    points = asked(build("grid", Box(0, (2, 3))), 12)
    assert len(set(points[:6])) == 6
    assert set(points[6:]) == set(points[:6])


def test_grid_covers_space_before_it_is_finished():
    """A third of a 6 x 6 x 6 lattice: every level of every gene, every pair of levels nearly so."""
    points = asked(build("grid", Box(3), levels=6), 72)
    values = np.rint(5 * np.asarray([point.values for point in points])).astype(int)
    for gene in range(3):
        assert np.bincount(values[:, gene], minlength=6).min() >= 8
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert len(set(zip(values[:, one].tolist(), values[:, other].tolist(), strict=True))) >= 32


@given(st.integers(1, 6), st.lists(st.integers(1, 4), max_size=3).map(tuple), st.integers(1, 2000))
def test_grid_takes_as_many_levels_as_the_budget_pays_for(continuous, categories, budget):
    box = Box(continuous, categories)
    levels = affordable(box, budget)
    assert levels == 2 or levels**continuous * math.prod(categories) <= budget
    assert (levels + 1) ** continuous * math.prod(categories) > budget


def test_grid_of_many_genes_is_refused_only_when_it_was_asked_for():
    box = Box(200, (4,) * 8)
    points = asked(build("grid", box, budget=50), 50)
    assert len(set(points)) == 50
    assert {value for point in points for value in point.values} == {0.0, 1.0}
    assert 0.4 < np.mean([point.values for point in points]) < 0.6
    assert build("grid", box).diagnosis()["levels"] == 2
    with pytest.raises(OptimizerError, match=r"10\^100 points.*200 coefficients and 8 categories.*sobol"):
        build("grid", box, levels=3)
