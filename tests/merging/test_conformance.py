"""Every built-in method keeps the contract, in each of its conventions and modes."""

from __future__ import annotations

from typing import ClassVar

import torch

from merging.calibration.contract import Calibration, Gram
from merging.calibration.given import GivenCalibration, gram_of
from merging.conformance import LARGE, SHAPES, MethodConformance
from merging.methods.registry import BUILT_IN
from merging.recipe import Assignment, Value


def over(method: str, *coefficients: float, own: dict[str, Value] | None = None, **shared: Value) -> Assignment:
    """Sources a, b, c with these coefficients, and further parameters of each source."""
    sources = {"abc"[number]: {"coefficient": c, **(own or {})} for number, c in enumerate(coefficients)}
    return Assignment.of(method, sources, **shared)


def plain(method: str, count: int, **shared: Value) -> Assignment:
    """Sources without parameters of their own."""
    return Assignment.of(method, {alias: {} for alias in "abc"[:count]}, **shared)


# Sources are known by their aliases here.
DATA = "sha256:of-the-data"


def moments(seed: int, alias: str) -> dict[str, Gram]:
    """Inputs of every matrix: of ``matrix`` fewer than it has dimensions, of the stack none for its first."""
    generator = torch.Generator().manual_seed(seed + ord(alias))

    def inputs(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * torch.rand(shape[-1], generator=generator)

    stack = inputs(SHAPES["stack"][0], 9, SHAPES["stack"][2])
    stack[0] = 0.0
    matrices = {"matrix": inputs(14, SHAPES["matrix"][1]), "large": inputs(300, LARGE["large"][1]), "stack": stack}
    return {name: gram_of(each, name) for name, each in matrices.items()}


def information(alias: str) -> dict[str, torch.Tensor]:
    """Squares, some of them zero."""
    generator = torch.Generator().manual_seed(ord(alias))
    found = {name: torch.randn(shape, generator=generator) for name, shape in {**SHAPES, **LARGE}.items()}
    return {name: each.clamp(min=-0.5).add(0.5).square() * 1e-6 for name, each in found.items()}


class TestLinear(MethodConformance):
    method = "linear"
    assignment = over("linear", 0.5, 0.3, 0.4)


class TestTaskArithmetic(MethodConformance):
    method = "task_arithmetic"
    assignment = over("task_arithmetic", 0.7, -0.2, 1.3, scale=0.9)


class TestSlerp(MethodConformance):
    method = "slerp"
    assignment = over("slerp", 0.6, 0.4)


class TestSlerpOfTaskVectors(MethodConformance):
    method = "slerp"
    assignment = over("slerp", 0.6, 0.4, on="task_vectors")


class TestNuSlerp(MethodConformance):
    method = "nuslerp"
    assignment = over("nuslerp", 0.7, 0.4)


class TestNuSlerpByRow(MethodConformance):
    method = "nuslerp"
    assignment = over("nuslerp", 0.7, 0.4, flatten=False)


class TestNuSlerpByColumnOfTaskVectors(MethodConformance):
    method = "nuslerp"
    assignment = over("nuslerp", 0.7, 0.4, flatten=False, row_wise=True, on="task_vectors")


class TestMultiSlerp(MethodConformance):
    method = "multislerp"
    assignment = over("multislerp", 0.6, 0.4, 0.3)


class TestMultiSlerpOfTaskVectors(MethodConformance):
    method = "multislerp"
    assignment = over("multislerp", 0.6, 0.4, 0.3, on="task_vectors", normalize=False)


class TestKarcher(MethodConformance):
    method = "karcher"
    assignment = over("karcher", 1.0, 2.0, 0.5)


class TestModelStock(MethodConformance):
    method = "model_stock"
    assignment = plain("model_stock", 3)


class TestModelStockByRow(MethodConformance):
    method = "model_stock"
    assignment = plain("model_stock", 3, row_wise=True, convention="mergekit")


class TestTies(MethodConformance):
    method = "ties"
    assignment = over("ties", 1.0, 0.7, -0.3, own={"density": 0.4})


class TestTiesOfMergekit(MethodConformance):
    method = "ties"
    assignment = over("ties", 1.0, 0.7, -0.3, own={"density": 0.4}, rescale=True, convention="mergekit")


class TestTiesOfTheWholeModel(MethodConformance):
    method = "ties"
    assignment = over("ties", 1.0, 0.7, own={"density": 0.4}, trim="model", scale=0.9)


class TestDareLinear(MethodConformance):
    method = "dare_linear"
    assignment = over("dare_linear", 0.6, 0.5, own={"density": 0.3}, seed=3)


class TestDareLinearOfMergekit(MethodConformance):
    method = "dare_linear"
    assignment = over("dare_linear", 0.6, 0.5, own={"density": 0.3}, convention="mergekit", normalize=True)


class TestDareTies(MethodConformance):
    method = "dare_ties"
    assignment = over("dare_ties", 0.6, 0.5, 1.2, own={"density": 0.6})


class TestDellaLinear(MethodConformance):
    method = "della_linear"
    assignment = over("della_linear", 0.6, 0.5, own={"density": 0.6, "epsilon": 0.2})


class TestDella(MethodConformance):
    method = "della"
    assignment = over("della", 0.6, 0.5, own={"density": 0.6, "epsilon": 0.2})


class TestDellaOfMergekit(MethodConformance):
    method = "della"
    assignment = over("della", 0.6, 0.5, own={"density": 0.6, "epsilon": 0.2}, convention="mergekit")


class TestBreadcrumbs(MethodConformance):
    method = "breadcrumbs"
    assignment = over("breadcrumbs", 0.6, 0.5, own={"density": 0.7, "gamma": 0.1})


class TestBreadcrumbsTies(MethodConformance):
    method = "breadcrumbs_ties"
    assignment = over("breadcrumbs_ties", 0.6, 0.5, own={"density": 0.7, "gamma": 0.1}, rescale=True)


class TestBreadcrumbsTiesOfMergekit(MethodConformance):
    method = "breadcrumbs_ties"
    assignment = over("breadcrumbs_ties", 0.6, 0.5, own={"density": 0.7, "gamma": 0.1}, convention="mergekit")


class TestMagMax(MethodConformance):
    method = "magmax"
    assignment = over("magmax", 1.0, 0.8, 1.1, scale=0.7)


class TestSce(MethodConformance):
    method = "sce"
    assignment = plain("sce", 3, density=0.4)


class TestSceOfMergekit(MethodConformance):
    method = "sce"
    assignment = plain("sce", 3, density=0.4, convention="mergekit")


class TestConsensus(MethodConformance):
    method = "consensus_ta"
    assignment = over("consensus_ta", 1.0, 0.8, 1.1, own={"threshold": 0.3}, scale=0.5)


class TestPcb(MethodConformance):
    method = "pcb"
    assignment = over("pcb", 1.0, 0.8, 1.1, density=0.3, scale=1.2)


class TestArceeFusion(MethodConformance):
    method = "arcee_fusion"
    assignment = plain("arcee_fusion", 1, spread=1.2)


class TestNearSwap(MethodConformance):
    method = "nearswap"
    assignment = plain("nearswap", 1, t=0.004)


class TestIsoC(MethodConformance):
    method = "iso_c"
    assignment = plain("iso_c", 3, scale=0.8)


class TestIsoCts(MethodConformance):
    method = "iso_cts"
    assignment = plain("iso_cts", 3, common_fraction=0.6, scale=1.1)


class TestTsvM(MethodConformance):
    method = "tsv_m"
    assignment = plain("tsv_m", 3, scale=0.7)


class TestKnotsTies(MethodConformance):
    method = "knots_ties"
    assignment = over("knots_ties", 1.0, 0.7, -0.3, own={"density": 0.4}, scale=0.8)


class TestKnotsDareTies(MethodConformance):
    method = "knots_dare_ties"
    assignment = over("knots_dare_ties", 0.6, 0.5, own={"density": 0.3}, seed=3)


class TestCoreTies(MethodConformance):
    method = "core_ties"
    assignment = over("core_ties", 1.0, 0.7, -0.3, own={"density": 0.4}, normalize=False)


class TestCoreDareTies(MethodConformance):
    method = "core_dare_ties"
    assignment = over("core_dare_ties", 0.6, 0.5, own={"density": 0.3}, scale=0.9)


class TestWudi(MethodConformance):
    method = "wudi"
    assignment = plain("wudi", 3, regularisation=0.05, scale=0.9)


class TestRam(MethodConformance):
    method = "ram"
    assignment = plain("ram", 3, epsilon=0.005)


class TestRamPlus(MethodConformance):
    method = "ramplus_tl"
    assignment = plain("ramplus_tl", 3, epsilon=0.005, r=0.3)


class TestPassthrough(MethodConformance):
    method = "passthrough"
    assignment = plain("passthrough", 1, scale=0.9)
    identity: ClassVar[bool] = False  # it scales


class TestRegMean(MethodConformance):
    method = "regmean"
    assignment = plain("regmean", 3, calibration=DATA)
    calibration: ClassVar[Calibration | None] = GivenCalibration(
        {alias: moments(1, alias) for alias in "abc"}, fingerprint=DATA
    )


class TestRegMeanOfTwo(TestRegMean):
    assignment = over("regmean", 0.7, 0.4, alpha=1.0, ridge=1e-3, scale=0.8, calibration=DATA)


class TestRegMeanOfThree(TestRegMean):
    assignment = over("regmean", 0.7, 0.4, 0.1, scale=0.8, calibration=DATA)


class Sequential(GivenCalibration):
    """Inputs for every assignment: the conformance tests come with several."""

    def sequential_gram(self, content: str, name: str, assignment: Assignment) -> Gram | None:
        """Those of the content, which here are called like the sources."""
        assert assignment.method == "regmean_plus" and {each for each, _ in assignment.sources} <= set("abc")
        return self.gram(content, name)


class TestRegMeanPlus(MethodConformance):
    method = "regmean_plus"
    assignment = over("regmean_plus", 0.5, 0.5, scale=0.5, calibration=DATA)
    calibration: ClassVar[Calibration | None] = Sequential(
        {alias: moments(2, alias) for alias in "abc"}, fingerprint=DATA
    )


class TestFisher(MethodConformance):
    method = "fisher"
    assignment = over("fisher", 0.7, 0.4, 0.1, calibration=DATA)
    calibration: ClassVar[Calibration | None] = GivenCalibration(
        fishers={alias: information(alias) for alias in "abc"}, fingerprint=DATA
    )


class TestFisherFromTheBase(TestFisher):
    assignment = over("fisher", 0.5, 0.5, scale=1.4, calibration=DATA)


def test_no_method_is_left_out() -> None:
    tested = {each.method for name, each in globals().items() if name.startswith("Test")}
    assert tested == set(BUILT_IN)
