"""Inner products, and the coefficients that follow from them: exact, however summed, and spelled in one way."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from comparison import backend
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging import statistics
from merging.methods import canonical, get
from merging.methods.arcs import arc, elements_by_vector, stock, vector_of
from merging.methods.contract import Values
from merging.pool import Pool
from merging.recipe import Assignment, MergingError
from merging.statistics import gram, norm_of_sum, quadratic, vector_grams

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05).to(dtype)


def pool_of(base: Tensor, *sources: Tensor) -> Pool:
    tensors = {"base": base, **{"abcdef"[i]: tensor for i, tensor in enumerate(sources)}}
    return Pool("base", tuple("abcdef"[: len(sources)]), ("x",), lambda alias, _: tensors[alias])


def of(method: str, *coefficients: float, **shared: float | bool | str) -> Assignment:
    return Assignment.of(method, {"abcdef"[i]: {"coefficient": c} for i, c in enumerate(coefficients)}, **shared)


def exact(a: Tensor, b: Tensor) -> float:
    """⟨a, b⟩ in rational arithmetic, rounded once."""
    pairs = zip(a.double().reshape(-1).tolist(), b.double().reshape(-1).tolist(), strict=True)
    return float(sum((Fraction(x) * Fraction(y) for x, y in pairs), Fraction(0)))


# Gram matrices.


@given(size=st.integers(0, 250), dtype=st.sampled_from(DTYPES), on=st.sampled_from(["weights", "task_vectors"]))
@settings(deadline=None, max_examples=30, derandomize=True)
def test_gram_matrices_are_exact_to_float64(size: int, dtype: torch.dtype, on: str) -> None:
    """Blocks, a rest of whole chunks, a rest of a chunk: with small ones, each is met."""
    base, *sources = (random(size * 4 + i, size, dtype=dtype) for i in range(4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "LANES", 16)
        patch.setattr(statistics, "CHUNKS", 4)
        found = gram(pool_of(base, *sources), "x", on)
    vectors = [each.double() - base.double() if on == "task_vectors" else each for each in sources]
    for i, one in enumerate(vectors):
        for j, other in enumerate(vectors):
            assert found[i, j] == pytest.approx(exact(one, other), rel=1e-13, abs=1e-16)
    assert np.array_equal(found, found.T)


def test_sums_have_the_same_bits_however_many_blocks_and_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 3 * statistics.LANES * statistics.CHUNKS + 2 * statistics.LANES + 77
    base, a, b = random(0, size), random(1, size), random(2, size)
    found = gram(pool_of(base, a, b), "x", "task_vectors")
    norm = norm_of_sum(pool_of(base, a, b), "x", "weights", (0.3, -0.7))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert np.array_equal(gram(pool_of(base, a, b), "x", "task_vectors"), found)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(statistics, "_blocks_at_once", lambda device: 2)  # as on a device
    assert np.array_equal(gram(pool_of(base, a, b), "x", "task_vectors"), found)
    assert norm_of_sum(pool_of(base, a, b), "x", "weights", (0.3, -0.7)) == norm


def test_a_gram_matrix_is_computed_once_and_read_only() -> None:
    pool = pool_of(random(0, 9), random(1, 9), random(2, 9))
    first = gram(pool, "x", "weights")
    assert gram(pool, "x", "weights") is first
    assert gram(pool, "x", "task_vectors") is not first
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0] = 1.0


@pytest.mark.parametrize("shape", [(7, 11), (3, 5, 4), (1, 6), (6, 1), (5, 0)])
@pytest.mark.parametrize("axis", ["last", "first"])
def test_vectors_along_an_axis(shape: tuple[int, ...], axis: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_PIECE", 20)  # several pieces
    base, *sources = (random(i, *shape) for i in range(3))
    found = vector_grams(pool_of(base, *sources), "x", "task_vectors", axis)
    deltas = torch.stack([each.double() - base.double() for each in sources])
    if axis == "last":
        deltas = deltas.reshape(2, math.prod(shape[:-1]), shape[-1])
    else:
        deltas = deltas.reshape(2, shape[0], math.prod(shape[1:])).transpose(1, 2)
    wanted = torch.einsum("ivk,jvk->vij", deltas, deltas).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-18)


def test_the_norm_of_what_cancels_is_summed_from_the_elements() -> None:
    """The Gram matrix leaves 1e-8 of the terms; the elements leave the number."""
    a = random(1, 5000, dtype=torch.float64)
    b = -a * (1 + 1e-9)
    pool = pool_of(a, a, b)
    wanted = float((a + b).norm())
    assert norm_of_sum(pool, "x", "weights", (1.0, 1.0)) == pytest.approx(wanted, rel=1e-12)
    by_gram = math.sqrt(max(quadratic((1.0, 1.0), gram(pool, "x", "weights")), 0.0))
    assert by_gram != pytest.approx(wanted, rel=1e-3)


# Vector by vector.


@pytest.mark.parametrize("shape", [(9, 13), (4, 3, 5)])
@pytest.mark.parametrize("on", ["weights", "task_vectors"])
@pytest.mark.parametrize("row_wise", [False, True])
def test_nuslerp_by_vector_is_nuslerp_of_every_vector(shape: tuple[int, ...], on: str, row_wise: bool) -> None:
    tensors = [random(i, *shape, dtype=torch.float64) for i in range(3)]
    own, shared = [{"coefficient": 0.7}, {"coefficient": 0.4}], {"on": on}
    base, a, b = tensors
    merged = backend("nuslerp", base, [a, b], own, {**shared, "flatten": False, "row_wise": row_wise})
    flat = [each.reshape(shape[0], -1).T if row_wise else each.reshape(-1, shape[-1]) for each in (*tensors, merged)]
    for base_, a_, b_, found in zip(*flat, strict=True):
        wanted = backend("nuslerp", base_.contiguous(), [a_.contiguous(), b_.contiguous()], own, shared)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)


def test_model_stock_by_row_is_model_stock_of_every_row() -> None:
    base, *sources = (random(i, 6, 40) + (0.2 * random(9, 6, 40) if i else 0.0) for i in range(4))
    merged = backend("model_stock", base, sources, [{}] * 3, {"row_wise": True})
    for row, found in enumerate(merged):
        wanted = backend("model_stock", base[row], [each[row] for each in sources], [{}] * 3)
        assert torch.equal(found, wanted)


@given(
    inner=st.one_of(st.integers(1, 1 << 17), st.integers(1, (1 << 31) - 1)),
    at=st.lists(st.tuples(st.integers(0, (1 << 32) - 1), st.integers(-1, 1)), min_size=1, max_size=20),
)
@settings(deadline=None, max_examples=200, derandomize=True)
def test_vectors_are_found_by_an_unsigned_index(inner: int, at: list[tuple[int, int]]) -> None:
    """Beyond 2³¹ elements the kernel's index has turned negative; on both sides of every border it is exact."""
    places = [min(max(place // inner * inner + step, 0), (1 << 32) - 1) for place, step in at]
    indices = torch.tensor(places, dtype=torch.int64).to(torch.int32)
    width = torch.tensor(inner, dtype=torch.int32)
    assert vector_of(indices, width, "last").tolist() == [place // inner for place in places]
    assert vector_of(indices, width, "first").tolist() == [place % inner for place in places]


def test_what_the_index_cannot_count_is_refused() -> None:
    with pytest.raises(MergingError, match="2\\^32 elements"):
        elements_by_vector("nuslerp", (1 << 17, 1 << 16), "weights", "last", np.zeros((2, 0)), 2)


# Coefficients.


def test_a_mean_direction_survives_near_cancellation() -> None:
    """Units that leave 1e-6 of themselves: the direction is what float64 makes of the elements, not of the matrix."""
    a = random(1, 400, dtype=torch.float64)
    b = -a + 1e-6 * random(2, 400, dtype=torch.float64)
    merged = backend("multislerp", a, [a, b], [{"coefficient": 1.0}] * 2, {"eps": 1e-12})
    u = a / (a.norm() + 1e-12) + b / (b.norm() + 1e-12)
    wanted = u / u.norm() * (a.norm() + b.norm()) / 2
    torch.testing.assert_close(merged, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))


def test_model_stock_of_two_is_the_papers_ratio() -> None:
    for cosine in (0.0, 0.3, 0.9, 1.0):
        matrices = np.array([[[1.0, cosine], [cosine, 1.0]]])
        assert stock(matrices, mergekit=False)[0] == pytest.approx(2 * cosine / (1 + cosine))
    opposed = np.array([[[1.0, -0.5], [-0.5, 1.0]]])
    assert stock(opposed, mergekit=False)[0] == 0.0
    assert stock(opposed, mergekit=True)[0] == pytest.approx(-2.0)


def test_an_arc_from_end_to_end() -> None:
    matrix = np.array([[4.0, 1.0], [1.0, 9.0]])
    assert arc(matrix, 0.0) == (1.0, 0.0)
    assert arc(matrix, 1.0) == (0.0, 1.0)
    first, second = arc(matrix, 0.5)
    assert first == second == pytest.approx(0.5 / math.cos(math.acos(1 / 6) / 2))


def test_who_reads_the_base() -> None:
    for method in ("slerp", "nuslerp", "multislerp"):
        for on, reads in (("weights", False), ("task_vectors", True)):
            assert get(method).reads_base(Values.of(canonical(of(method, 1, 2, on=on)))) is reads
    assert not get("multislerp").reads_base(Values.of(canonical(of("multislerp", 1, on="task_vectors"))))
    assert not get("karcher").reads_base(Values.of(canonical(of("karcher", 1, 1))))


# One spelling.


@given(
    method=st.sampled_from(["slerp", "nuslerp", "multislerp", "karcher"]),
    coefficients=st.lists(st.one_of(st.just(0.0), st.floats(-1e4, 1e4)), min_size=2, max_size=2),
    third=st.floats(-1e4, 1e4),
)
@settings(deadline=None, max_examples=200, derandomize=True)
def test_canonical_is_a_fixed_point(method: str, coefficients: list[float], third: float) -> None:
    if method in {"multislerp", "karcher"}:
        coefficients = [*coefficients, third]
    if method in {"multislerp", "karcher"} and abs(math.fsum(coefficients)) < 1e-8:
        with pytest.raises(MergingError, match="Σ c"):
            canonical(of(method, *coefficients))
        return
    once = canonical(of(method, *coefficients))
    assert canonical(once) == once


def test_only_the_ratio_of_coefficients_is_spelled() -> None:
    for method in ("slerp", "nuslerp", "multislerp", "karcher"):
        assert canonical(of(method, 1, 3)) == canonical(of(method, 25, 75))
        assert Values.of(canonical(of(method, 1, 3))).column("coefficient") == (0.25, 0.75)
    kept = canonical(of("multislerp", 1, 3, normalize=False))
    assert Values.of(kept).column("coefficient") == (1.0, 3.0)


def test_what_has_no_effect_is_left_out() -> None:
    assert canonical(of("karcher", 2, 0, 2)) == canonical(
        Assignment.of("karcher", {"a": {"coefficient": 0.5}, "c": {"coefficient": 0.5}})
    )
    assert len(canonical(of("multislerp", 1, 1, 0, 1)).sources) == 3
    # With two left, what cancels would become a straight line: these are two merges.
    assert len(canonical(of("multislerp", 1, 1, 0)).sources) == 3
    single = canonical(of("multislerp", 0.3, eps=0.1, normalize=False, delta_scale=2.0))
    assert single == canonical(of("multislerp", 7.0, delta_scale=2.0)) != canonical(of("multislerp", 7.0))
    assert canonical(of("nuslerp", 1, 1, row_wise=True)) == canonical(of("nuslerp", 1, 1))
    assert canonical(of("nuslerp", 1, 1, row_wise=True, flatten=False)) != canonical(of("nuslerp", 1, 1, flatten=False))
