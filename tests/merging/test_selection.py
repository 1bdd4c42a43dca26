"""Exact cuts of |τ| against plain sorting, with ties, zeros and denormals; and the keys that break ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging.masks import keys, keys_of, last_kept, seed32
from merging.pool import Pool
from merging.selection import (
    ALL_KEYS,
    EVERYTHING,
    GRID,
    NOTHING,
    Cut,
    cut_by,
    cuts,
    is_tied,
    model_cuts,
    row_ranks,
)


def pool_of(deltas: dict[str, Tensor], base: dict[str, Tensor] | None = None) -> Pool:
    """One source, a, whose task vectors are given; over a base of zeros unless there is one."""
    origin = base or {name: torch.zeros_like(each) for name, each in deltas.items()}
    tensors = {"base": origin, "a": {name: origin[name] + each for name, each in deltas.items()}}
    return Pool("base", ("a",), tuple(sorted(deltas)), lambda alias, name: tensors[alias][name])


def inside(cut: Cut, magnitude: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The mask that a cut stands for."""
    return (magnitude > cut.threshold) | ((magnitude == cut.threshold) & (key <= cut.key))


def keys_for(order: str, count: int, seed: int) -> np.ndarray:
    index = np.arange(count)
    return {"hash": keys_of(index, seed), "index": index, "reversed": -1 - index}[order]


def expected(magnitude: np.ndarray, key: np.ndarray, count: int) -> set[int]:
    """The count largest, of equal ones those with the smallest keys; exact zeros are nothing to keep."""
    order = np.lexsort((key, -magnitude))[:count]
    return {int(each) for each in order if magnitude[each] > 0}


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([0.0, 1e-42, 1e-40, 0.5, 0.5, 1.0, 1.0001, 3.0, 1e30]), min_size=1, max_size=60),
    st.sampled_from(["hash", "index", "reversed"]),
    st.integers(0, 60),
    st.integers(0, 3),
)
def test_a_cut_keeps_exactly_the_largest(values: list[float], order: str, count: int, seed: int) -> None:
    signs = torch.tensor([(-1.0) ** i for i in range(len(values))])
    delta = torch.tensor(values, dtype=torch.float32) * signs
    magnitude, key = delta.abs().numpy(), keys_for(order, len(values), seed)
    (found,) = cuts(pool_of({"x": delta}), "x", 0, (count,), order, seed)  # type: ignore[arg-type]
    kept = np.flatnonzero(inside(found, magnitude, key) & (magnitude > 0))
    assert set(kept.tolist()) == expected(magnitude, key, count)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_all_densities_of_the_grid_are_exact_on_realistic_weights(dtype: torch.dtype) -> None:
    """16-bit fine-tunes have whole blocks of equal |τ|; every grid density still keeps exactly its count."""
    generator = torch.Generator().manual_seed(5)
    base = (torch.randn(20011, generator=generator) * 0.02).to(dtype)
    tuned = (base.float() + torch.randn(20011, generator=generator) * 2e-4).to(dtype)
    pool = Pool("base", ("a",), ("x",), lambda alias, _: {"base": base, "a": tuned}[alias])
    magnitude = (tuned.float() - base.float()).abs().numpy()
    key = keys_for("hash", len(magnitude), 9)
    nonzero = int((magnitude > 0).sum())
    tied = 0
    for step in range(GRID + 1):
        count = round(step * len(magnitude) / GRID)
        (found,) = cuts(pool, "x", 0, (count,), "hash", 9)
        tied += is_tied(found)
        mask = inside(found, magnitude, key) & (magnitude > 0)
        assert int(mask.sum()) == min(count, nonzero)
        assert magnitude[mask].min(initial=math.inf) >= magnitude[~mask].max(initial=0.0)
    assert tied > 0 or dtype == torch.float32


