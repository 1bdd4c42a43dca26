"""What is told of task vectors from their factors, against the task vectors themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from adapter_pools import dense, random_base, random_factors, thin
from hypothesis import given, settings
from hypothesis import strategies as st

from merging import factored
from merging.composed import Factors
from merging.joint import joint_space, part_factors, resolution
from merging.matrices import Part, parts
from merging.methods import canonical, get
from merging.methods.contract import Values
from merging.recipe import Assignment
from merging.statistics import gram, norm_of_sum, vector_grams

QUICK = settings(deadline=None, max_examples=12, derandomize=True, database=None)
SHAPES = {"w": (40, 28)}
RANKS = (3, 5, 1, 0)


def wide(factors: Factors) -> torch.Tensor:
    return factors.left.double() @ factors.right.double()


def adapters(shape: tuple[int, ...], ranks: tuple[int, ...], seed: int = 0) -> list[Factors]:
    return [random_factors(shape, rank, seed + 17 * number) for number, rank in enumerate(ranks)]


def close(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-9) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@QUICK
@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)), st.lists(st.integers(0, 40), min_size=1, max_size=4),
    st.integers(0, 2**31),
)  # fmt: skip
def test_inner_products_are_those_of_the_matrices(shape: tuple[int, int], ranks: list[int], seed: int) -> None:
    found = adapters(shape, tuple(ranks), seed)
    matrices = torch.stack([wide(each) for each in found])
    products = factored.inner_products(found)
    wanted = torch.einsum("aij,bij->ab", matrices, matrices).numpy()
    np.testing.assert_allclose(products, wanted, rtol=0, atol=1e-12 * max(1.0, np.abs(wanted).max()))
    assert np.array_equal(products, products.T)
    rows, columns = factored.row_inner_products(found), factored.column_inner_products(found)
    for own, way in ((rows, "aij,bij->iab"), (columns, "aij,bij->jab")):
        exact = torch.einsum(way, matrices, matrices).numpy()
        np.testing.assert_allclose(own, exact, rtol=0, atol=1e-12 * matrices.numel())
        np.testing.assert_allclose(own.sum(0), products, rtol=0, atol=1e-11 * max(1.0, np.abs(wanted).max()))


def test_gram_of_a_pool_agrees_with_the_sums_over_elements() -> None:
    base, low = random_base(SHAPES), [{"w": each} for each in adapters((40, 28), RANKS)]
    one, other = thin(base, low), dense(base, low, exact=True)
    close(gram(one, "w", "task_vectors"), gram(other, "w", "task_vectors"))
    for axis in ("last", "first"):
        close(vector_grams(one, "w", "task_vectors", axis), vector_grams(other, "w", "task_vectors", axis))
    factors = (0.3, -1.2, 0.5, 2.0)
    assert norm_of_sum(one, "w", "task_vectors", factors) == pytest.approx(
        norm_of_sum(other, "w", "task_vectors", factors), rel=1e-9
    )
    # Weights are not task vectors: those of the base count, and they are read.
    assert np.array_equal(gram(one, "w", "weights"), gram(dense(base, low), "w", "weights"))
    assert not gram(one, "w", "task_vectors").flags.writeable


def test_nothing_is_multiplied_out_for_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    base, low = random_base(SHAPES), [{"w": each} for each in adapters((40, 28), RANKS)]
    monkeypatch.setattr(Factors, "dense", None)
    pool = thin(base, low)
    gram(pool, "w", "task_vectors"), vector_grams(pool, "w", "task_vectors", "last")
    norm_of_sum(pool, "w", "task_vectors", (1.0, 1.0, 1.0, 1.0))
    for method in ("tsv_m", "iso_c", "wudi"):
        spelled = canonical(Assignment.of(method, {alias: {} for alias in pool.aliases}))
        with pytest.raises(TypeError):  # only the product is
            get(method).prepare(pool, "w", Values.of(spelled))


def test_tensors_of_more_axes_have_their_own_rows() -> None:
    """Factors of a convolution are [out, in·kernel]; its last axis is the kernel's."""
    shapes = {"conv": (6, 4, 3)}
    base, low = random_base(shapes), [{"conv": each} for each in adapters((6, 4, 3), (2, 3))]
    one, other = thin(base, low), dense(base, low)
    close(gram(one, "conv", "task_vectors"), gram(other, "conv", "task_vectors"), 1e-5)
    found = vector_grams(one, "conv", "task_vectors", "last")
    assert np.array_equal(found, vector_grams(other, "conv", "task_vectors", "last")) and found.shape[0] == 24


