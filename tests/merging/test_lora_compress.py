"""Low-rank approximations against the theorem of Eckart and Young, and against what is dense."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from merging.composed import Factors
from merging.lora import compress as module
from merging.lora.compress import Rank, compress, recompress, relative
from merging.recipe import MergingError

VALUES = torch.tensor([5.0, 4.0, 2.0, 1.0, 0.5, 0.25], dtype=torch.float64)


def planted(rows: int, columns: int, values: Tensor = VALUES) -> Tensor:
    """A matrix with these singular values."""
    generator = torch.Generator().manual_seed(2)
    count = len(values)
    left, right = (
        torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64)).Q
        for size in (rows, columns)
    )
    return left * values @ right.mT


def best_error(rank: int) -> float:
    return math.sqrt(float(VALUES[rank:].square().sum() / VALUES.square().sum()))


@pytest.mark.parametrize("shape", [(9, 14), (14, 9)])
@pytest.mark.parametrize("rank", [1, 3, 6, 8])
def test_the_error_is_what_the_left_out_singular_values_say(shape: tuple[int, int], rank: int) -> None:
    delta = planted(*shape)
    made = compress(delta, Rank(most=rank))
    assert made.rank == min(rank, len(VALUES))
    assert relative(made.lost, made.square) == pytest.approx(best_error(made.rank), abs=1e-6)
    found = float((delta - made.left.double() @ made.right.double()).norm() / delta.norm())
    assert relative(made.lost, made.square) == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("error", [0.9, 0.4, 0.2, 0.05, 1e-3])
def test_an_error_gets_the_smallest_rank_that_keeps_it(error: float) -> None:
    made = compress(planted(9, 14), Rank(error=error))
    assert best_error(made.rank) <= error < best_error(made.rank - 1)
    assert relative(made.lost, made.square) <= error * (1 + 1e-6)


def test_a_sum_of_products_is_recompressed_as_if_it_were_dense() -> None:
    torch.manual_seed(4)
    terms = [Factors(torch.randn(20, rank), torch.randn(rank, 15)) for rank in (3, 1, 4)]
    dense = sum(each.left.double() @ each.right.double() for each in terms)
    assert isinstance(dense, Tensor)
    for rank in (2, 5, 8, 12):
        one, other = recompress(terms, Rank(most=rank)), compress(dense, Rank(most=rank))
        assert one.rank == other.rank == min(rank, 8)
        assert one.square == pytest.approx(other.square, rel=1e-9)
        assert relative(one.lost, one.square) == pytest.approx(relative(other.lost, other.square), abs=2e-7)
        assert torch.allclose(one.left @ one.right, other.left @ other.right, atol=1e-4)


def test_terms_that_cancel_leave_nothing() -> None:
    left, right = torch.randn(6, 2), torch.randn(2, 5)
    made = recompress([Factors(left, right), Factors(-left, right)], Rank(most=4))
    assert made.lost <= 1e-24 and float((made.left @ made.right).norm()) <= 1e-6
    assert compress(torch.zeros(4, 3), Rank(most=2)).rank == 0


def test_large_matrices_are_nearly_as_well_approximated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subspace iteration, of what stands out of noise and of noise alone; and the same bits again."""
    torch.manual_seed(6)
    delta = (planted(150, 220, torch.linspace(3, 1, 8, dtype=torch.float64)) + 0.02 * torch.randn(150, 220)).float()
    exact = compress(delta, Rank(most=12))
    monkeypatch.setattr(module, "EXACT", 10)
    made, again = compress(delta, Rank(most=12)), compress(delta, Rank(most=12))
    assert exact.lost <= made.lost <= 1.02 * exact.lost
    assert torch.equal(made.left, again.left) and torch.equal(made.right, again.right)
    within = compress(delta, Rank(error=0.2))
    assert relative(within.lost, within.square) <= 0.2 + 1e-6


def test_narrow_factors_tell_their_own_rounding() -> None:
    made = compress(planted(9, 14), Rank(most=6), torch.bfloat16)
    assert made.left.dtype == torch.bfloat16
    assert 1e-4 < relative(made.lost, made.square) < 1e-2


@pytest.mark.parametrize(
    ("text", "rank"), [("16", Rank(most=16)), (" auto:0.02 ", Rank(error=0.02)), ("auto:.5", Rank(error=0.5))]
)
def test_ranks_are_read(text: str, rank: Rank) -> None:
    assert Rank.parse(text) == rank
    assert Rank.parse(str(rank)) == rank


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "auto", "auto:1", "auto:0", "auto:x", "", "9" * 30])
def test_other_ranks_are_refused(text: str) -> None:
    with pytest.raises(MergingError, match="expected a rank such as 16"):
        Rank.parse(text)
