import pytest

from search.optimizers.conformance import OptimizerConformance


class TestRandom(OptimizerConformance):
    name = "random"
    learns = False


class TestSmsEmoa(OptimizerConformance):
    name = "sms_emoa"


@pytest.mark.slow
class TestCma(OptimizerConformance):
    name = "cma"


@pytest.mark.slow
class TestCmaOfSmallGenerations(OptimizerConformance):
    name = "cma"
    options = {"popsize": 4, "sigma0": 0.3}  # noqa: RUF012
    objectives = (2,)


@pytest.mark.slow
class TestCmaOnItsOwn(OptimizerConformance):
    name = "cma"
    options = {"popsize": 4, "start": "middle", "diagonal": True}  # noqa: RUF012
    objectives = (1,)
    learns = False