def test_sources_that_are_rounded_are_no_products() -> None:
    base, low = random_base(SHAPES), [{"w": each} for each in adapters((40, 28), (2, 3))]
    pool = thin(base, low, torch.bfloat16)
    assert pool.factors("w") == (None, None) and pool.all_factors("w") is None
    deltas = [pool.source("w", number).double() - pool.base("w").double() for number in range(2)]
    close(gram(pool, "w", "task_vectors"), np.array([[float((a * b).sum()) for b in deltas] for a in deltas]))


def test_the_norm_of_a_sum_that_cancels() -> None:
    """Σ f·Δ of the size of its rounding: the Gram matrix would say 1e-8 of the terms."""
    first = random_factors((60, 50), 4, 1)
    small = random_factors((60, 50), 2, 2, size=1e-9)
    second = Factors.of(torch.cat([first.left, small.left], 1), torch.cat([first.right, small.right]))
    wanted = float(torch.linalg.vector_norm(wide(second) - wide(first)))
    assert factored.norm_of_sum([second, first], (1.0, -1.0)) == pytest.approx(wanted, rel=1e-5)
    assert factored.norm_of_sum([first, first], (1.0, -1.0)) == 0.0
    assert factored.norm_of_sum([random_factors((4, 5), 0, 1)], (1.0,)) == 0.0


@pytest.mark.parametrize("ranks", [(3, 4), (0, 0), (30, 30), (2, 0, 1)])
def test_cores_and_bases_are_the_task_vectors(ranks: tuple[int, ...]) -> None:
    found = adapters((24, 19), ranks)
    space = joint_space([(each.left, each.right) for each in found])
    assert space.shape == (24, 19)
    assert space.left.shape[1] == min(24, sum(ranks)) and space.right.shape[0] == min(19, sum(ranks))
    for factors, core in zip(found, space.cores, strict=True):
        torch.testing.assert_close(space.left @ core @ space.right, wide(factors), rtol=0, atol=1e-14)
        torch.testing.assert_close(wide(space.lift(core)), wide(factors), rtol=0, atol=1e-7)
        assert space.lift(core).rank == min(core.shape)
        assert resolution(core) <= 1.2e-7 * float(torch.linalg.matrix_norm(wide(factors), 2)) * (1 + 1e-9)


GPT2 = {"model_type": "gpt2", "n_embd": 12, "n_head": 3}
QWEN = {"model_type": "dbrx", "ffn_config": {"moe_num_experts": 3}, "num_local_experts": 3}


@pytest.mark.parametrize(
    ("name", "shape", "config"),
    [
        ("model.layers.0.mlp.up_proj.weight", (20, 12), {}),
        ("h.0.attn.c_attn.weight", (12, 36), GPT2),
        ("h.0.mlp.c_proj.weight", (48, 12), GPT2),
        ("transformer.h.0.conv.weight", (8, 6, 3), {}),
    ],
)
def test_matrices_within_a_tensor(name: str, shape: tuple[int, ...], config: dict[str, object]) -> None:
    """Fused, turned and convolved: a part of the product is the product of its factors."""
    found, bias = parts(name, shape, config, bias=shape[-1]), random_factors(shape, 4, 5)
    assert found
    for part in found:
        pair = part_factors(part, bias, shape)
        assert pair is not None
        wanted = part.take(wide(bias).reshape(shape))
        torch.testing.assert_close(pair[0].double() @ pair[1].double(), wanted, rtol=0, atol=1e-14)
        empty = part_factors(part, random_factors(shape, 0, 5), shape)
        assert empty is not None and empty[0].shape == (wanted.shape[0], 0) and empty[1].shape == (0, wanted.shape[1])


def test_stacks_of_matrices() -> None:
    below = Part(count=3, number=1)
    factors = random_factors((15, 8), 4, 6)
    pair = part_factors(below, factors, (15, 8))
    assert pair is not None
    torch.testing.assert_close(pair[0] @ pair[1], below.take(factors.left @ factors.right))
    turned = part_factors(Part(count=3, number=2, turned=True), factors, (15, 8))
    assert turned is not None
    torch.testing.assert_close(turned[0] @ turned[1], Part(3, 2, turned=True).take(factors.left @ factors.right))
    assert part_factors(Part(count=3, number=1), random_factors((3, 5, 8), 2, 7), (3, 5, 8)) is None


def test_the_number_of_threads_changes_no_bit() -> None:
    found = adapters((300, 260), (16, 16, 16))
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            results.append((factored.inner_products(found), factored.row_inner_products(found)))
        finally:
            torch.set_num_threads(1)
    assert all(np.array_equal(one, other) for one, other in zip(*results, strict=True))
