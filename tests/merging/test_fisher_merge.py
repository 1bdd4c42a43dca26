"""Fisher merging against its definition in numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging.calibration.given import GivenCalibration
from merging.kernel import Task, merge_tensor
from merging.methods import canonical, get
from merging.methods.contract import Elementwise, Values
from merging.pool import Pool
from merging.recipe import Assignment, MergingError, Value

ALIASES = "abcd"
SHAPES = {"first": (5, 7), "second": (11,), "number": ()}


def models(seed: int, count: int, dtype: torch.dtype = torch.float32) -> dict[str, dict[str, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=random) for name, shape in SHAPES.items()}
    found = {"base": base} | {
        alias: {name: each + 0.1 * torch.randn(each.shape, generator=random) for name, each in base.items()}
        for alias in ALIASES[:count]
    }
    return {alias: {name: each.to(dtype) for name, each in tensors.items()} for alias, tensors in found.items()}


def information(seed: int, count: int, *, size: float = 1.0) -> dict[str, dict[str, Tensor]]:
    """Heavy-tailed, a part of it exactly zero, and of another size in every source."""
    random = torch.Generator().manual_seed(seed)

    def one(shape: tuple[int, ...], scale: float) -> Tensor:
        exponents = torch.randn(shape, generator=random) * 4
        return exponents.exp() * (torch.rand(shape, generator=random) > 0.2) * scale

    return {
        alias: {name: one(shape, size * 10.0 ** (2 * number)) for name, shape in SHAPES.items()}
        for number, alias in enumerate(ALIASES[:count])
    }


def assignment(coefficients: Sequence[float], **shared: Value) -> Assignment:
    own = {alias: {"coefficient": c} for alias, c in zip(ALIASES, coefficients, strict=False)}
    return Assignment.of("fisher", own, calibration="sha256:here", **shared)


def merge(
    weights: dict[str, dict[str, Tensor]],
    fishers: dict[str, dict[str, Tensor]],
    spelled: Assignment,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    spelled = canonical(spelled)
    aliases = tuple(alias for alias, _ in spelled.sources)
    pool = Pool("base", aliases, tuple(SHAPES), lambda alias, name: weights[alias][name])
    pool.calibration = GivenCalibration(fishers=fishers, fingerprint="sha256:here")
    merged = {name: torch.full(shape, math.nan, dtype=dtype) for name, shape in SHAPES.items()}
    for name, out in merged.items():
        merge_tensor(name, Task(get("fisher"), Values.of(spelled), pool), out)
    return merged


def mean(weights: dict[str, dict[str, Tensor]], name: str, coefficients: Sequence[float]) -> Tensor:
    terms = [c * weights[alias][name].double() for alias, c in zip(ALIASES, coefficients, strict=False)]
    return torch.stack(terms).sum(0) / sum(coefficients)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    coefficients=st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.5]) | st.floats(0, 2), min_size=1, max_size=4),
    floor=st.sampled_from([1e-12, 1e-6, 1e-2, 10.0]),
    scale=st.sampled_from([1.0, 1.0, 0.4, 0.0, -0.5]),
    size=st.sampled_from([1.0, 1e-20, 1e15]),
)
def test_it_is_the_weighted_mean_of_its_definition(
    seed: int, coefficients: list[float], floor: float, scale: float, size: float
) -> None:
    count = len(coefficients)
    if sum(coefficients) < 1e-3:
        coefficients[0] = 1.0
    weights, fishers = models(seed, count), information(seed + 1, count, size=size)
    merged = merge(weights, fishers, assignment(coefficients, floor=floor, scale=scale))
    elements = sum(math.prod(shape) for shape in SHAPES.values())
    norms = {
        alias: math.sqrt(sum(float(np.sum(each.double().numpy() ** 2)) for each in tensors.values()))
        for alias, tensors in fishers.items()
    }
    for name in SHAPES:
        above, below = np.zeros(SHAPES[name]), np.zeros(SHAPES[name])
        for alias, coefficient in zip(ALIASES, coefficients, strict=False):
            relative = fishers[alias][name].double().numpy() / norms[alias] * math.sqrt(elements)
            weight = coefficient * np.maximum(relative, floor)
            above, below = above + weight * weights[alias][name].double().numpy(), below + weight
        base = weights["base"][name].double().numpy()
        wanted = base + scale * (above / below - base)
        np.testing.assert_allclose(merged[name].numpy(), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("coefficients", [[1.0, 1.0], [0.2, 0.7, 0.4]])
def test_equal_information_is_the_mean(coefficients: list[float]) -> None:
    """So is none at all, and one that differs by a factor: it is divided by its norm."""
    count = len(coefficients)
    weights, one = models(3, count), information(4, 1)["a"]
    for factors in ((1.0, 1.0, 1.0), (1.0, 100.0, 1e-3), (0.0, 0.0, 0.0)):
        fishers = {
            alias: {name: each * factor for name, each in one.items()}
            for alias, factor in zip(ALIASES, factors, strict=False)
        }
        for name, found in merge(weights, fishers, assignment(coefficients)).items():
            torch.testing.assert_close(found, mean(weights, name, coefficients), rtol=1e-6, atol=1e-7)
    different = merge(weights, information(4, count), assignment(coefficients))
    assert float((different["first"] - mean(weights, "first", coefficients)).abs().max()) > 1e-2


def test_who_knows_nothing_of_a_weight_leaves_it_to_the_others() -> None:
    """Information in disjoint places: everyone's own weights stay, to the floor."""
    weights, fishers = models(3, 2), information(4, 2)
    own = torch.arange(35).reshape(5, 7) % 2 == 0
    for alias, where in (("a", own), ("b", ~own)):
        fishers[alias] = {name: torch.zeros(shape) for name, shape in SHAPES.items()} | {"first": where.float()}
    found = merge(weights, fishers, assignment([1.0, 1.0]))["first"]
    wanted = torch.where(own, weights["a"]["first"], weights["b"]["first"]).double()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)


