"""Matrix methods on adapters: in the joint subspace as on the weights, and TIES in common directions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from adapter_pools import Low, dense, random_base, random_factors, thin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging.composed import Factors
from merging.kernel import Task, merge_tensor
from merging.masks import seed32
from merging.methods import canonical, get
from merging.methods.contract import Values
from merging.methods.joint import coordinates, directions, dropped, elected_mean, trimmed
from merging.pool import Pool
from merging.recipe import Assignment

QUICK = settings(deadline=None, max_examples=8, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
NAME = "model.layers.0.mlp.up_proj.weight"
SPECTRAL = ("tsv_m", "iso_c", "iso_cts", "wudi")
TIES = ("knots_ties", "core_ties", "knots_dare_ties", "core_dare_ties")
PLAIN = {"coefficient": 1.0, "density": 0.4}


def run(pool: Pool, method: str, own: Mapping[str, Any] | None = None, name: str = NAME, **shared: Any) -> Tensor:
    """θ − θ0 of one tensor, through the kernel of live models, in float64."""
    spelled = canonical(Assignment.of(method, {alias: own or {} for alias in pool.aliases}, **shared))
    out = torch.empty(pool.shape(name), dtype=torch.float64)
    merge_tensor(name, Task(get(method), Values.of(spelled), pool), out)
    return out - pool.base(name).double()


def adapters(ranks: tuple[int, ...], shape: tuple[int, ...] = (48, 36), name: str = NAME, seed: int = 3) -> Low:
    return [{name: random_factors(shape, rank, seed + number)} for number, rank in enumerate(ranks)]


def near(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    size = float(torch.linalg.vector_norm(wanted))
    assert float(torch.linalg.vector_norm(found - wanted)) <= tolerance * size, (found - wanted).norm() / size


def options(method: str) -> dict[str, Any]:
    return {} if method in SPECTRAL else PLAIN


@pytest.mark.parametrize("method", [*SPECTRAL, *TIES])
@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 7), (5, 0, 2), (6,), (30, 30, 30)])
def test_adapters_merge_as_the_weights_that_they_are_folded_into(method: str, ranks: tuple[int, ...]) -> None:
    """By the norm of the result, to 1e-5; what float32 weights round is some 1e-6 of it."""
    base, low = random_base({NAME: (48, 36)}), adapters(ranks)
    one, other = (run(pool, method, options(method), scale=0.7) for pool in (thin(base, low), dense(base, low)))
    near(one, other)
    near(one, run(dense(base, low, exact=True), method, options(method), scale=0.7), 2e-6)


@pytest.mark.parametrize("method", SPECTRAL)
@QUICK
@given(
    st.tuples(st.integers(1, 24), st.integers(1, 24)), st.lists(st.integers(0, 9), min_size=1, max_size=4),
    st.integers(0, 2**31),
)  # fmt: skip
def test_of_any_shape_and_rank(method: str, shape: tuple[int, int], ranks: list[int], seed: int) -> None:
    base, low = random_base({NAME: shape}), adapters(tuple(ranks), shape, seed=seed)
    found, wanted = (run(pool, method) for pool in (thin(base, low), dense(base, low, exact=True)))
    size = max(float(torch.linalg.vector_norm(wanted)), 1e-12)
    # Random directions may be nearly parallel, and then float32 factors say little about what lies between them.
    assert float(torch.linalg.vector_norm(found - wanted)) <= 1e-4 * size


@pytest.mark.parametrize("method", [*SPECTRAL, *TIES])
@pytest.mark.parametrize(
    ("name", "shape", "config"),
    [
        ("h.0.attn.c_attn.weight", (24, 72), {"model_type": "gpt2", "n_embd": 24, "n_head": 3}),
        ("vision.blocks.0.conv.weight", (16, 6, 3), {}),
    ],
)
def test_fused_and_turned_matrices(method: str, name: str, shape: tuple[int, ...], config: dict[str, Any]) -> None:
    base, low = random_base({name: shape}), adapters((3, 2), shape, name)
    one, other = thin(base, low, **config), dense(base, low, **config)
    near(*(run(pool, method, options(method), name) for pool in (one, other)))


@pytest.mark.parametrize("method", [*SPECTRAL, *TIES])
def test_wide_bases_of_narrow_dtypes(method: str) -> None:
    """Over bfloat16 weights a merged adapter is float32, and so is its task vector."""
    base, low = random_base({NAME: (48, 36)}, torch.bfloat16), adapters((4, 3))
    near(*(run(pool, method, options(method)) for pool in (thin(base, low), dense(base, low))))


@pytest.mark.parametrize("method", [*SPECTRAL, *TIES])
def test_one_source_that_is_no_adapter_is_enough_to_need_the_weights(method: str) -> None:
    base, low = random_base({NAME: (48, 36)}), adapters((4, 3))
    mixed = thin(base, low)
    known = mixed.factors
    mixed.factors = lambda name: (known(name)[0], None)  # type: ignore[method-assign]
    near(*(run(pool, method, options(method)) for pool in (mixed, dense(base, low))), 1e-12)


@pytest.mark.parametrize("method", [*SPECTRAL, *TIES])
def test_adapters_that_leave_a_tensor_alone(method: str) -> None:
    base, low = random_base({NAME: (9, 7)}), adapters((0, 0), (9, 7))
    assert not run(thin(base, low), method, options(method)).any()
    never = [{NAME: Factors.of(torch.zeros(9, 2), each[NAME].right[:0].new_ones(2, 7))} for each in low]  # B is zero
    assert not run(thin(base, never), method, options(method)).any()


@pytest.mark.parametrize("method", ["iso_c", "iso_cts"])
def test_rank_that_is_not_needed_is_not_blown_up(method: str) -> None:
    """An adapter written with more rank than it has: its idle directions hold what float32 made of zero."""
    base, low = random_base({NAME: (60, 50)}), adapters((3, 2), (60, 50))
    noise = 1e-9 * torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    padded = [
        {NAME: Factors.of(torch.cat([each[NAME].left, noise], 1), torch.cat([each[NAME].right, torch.eye(4, 50)]))}
        for each in low
    ]
    near(run(thin(base, padded), method), run(thin(base, low), method), 1e-6)


@pytest.mark.parametrize("method", [*SPECTRAL, *TIES])
def test_the_split_between_factors_does_not_matter(method: str) -> None:
    """B·G and G⁻¹·A are the same adapter."""
    base, low = random_base({NAME: (48, 36)}), adapters((4, 4))
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)))[0] * 4.0
    other = [{NAME: Factors.of(each[NAME].left @ turn, turn.mT @ each[NAME].right / 16.0)} for each in low]
    near(*(run(thin(base, each), method, options(method)) for each in (low, other)))


@pytest.mark.parametrize("method", SPECTRAL)
def test_products_stay_in_factors(method: str) -> None:
    """What is kept of a matrix is thin, is made once for all scales, and is forgotten with the tensor."""
    base, low = random_base({NAME: (48, 36)}), adapters((2, 3))
    pool = thin(base, low)
    first = run(pool, method, scale=1.0)
    kept = [each for key, each in pool._memory.items() if "product" in key]
    held = sum(factors.left.numel() + factors.right.numel() for each in kept for _, factors in each.parts)
    assert len(kept) == 1 and held <= 5 * (48 + 36)
    near(run(pool, method, scale=0.5), 0.5 * first, 1e-6)
    assert [each for key, each in pool._memory.items() if "product" in key] == kept
    pool.forget(NAME)
    assert not [key for key in pool._memory if "product" in key]


# TIES in common directions.


def definition(deltas: list[np.ndarray], densities: list[float], coefficients: list[float], core: bool) -> np.ndarray:
    """KnOTS-TIES, and TIES in Core Space, once more in numpy by the most direct route."""

    def rank(s: np.ndarray) -> int:
        return int((s > 1e-10 * s[0]).sum())

    u, s, _ = np.linalg.svd(np.hstack(deltas), full_matrices=False)
    u = u[:, : rank(s)]
    v = np.eye(deltas[0].shape[1])
    if core:
        _, s, v = np.linalg.svd(np.vstack(deltas), full_matrices=False)
        v = v[: rank(s)]
    terms = []
    for delta, density, coefficient in zip(deltas, densities, coefficients, strict=True):
        own = u.T @ delta @ v.T
        cut = np.sort(np.abs(own).ravel())[own.size - round(density * own.size)]
        terms.append(coefficient * own * (np.abs(own) >= cut))
    sign = np.sign(sum(terms))
    agree = [(np.sign(each) == sign) & (each != 0) for each in terms]
    total = sum(each * mask for each, mask in zip(terms, agree, strict=True))
    return np.asarray(u @ (total / np.maximum(sum(mask.astype(float) for mask in agree), 1.0)) @ v)


@pytest.mark.parametrize("method", ["knots_ties", "core_ties"])
@pytest.mark.parametrize("kind", ["adapters", "full"])
def test_the_definition(method: str, kind: str) -> None:
    base = random_base({NAME: (30, 22)}, torch.float64)
    low = adapters((4, 3, 2) if kind == "adapters" else (30, 30, 30), (30, 22))
    deltas = [(each[NAME].left.double() @ each[NAME].right.double()).numpy() for each in low]
    own = {"a": (0.9, 0.3), "b": (-0.5, 0.6), "c": (1.2, 0.45)}
    spelled = canonical(
        Assignment.of(method, {alias: {"coefficient": c, "density": d} for alias, (c, d) in own.items()}, scale=0.8)
    )
    wanted = 0.8 * definition(deltas, [0.3, 0.6, 0.45], [0.9, -0.5, 1.2], core=method == "core_ties")
    for pool in (thin(base, low), dense(base, low, exact=True)):
        out = torch.empty(30, 22, dtype=torch.float64)
        merge_tensor(NAME, Task(get(method), Values.of(spelled), pool), out)
        near(out - base[NAME], torch.from_numpy(wanted), 1e-6)


def planted(dtype: torch.dtype = torch.float64) -> tuple[Low, list[Tensor]]:
    """Two tasks over four orthogonal directions: one is shared and agreed on, one disputed, and one is each task's."""
    u = torch.linalg.qr(torch.randn(40, 4, generator=torch.Generator().manual_seed(1), dtype=dtype))[0]
    v = torch.linalg.qr(torch.randn(32, 4, generator=torch.Generator().manual_seed(2), dtype=dtype))[0].mT
    sizes = torch.tensor([[5.0, 2.0, 1.0, 0.0], [4.0, -1.0, 0.0, 0.5]], dtype=dtype)
    return [{NAME: Factors.of(u * each, v)} for each in sizes], [torch.outer(u[:, i], v[i]) for i in range(4)]


