"""WUDI: the closed form against the iteration that it replaces, its loss, closed cases and invariants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from comparison import backend, backend_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging.methods.wudi import closed_form
from merging.recipe import MergingError

QUICK = settings(deadline=None, max_examples=25, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
SHAPES = [(1, 1), (1, 9), (9, 1), (2, 5), (7, 7), (4, 17), (19, 5)]


def random_matrices(count: int, shape: tuple[int, int], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def loss(merged: Tensor, deltas: Sequence[Tensor]) -> Tensor:
    """The authors' objective."""
    terms = [((merged - delta) @ delta.mT).square().sum() / delta.square().sum() for delta in deltas]
    return torch.stack(terms).sum()


def distance(found: Tensor, wanted: Tensor) -> float:
    return float(torch.linalg.matrix_norm(found - wanted) / torch.linalg.matrix_norm(wanted))


@pytest.mark.parametrize("shape", [(6, 8), (8, 6), (3, 20)])
def test_it_is_the_limit_of_gradient_descent_from_the_sum(shape: tuple[int, int]) -> None:
    """Of few, many and too few rows to span the inputs; with what no task spans as it was in the sum."""
    deltas = random_matrices(2, shape, 1)
    squares = [delta.mT @ delta / delta.square().sum() for delta in deltas]
    step = 0.5 / float(torch.linalg.eigvalsh(sum(squares))[-1])

    def gradient(at: Tensor) -> Tensor:
        return 2 * sum((at - delta) @ square for delta, square in zip(deltas, squares, strict=True))

    start = sum(deltas).requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(loss(start, deltas), start)[0], gradient(start))
    merged = start.detach()
    for _ in range(20_000):
        change = gradient(merged)
        merged = merged - step * change
        if float(change.abs().max()) < 1e-14:
            break
    assert distance(closed_form(deltas, 0.0), merged) < 1e-9
    far = [distance(closed_form(deltas, mu), merged) for mu in (1e-2, 1e-4, 1e-6, 1e-8)]
    assert far == sorted(far, reverse=True) and far[-1] < 1e-5


@pytest.mark.slow
def test_the_authors_optimizer_goes_there() -> None:
    """Adam, its steps made smaller to the end: never below the closed form, and close to it."""
    deltas = random_matrices(3, (10, 8), 2)
    merged = sum(deltas).clone().requires_grad_()
    optimizer = torch.optim.Adam([merged], lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    for _ in range(300):
        optimizer.zero_grad()
        loss(merged, deltas).backward()
        optimizer.step()
        schedule.step()
    start, reached, least = (
        float(loss(each, deltas)) for each in (sum(deltas), merged.detach(), closed_form(deltas, 0.0))
    )
    assert least < reached < least + 1e-3 * (start - least)


@QUICK
@given(st.sampled_from(SHAPES), st.integers(1, 5), st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 0.03, 1.0]))
def test_it_minimises_what_it_says(shape: tuple[int, int], tasks: int, seed: int, regularisation: float) -> None:
    """By the formula of the docstring, and as a stationary point of the regularised objective."""
    deltas = random_matrices(tasks, shape, seed)
    found, anchor = closed_form(deltas, regularisation), sum(deltas)
    units = [delta / delta.norm() for delta in deltas]
    moments = sum(unit.mT @ unit for unit in units)
    mu = regularisation * float(moments.trace()) / shape[1]
    above = sum(delta @ unit.mT @ unit for delta, unit in zip(deltas, units, strict=True)) + mu * anchor
    wanted = above @ torch.linalg.inv(moments + mu * torch.eye(shape[1], dtype=torch.float64))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
    point = found.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point, deltas) + mu * (point - anchor).square().sum(), point)
    assert float(gradient.abs().max()) < 1e-9 * max(1.0, float(anchor.abs().max()))


