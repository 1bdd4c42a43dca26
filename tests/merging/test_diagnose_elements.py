"""What is counted element by element, against definitions written out in numpy, planted truths and chance."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging.diagnose import elements
from merging.diagnose.elements import count_elements
from merging.diagnose.measures import Tally
from merging.diagnose.results import Measures
from merging.pool import Pool
from merging.statistics import gram

AB = ("a", "b")
ABC = ("a", "b", "c")


def pool_of(base: Tensor, *experts: Tensor) -> Pool:
    held = {"base": base, **dict(zip("abcdefgh", experts, strict=False))}
    return Pool("base", tuple("abcdefgh"[: len(experts)]), ("w",), lambda alias, _: held[alias])


def measured(base: Tensor, *experts: Tensor, density: float = 0.2, seeds: tuple[int, ...] = ()) -> Measures:
    tally = Tally(len(experts))
    count_elements(tally, pool_of(base, *experts), "w", seeds or tuple(range(1, len(experts) + 1)), density)
    return tally.measures("abcdefgh"[: len(experts)])


def of_changes(*changes: Tensor, **options: Any) -> Measures:
    return measured(torch.zeros_like(changes[0]), *changes, **options)


def normal(count: int, size: int, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, size, generator=torch.Generator().manual_seed(seed)))


def test_all_numbers_are_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elements, "_PIECE", 1 << 12)  # two runs of several pieces each, the last one short
    monkeypatch.setattr(elements, "_RUN", 9)
    base, *experts = normal(4, 70_000)
    experts = [base + 0.1 * (number + 1) * each for number, each in enumerate(experts)]
    experts[1] = experts[1] + 0.4 * (experts[0] - base)
    found = measured(base, *experts)
    wide = [each.double().numpy() for each in (base, *experts)]
    taus = [each - wide[0] for each in wide[1:]]
    narrow = [(each - base).numpy() for each in experts]
    kept = [np.zeros(70_000, bool) for _ in narrow]
    for mask, each in zip(kept, narrow, strict=True):
        mask[np.argsort(-np.abs(each), kind="stable")[: round(0.2 * 70_000)]] = True
    trimmed = [np.where(mask, each, 0.0) for mask, each in zip(kept, taus, strict=True)]
    assert found.elements == 70_000
    assert found.base_norm == pytest.approx(np.linalg.norm(wide[0]), rel=1e-12)
    for alias, tau in zip(ABC, taus, strict=True):
        assert found.norm[alias] == pytest.approx(np.linalg.norm(tau), rel=1e-12)
        assert found.norm_ratio[alias] == pytest.approx(np.linalg.norm(tau) / np.linalg.norm(wide[0]), rel=1e-12)
        assert found.changed[alias] == np.count_nonzero(tau) / 70_000
    for (i, j), pair in zip(combinations(range(3), 2), combinations(ABC, 2), strict=True):
        one, two = taus[i], taus[j]
        cosine = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
        assert found.cosine[pair] == pytest.approx(cosine, abs=1e-12)
        assert found.z[pair] == pytest.approx(cosine * math.sqrt(70_000), abs=1e-9)
        assert found.pearson[pair] == pytest.approx(np.corrcoef(one, two)[0, 1], abs=1e-10)
        assert found.euclidean[pair] == pytest.approx(np.linalg.norm(one - two), rel=1e-10)
        both, either = kept[i] & kept[j], kept[i] | kept[j]
        assert found.overlap[pair] == both.sum() / either.sum()
        assert found.overlap_chance[pair] == pytest.approx(0.2 / 1.8, rel=1e-12)
        assert found.overlap_lift[pair] == pytest.approx(found.overlap[pair] * 9.0, rel=1e-12)
        differ = np.sign(trimmed[i]) * np.sign(trimmed[j]) < 0
        assert found.sign_conflict[pair] == differ.sum() / both.sum()
        ratio = np.abs(trimmed[i] + trimmed[j])[both] / (np.abs(trimmed[i]) + np.abs(trimmed[j]))[both]
        assert found.sign_conflict_weighted[pair] == pytest.approx(1 - ratio.mean(), rel=1e-5)
    stacked = np.stack(trimmed)
    shared = (stacked != 0).sum(0) >= 2
    conflict = (stacked > 0).any(0) & (stacked < 0).any(0)
    assert found.sign_conflict["all"] == conflict.sum() / shared.sum()
    ratio = np.abs(stacked.sum(0))[shared] / np.abs(stacked).sum(0)[shared]
    assert found.sign_conflict_weighted["all"] == pytest.approx(1 - ratio.mean(), rel=1e-5)


def test_inner_products_are_those_of_the_merge_engine() -> None:
    base, *experts = normal(3, 40_000)
    pool = pool_of(base, *experts)
    found, truth = measured(base, *experts), gram(pool, "w", "task_vectors")
    assert found.norm["a"] == pytest.approx(math.sqrt(truth[0, 0]), rel=1e-13)
    assert found.cosine[AB] == pytest.approx(truth[0, 1] / math.sqrt(truth[0, 0] * truth[1, 1]), abs=1e-13)


def test_orthogonal_and_collinear_task_vectors() -> None:
    one, two = torch.zeros(100), torch.zeros(100)
    one[:50], two[50:] = 1.0, -2.0
    apart = of_changes(one, two, density=0.5)
    assert apart.cosine[AB] == 0.0 and apart.overlap[AB] == 0.0 and AB not in apart.sign_conflict
    assert apart.orthogonality == 0.0 and apart.imbalance == 2.0
    assert apart.euclidean[AB] == pytest.approx(math.sqrt(250.0))
    (along,) = normal(1, 1000)
    same = of_changes(along, 3.0 * along)
    assert same.cosine[AB] == pytest.approx(1.0, abs=1e-12) and same.pearson[AB] == pytest.approx(1.0, abs=1e-12)
    assert same.overlap[AB] == 1.0 and same.sign_conflict[AB] == 0.0 and same.sign_conflict_weighted[AB] == 0.0
    against = of_changes(along, -along)
    assert against.cosine[AB] == pytest.approx(-1.0, abs=1e-12) and against.sign_conflict[AB] == 1.0
    assert against.sign_conflict_weighted[AB] == 1.0 and against.sign_conflict["all"] == 1.0


def test_planted_overlap_and_conflict() -> None:
    size, kept, common, opposed = 1000, 200, 60, 25
    one, two = torch.zeros(size), torch.zeros(size)
    one[:kept] = 1.0 + torch.arange(kept) / kept
    two[kept - common : 2 * kept - common] = 1.0 + torch.arange(kept) / kept
    two[kept - common : kept - common + opposed] *= -1.0
    one[kept:] = 0.01 * torch.randn(size - kept, generator=torch.Generator().manual_seed(0))
    two[:50] = 0.01
    found = of_changes(one, two)
    assert found.overlap[AB] == common / (2 * kept - common)
    assert found.sign_conflict[AB] == opposed / common == found.sign_conflict["all"]


def test_chance_by_simulation() -> None:
    """Independent positions of a hypergeometric draw, and signs of a coin."""
    overlaps, conflicts = [], []
    for seed in range(40):
        found = of_changes(*normal(2, 2000, seed), density=0.15)
        overlaps.append(found.overlap[AB])
        conflicts.append(found.sign_conflict[AB])
        assert found.overlap_chance[AB] == pytest.approx(0.15 / 1.85, rel=1e-12)
    drawn = np.random.default_rng(0).hypergeometric(300, 1700, 300, 4000)
    expected = drawn / (600 - drawn)
    spread = expected.std() / math.sqrt(40)
    assert abs(np.mean(overlaps) - expected.mean()) < 4 * spread
    assert abs(found.overlap_chance[AB] - expected.mean()) < 0.01 * expected.mean()
    assert abs(np.mean(conflicts) - 0.5) < 4 * 0.5 / math.sqrt(40 * 45)


def test_equal_values_overlap_by_chance_and_equal_experts_wholly() -> None:
    """Steps of 16-bit weights are equal in many places: which of them are kept must not come from their order."""
    one, two = torch.ones(20_000), -torch.ones(20_000)
    apart = of_changes(one, two)
    assert apart.overlap[AB] == pytest.approx(1 / 9, abs=0.01) and apart.sign_conflict[AB] == 1.0
    assert of_changes(one, one, seeds=(5, 5)).overlap[AB] == 1.0


def test_exact_zeros_are_never_kept() -> None:
    one, two = torch.zeros(1000), torch.zeros(1000)
    one[:10], two[5:40] = 1.0, 1.0
    found = of_changes(one, two)
    assert found.overlap[AB] == 5 / 40
    assert found.overlap_chance[AB] == pytest.approx(0.35 / (45 - 0.35))
    assert found.changed == {"a": 0.01, "b": 0.035}


def test_what_is_not_defined_is_left_out() -> None:
    found = of_changes(torch.zeros(10), torch.ones(10))
    assert found.norm == {"a": 0.0, "b": pytest.approx(math.sqrt(10))}
    assert not found.cosine and not found.pearson and not found.z and not found.norm_ratio and not found.sign_conflict
    assert found.overlap == {AB: 0.0} and found.imbalance is None and found.orthogonality is None
    constant = of_changes(torch.ones(10), torch.arange(10.0))
    assert AB in constant.cosine and not constant.pearson  # a shift of all elements correlates with nothing
    alone = of_changes(torch.ones(10))
    assert alone.norm["a"] == pytest.approx(math.sqrt(10)) and not alone.cosine and not alone.overlap
    assert measured(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(1.0)).cosine == {AB: -1.0}


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(3, 300),
    density=st.floats(0.05, 1.0),
    scale=st.sampled_from([0.125, 2.0, 1024.0]),
)
def test_neither_order_nor_scale_nor_names_matter(seed: int, size: int, density: float, scale: float) -> None:
    one, two, three = normal(3, size, seed)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    found = of_changes(one, two, three, density=density)
    shuffled = of_changes(one[order], two[order], three[order], density=density)
    swapped = of_changes(three, one, two, density=density)
    scaled = of_changes(scale * one, scale * two, scale * three, density=density)
    for pair, other in ((("a", "b"), ("b", "c")), (("a", "c"), ("a", "b"))):
        for name in ("cosine", "pearson", "overlap", "sign_conflict", "sign_conflict_weighted"):
            value = getattr(found, name).get(pair)
            assert getattr(shuffled, name).get(pair) == pytest.approx(value, abs=1e-9), name
            assert getattr(swapped, name).get(other) == pytest.approx(value, abs=1e-9), name
            if name != "overlap":
                assert getattr(scaled, name).get(pair) == pytest.approx(value, abs=1e-4), name
        assert 0.0 <= found.overlap[pair] <= 1.0 and abs(found.cosine[pair]) <= 1.0
    assert found.sign_conflict.get("all") == pytest.approx(shuffled.sign_conflict.get("all"), abs=1e-9)


def test_threads_and_pieces_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    base, *experts = normal(4, 60_000)
    pool, one, more = pool_of(base, *experts), Tally(3), Tally(3)
    monkeypatch.setattr(elements, "_PIECE", 1 << 12)
    monkeypatch.setattr(elements, "_RUN", 2)
    count_elements(one, pool, "w", (1, 2, 3), 0.3)
    with ThreadPoolExecutor(3) as threads:
        count_elements(more, pool_of(base, *experts), "w", (1, 2, 3), 0.3, threads)
    assert one.measures(ABC) == more.measures(ABC)


def test_sixteen_bits() -> None:
    """Differences of bfloat16 weights are taken exactly, and |τ| as the merge methods take them."""
    base, delta, other = normal(3, 5000)
    base, one, two = base.bfloat16(), (base + 0.01 * delta).bfloat16(), (base + 0.01 * other).bfloat16()
    found = measured(base, one, two)
    taus = [(each.double() - base.double()).numpy() for each in (one, two)]
    assert found.norm["a"] == pytest.approx(np.linalg.norm(taus[0]), rel=1e-12)
    assert found.changed["a"] == np.count_nonzero(taus[0]) / 5000 < 1.0
    assert found.cosine[AB] == pytest.approx(
        taus[0] @ taus[1] / np.linalg.norm(taus[0]) / np.linalg.norm(taus[1]), abs=1e-12
    )