@pytest.mark.parametrize("method", ["knots_ties", "core_ties"])
def test_planted_directions(method: str) -> None:
    """Agreed on: the mean. Disputed: the larger wins. One task's own: as it is. Rotated apart, elements could not
    tell: plain TIES does not find this."""
    low, planes = planted()
    wanted = 4.5 * planes[0] + 2.0 * planes[1] + 1.0 * planes[2] + 0.5 * planes[3]
    base = random_base({NAME: (40, 32)}, torch.float64)
    whole = {"coefficient": 1.0, "density": 1.0}
    near(run(thin(base, low), method, whole), wanted, 1e-6)
    assert float((run(thin(base, low), "ties", whole) - wanted).norm() / wanted.norm()) > 0.05


def test_trimming_in_the_core_keeps_the_planted_directions() -> None:
    """Of sixteen elements of each core, those on the diagonal count; density says how many of them stay."""
    low, planes = planted()
    base = random_base({NAME: (40, 32)}, torch.float64)
    found = run(thin(base, low), "core_ties", {"coefficient": 1.0, "density": 2 / 16})
    near(found, 4.5 * planes[0] + 2.0 * planes[1], 1e-6)


@pytest.mark.parametrize("method", TIES)
def test_one_source_and_nothing_trimmed_is_the_source(method: str) -> None:
    base, low = random_base({NAME: (48, 36)}), adapters((5,))
    near(run(thin(base, low), method, {"coefficient": 0.6, "density": 1.0}), 0.6 * run(dense(base, low), "tsv_m"), 1e-6)