def test_disjoint_row_spaces_keep_every_task() -> None:
    """Each task gets on its own inputs what it learned; the sum gives it what the others would make of them."""
    rows = torch.randn(12, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    maps = random_matrices(3, (9, 4), 4)
    deltas = [each @ rows[4 * t : 4 * t + 4] for t, each in enumerate(maps)]
    found = closed_form(deltas, 0.0)
    assert float(loss(found, deltas)) < 1e-20 * float(loss(sum(deltas), deltas))
    for delta in deltas:
        torch.testing.assert_close(found @ delta.mT, delta @ delta.mT)
    assert float(loss(closed_form(deltas, 0.03), deltas)) < 0.1 * float(loss(sum(deltas), deltas))


def test_orthogonal_row_spaces_are_summed() -> None:
    basis = torch.linalg.qr(random_matrices(1, (12, 12), 5)[0])[0]
    deltas = [each @ basis[3 * t : 3 * t + 3] for t, each in enumerate(random_matrices(4, (7, 3), 6))]
    for regularisation in (0.0, 0.03, 10.0):
        torch.testing.assert_close(closed_form(deltas, regularisation), sum(deltas))


def test_equal_tasks_are_one() -> None:
    """All want the same on the inputs that they span, and a strong pull leaves the sum."""
    (delta,) = random_matrices(1, (6, 9), 7)
    torch.testing.assert_close(closed_form([delta] * 4, 0.0), delta)
    torch.testing.assert_close(closed_form([delta] * 4, 1e12), 4 * delta)
    torch.testing.assert_close(closed_form([delta], 0.03), delta)


@QUICK
@given(st.sampled_from(SHAPES), st.integers(1, 4), st.integers(0, 2**32 - 1), st.sampled_from([0.125, -4.0]))
def test_invariants(shape: tuple[int, int], tasks: int, seed: int, factor: float) -> None:
    """Scale, order, rotations of outputs and inputs, tasks that did not move."""
    deltas = random_matrices(tasks, shape, seed)
    found = closed_form(deltas, 0.03)
    torch.testing.assert_close(closed_form([factor * each for each in deltas], 0.03), factor * found)
    torch.testing.assert_close(closed_form(deltas[::-1], 0.03), found)
    left, right = (torch.linalg.qr(random_matrices(1, (size, size), seed + 1)[0])[0] for size in shape)
    rotated = closed_form([left @ each @ right for each in deltas], 0.03)
    torch.testing.assert_close(rotated, left @ found @ right, rtol=1e-6, atol=1e-8)

    base = torch.zeros(shape, dtype=torch.float64)
    moved = backend("wudi", base, [*deltas, base], [{}] * (tasks + 1), {"scale": factor}, name="layer.weight")
    np.testing.assert_allclose(moved, factor * found, rtol=1e-6, atol=1e-6 * float(found.abs().max()))


def test_the_inputs_of_a_layer_that_is_stored_the_other_way() -> None:
    """GPT-2's Conv1D holds [in, out]: rows and columns change places."""
    deltas = random_matrices(2, (5, 15), 8)
    base = {"h.0.attn.c_fc.weight": torch.zeros(5, 15, dtype=torch.float64), "h.0.attn.c_fc.bias": torch.zeros(15)}
    sources = [{**base, "h.0.attn.c_fc.weight": delta} for delta in deltas]
    found = backend_model("wudi", base, sources, [{}, {}], {})["h.0.attn.c_fc.weight"]
    wanted = closed_form([delta.mT for delta in deltas], 0.03).mT
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert distance(found, closed_form(deltas, 0.03)) > 0.1


def test_nothing_moved_and_bf16() -> None:
    base = torch.randn(6, 5, generator=torch.Generator().manual_seed(9)).to(torch.bfloat16)
    assert torch.equal(backend("wudi", base, [base, base.clone()], [{}, {}], {}, name="w"), base)
    sources = [(base.float() + 0.1 * each.float()).to(torch.bfloat16) for each in random_matrices(2, (6, 5), 10)]
    narrow = backend("wudi", base, sources, [{}, {}], {}, name="w", out=torch.float32)
    wide = backend("wudi", base.float(), [each.float() for each in sources], [{}, {}], {}, name="w")
    assert torch.equal(narrow, wide)


def test_no_regularisation_of_less_than_none() -> None:
    base = torch.zeros(2, 2)
    with pytest.raises(MergingError, match="regularisation"):
        backend("wudi", base, [base + 1], [{}], {"regularisation": -0.1}, name="w")
