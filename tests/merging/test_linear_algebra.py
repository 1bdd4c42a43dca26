"""Decompositions and solves of the matrix methods: against numpy, on singular matrices, whatever the threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from merging.linear_algebra import leading, one_thread, polar, solve_right, svd

SHAPES = [(1, 1), (1, 9), (9, 1), (2, 5), (7, 7), (6, 17), (19, 5), (24, 24)]


def random_matrix(shape: tuple[int, int], seed: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(shape)


@settings(deadline=None, max_examples=25, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
@given(
    st.sampled_from(SHAPES),
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, 0, 1, 3, 99]),
    st.sampled_from([0.0, 1e-12, 1e-6, 0.3]),
    st.sampled_from([0.0, 1e-9, 1.0]),
)
def test_leading_is_a_part_of_the_decomposition(
    shape: tuple[int, int], seed: int, count: int | None, noise: float, least: float
) -> None:
    """By either route: well conditioned, nearly singular, singular."""
    u, _, vh = np.linalg.svd(random_matrix(shape, seed), full_matrices=False)
    values = np.geomspace(2.0, 1.0, min(shape))
    values[len(values) // 2 + 1 :] *= least
    matrix = u @ np.diag(values) @ vh
    found = [each.numpy() for each in leading(torch.from_numpy(matrix), count, noise)]
    floor = max(noise, 1e-13)
    rank = min(int((values > floor).sum()), len(values) if count is None else count)
    np.testing.assert_allclose(found[1], values[:rank], rtol=1e-6)
    wanted = u[:, :rank] @ np.diag(values[:rank]) @ vh[:rank]
    np.testing.assert_allclose(found[0] @ np.diag(found[1]) @ found[2], wanted, atol=1e-9)
    for basis in (found[0].T, found[2]):
        np.testing.assert_allclose(basis @ basis.T, np.eye(rank), atol=1e-6)


@pytest.mark.parametrize("shape", [*SHAPES, (0, 3), (90, 4), (4, 90)])
def test_svd_and_polar(shape: tuple[int, int]) -> None:
    matrix = torch.from_numpy(random_matrix(shape, 1))
    u, s, vh = svd(matrix)
    assert u.shape == (shape[0], min(shape)) and vh.shape == (min(shape), shape[1])
    torch.testing.assert_close((u * s) @ vh, matrix)
    nearest = polar(matrix)
    gram = nearest.mT @ nearest if shape[0] >= shape[1] else nearest @ nearest.mT
    torch.testing.assert_close(gram, torch.eye(min(shape), dtype=torch.float64))
    torch.testing.assert_close(nearest.mT @ matrix, matrix.mT @ nearest)  # the other factor is symmetric


def test_solves_also_where_the_matrix_is_singular() -> None:
    for seed in range(2, 200, 2):  # of some, rounding leaves pivots that are positive
        rows = torch.from_numpy(random_matrix((5, 9), seed))
        wanted = torch.from_numpy(random_matrix((3, 5), seed + 1)) @ rows
        torch.testing.assert_close(solve_right(wanted @ (rows.mT @ rows), rows.mT @ rows), wanted)
    regular = rows @ rows.mT
    torch.testing.assert_close(solve_right(regular, regular), torch.eye(5, dtype=torch.float64))


def test_tensors_may_be_worked_on_side_by_side() -> None:
    """Each in a thread of its own that uses no other: the same bits, and the setting comes back."""
    matrices = [torch.from_numpy(random_matrix((90, 120), seed)) for seed in range(6)]

    def work(matrix: Tensor) -> tuple[Tensor, int]:
        with one_thread():
            return polar(matrix), torch.get_num_threads()

    alone = [work(matrix)[0] for matrix in matrices]
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(3) as threads:
            found = list(threads.map(work, matrices))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert [each for _, each in found] == [1] * 6
    assert all(torch.equal(one, other) for one, (other, _) in zip(alone, found, strict=True))


def test_one_thread_restores_what_was() -> None:
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
            with one_thread():
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match="inside"), one_thread():
            raise ValueError("inside")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
