"""Methods on single elements: ties, edges of their parameters, and what their canonical spelling leaves out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comparison import assignment_of, backend, backend_model
from torch import Tensor

from merging.methods import canonical, get
from merging.methods.contract import Elementwise, Values
from merging.pool import Pool
from merging.recipe import Assignment, MergingError


def random(seed: int, *shape: int, size: float = 0.02, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)


def family(count: int, *shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor]]:
    base = random(0, *shape)
    return base.to(dtype), [(base + random(1 + each, *shape, size=0.01)).to(dtype) for each in range(count)]


def pool_of(base: Tensor, sources: dict[str, Tensor]) -> Pool:
    models = {"base": base, **sources}
    return Pool("base", tuple(sources), ("x",), lambda alias, _: models[alias])


# magmax


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_magmax_is_one_of_the_experts_everywhere(dtype: torch.dtype) -> None:
    base, sources = family(4, 50, 40, dtype=dtype)
    merged = backend("magmax", base, sources, [{}] * 4)
    stacked = torch.stack(sources)
    # What is selected by is the float32 difference.
    winner = (stacked.float() - base.float()).abs().argmax(0)
    wanted = stacked.gather(0, winner[None])[0]
    torch.testing.assert_close(merged, wanted, rtol=2 * torch.finfo(dtype).eps, atol=1e-9)
    assert len(winner.unique()) == 4


def test_magmax_gives_ties_to_the_first_alias_however_the_recipe_orders_them() -> None:
    base, up, down = torch.zeros(3), torch.tensor([1.0, 1.0, 2.0]), torch.tensor([-1.0, 1.0, -3.0])
    own = [{"coefficient": 0.5}, {"coefficient": 2.0}]
    assert backend("magmax", base, [up, down], own).tolist() == [0.5, 0.5, -6.0]
    turned = Assignment("magmax", assignment_of("magmax", own, {}).sources[::-1])
    assert [alias for alias, _ in canonical(turned).sources] == ["a", "b"]


# consensus_ta


@pytest.mark.parametrize("scale", [1.0, -0.7, 0.3])
def test_consensus_of_no_agreement_is_task_arithmetic_to_the_bit(scale: float) -> None:
    base, sources = family(3, 700)
    own = [{"coefficient": each} for each in (0.4, -0.2, 1.1)]
    merged = backend("consensus_ta", base, sources, own, {"agreement": 0, "scale": scale})
    assert torch.equal(merged, backend("task_arithmetic", base, sources, own, {"scale": scale}))


def test_consensus_masks_are_nested_in_the_agreement_and_in_the_threshold() -> None:
    base, sources = torch.zeros(4000), [random(each, 4000) for each in range(4)]

    def kept(agreement: int, threshold: float) -> Tensor:
        own = [{"threshold": threshold}] * 4
        return backend("consensus_ta", base, sources, own, {"agreement": agreement}) != 0

    for wider, narrower in zip(range(4), range(1, 5), strict=True):
        one, other = kept(wider, 0.4), kept(narrower, 0.4)
        assert bool((one | ~other).all()) and int(one.sum()) > int(other.sum())
        if wider:
            low, high = kept(wider, 0.2), kept(wider, 0.8)
            assert bool((low | ~high).all()) and int(low.sum()) > int(high.sum())
    assert not kept(5, 0.0).any() and kept(4, 0.0).all()


def test_consensus_reads_no_expert_where_none_counts() -> None:
    base, sources = family(2, 30)
    pool = pool_of(base, dict(zip("ab", sources, strict=True)))
    method = get("consensus_ta")
    assert isinstance(method, Elementwise)
    for shared in ({"agreement": 3}, {"scale": 0.0}):
        values = Values.of(canonical(assignment_of("consensus_ta", [{}, {}], shared)))
        assert method.prepare(pool, "x", values).sources == ()


@pytest.mark.parametrize("agreement", [0, 1, 2, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_consensus_leaves_out_what_does_not_count_without_changing_the_result(agreement: int, threshold: float) -> None:
    base, sources = family(3, 500)
    own: list[dict[str, Any]] = [
        {"coefficient": 0.6},
        {"coefficient": 0.0, "threshold": threshold},
        {"coefficient": 0.9},
    ]
    spelled = canonical(assignment_of("consensus_ta", own, {"agreement": agreement}))
    # With threshold 0 a source of coefficient 0 needs every element: it votes.
    assert [alias for alias, _ in spelled.sources] == (["a", "b", "c"] if threshold == 0.0 else ["a", "c"])
    votes = sum(
        (term.abs() >= limit * (total - term).abs()).int()
        for total in [0.6 * (sources[0] - base) + 0.9 * (sources[2] - base)]
        for term, limit in (
            (0.6 * (sources[0] - base), 0.4),
            (torch.zeros_like(base), threshold),
            (0.9 * (sources[2] - base), 0.4),
        )
    )
    assert isinstance(votes, Tensor)
    wanted = base + (0.6 * (sources[0] - base) + 0.9 * (sources[2] - base)) * (votes >= agreement)
    merged = backend("consensus_ta", base, sources, own, {"agreement": agreement})
    torch.testing.assert_close(merged, wanted, rtol=1e-6, atol=1e-8)


def test_consensus_of_coefficients_that_are_all_zero_is_the_base() -> None:
    base, sources = family(2, 30)
    assert torch.equal(backend("consensus_ta", base, sources, [{"coefficient": 0.0}] * 2, {"agreement": 1}), base)


# nearswap


def test_nearswap_is_exact_where_it_swaps_and_moves_by_t_elsewhere() -> None:
    base, (source,) = family(1, 900)
    t = 0.004
    merged = backend("nearswap", base, [source], [{}], {"t": t})
    near = (source.double() - base.double()).abs() <= t
    assert 100 < int(near.sum()) < 800
    assert torch.equal(merged[near], source[near])
    moved = merged.double() - base.double()
    torch.testing.assert_close(moved[~near].abs(), torch.full_like(moved[~near], t), rtol=0.0, atol=1e-8)
    assert bool((moved[~near].sign() == (source - base)[~near].sign()).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("t", [0.0, 1e-9, 1e-3, 1.0, 1e30, 1e300])
def test_nearswap_of_any_t_is_finite_and_leaves_what_is_equal_alone(t: float, dtype: torch.dtype) -> None:
    base, (source,) = family(1, 200, dtype=dtype)
    source[::3] = base[::3]
    merged = backend("nearswap", base, [source], [{}], {"t": t})
    assert torch.equal(merged[::3], base[::3]) and bool(torch.isfinite(merged).all())
    if t >= 1.0:
        assert torch.equal(merged, source)
    if t == 0.0:
        assert torch.equal(merged, base)


def test_nearswap_needs_one_model_and_its_t() -> None:
    for own, shared, message in (
        ([{}, {}], {"t": 0.1}, "exactly 1 source"),
        ([{}], {}, "needs a t"),
        ([{}], {"t": -1}, "t"),
    ):
        with pytest.raises(MergingError, match=message):
            canonical(assignment_of("nearswap", own, shared))


# ram


def sparse_family(count: int, size: int, *, share: float = 0.3) -> tuple[Tensor, list[Tensor]]:
    base, generator = random(9, size), torch.Generator().manual_seed(4)
    masks = [torch.rand(size, generator=generator) < share for _ in range(count)]
    return base, [base + random(20 + each, size, size=0.01) * mask for each, mask in enumerate(masks)]


def test_ram_is_the_sum_where_experts_moved_different_elements() -> None:
    base = random(9, 600)
    sources = []
    for each in range(3):
        delta = torch.zeros(600)
        delta[each::3] = random(30 + each, 200, size=0.01).sign() * 0.01
        sources.append(base + delta)
    merged = backend("ram", base, sources, [{}] * 3)
    plain = backend("task_arithmetic", base, sources, [{"coefficient": 1.0}] * 3)
    torch.testing.assert_close(merged, plain, rtol=0.0, atol=2e-9)
    assert torch.equal(merged, backend("ramplus_tl", base, sources, [{}] * 3))  # nothing is shared: no amplification


def test_ram_of_a_large_epsilon_is_the_base_and_epsilon_zero_counts_every_change() -> None:
    base, sources = sparse_family(3, 900)
    assert torch.equal(backend("ram", base, sources, [{}] * 3, {"epsilon": 10.0}), base)
    assert torch.equal(backend("ramplus_tl", base, sources, [{}] * 3, {"epsilon": 10.0}), base)
    moved = torch.stack([source != base for source in sources])
    deltas = torch.stack([source.double() - base.double() for source in sources])
    wanted = base.double() + deltas.sum(0) / moved.sum(0).clamp(min=1)
    torch.testing.assert_close(
        backend("ram", base, sources, [{}] * 3, {"epsilon": 0.0}), wanted.float(), rtol=2e-7, atol=0.0
    )


def test_ramplus_counts_over_the_tensor_and_not_over_its_pieces() -> None:
    base, sources = sparse_family(3, 200_003)
    whole = backend("ramplus_tl", base, sources, [{}] * 3)
    assert torch.equal(whole, backend("ramplus_tl", base, sources, [{}] * 3, chunk=1000))
    moved = torch.stack([(source - base).abs() > 1e-5 for source in sources])
    alone = moved & (moved.sum(0) == 1)
    for number, source in enumerate(sources):
        unique = int(alone[number].sum())
        shared = int(moved[number].sum()) - unique
        factor = 1 + 0.1 * min(shared / unique, 0.2)
        wanted = base.double() + factor * (source.double() - base.double())
        torch.testing.assert_close(whole[alone[number]].double(), wanted[alone[number]], rtol=1e-7, atol=1e-9)
        assert factor == 1.02  # a third is shared, and alpha caps it
    own = backend("ramplus_tl", base, sources, [{}] * 3, {"alpha": 100.0})
    assert not torch.equal(own, whole)


def test_ramplus_remembers_its_counts_by_epsilon() -> None:
    base, sources = sparse_family(2, 5000)
    pools: dict[tuple[str, ...], Pool] = {}
    for epsilon in (1e-5, 5e-3, 1e-5):
        shared = {"epsilon": epsilon, "alpha": 5.0}
        again = backend("ramplus_tl", base, sources, [{}] * 2, shared, pools=pools)
        assert torch.equal(again, backend("ramplus_tl", base, sources, [{}] * 2, shared))


# passthrough


def test_passthrough_copies_bits_and_reads_no_base() -> None:
    _, (source,) = family(1, 40, dtype=torch.bfloat16)
    models = {"a": {"x": source}}
    assert torch.equal(
        backend_model("passthrough", {"x": torch.zeros_like(source)}, [models["a"]], [{}], {})["x"], source
    )

    def read(alias: str, name: str) -> Tensor:
        assert alias != "base"
        return models[alias][name]

    values = Values.of(canonical(assignment_of("passthrough", [{}], {"scale": 0.5})))
    method = get("passthrough")
    assert isinstance(method, Elementwise)
    elements = method.prepare(Pool("base", ("a",), ("x",), read), "x", values)
    assert not elements.base and elements.numbers == (0.5,)


# all of them


@pytest.mark.parametrize("method", ["magmax", "consensus_ta", "nearswap", "ram", "ramplus_tl", "passthrough"])
@pytest.mark.parametrize("shape", [(0,), (3, 0), (), (1,)], ids=str)
def test_empty_and_single_elements(method: str, shape: tuple[int, ...]) -> None:
    count = 1 if method in {"nearswap", "passthrough"} else 2
    base, sources = torch.full(shape, 0.5), [torch.full(shape, 0.75)] * count
    shared = {"t": 0.125} if method == "nearswap" else {}
    merged = backend(method, base, sources, [{}] * count, shared)
    # One task that needs what another needs as much is kept, and a sum of two is twice as far.
    wanted = {"consensus_ta": 1.0, "nearswap": 0.625}.get(method, 0.75)
    assert merged.shape == shape and merged.tolist() == torch.full(shape, wanted).tolist()
    assert all(math.isfinite(each) for each in merged.flatten().tolist())
