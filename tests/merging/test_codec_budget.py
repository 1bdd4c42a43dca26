"""The smallest encoding within a budget."""

from __future__ import annotations

import math

import pytest
import torch
from codec_pairs import bits, composed, error_of, gaussian
from torch import Tensor

from merging.recipe import MergingError
from merging.vectors import budget as budgets
from merging.vectors.budget import ALL, choose
from merging.vectors.codec import Encoded, encode


def low_rank(rows: int, columns: int, rank: int) -> Tensor:
    draw = torch.Generator().manual_seed(5)
    return torch.randn(rows, rank, generator=draw) @ torch.randn(rank, columns, generator=draw) * 0.01


def few_changed(base: Tensor) -> Tensor:
    draw = torch.Generator().manual_seed(6)
    return torch.where(torch.rand(base.shape, generator=draw) < 0.01, base, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("budget", [0.0, 1e-4, 0.02, 0.5, 1.0])
def test_the_budget_is_kept(dtype: torch.dtype, budget: float) -> None:
    base, delta = (each.to(dtype) for each in gaussian((60, 80)))
    expert = base + delta
    found = choose("a", base, expert, budget)
    again = composed(found, base, expert)
    assert error_of(again, base, expert) <= budget and found.error <= budget
    if budget == 0.0:
        assert found.codec == "exact" and bits(again) == bits(expert)
    assert found.bytes <= encode("a", base, expert, "exact").bytes


def test_each_codec_is_chosen_where_it_is_the_smallest() -> None:
    base, delta = gaussian((96, 128))
    signs = torch.where(delta >= 0, 0.01, -0.01)
    cases = {
        ("svd", 0.01): low_rank(96, 128, 2),
        ("svd", 0.02): low_rank(40, 50, 1),
        ("topk", 1e-4): few_changed(base),
        ("onebit", 0.65): delta,
        ("onebit", 0.01): signs + 1e-5 * delta,
        ("uniform", 0.05): delta,
    }
    for (codec, budget), change in cases.items():
        found = choose("a", base * 0, change, budget)
        assert found.codec == codec, (codec, budget, found.codec)
        others = [choose("a", base * 0, change, budget, [each]) for each in ALL if each != codec]
        assert found.bytes <= min(each.bytes for each in others)


def test_only_what_is_allowed_is_chosen() -> None:
    base, delta = gaussian((40, 50))
    assert choose("a", base, base + delta, 0.7, ["bf16"]).codec in ("bf16", "exact")
    assert choose("a", base, base + delta, 0.9, []).codec == "exact"
    # DARE's error is larger than 1 at its usual density: never within a budget, and never tried unless named
    assert choose("a", base, base + delta, 1.0).codec != "seeded" and "seeded" not in ALL
    assert choose("a", base, base + delta, 1.0, ["seeded"]).codec == "exact"
    with pytest.raises(MergingError, match="expected one of the codecs"):
        choose("a", base, base + delta, 0.1, ["zip"])
    for wrong in (-0.1, 1.1, math.nan, True, "0.1"):
        with pytest.raises(MergingError, match="expected a budget between 0"):
            choose("a", base, base + delta, wrong)  # type: ignore[arg-type]
    with pytest.raises(MergingError, match="NaN or infinity"):
        choose("a", base, base * torch.inf, 0.1)


def test_what_cannot_lose_is_exact() -> None:
    base = gaussian((40, 50))[0]
    ids = torch.arange(20)
    assert choose("ids", ids, ids + 1, 0.5).codec == "exact"
    assert choose("a", base, base.clone(), 0.5) == Encoded("equal", {}, {}, 0.0)
    large = torch.tensor([[3e38, 1.0], [2.0, -3e38]])
    assert choose("a", large, -large, 0.02).codec == "exact"  # the difference is beyond float32
    scalar = torch.tensor(0.5)
    assert choose("scale", scalar, scalar + 0.1, 0.5).error <= 0.5
    one = gaussian((5,))
    assert choose("norm", one[0], one[0] + one[1], 0.1).error <= 0.1


def test_slices_tell_the_codec_of_a_large_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """As trying every way on all of it does, within a few per cent."""
    base, delta = gaussian((320, 200))
    for change in (delta, few_changed(base), low_rank(320, 200, 2)):
        expert = base + change
        whole = choose("a", base, expert, 0.05)
        with monkeypatch.context() as patch:
            patch.setattr(budgets, "_TRIED", 1 << 15)
            sliced = choose("a", base, expert, 0.05)
        assert sliced.error <= 0.05 and sliced.bytes <= 1.05 * whole.bytes


def test_changes_that_no_slice_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows of an embedding: all between the slices."""
    base, delta = gaussian((400, 300))
    expert = base.clone()
    expert[71:73] += delta[71:73]
    for budget in (0.0, 0.05):
        whole = choose("embed", base, expert, budget)
        with monkeypatch.context() as patch:
            patch.setattr(budgets, "_TRIED", 1 << 15)
            found = choose("embed", base, expert, budget)
        assert found.error <= budget and found.bytes <= whole.bytes < 3 * 4 * 300


def test_singular_values_are_not_computed_without_hope(monkeypatch: pytest.MonkeyPatch) -> None:
    """The changes of a full fine-tune have a flat spectrum: a few values tell."""
    base, delta = gaussian((300, 300))
    monkeypatch.setattr("merging.vectors.lowrank.encode_svd", lambda *_, **__: pytest.fail("computed"))
    assert choose("a", base, base + delta, 0.02).codec == "uniform"