def test_a_coefficient_of_zero_leaves_its_source_out() -> None:
    weights, fishers = models(3, 3), information(4, 3)
    alone = {name: each.double() for name, each in weights["b"].items()}
    for name, found in merge(weights, fishers, assignment([0.0, 2.0, 0.0])).items():
        assert torch.equal(found, alone[name])
    assert canonical(assignment([2.0, 0.0, 6.0])) == canonical(
        Assignment.of("fisher", {"a": {"coefficient": 0.25}, "c": {"coefficient": 0.75}}, calibration="sha256:here")
    )
    with pytest.raises(MergingError, match=r"fisher weights its sources.*sum to 0"):
        canonical(assignment([0.0, 0.0]))
    with pytest.raises(MergingError, match="coefficient"):
        canonical(assignment([1.0, -0.5]))


def test_sixteen_bits_are_rounded_once() -> None:
    """float32 sums of bfloat16 weights are the float64 ones, but for the last bit of a tie."""
    weights, fishers = models(5, 3, torch.bfloat16), information(6, 3)
    spelled = assignment([0.5, 1.0, 0.7], scale=0.8)
    narrow, wide = (merge(weights, fishers, spelled, dtype) for dtype in (torch.bfloat16, torch.float64))
    for name, found in narrow.items():
        torch.testing.assert_close(found.double(), wide[name], rtol=2**-8, atol=0)


def test_information_of_another_model_is_refused() -> None:
    weights, fishers = models(5, 2), information(6, 2)
    with pytest.raises(MergingError, match=r"shape \[11\] for first, which has shape \[5, 7\]: it is of another model"):
        merge(weights, {**fishers, "b": {**fishers["b"], "first": fishers["b"]["second"]}}, assignment([1.0, 1.0]))
    with pytest.raises(MergingError, match="the Fisher information for a, not b"):
        merge(weights, {"a": fishers["a"]}, assignment([1.0, 1.0]))


def test_pools_of_any_sources_share_the_information() -> None:
    """A search that sets coefficients to zero meets every set of sources: what is kept must not grow with them."""

    class FromDisk(GivenCalibration):
        """Reads anew every time."""

        def fisher(self, content: str, name: str) -> Tensor:
            return super().fisher(content, name).clone()

    weights = models(0, 3)
    calibration = FromDisk(fishers=information(1, 3), fingerprint="sha256:here")
    kept: list[Tensor] = []  # an address is nobody else's as long as it is held

    def fields(coefficients: Sequence[float]) -> dict[str, int]:
        spelled = canonical(assignment(coefficients))
        aliases = tuple(alias for alias, _ in spelled.sources)
        pool = Pool("base", aliases, tuple(SHAPES), lambda alias, name: weights[alias][name])
        pool.calibration, pool.searching = calibration, True
        method = get("fisher")
        assert isinstance(method, Elementwise)
        elements = method.prepare(pool, "first", Values.of(spelled))
        kept.extend(elements.fields)
        return {alias: each.data_ptr() for alias, each in zip(aliases, elements.fields, strict=True)}

    every = fields([1.0, 2.0, 3.0])
    assert fields([0.0, 2.0, 3.0]) == {alias: every[alias] for alias in "bc"}
    assert fields([1.0, 0.0, 3.0]) == {alias: every[alias] for alias in "ac"}
