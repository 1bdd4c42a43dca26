"""Which elements of a task vector survive: counts, ranks, hash keys, and what random drops do on average."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from comparison import backend, backend_model
from torch import Tensor

from merging.pool import Pool

PIPELINE = ("ties", "dare_linear", "dare_ties", "della_linear", "della", "breadcrumbs", "breadcrumbs_ties")
RANDOM = ("dare_linear", "dare_ties", "della_linear", "della")


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05


def kept(method: str, delta: Tensor, own: dict[str, Any], content: str = "sha256:1", **options: Any) -> Tensor:
    """Which elements of one source survive. ``delta`` has no zeros."""
    name = options.pop("name", "x")
    merged = backend(
        method,
        torch.zeros_like(delta),
        [delta],
        [{"coefficient": 1.0, **own}],
        {"rescale": False, "normalize": False, **options},
        name=name,
        contents=[content],
    )
    assert bool(((merged == 0) | (merged == delta)).all()), "kept elements keep their values"
    return merged != 0


def ramp(count: int, seed: int = 0) -> Tensor:
    """1 … count in random order, with random signs."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    return (torch.randperm(count, generator=generator) + 1).float() * signs


@pytest.mark.parametrize("convention", ["paper", "mergekit"])
@pytest.mark.parametrize("method", PIPELINE)
def test_masks_are_nested_in_density(method: str, convention: str) -> None:
    delta = ramp(600, 1).view(20, 30)
    epsilon = {"epsilon": 0.02} if method.startswith("della") else {}
    gamma = {"gamma": 0.0} if method.startswith("breadcrumbs") else {}
    masks = [
        kept(method, delta, {"density": density, **epsilon, **gamma}, convention=convention)
        for density in (0.1, 0.25, 0.5, 0.52, 0.8, 0.95)
    ]
    for small, large in pairwise(masks):
        assert bool((large | ~small).all()) and int(large.sum()) > int(small.sum())


@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("count", [1, 2, 5, 7, 100, 1001])
@pytest.mark.parametrize("density", [0.0, 1 / 64, 0.2, 0.5, 0.7, 1.0])
def test_trims_keep_exactly_k(method: str, count: int, density: float) -> None:
    """Also where every element has the same magnitude."""
    gamma = {} if method == "ties" else {"gamma": 0.0}
    least = 1 if method == "ties" and density > 0 else 0
    wanted = {"paper": round(density * count), "mergekit": max(least, int(density * count))}
    for delta in (ramp(count), torch.ones(count), -torch.ones(count)):
        for convention, k in wanted.items():
            assert int(kept(method, delta, {"density": density, **gamma}, convention=convention).sum()) == k


def test_halves_round_to_even() -> None:
    assert [int(kept("ties", ramp(n), {"density": 0.5}).sum()) for n in (1, 3, 5, 7, 9)] == [0, 2, 2, 4, 4]


def test_a_trim_keeps_the_largest() -> None:
    delta = ramp(1000, 4)
    for convention in ("paper", "mergekit"):
        mask = kept("ties", delta, {"density": 0.3}, convention=convention)
        assert sorted(delta[mask].abs().tolist()) == list(range(701, 1001))


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("convention", ["paper", "mergekit"])
def test_breadcrumbs_keeps_the_stated_ranks(method: str, convention: str) -> None:
    delta = ramp(200, 5)

    def ranks(density: float, gamma: float) -> list[float]:
        mask = kept(method, delta, {"density": density, "gamma": gamma}, convention=convention)
        return sorted(delta[mask].abs().tolist())

    assert ranks(0.25, 0.05) == list(range(141, 191))  # below the 10 largest, the next 50
    assert ranks(0.25, 0.004) == list(range(151, 201))  # γ n < 1 drops no outlier, and keeps what it should
    assert ranks(0.97, 0.05) == list(range(1, 191 if convention == "paper" else 195))
    assert ranks(1.0, 0.05) == list(range(1, 191 if convention == "paper" else 201))