@pytest.mark.parametrize("method", TIES)
def test_equal_sources_are_one(method: str) -> None:
    base, low = random_base({NAME: (48, 36)}), adapters((5,)) * 3
    near(run(thin(base, low), method, {"coefficient": 1.0, "density": 1.0}), run(dense(base, low[:1]), "tsv_m"), 1e-6)


def test_what_is_dropped_at_random_is_made_up_for() -> None:
    """In the mean over seeds DARE gives the coordinates back; its variance is that of the paper."""
    values = torch.randn(40, 30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    draws = torch.stack([dropped(values, 0.25, seed32(seed, "", "w", "drop")) for seed in range(400)])
    assert float((draws.mean(0) - values).norm() / values.norm()) == pytest.approx(math.sqrt(3 / 400), rel=0.1)
    assert float((draws != 0).double().mean()) == pytest.approx(0.25, abs=0.003)
    assert torch.equal(dropped(values, 1.0, 5), values) and not dropped(values, 0.0, 5).any()


@QUICK
@given(st.integers(1, 200), st.floats(0, 1), st.booleans())
def test_trimming_keeps_exactly_its_share(count: int, density: float, tied: bool) -> None:
    values = torch.randn(count, 1, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    values = values.sign() if tied else values
    kept = trimmed(values, density)
    assert int((kept != 0).sum()) == round(density * count)
    if 0 < int((kept != 0).sum()) < count:
        assert float(kept[kept != 0].abs().min()) >= float(values[kept == 0].abs().max())


def test_election_and_mean() -> None:
    first, second, third = torch.tensor([[3.0, 2.0, 0.0, 0.0]]), torch.tensor([[1.0, -5.0, 0.0, 4.0]]), torch.ones(1, 4)
    found = elected_mean([first.double(), second.double(), third.double()], (1.0, 1.0, -1.0), normalize=True)
    assert found.tolist() == [[2.0, -3.0, -1.0, 4.0]]
    summed = elected_mean([first.double(), second.double(), third.double()], (1.0, 1.0, -1.0), normalize=False)
    assert summed.tolist() == [[4.0, -6.0, -1.0, 4.0]]


def test_directions_are_orthonormal_and_lose_nothing() -> None:
    low = adapters((4, 3))
    pairs = [(each[NAME].left, each[NAME].right) for each in low]
    bases = directions(pairs, two_sided=True)
    assert bases.left.shape == (48, 7) and bases.right is not None and bases.right.shape == (7, 36)
    torch.testing.assert_close(bases.left.mT @ bases.left, torch.eye(7), rtol=0, atol=1e-6)
    for left, right in pairs:
        core = coordinates(bases, (left, right))
        back = bases.left.double() @ core @ bases.right.double()
        torch.testing.assert_close(back, left.double() @ right.double(), rtol=0, atol=1e-7)
        torch.testing.assert_close(core, coordinates(bases, left.double() @ right.double()), rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", TIES)
def test_what_is_no_matrix_is_merged_by_the_rule(method: str) -> None:
    rule, name = method.partition("_")[2], "model.norm.weight"
    base = {NAME: torch.randn(6, 5), name: torch.randn(40, generator=torch.Generator().manual_seed(4))}
    low = [{NAME: random_factors((6, 5), 1, t), name: random_factors((40,), 1, t)} for t in range(3)]
    pool, own = thin(base, low), {"coefficient": 0.7, "density": 0.5}
    assert torch.equal(run(pool, method, own, name, seed=5), run(pool, rule, own, name, seed=5))
    assert run(pool, method, own, name).any()


@pytest.mark.parametrize("method", TIES)
def test_sources_of_coefficient_zero_take_no_part_in_the_directions(method: str) -> None:
    both = canonical(Assignment.of(method, {"a": PLAIN, "b": {"coefficient": 0.0}}))
    assert both == canonical(Assignment.of(method, {"a": PLAIN}))
    assert canonical(Assignment.of(method, {"a": PLAIN}, scale=0.0)).sources == ()


@pytest.mark.parametrize("method", TIES)
def test_a_second_candidate_finds_the_directions_there(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base, low = random_base({NAME: (48, 36)}), adapters((4, 3))
    pool = thin(base, low)
    first = run(pool, method, PLAIN)
    monkeypatch.setattr("merging.methods.joint.directions", None)
    assert torch.equal(run(pool, method, PLAIN), first)
    assert not torch.equal(run(pool, method, PLAIN | {"density": 0.2}), first)
    pool.forget(NAME)
    with pytest.raises(TypeError):
        run(pool, method, PLAIN)
