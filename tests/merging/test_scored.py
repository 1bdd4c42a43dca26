"""SCE, PCB and Arcee fusion: what is selected, exactly; and that neither cuts, threads nor memory change a bit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assignment_of, backend
from torch import Tensor

from merging.kernel import Task, merge_tensor
from merging.methods import canonical, get
from merging.methods.contract import Inputs, Values
from merging.methods.scored import divergence, spread
from merging.pool import Pool
from merging.recipe import MergingError


def random(seed: int, *shape: int, size: float = 0.02, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)


def family(
    count: int, *shape: int, size: float = 0.01, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, list[Tensor]]:
    base = random(0, *shape)
    return base.to(dtype), [(base + random(1 + each, *shape, size=size)).to(dtype) for each in range(count)]


def key(index: int, name: str) -> int:
    """The element's key for ties, from its definition."""
    x = index ^ int.from_bytes(hashlib.sha256(f"0\n\n{name}\nties".encode()).digest()[:4], "little")
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def number_of_sources(method: str) -> int:
    return 1 if method == "arcee_fusion" else 3


CASES: list[tuple[str, dict[str, Any]]] = [
    ("sce", {"density": 0.3}),
    ("sce", {"density": 0.3, "convention": "mergekit"}),
    ("sce", {}),
    ("pcb", {}),
    ("pcb", {"density": 1.0, "clamp": 0.1}),
    ("arcee_fusion", {}),
    ("arcee_fusion", {"spread": 0.1}),
]


