"""The three methods against closed forms, and the contract that they share."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging.conformance import MethodConformance
from merging.kernel import Task, merge_tensor
from merging.methods import canonical, canonical_recipe, get, names
from merging.methods.arcs import COLINEAR, arc
from merging.methods.contract import Values
from merging.pool import Pool, dot
from merging.recipe import Assignment, Group, MergingError, Recipe, SourceRef
from merging.statistics import gram

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def of(method: str, *coefficients: float, **parameters: float | bool | str) -> Assignment:
    return Assignment.of(method, {"abcdef"[i]: {"coefficient": c} for i, c in enumerate(coefficients)}, **parameters)


def merge(assignment: Assignment, base: Tensor, *sources: Tensor, out: torch.dtype | None = None) -> Tensor:
    """One tensor, merged by the kernel."""
    spelled = canonical(assignment)
    tensors = {"base": base, **{"abcdef"[i]: tensor for i, tensor in enumerate(sources)}}
    pool = Pool("base", tuple(alias for alias, _ in spelled.sources), ("x",), lambda alias, _: tensors[alias])
    result = torch.empty(base.shape, dtype=out or base.dtype)
    merge_tensor("x", Task(get(spelled.method), Values.of(spelled), pool), result)
    return result


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05).to(dtype)


class TestLinear(MethodConformance):
    method = "linear"
    assignment = Assignment.of(
        "linear", {"a": {"coefficient": 0.5}, "b": {"coefficient": 0.3}, "c": {"coefficient": 0.4}}
    )


class TestTaskArithmetic(MethodConformance):
    method = "task_arithmetic"
    assignment = Assignment.of(
        "task_arithmetic", {"b": {"coefficient": 0.7}, "a": {"coefficient": -0.2}, "c": {"coefficient": 1.3}}, scale=0.9
    )


class TestSlerp(MethodConformance):
    method = "slerp"
    assignment = Assignment.of("slerp", {"a": {"coefficient": 0.6}, "b": {"coefficient": 0.4}})


def test_a_uniform_soup_is_the_mean() -> None:
    sources = [random(i, 11, 13) for i in range(4)]
    expected = torch.stack(sources).double().mean(0).float()
    assert torch.equal(merge(of("linear", 1, 1, 1, 1), random(9, 11, 13), *sources), expected)


def test_linear_without_normalize_is_the_plain_sum() -> None:
    a, b = random(1, 50), random(2, 50)
    expected = (a.double() * 1.5 + b.double() * -0.25).float()
    assert torch.equal(merge(of("linear", 1.5, -0.25, normalize=False), random(0, 50), a, b), expected)


def test_linear_never_reads_the_base() -> None:
    a, b = random(1, 50), random(2, 50)
    one, other = (merge(of("linear", 0.2, 0.8), random(seed, 50), a, b) for seed in (3, 4))
    assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_whole_task_vector_gives_the_expert_back(dtype: torch.dtype) -> None:
    base, expert = random(1, 40, 7, dtype=dtype), random(2, 40, 7, dtype=dtype)
    assert torch.equal(merge(of("task_arithmetic", 1.0), base, expert), expert)


def test_task_arithmetic_scales_the_summed_deltas_and_not_the_base() -> None:
    base, a, b = (torch.tensor([value]) for value in (1.0, 1.5, 3.0))
    assert merge(of("task_arithmetic", 1.0, 0.5, scale=2.0), base, a, b).item() == 1 + 2 * (0.5 + 0.5 * 2)
    assert merge(of("task_arithmetic", 1.0, 3.0, normalize=True), base, a, b).item() == 1 + (0.5 + 3 * 2) / 4


def test_negation_there_and_back() -> None:
    """θ0 − τ, then + τ again: forgetting is undone by learning."""
    base, expert = random(1, 300), random(2, 300)
    forgotten = merge(of("task_arithmetic", -1.0), base, expert)
    torch.testing.assert_close(forgotten, 2 * base - expert, rtol=0, atol=1e-8)
    # The expert is now one task vector further from `forgotten` than it was from the base.
    torch.testing.assert_close(merge(of("task_arithmetic", 0.5), forgotten, expert), base, rtol=0, atol=1e-8)


def test_an_analogy_finds_the_fourth() -> None:
    """θ_D = θ_C + (θ_B − θ_A), with task vectors of one base: +B −A +C."""
    base, a, b, c = (random(i, 200) for i in range(4))
    merged = merge(of("task_arithmetic", -1.0, 1.0, 1.0), base, a, b, c)
    torch.testing.assert_close(merged, c + (b - a), rtol=0, atol=1e-7)


def test_slerp_of_orthogonal_vectors_goes_round_the_circle() -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    for t in (0.0, 0.25, 0.5, 1.0):
        angle = t * math.pi / 2
        merged = merge(of("slerp", 1 - t, t), a, a, b)
        torch.testing.assert_close(merged, torch.tensor([2 * math.cos(angle), 2 * math.sin(angle)]))


def test_slerp_takes_its_factors_from_unit_vectors_and_applies_them_to_the_raw_ones() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 5.0])
    half = math.sin(math.pi / 4)
    torch.testing.assert_close(merge(of("slerp", 1, 1), a, a, b), torch.tensor([half, 5 * half]))


def test_slerp_sees_the_whole_tensor_and_not_its_pieces() -> None:
    """Across a chunk border the angle stays that of the whole: elsewhere cos would be ±1 in each half."""
    size = 1 << 16
    a, b = torch.ones(size), torch.ones(size)
    b[size // 2 :] = -1.0
    merged = merge(of("slerp", 0.7, 0.3), a, a, b)
    one, other = (math.sin(part * math.pi / 2) for part in (0.7, 0.3))
    torch.testing.assert_close(merged, one * a + other * b)


def test_slerp_outside_the_arc_extrapolates() -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    angle = 1.5 * math.pi / 2
    torch.testing.assert_close(merge(of("slerp", -0.5, 1.5), a, a, b), torch.tensor([math.cos(angle), math.sin(angle)]))


@pytest.mark.parametrize("cosine", [0.99951, -0.99951])
def test_slerp_of_nearly_colinear_vectors_is_linear(cosine: float) -> None:
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([cosine, math.sqrt(1 - cosine**2)])
    torch.testing.assert_close(merge(of("slerp", 0.75, 0.25), a, a, b), 0.75 * a + 0.25 * b, rtol=0, atol=1e-7)


def test_slerp_just_inside_the_threshold_is_not_linear() -> None:
    cosine = -0.999
    assert abs(cosine) < COLINEAR
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([cosine, math.sqrt(1 - cosine**2)])
    assert merge(of("slerp", 0.5, 0.5), a, a, b).norm() > 0.999


def test_slerp_with_a_zero_tensor_is_linear() -> None:
    a, zero = torch.tensor([1.0, 2.0]), torch.zeros(2)
    assert torch.equal(merge(of("slerp", 0.75, 0.25), a, a, zero), 0.75 * a)


def test_slerp_only_knows_the_ratio_of_its_coefficients() -> None:
    assert canonical(of("slerp", 1, 3)) == canonical(of("slerp", 25, 75)) == of("slerp", 0.25, 0.75, on="weights")
    assert canonical(of("slerp", 1e-7, -1e-7)) == of("slerp", 0.5, 0.5, on="weights")


@given(a=st.floats(-1e6, 1e6), b=st.floats(-1e6, 1e6))
@settings(deadline=None, max_examples=200)
def test_canonical_slerp_is_a_fixed_point(a: float, b: float) -> None:
    once = canonical(of("slerp", a, b))
    assert canonical(once) == once


def test_the_angle_is_taken_in_float64() -> None:
    """float32 sums of a million terms lose the angle between two fine-tunes of one base."""
    base = random(0, 1 << 20)
    a, b = base + 0.01 * random(1, 1 << 20), base + 0.01 * random(2, 1 << 20)
    tensors = {"base": base, "a": a, "b": b}
    matrix = gram(Pool("base", ("a", "b"), ("x",), lambda alias, _: tensors[alias]), "x", "weights")
    exact = float((a.double() @ b.double()) / a.double().norm() / b.double().norm())
    assert abs(matrix[0, 1] / math.sqrt(matrix[0, 0] * matrix[1, 1]) - exact) < 1e-11
    assert arc(matrix, 0.3) == (0.7, 0.3)


@given(size=st.integers(1, 300), chunk=st.integers(1, 64))
@settings(deadline=None, max_examples=60)
def test_dot_products_are_exact_to_float64(size: int, chunk: int) -> None:
    a, b = random(size, size), random(size + 1, size)
    assert dot(a, b, chunk) == pytest.approx(math.fsum((a.double() * b.double()).tolist()), rel=1e-13, abs=1e-17)


@given(
    dtype=st.sampled_from(DTYPES),
    method=st.sampled_from(["linear", "task_arithmetic", "slerp"]),
    coefficients=st.tuples(*[st.floats(-2, 2).map(lambda x: round(x, 3))] * 2),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=150)
def test_every_element_is_one_rounding_from_the_exact_value(
    dtype: torch.dtype, method: str, coefficients: tuple[float, float], seed: int
) -> None:
    base, a, b = (random(seed * 3 + i, 257, dtype=dtype) for i in range(3))
    parameters = {"normalize": False} if method == "linear" else {}
    merged = merge(of(method, *coefficients, **parameters), base, a, b)
    exact, terms = reference(method, coefficients, *(tensor.double() for tensor in (base, a, b)))
    # Half a unit in the last place of the result, and what the accumulation may lose of its largest terms.
    accumulation = 2.0**-22 if dtype.itemsize == 2 else 2.0**-50
    bound = 0.5 * ulp(exact, dtype) + accumulation * terms
    assert bool(((merged.double() - exact).abs() <= bound).all())


def reference(
    method: str, coefficients: tuple[float, float], base: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """Float64 by another route, and the sum of the terms' magnitudes."""
    ca, cb = coefficients
    if method == "task_arithmetic":
        return (1 - ca - cb) * base + ca * a + cb * b, base.abs() + abs(ca) * (a - base).abs() + abs(cb) * (
            b - base
        ).abs()
    if method == "slerp":
        t = 0.5 if abs(ca + cb) < 1e-6 else cb / (ca + cb)
        cosine = torch.nn.functional.cosine_similarity(a, b, dim=0)
        omega = torch.arccos(cosine)
        ca, cb = (float(torch.sin(part * omega) / torch.sin(omega)) for part in (1 - t, t))
        if abs(cosine) > COLINEAR:
            ca, cb = 1 - t, t
        # Another route to the angle: its own rounding is amplified where the arc is extrapolated far.
        slack = 1e-6 * (1 + abs(t)) if a.dtype != torch.float64 else 0.0
        return ca * a + cb * b, abs(ca) * a.abs() + abs(cb) * b.abs() + slack
    return ca * a + cb * b, abs(ca) * a.abs() + abs(cb) * b.abs()


