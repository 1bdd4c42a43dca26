"""Optimizers from Optuna, Sobol and grid against the contract."""

import pytest

from search.optimizers.conformance import OptimizerConformance
from search.optimizers.contract import Box


@pytest.mark.slow
class TestTpe(OptimizerConformance):
    name = "tpe"
    asks = 24
    kills = 2
    learning_budget = 60
    learning_seeds = 2


@pytest.mark.slow
class TestNsga2(OptimizerConformance):
    name = "nsga2"
    options = {"population": 12}  # noqa: RUF012
    asks = 24
    kills = 2
    learning_budget = 100
    learning_seeds = 2


@pytest.mark.slow
class TestNsga2ScreenedByAModel(OptimizerConformance):
    name = "nsga2"
    options = {  # noqa: RUF012
        "population": 10,
        "prescreen": "quadratic",
        "prescreen_proposals": 4,
        "prescreen_quality": -1.0,
    }
    objectives = (2,)
    boxes = (Box(3, (3, 2)), Box(0))
    killed_boxes = (Box(3, (3, 2)),)
    asks = 45  # a model is asked from 24 points on
    kills = 2
    learns = False  # tests/search/test_optimizers.py has screening itself


@pytest.mark.slow
class TestNsga3(OptimizerConformance):
    name = "nsga3"
    options = {"population": 12}  # noqa: RUF012
    asks = 24
    kills = 2
    learning_budget = 100
    learning_seeds = 2


@pytest.mark.slow
class TestNsga3ByUniformCrossover(OptimizerConformance):
    name = "nsga3"
    options = {"population": 6, "crossover": "uniform", "mutation": "uniform"}  # noqa: RUF012
    objectives = (3,)
    boxes = (Box(3, (3, 2)), Box(40))
    asks = 30
    kills = 2
    learns = False  # as TestNsga3 shows, with the default operators


class TestSobol(OptimizerConformance):
    name = "sobol"
    learns = False


class TestGrid(OptimizerConformance):
    name = "grid"
    learns = False


class TestGrid3(OptimizerConformance):
    name = "grid"
    options = {"levels": 3}  # noqa: RUF012
    boxes = (Box(3, (3, 2)), Box(0, (3,)), Box(1))
    killed_boxes = boxes
    learns = False


@pytest.mark.slow
class TestGpInShort(OptimizerConformance):
    name = "gp"
    options = {"startup": 9}  # noqa: RUF012
    objectives = (1,)
    boxes = (Box(2, (3,)), Box(0, (3,)))
    killed_boxes = (Box(2, (3,)),)
    asks = 12
    kills = 1
    learns = False  # at length only


@pytest.mark.slow
class TestGp(OptimizerConformance):
    name = "gp"
    options = {"startup": 8}  # noqa: RUF012
    objectives = (2, 3)
    killed_boxes = (Box(3, (3, 2)), Box(12))
    asks = 12
    kills = 2
    learning_box = Box(4, (3,))
    learning_budget = 20
    learning_seeds = 2