def lowbias32(x: int) -> int:
    """Wellons's hash on Python's integers."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)


def key(index: int, seed: int, content: str, name: str, operation: str) -> int:
    digest = hashlib.sha256(f"{seed}\n{content}\n{name}\n{operation}".encode()).digest()
    return lowbias32(index ^ int.from_bytes(digest[:4], "little"))


def test_a_dropped_element_can_be_told_by_hand() -> None:
    """The mask is a function of (seed, content, tensor, index) that anyone can recompute."""
    delta, content = ramp(500), "sha256:" + "5" * 64
    for density in (0.3, 0.5, 1 / 64):
        mask = kept("dare_linear", delta, {"density": density}, content, name="model.norm.weight", seed=9)
        bound = round(density * 2**32)
        assert mask.tolist() == [key(i, 9, content, "model.norm.weight", "drop") < bound for i in range(500)]


def test_equal_magnitudes_are_kept_in_the_stated_order() -> None:
    """By hash in the paper's convention, which favours no row; by index in mergekit's."""
    delta, k = torch.full((300,), 0.25), 60
    order = sorted(range(300), key=lambda i: key(i, 7, "", "w", "ties"))
    assert kept("ties", delta, {"density": 0.2}, name="w", seed=7).nonzero().flatten().tolist() == sorted(order[:k])
    first = kept("ties", delta, {"density": 0.2}, name="w", seed=7, convention="mergekit")
    assert first.nonzero().flatten().tolist() == list(range(k))
    crumbs = kept("breadcrumbs", delta, {"density": 0.2, "gamma": 0.1}, name="w", seed=7)
    assert crumbs.nonzero().flatten().tolist() == sorted(order[30:90])


@pytest.mark.parametrize("method", RANDOM)
def test_masks_differ_by_seed_source_and_tensor_and_by_nothing_else(method: str) -> None:
    delta, own = ramp(4000, 2), {"density": 0.5}
    one = kept(method, delta, own)
    assert torch.equal(one, kept(method, delta, own)) and torch.equal(one, kept(method, 3 * delta, own))
    assert torch.equal(one, kept(method, delta, own, convention="mergekit"))
    others = (
        kept(method, delta, own, seed=1),
        kept(method, delta, own, "sha256:2"),
        kept(method, delta, own, name="y"),
    )
    for other in others:
        assert abs(float((one == other).float().mean()) - 0.5) < 0.04  # five standard deviations


def test_trimming_a_whole_model_lets_tensors_compete() -> None:
    base = {"a": torch.zeros(40), "b": torch.zeros(3, 20), "c": torch.zeros(())}
    source = {"a": ramp(40), "b": 100 + ramp(60).abs().view(3, 20), "c": torch.tensor(7.5)}
    own, shared = [{"coefficient": 1.0, "density": 0.5}], {"trim": "model"}
    merged = backend_model("ties", base, [source], own, shared)
    survivors = torch.cat([tensor.flatten() for tensor in merged.values()])
    everything = torch.cat([tensor.flatten() for tensor in source.values()])
    assert int((survivors != 0).sum()) == round(0.5 * 101)
    assert float(survivors[survivors != 0].abs().min()) > 100 and not merged["a"].any() and not merged["c"].any()
    assert float(survivors.abs().sum()) == float(everything.abs().sort().values[-50:].sum())
    alone = backend_model("ties", {"a": base["a"]}, [{"a": source["a"]}], own, shared)["a"]
    assert torch.equal(alone, backend("ties", base["a"], [source["a"]], own, name="a"))


@pytest.mark.parametrize("convention", ["paper", "mergekit"])
@pytest.mark.parametrize("method", PIPELINE)
def test_what_a_pool_remembers_changes_nothing(method: str, convention: str) -> None:
    """A search asks one pool for ever new densities and seeds: each answer is the one that a fresh pool gives."""
    for shape, coarse in (((), False), ((7,), False), ((9, 13), True), ((30, 40), False)):
        base = random(0, *shape)
        sources = [base + random(1 + i, *shape) for i in range(2)]
        if coarse:
            base, *sources = ((each * 64).round() / 64 for each in (base, *sources))
        pools: dict[tuple[str, ...], Pool] = {}
        for number, density in enumerate((0.5, 0.9, 0.1, 0.5, 0.333, 0.01, 0.99, 1.0, 0.0, 0.7)):
            own: list[dict[str, Any]] = [{"coefficient": 0.5, "density": d} for d in (density, 0.6)]
            for values in own:
                values |= {"epsilon": 0.005} if method.startswith("della") else {}
                values |= {"gamma": 0.3 * density} if method.startswith("breadcrumbs") else {}
            shared = {"convention": convention, "seed": number % 3, "rescale": number % 2 == 0}
            remembered = backend(method, base, sources, own, shared, pools=pools)
            assert torch.equal(remembered, backend(method, base, sources, own, shared)), density


def moments(method: str, delta: Tensor, own: dict[str, Any], seeds: Sequence[int], shared: dict[str, Any]) -> Tensor:
    """[seeds, …] what each seed makes of the delta."""
    return torch.stack(
        [
            backend(method, torch.zeros_like(delta), [delta], [{"coefficient": 1.0, **own}], {**shared, "seed": seed})
            for seed in seeds
        ]
    ).double()


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_has_the_mean_and_the_variance_of_the_paper(density: float) -> None:
    """E = d and Var = p / (1 − p) · d², over elements and seeds, within five standard deviations."""
    delta, seeds, p = random(1, 3000), range(60), 1 - density
    relative = moments("dare_linear", delta, {"density": density}, seeds, {}) / delta.double() - 1
    samples, variance = relative.numel(), p / density
    assert abs(float(relative.mean())) < 5 * math.sqrt(variance / samples)
    fourth = density * (1 / density - 1) ** 4 + p
    assert abs(float((relative**2).mean()) - variance) < 5 * math.sqrt((fourth - variance**2) / samples) + 1e-6
    # Independent from element to element, and from seed to seed.
    assert abs(float((relative[:, 1:] * relative[:, :-1]).mean())) < 5 * variance / math.sqrt(samples)
    assert abs(float((relative[1:] * relative[:-1]).mean())) < 5 * variance / math.sqrt(samples)


def test_della_keeps_by_rank_and_stays_unbiased() -> None:
    """P = ρ − ε + 2 ε · rank / (C − 1), in every row on its own."""
    width, seeds, own = 40, range(400), {"density": 0.6, "epsilon": 0.3}
    rows = torch.stack([ramp(width, i) * (10.0**i) for i in range(4)])
    for method in ("della_linear", "della"):
        outcomes = moments(method, rows, own, seeds, {"normalize": False})
        rank = rows.abs().argsort(dim=1).argsort(dim=1).double()
        chance = 0.3 + 0.6 * rank / (width - 1)
        share = (outcomes != 0).double().mean(0)
        spread = (chance * (1 - chance) / len(seeds)).sqrt()
        assert bool(((share - chance).abs() <= 5 * spread + 1e-9).all())
        relative = outcomes / rows.double() - 1
        variance = (1 - chance) / chance
        assert abs(float(relative.mean())) < 5 * math.sqrt(float(variance.mean()) / relative.numel())


@pytest.mark.parametrize("method", PIPELINE)
def test_mergekits_rescaling_restores_the_l1_norm(method: str) -> None:
    delta = random(3, 30, 40)
    own = [{"coefficient": 1.0, "density": 0.4}]
    shared = {"convention": "mergekit", "rescale": True, "normalize": False}
    merged = backend(method, torch.zeros_like(delta), [delta], own, shared)
    assert float(merged.double().abs().sum()) == pytest.approx(float(delta.double().abs().sum()), rel=1e-6)
    assert 0 < int((merged != 0).sum()) < 0.6 * delta.numel()