def ulp(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Spacing of a dtype's numbers at these values (never below that of its smallest normal number)."""
    info = torch.finfo(dtype)
    # The spacing belongs to the rounded value, which may be the next power of two.
    magnitude = exact.abs().clamp(min=info.smallest_normal)
    return 2.0 ** torch.floor(torch.log2(magnitude)) * info.eps * (1 + 1e-9)


def test_sums_that_cancel_are_refused() -> None:
    with pytest.raises(MergingError, match="sum to 0; set normalize: false"):
        canonical(of("linear", 1.0, -1.0))
    with pytest.raises(MergingError, match="divides by the sum"):
        canonical(of("task_arithmetic", 1.0, -1.0, normalize=True))


def test_sources_of_no_weight_are_left_out() -> None:
    assert canonical(of("linear", 0.5, 0.0)) == of("linear", 0.5, normalize=True)
    assert canonical(of("task_arithmetic", 0.0, -0.0)) == Assignment.of(
        "task_arithmetic", {}, scale=1.0, normalize=False
    )
    assert canonical(of("task_arithmetic", 0.3, scale=0.0)).sources == ()
    base = random(0, 9)
    assert torch.equal(merge(of("task_arithmetic", 0.0), base, random(1, 9)), base)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            Assignment.of("task_aritmetic", {}),
            "there is no merge method 'task_aritmetic'; did you mean 'task_arithmetic'",
        ),
        (Assignment.of("linear", {"a": {"coeficient": 1.0}}), "no parameter 'coeficient'; did you mean 'coefficient'"),
        (Assignment.of("linear", {"a": {}}), "source 'a' of method linear needs a coefficient"),
        (of("linear"), "method linear expects at least 1 source, found 0"),
        (of("slerp", 1, 1, 1), "method slerp expects exactly 2 sources, found 3"),
        (of("linear", math.nan), "expected a finite number"),
        (of("linear", 1.0, normalize=1.0), "expected bool, found 1.0 for normalize"),
        (Assignment.of("linear", {"a": {"coefficient": "much"}}), "expected a number, found 'much'"),
        (Assignment("linear", (("a", (("coefficient", 1.0),)),) * 2), "names a source twice"),
    ],
)
def test_bad_assignments_are_told_apart(assignment: Assignment, message: str) -> None:
    canonical(of("linear", 1.0, normalize=True))  # equal to one of the bad ones, as 1.0 is to True
    with pytest.raises(MergingError) as caught:
        canonical(assignment)
    assert message in str(caught.value)


def test_equal_merges_have_equal_hashes() -> None:
    refs = {alias: SourceRef(alias, f"sha256:{alias}") for alias in ("base", "a", "b")}
    group = Group("mlp", 0)

    def recipe(assignment: Assignment) -> Recipe:
        return canonical_recipe(Recipe("base", refs, {group: assignment}))

    one = recipe(Assignment.of("task_arithmetic", {"b": {"coefficient": 1}, "a": {"coefficient": 0.5}}))
    other = recipe(of("task_arithmetic", 0.5, 1.0, scale=1.0, normalize=False))
    assert one == other and one.hash == other.hash
    assert recipe(of("task_arithmetic", 0.5, 1.5)).hash != one.hash
    with pytest.raises(MergingError, match=r"group mlp\.0: method slerp expects exactly 2"):
        recipe(of("slerp", 1.0))


def test_the_registry_lists_what_it_can_load() -> None:
    assert {"linear", "slerp", "task_arithmetic"} <= set(names())
    assert all(get(name).name == name for name in names())