def test_pieces_do_not_change_a_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = torch.randn(5000, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    whole = cuts(pool_of({"x": delta}), "x", 0, (7, 1234, 4999), "hash", 1)
    monkeypatch.setattr("merging.selection._CHUNK", 37)
    assert cuts(pool_of({"x": delta}), "x", 0, (7, 1234, 4999), "hash", 1) == whole


def test_nothing_and_everything() -> None:
    pool = pool_of({"x": torch.tensor([1.0, 0.0, -2.0])})
    assert cuts(pool, "x", 0, (0, 3), "hash", 0) == (NOTHING, EVERYTHING)
    assert cuts(pool, "x", 0, (2,), "hash", 0)[0].threshold == 1.0
    zeros = pool_of({"x": torch.zeros(9)})
    assert cuts(zeros, "x", 0, (4,), "hash", 0) == (EVERYTHING,)  # whatever is kept of zeros is zero
    assert cuts(pool_of({"x": torch.zeros(0)}), "x", 0, (0,), "hash", 0) == (NOTHING,)


def test_cuts_by_other_scores_are_those_of_a_sort() -> None:
    scores = torch.rand(3000, generator=torch.Generator().manual_seed(1))
    found = cut_by(scores, 1000, "index", 0)
    assert int((scores >= found.threshold).sum()) == 1000


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 90), st.integers(0, 2**32))
def test_trimming_the_whole_model_is_trimming_one_long_tensor(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    deltas = {name: torch.randint(-3, 4, (30,), generator=generator).float() for name in "xyz"}
    seeds = {name: seed32(seed, "", name, "ties") for name in deltas}
    found = model_cuts(pool_of(deltas), 0, count, seeds)
    magnitude = np.concatenate([deltas[name].abs().numpy() for name in "xyz"])
    key = np.concatenate([keys_of(np.arange(30), seeds[name]) for name in "xyz"])
    kept = [
        inside(found[name], deltas[name].abs().numpy(), keys_of(np.arange(30), seeds[name]))
        & (deltas[name] != 0).numpy()
        for name in "xyz"
    ]
    assert set(np.flatnonzero(np.concatenate(kept)).tolist()) == expected(magnitude, key, count)


def test_equal_keys_of_two_tensors_go_to_the_first() -> None:
    """The same key in every tensor: exactly as many as asked for are kept all the same."""
    deltas = {name: torch.ones(4) for name in "xyz"}
    found = model_cuts(pool_of(deltas), 0, 5, dict.fromkeys("xyz", 0))
    key = keys_of(np.arange(4), 0)
    kept = {name: int(inside(found[name], np.ones(4, np.float32), key).sum()) for name in "xyz"}
    assert sum(kept.values()) == 5 and kept["x"] >= kept["y"] >= kept["z"]


def test_row_ranks_are_those_of_a_stable_sort() -> None:
    delta = torch.tensor([[3.0, -1.0, 0.0, 1.0], [0.0, 0.0, -5.0, 2.0]])
    ranks = row_ranks(pool_of({"x": delta}), "x", 0).to(torch.int32) + 32768
    assert ranks.view(2, 4).tolist() == [[3, 1, 0, 2], [0, 1, 3, 2]]
    vector = row_ranks(pool_of({"x": torch.tensor([2.0, 1.0, 3.0])}), "x", 0).to(torch.int32) + 32768
    assert vector.tolist() == [1, 0, 2]


def reference_key(index: int, seed: int) -> int:
    """lowbias32 in Python's integers."""
    x = (index ^ seed) & 0xFFFFFFFF
    x ^= x >> 16
    x = x * 0x7FEB352D & 0xFFFFFFFF
    x ^= x >> 15
    x = x * 0x846CA68B & 0xFFFFFFFF
    return x ^ (x >> 16)


def test_keys_are_lowbias32_and_order_as_unsigned_numbers_do() -> None:
    index = torch.tensor([0, 1, 2, 77, 2**31 - 1, -1], dtype=torch.int32)
    for seed in (0, 12345, -7, 2**31 - 1):
        found = keys(index, torch.tensor(seed, dtype=torch.int32)).tolist()
        assert found == [reference_key(i & 0xFFFFFFFF, seed & 0xFFFFFFFF) - 2**31 for i in index.tolist()]


def test_keys_are_a_bijection_uniform_and_uncorrelated() -> None:
    index = torch.arange(1 << 16, dtype=torch.int32)
    one, other = (keys(index, torch.tensor(seed32(0, source, "w", "drop"), dtype=torch.int32)) for source in "ab")
    assert len(one.unique()) == 1 << 16
    for density in (0.1, 0.5, 0.9):
        first, second = (each <= last_kept(density) for each in (one, other))
        spread = 5 * math.sqrt(density * (1 - density) / (1 << 16))
        assert abs(float(first.float().mean()) - density) < spread
        assert abs(float((first & second).float().mean()) - density**2) < spread
        assert abs(float((first[1:] & first[:-1]).float().mean()) - density**2) < spread


def test_masks_are_nested_and_reach_both_ends() -> None:
    found = keys(torch.arange(4096, dtype=torch.int32), torch.tensor(3, dtype=torch.int32))
    assert last_kept(1.0) == ALL_KEYS and bool((found <= last_kept(1.0)).all())
    for low, high in ((0.1, 0.2), (0.5, 0.52), (0.99, 1.0)):
        assert bool(((found <= last_kept(low)) <= (found <= last_kept(high))).all())


def test_seeds_tell_everything_apart() -> None:
    seeds = {seed32(*each) for each in ((0, "a", "x", "drop"), (1, "a", "x", "drop"), (0, "b", "x", "drop"))}
    assert len(seeds | {seed32(0, "a", "y", "drop"), seed32(0, "a", "x", "ties")}) == 5