@pytest.mark.parametrize(("method", "shared"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_neither_cuts_nor_threads_change_a_bit(method: str, shared: dict[str, Any], dtype: torch.dtype) -> None:
    count = number_of_sources(method)
    for shape in ((150, 501), (70_001,), (37, 5, 40)):
        base, sources = family(count, *shape, dtype=dtype)
        one = backend(method, base, sources, [{}] * count, shared)
        assert not torch.equal(one, base)
        assert torch.equal(one, backend(method, base, sources, [{}] * count, shared, chunk=1777))
        with threads(2):
            assert torch.equal(one, backend(method, base, sources, [{}] * count, shared))


@pytest.mark.parametrize(
    ("method", "name", "levels"),
    [
        ("sce", "density", (0.2, 0.7, 1.0, 0.2)),
        ("pcb", "density", (0.2, 0.6, 0.2)),
        ("pcb", "clamp", (0.0, 0.2, 0.0)),
        ("arcee_fusion", "spread", (1.5, 0.1, 1.5)),
    ],
)
def test_what_is_remembered_belongs_to_its_parameters(method: str, name: str, levels: tuple[float, ...]) -> None:
    count = number_of_sources(method)
    base, sources = family(count, 40, 30)
    pools: dict[tuple[str, ...], Pool] = {}
    results = []
    for level in levels:
        again = backend(method, base, sources, [{}] * count, {name: level}, pools=pools)
        assert torch.equal(again, backend(method, base, sources, [{}] * count, {name: level}))
        results.append(again)
    assert torch.equal(results[0], results[-1]) and not torch.equal(results[0], results[1])


def test_a_pool_serves_both_conventions() -> None:
    base, sources = family(3, 40, 30)
    pools: dict[tuple[str, ...], Pool] = {}
    for convention in ("paper", "mergekit", "paper"):
        shared = {"density": 0.4, "convention": convention}
        again = backend("sce", base, sources, [{}] * 3, shared, pools=pools)
        assert torch.equal(again, backend("sce", base, sources, [{}] * 3, shared))


@pytest.mark.parametrize(("method", "shared"), CASES, ids=str)
@pytest.mark.parametrize("shape", [(0,), (3, 0), (), (1,), (1, 1), (4, 1)], ids=str)
def test_empty_and_single_elements(method: str, shared: dict[str, Any], shape: tuple[int, ...]) -> None:
    count = number_of_sources(method)
    base, sources = family(count, *shape)
    merged = backend(method, base, sources, [{}] * count, shared)
    assert merged.shape == shape and bool(torch.isfinite(merged).all())


# sce


def selected(base: Tensor, sources: list[Tensor], **shared: Any) -> list[int]:
    """Indices of the elements that moved. Every delta of the caller's moves them in one direction."""
    merged = backend("sce", base, sources, [{}] * len(sources), shared, name="w")
    return (merged != base).nonzero().flatten().tolist()


@pytest.mark.parametrize("convention", ["paper", "mergekit"])
def test_sce_selects_where_the_experts_differ_most(convention: str) -> None:
    generator = torch.Generator().manual_seed(3)
    deltas = torch.rand((3, 400), generator=generator) + 0.5
    base = torch.zeros(400)
    order = np.argsort(-np.var(deltas.double().numpy(), axis=0))
    for density in (0.1, 0.25, 0.5, 0.99):
        found = selected(base, list(deltas), density=density, convention=convention)
        k = round(density * 400) if convention == "paper" else int(density * 400)
        assert found == sorted(order[:k].tolist())


def test_sce_breaks_ties_by_key_or_by_index() -> None:
    """Equal variances of different numbers; and fewer elements that vary than are wanted."""
    base, ones = torch.zeros(200), torch.ones(200)
    pairs = [torch.where(torch.arange(200) % 2 == 0, 1.0, 3.0), torch.where(torch.arange(200) % 2 == 0, 2.0, 4.0)]
    by_key = sorted(range(200), key=lambda index: key(index, "w"))
    assert selected(base, pairs, density=0.3) == sorted(by_key[:60])
    assert selected(base, pairs, density=0.3, convention="mergekit") == list(range(60))
    for each in (ones, 3 * ones):  # what does not vary comes last, in the order of its keys
        varying = each.clone()
        varying[:20] = 7.0
        rest = [index for index in by_key if index >= 20]
        assert selected(base, [each, varying], density=0.25) == sorted([*range(20), *rest[:30]])
        assert selected(base, [each, varying], density=0.25, convention="mergekit") == list(range(5))
    assert selected(base, [ones], density=0.25) == sorted(by_key[:50])
    assert selected(base, [ones], density=0.25, convention="mergekit") == []
    assert selected(base, [ones], density=1.0, convention="mergekit") == list(range(200))


@pytest.mark.parametrize("count", [2, 3, 5, 7, 8])
def test_the_spread_of_equal_differences_is_nothing(count: int) -> None:
    """To the bit: a count of what varies depends on it. Otherwise it is the variance, times the count cubed."""
    base, delta = random(1, 5000), random(2, 5000, size=0.013)
    pool = Pool("base", tuple("abcdefgh"[:count]), ("x",), lambda alias, _: base if alias == "base" else base + delta)
    values = Values.of(canonical(assignment_of("sce", [{}] * count, {"density": 0.5, "convention": "mergekit"})))
    merged = torch.empty(5000)
    merge_tensor("x", Task(get("sce"), values, pool), merged)
    assert torch.equal(merged, base)

    sources = tuple(random(20 + each, 5000) for each in range(count))
    empty = torch.empty(0)
    found = spread(Inputs(base, sources, empty, empty, empty, ()))
    variance = torch.stack([source - base for source in sources]).double().var(0, correction=0)
    torch.testing.assert_close(found.double(), variance * count**3, rtol=1e-6, atol=0.0)


def test_sce_weighs_experts_by_what_is_left_of_them() -> None:
    base = torch.zeros(6)
    a, b = torch.tensor([3.0, 0.1, 0.1, 0.1, 0.1, 0.1]), torch.tensor([1.0, 0.1, 0.1, 0.1, 0.1, 0.2])
    merged = backend("sce", base, [a, b], [{}] * 2, {"density": 1 / 3, "scale": 2.0})
    shares = (9.0 + 0.01) / (9.0 + 0.01 + 1.0 + 0.04), (1.0 + 0.04) / (9.0 + 0.01 + 1.0 + 0.04)
    wanted = torch.tensor(
        [2 * (3 * shares[0] + shares[1]), 0.0, 0.0, 0.0, 0.0, 2 * (0.1 * shares[0] + 0.2 * shares[1])]
    )
    torch.testing.assert_close(merged, wanted, rtol=1e-6, atol=0.0)


def test_sce_reads_no_expert_where_nothing_is_selected() -> None:
    base, sources = family(2, 30)
    assert torch.equal(backend("sce", base, sources, [{}] * 2, {"density": 0.0}), base)
    assert torch.equal(backend("sce", base, sources, [{}] * 2, {"density": 0.01}), base)  # 0.3 elements


# pcb


def pcb(deltas: list[Tensor], coefficients: list[float], **shared: Any) -> Tensor:
    own = [{"coefficient": each} for each in coefficients]
    return backend("pcb", torch.zeros_like(deltas[0]), deltas, own, shared)


def test_pcb_of_one_expert_is_its_clamped_task_vector_where_it_competes() -> None:
    """With one source Σ s τ / Σ s is τ wherever s > 0: the k − 1 elements above the level."""
    delta = torch.tensor(np.random.default_rng(0).permutation(np.arange(1, 101)) * 0.01, dtype=torch.float32)
    merged = pcb([delta], [1.0], density=0.2, clamp=0.0)
    kept = merged != 0
    assert sorted((100 * delta[kept]).round().int().tolist()) == list(range(82, 101))
    torch.testing.assert_close(merged[kept], delta[kept], rtol=1e-6, atol=0.0)
    clamped = pcb([delta], [1.0], density=0.2, clamp=0.05)  # order statistics 5 and 94 of 0 … 99
    torch.testing.assert_close(clamped.max(), torch.tensor(0.95), rtol=1e-6, atol=0.0)


def test_pcb_silences_who_disagrees_with_the_sum() -> None:
    strong, weak = torch.full((50,), 0.5), torch.full((50,), 0.2)
    strong[:25], weak[25:] = 1.0, -0.25
    merged = pcb([strong, weak], [1.0, 1.0], density=1.0, clamp=0.0)
    # Both are strongest, and share alike, where they agree; where they do not, both have their lowest scores.
    torch.testing.assert_close(merged, torch.tensor([0.6] * 25 + [0.0] * 25), rtol=1e-6, atol=0.0)
    weak[25] = 0.25  # agrees, at its largest: it has this element to itself
    merged = pcb([strong, weak], [1.0, 1.0], density=1.0, clamp=0.0)
    torch.testing.assert_close(merged[26:], torch.zeros(24), rtol=0.0, atol=0.0)
    assert 0.25 < float(merged[25]) < 0.3


def test_pcb_of_nothing_to_compete_about_is_the_base() -> None:
    base, sources = family(3, 200)
    assert torch.equal(backend("pcb", base, sources, [{}] * 3, {"density": 0.0}), base)
    same = [base + 0.25] * 3
    assert torch.equal(backend("pcb", base, [torch.full_like(base, 1.0)] * 2, [{}] * 2, {"scale": 0.0}), base)
    flat = torch.zeros(64)
    assert torch.equal(backend("pcb", flat, [flat + 0.25] * 3, [{}] * 3), flat)  # all scores are equal: no shares
    assert bool(torch.isfinite(backend("pcb", base, same, [{}] * 3)).all())


def test_a_source_of_coefficient_zero_still_competes() -> None:
    base, sources = family(3, 500, size=1.0)
    own = [{"coefficient": 1.0}, {"coefficient": 1.0}, {"coefficient": 0.0}]
    with_it = backend("pcb", base, sources, own)
    assert not torch.equal(with_it, backend("pcb", base, sources[:2], own[:2]))


# arcee_fusion


def fused(base: Tensor, source: Tensor, **shared: Any) -> Tensor:
    return backend("arcee_fusion", base, [source], [{}], shared)


def test_arcee_fusion_takes_each_weight_from_one_of_the_two() -> None:
    base, (source,) = family(1, 60, 50, size=0.5)
    merged = fused(base, source)
    from_source = merged == source
    assert bool((from_source | (merged == base)).all())
    assert 0.01 < float(from_source.float().mean()) < 0.4
    # A wider spread takes less, and only of what a narrower one takes.
    wider = fused(base, source, spread=4.0) == source
    assert bool((from_source | ~wider).all()) and int(wider.sum()) < int(from_source.sum())
    assert torch.equal(fused(base, source, spread=1e6), base)
    assert torch.equal(fused(base, source, spread=-1e6), source)


def test_arcee_fusion_of_a_stack_takes_rows_along_the_last_axis() -> None:
    base, (source,) = family(1, 6, 8, 10, size=0.5)
    stacked, flat = fused(base, source), fused(base.view(48, 10), source.view(48, 10))
    assert torch.equal(stacked, flat.view(6, 8, 10))
    assert not torch.equal(stacked.view(6, 80), fused(base.view(6, 80), source.view(6, 80)))


def test_arcee_fusion_thresholds_at_the_exact_quartiles() -> None:
    """spread 0: what reaches the median, of odd and even counts, by the order statistic of index int(n − 1)/2."""
    for columns in (1, 2, 3, 10):
        base = torch.zeros(5, columns)
        source = torch.arange(1.0, 5 * columns + 1).view(5, columns).flip(0) * 0.1
        if columns == 1:  # a softmax of one element is 1: no divergence, no importance, no threshold
            assert torch.equal(fused(base, source), source)
            continue
        rows = divergence(source, base)
        importance = (source.abs() * rows[:, None]).flatten()
        median = importance.sort().values[int(0.5 * (importance.numel() - 1))]
        wanted = torch.where(importance >= median, source.flatten(), torch.zeros(())).view(5, columns)
        assert torch.equal(fused(base, source, spread=0.0), wanted)


def test_the_divergence_is_that_of_the_softmaxes() -> None:
    base, source = random(1, 30, 20, size=1.0), random(2, 30, 20, size=1.0)
    p, q = (torch.softmax(each.double(), -1) + 1e-8 for each in (source, base))
    torch.testing.assert_close(divergence(source, base).double(), (p * (p / q).log()).sum(-1), rtol=1e-5, atol=1e-6)
    assert not divergence(base, base).any()
    assert torch.equal(divergence(source, base)[3:7], divergence(source[3:7], base[3:7]))


@pytest.mark.parametrize(
    ("method", "own", "shared", "message"),
    [
        ("sce", {"coefficient": 1.0}, {}, "no parameter 'coefficient'"),
        ("sce", {}, {"density": 1.1}, "density"),
        ("pcb", {}, {"clamp": 0.6}, "clamp"),
        ("pcb", {}, {"convention": "mergekit"}, "no parameter 'convention'"),
        ("arcee_fusion", {}, {"spread": math.nan}, "spread"),
    ],
)
def test_what_they_do_not_take_is_refused(
    method: str, own: dict[str, Any], shared: dict[str, Any], message: str
) -> None:
    with pytest.raises(MergingError, match=message):
        canonical(assignment_of(method, [own] * number_of_sources(method), shared))


def test_arcee_fusion_takes_one_expert() -> None:
    with pytest.raises(MergingError, match="exactly 1 source"):
        canonical(assignment_of("arcee_fusion", [{}, {}], {}))
