"""Ranks, subspaces, alignment and interference: known spectra, planted subspaces, chance, factors."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging.diagnose.measures import Tally
from merging.diagnose.spectra import Product, alignments, compare, decompose, factored_svd, ranks, sampled

LARGE = 100_000


def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, dtype=torch.float64, generator=generator)).Q


def with_spectrum(values: list[float] | Tensor, rows: int, columns: int, seed: int = 0) -> Tensor:
    s = torch.as_tensor(values, dtype=torch.float64)
    return orthonormal(rows, len(s), seed) * s @ orthonormal(columns, len(s), seed + 1).mT


def compared(*matrices: Tensor, count: int = 16) -> Tally:
    tally = Tally(len(matrices))
    spectra = [decompose(each, count, LARGE) for each in matrices]
    compare(tally, spectra, matrices[0].numel(), min(matrices[0].shape))
    return tally


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40), (12, 12)])
def test_known_ranks(shape: tuple[int, int]) -> None:
    flat = decompose(with_spectrum([2.0] * 10, *shape), 16, LARGE)
    assert flat.ranks == pytest.approx((10.0, 10.0, 9.0), rel=1e-9)
    assert flat.s.tolist() == pytest.approx([2.0] * 10)
    two = decompose(with_spectrum([3.0, 1.0], *shape), 16, LARGE)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert two.ranks == pytest.approx((math.exp(entropy), 10.0 / 9.0, 1.0), rel=1e-6)
    assert two.u.shape == (shape[0], 2) and two.v.shape == (shape[1], 2)  # no direction that the matrix does not have
    assert decompose(with_spectrum([5.0], *shape), 4, LARGE).ranks == pytest.approx((1.0, 1.0, 1.0), rel=1e-6)


def test_the_definitions_on_a_full_spectrum() -> None:
    matrix = torch.randn(60, 90, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    values = torch.linalg.svdvals(matrix)
    shares = values / values.sum()
    found = decompose(matrix, 8, LARGE)
    effective, stable, energy = found.ranks
    assert effective == pytest.approx(float((-(shares * shares.log()).sum()).exp()), rel=1e-10)
    assert stable == pytest.approx(float(values.square().sum() / values[0] ** 2), rel=1e-10)
    upto = values.square().cumsum(0) / values.square().sum()
    assert energy == int((upto < 0.9).sum()) + 1
    assert torch.allclose((found.u.mT @ matrix @ found.v).diagonal(), values[:8])
    assert all(torch.allclose(each.mT @ each, torch.eye(8).double(), atol=1e-9) for each in (found.u, found.v))


def test_zeros_have_no_rank() -> None:
    for matrix in (torch.zeros(5, 9), Product(torch.zeros(5, 0).double(), torch.zeros(0, 9).double())):
        for most in (LARGE, 2):
            found = decompose(matrix, 4, most)
            assert all(math.isnan(each) for each in found.ranks) and found.u.shape == (5, 0) and found.v.shape == (9, 0)
    assert all(math.isnan(each) for each in ranks(torch.zeros(3)))


def test_planted_subspaces() -> None:
    u, v = orthonormal(64, 16, 0), orthonormal(80, 24, 1)
    scale = torch.linspace(2.0, 1.0, 8, dtype=torch.float64)
    one = u[:, :8] * scale @ v[:, :8].mT
    two = torch.cat([u[:, :3], u[:, 8:13]], dim=1) * scale @ v[:, 8:16].mT  # three left directions shared, no right one
    tally = compared(one, two)
    left, left_chance, right, right_chance = tally.subspaces.value()
    assert (left, right) == pytest.approx((3 / 8, 0.0), abs=1e-9)
    assert (left_chance, right_chance) == (8 / 64, 8 / 80)


def test_subspaces_of_chance() -> None:
    overlaps = []
    for seed in range(30):
        tally = compared(*(orthonormal(48, 6, 2 * seed + each) @ orthonormal(40, 6, 99 - each).mT for each in (0, 1)))
        overlaps.append(tally.subspaces.value()[0])
        assert tally.subspaces.value()[1] == 6 / 48
    assert np.mean(overlaps) == pytest.approx(6 / 48, rel=0.15)


def test_a_smaller_subspace_within_a_larger_one() -> None:
    u, v = orthonormal(30, 10, 0), orthonormal(30, 10, 1)
    tally = compared(u[:, :4] @ v[:, :4].mT, u @ v.mT)
    assert tally.subspaces.value().tolist() == pytest.approx([1.0, 10 / 30, 1.0, 10 / 30])


def test_interference() -> None:
    u, v = orthonormal(40, 8, 0), orthonormal(50, 8, 1)
    scale = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    one, two = u[:, :4] * scale @ v[:, :4].mT, u[:, 4:] * scale @ v[:, 4:].mT
    apart, equal = compared(one, two), compared(one, one, one)
    assert apart.interference == pytest.approx(0.0, abs=1e-9) and apart.strength == pytest.approx(20.0)
    assert equal.interference / equal.strength == pytest.approx((3 - 1) ** 2)
    # written out, of subspaces that share something
    mixed = u[:, 2:6] * scale @ v[:, 3:7].mT
    found = compared(one, mixed)
    left, right = torch.cat([u[:, :4], u[:, 2:6]], 1), torch.cat([v[:, :4], v[:, 3:7]], 1)
    s, unit = torch.cat([scale, scale]).diag(), torch.eye(8, dtype=torch.float64)
    truth = float(((left.mT @ left - unit) @ s @ (right.mT @ right - unit)).abs().sum())
    assert found.interference == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30)])
def test_alignment(shape: tuple[int, int]) -> None:
    u, v = orthonormal(shape[0], 6, 0), orthonormal(shape[1], 6, 1)
    strong, weak = 10.0 * u[:, :3] @ v[:, :3].mT, 0.1 * u[:, 3:] @ v[:, 3:].mT
    assert alignments([lambda: strong, lambda: weak]) == pytest.approx([1.0, 0.0], abs=1e-7)
    assert alignments([lambda: strong, lambda: strong]) == pytest.approx([1.0, 1.0])
    generator = torch.Generator().manual_seed(0)
    three = [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(3)]
    left, values, _ = torch.linalg.svd(sum(three[1:], start=three[0]))
    upto = values.square().cumsum(0) / values.square().sum()
    left = left[:, : int((upto < 0.95).sum()) + 1]
    truth = [float((left.mT @ each).norm() / each.norm()) for each in three]
    assert alignments([lambda each=each: each for each in three]) == pytest.approx(truth, rel=1e-9)
    nothing = alignments([lambda: strong, lambda: torch.zeros(shape).double()])
    assert nothing[0] == pytest.approx(1.0) and math.isnan(nothing[1])
    assert np.isnan(alignments([lambda: strong, lambda: -strong])).all()  # their sum is zero


def test_factors_say_what_the_elements_say() -> None:
    generator = torch.Generator().manual_seed(0)
    products = [
        Product(*(torch.randn(size, dtype=torch.float64, generator=generator) for size in ((60, rank), (rank, 90))))
        for rank in (4, 8, 70)  # one of more columns than rows
    ]
    dense = [each.dense() for each in products]
    u, s, vh = factored_svd(products[2])
    assert torch.allclose(u * s @ vh, dense[2], atol=1e-9)
    thin, thick = Tally(3), Tally(3)
    compare(thin, [decompose(each, 16, LARGE) for each in products], 5400, 60)
    compare(thick, [decompose(each, 16, LARGE) for each in dense], 5400, 60)
    assert thin.ranks.value() == pytest.approx(thick.ranks.value(), rel=1e-6)
    assert thin.subspaces.value() == pytest.approx(thick.subspaces.value(), rel=1e-6)
    assert thin.interference == pytest.approx(thick.interference, rel=1e-6)
    assert alignments(products) == pytest.approx(alignments([lambda each=each: each for each in dense]), rel=1e-6)


@pytest.mark.parametrize(
    "decay", [pytest.param(0.0, marks=pytest.mark.slow), 0.5, pytest.param(1.0, marks=pytest.mark.slow)]
)
def test_estimates_of_large_matrices(decay: float) -> None:
    """Spectra that fall as a power: flat ones, as of noise, and steep ones, as of a few tasks."""
    values = torch.arange(1, 301, dtype=torch.float64) ** -decay
    matrix = with_spectrum(values, 300, 420, seed=5)
    exact = decompose(matrix, 8, LARGE)
    found = decompose(matrix.to(torch.float32), 8, 64)
    assert found.estimated and not exact.estimated
    for kind, within in zip(range(3), (0.03, 0.03, 0.08), strict=True):
        assert found.ranks[kind] == pytest.approx(exact.ranks[kind], rel=within), kind
    turned = decompose(matrix.mT.to(torch.float32), 8, 64)
    assert turned.ranks == pytest.approx(found.ranks, rel=0.05) and turned.u.shape == (420, 8)


def test_estimated_directions_are_the_leading_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(300, 400, dtype=torch.float64, generator=generator) / 20
    matrix = with_spectrum([30.0, 20.0, 15.0, 10.0], 300, 400, seed=7) + 0.1 * noise
    exact, found = decompose(matrix, 4, LARGE), decompose(matrix.to(torch.float32), 4, 64)
    assert found.s.tolist() == pytest.approx(exact.s.tolist(), rel=1e-5)
    assert float((found.u.mT @ exact.u).square().sum()) == pytest.approx(4.0, abs=1e-4)
    assert float((found.v.mT @ exact.v).square().sum()) == pytest.approx(4.0, abs=1e-4)
    low = decompose(with_spectrum([3.0, 2.0, 1.0], 300, 400).to(torch.float32), 8, 64)
    truth = decompose(with_spectrum([3.0, 2.0, 1.0], 300, 400), 8, LARGE)
    assert low.ranks == pytest.approx(truth.ranks, rel=1e-3) and len(low.s) == 3


def test_sampled_tensors() -> None:
    names = [f"layers.{depth}.q.weight" for depth in range(12)] + ["lm_head.weight"]
    names += [f"layers.{depth}.experts.{expert}.w1.weight" for depth in range(3) for expert in range(8)]
    found = sampled(names)
    assert {name for name in found if ".q." in name} == {f"layers.{depth}.q.weight" for depth in (0, 4, 7, 11)}
    assert "lm_head.weight" in found and len(found) == 9
    assert len({name.split(".")[1] for name in found if "experts" in name}) == 3


def test_no_pair_is_left_out() -> None:
    found = compared(*(with_spectrum([1.0, 0.5], 20, 20, 3 * each) for each in range(4)))
    assert len(found.subspaces.value()) == 4 * len(list(combinations(range(4), 2)))
    assert np.isfinite(found.subspaces.value()).all()


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(2, 30), columns=st.integers(2, 30), scale=st.floats(1e-6, 1e6))
def test_neither_order_nor_scale_matters(seed: int, rows: int, columns: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrices = [torch.randn(rows, columns, dtype=torch.float64, generator=generator) for _ in range(2)]
    down, across = torch.randperm(rows, generator=generator), torch.randperm(columns, generator=generator)
    count = min(rows, columns) // 2 or 1
    found, turned = (
        compared(*each, count=count) for each in (matrices, [scale * each[down][:, across].mT for each in matrices])
    )
    assert turned.ranks.value() == pytest.approx(found.ranks.value(), rel=1e-6)
    left, left_chance, right, right_chance = found.subspaces.value()
    assert turned.subspaces.value() == pytest.approx([right, right_chance, left, left_chance], rel=1e-5)
    assert turned.interference / turned.strength == pytest.approx(found.interference / found.strength, rel=1e-5)
    effective, stable, energy = found.ranks.value()[::2]
    assert 1.0 <= stable <= min(rows, columns) + 1e-6 and effective <= min(rows, columns) + 1e-6
    assert energy == round(energy) and 1 <= energy <= min(rows, columns)
