"""TSV-M, Iso-C and Iso-CTS: their definitions again in numpy, closed forms, planted directions, invariants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from comparison import backend, backend_model
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from merging.methods import canonical, get
from merging.methods.contract import Values
from merging.methods.spectral import rounding, shares
from merging.pool import Pool
from merging.recipe import Assignment, MergingError

Array = NDArray[np.float64]
METHODS = ("tsv_m", "iso_c", "iso_cts")
SHAPES = [(1, 1), (1, 9), (9, 1), (2, 5), (7, 7), (6, 17), (19, 5), (24, 24)]
QUICK = settings(deadline=None, max_examples=25, derandomize=True, database=None, suppress_health_check=[*HealthCheck])


def random_matrix(shape: tuple[int, int], seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def merged(method: str, deltas: Sequence[Array], base: Array | None = None, **shared: Any) -> Array:
    """Δ / scale of float64 models, through the kernel of live models."""
    origin = np.zeros(deltas[0].shape) if base is None else base
    sources = [torch.from_numpy(origin + delta) for delta in deltas]
    start = torch.from_numpy(origin)
    result = backend(method, start, sources, [{}] * len(sources), shared, name="layer.weight")
    return (result - start).numpy()


def close(found: Array, wanted: Array, size: float = 0.0, tolerance: float = 1e-6) -> None:
    scale = max(float(np.abs(wanted).max(initial=0.0)), size, 1e-300)
    assert np.abs(found - wanted).max(initial=0.0) <= tolerance * scale


# The definitions once more, by the most direct route.


def truncated(delta: Array, count: int) -> tuple[Array, Array, Array]:
    u, s, vh = np.linalg.svd(delta, full_matrices=False)
    kept = min(count, int((s > s[0] * max(delta.shape) * 2.3e-16).sum())) if s[0] > 0 else 0
    return u[:, :kept], s[:kept], vh[:kept]


def orthogonal(matrix: Array) -> Array:
    p, _, qh = truncated(matrix, max(matrix.shape))
    return p @ qh


def by_definition(method: str, deltas: Sequence[Array], fraction: float = 0.8) -> Array:
    directions, tasks = min(deltas[0].shape), len(deltas)
    if method == "iso_c":
        u, s, vh = truncated(sum(deltas), directions)
        return s.mean() * u @ vh if len(s) else 0 * deltas[0]
    if method == "tsv_m":
        if tasks > directions or tasks == 1:
            return sum(deltas) / tasks
        parts = [truncated(delta, directions // tasks) for delta in deltas]
    else:
        own = round((directions - int(directions * fraction)) / tasks)
        own -= own * tasks > directions
        u, s, vh = truncated(sum(deltas), directions - own * tasks)
        parts = [(u, s, vh)] + [truncated(delta - u @ u.T @ delta, own) for delta in deltas]
    u, vh = np.concatenate([u for u, _, _ in parts], 1), np.concatenate([vh for _, _, vh in parts])
    s = np.concatenate([s for _, s, _ in parts])
    if not len(s):
        return 0 * deltas[0]
    return orthogonal(u) @ np.diag(s if method == "tsv_m" else np.full(len(s), s.mean())) @ orthogonal(vh)


def condition(method: str, deltas: Sequence[Array], fraction: float = 0.8) -> float:
    """How much rounding is magnified: by the smallest angle between directions, and by cuts through equal values."""
    directions, tasks = min(deltas[0].shape), len(deltas)
    if method == "tsv_m":
        cuts = [(np.linalg.svd(delta)[1], directions // tasks) for delta in deltas]
        parts = [np.linalg.svd(delta, full_matrices=False) for delta in deltas]
        stacks = [[p[0][:, : directions // tasks] for p in parts], [p[2][: directions // tasks].T for p in parts]]
    else:
        common, own = shares(directions, tasks, fraction)
        u, s, vh = np.linalg.svd(sum(deltas), full_matrices=False)
        rests = [np.linalg.svd(d - u[:, :common] @ u[:, :common].T @ d, full_matrices=False) for d in deltas]
        cuts = [(s, common)] + [(rest[1], own) for rest in rests]
        stacks = [[u[:, :common]] + [r[0][:, :own] for r in rests], [vh[:common].T] + [r[2][:own].T for r in rests]]
    worst = 1.0
    for values, count in cuts:
        if 0 < count < len(values):
            worst = max(worst, values[0] / max(values[count - 1] - values[count], 1e-300))
    for stack in stacks:
        values = np.linalg.svd(np.concatenate(stack, 1))[1]
        worst = max(worst, values[0] / max(values[-1], 1e-300)) if len(values) else worst
    return worst


@pytest.mark.parametrize("method", METHODS)
def test_it_equals_its_definition(method: str) -> None:
    judged = 0

    @QUICK
    @given(st.sampled_from(SHAPES), st.integers(1, 5), st.integers(0, 2**32 - 1), st.sampled_from([0.8, 0.0, 0.5, 1.0]))
    def check(shape: tuple[int, int], tasks: int, seed: int, fraction: float) -> None:
        nonlocal judged
        deltas = [random_matrix(shape, seed + t) for t in range(tasks)]
        if method != "iso_c" and tasks > 1 and tasks <= min(shape):
            assume(condition(method, deltas, fraction) < 1e5)
        shared = {"common_fraction": fraction} if method == "iso_cts" else {}
        wanted = by_definition(method, deltas, fraction)
        close(merged(method, deltas, **shared), wanted, float(np.abs(deltas).max()) * 0.1, 2e-6)
        judged += 1

    check()
    assert judged > 10


# Truths.


def planted(shape: tuple[int, int], ranks: Sequence[int], seed: int) -> list[Array]:
    """Matrices of these ranks whose row and column spaces are orthogonal to each other's."""
    random = np.random.default_rng(seed)
    u, v = (np.linalg.qr(random.standard_normal((size, sum(ranks))))[0] for size in shape)
    ends = np.cumsum(ranks)
    return [
        u[:, end - rank : end] @ np.diag(random.uniform(1, 3, rank)) @ v[:, end - rank : end].T
        for end, rank in zip(ends, ranks, strict=True)
    ]


@pytest.mark.parametrize("shape", [(24, 24), (15, 40), (40, 15)])
def test_tsv_m_of_orthogonal_low_ranks_is_their_sum(shape: tuple[int, int]) -> None:
    deltas = planted(shape, (5, 2, 4), 1)
    close(merged("tsv_m", deltas), sum(deltas))


def test_tsv_m_sees_nothing_of_tasks_that_stayed() -> None:
    """Adapters of low rank beside tasks that did not move: whatever a decomposition fills the rest up with."""
    deltas = planted((24, 24), (5, 3), 2)
    close(merged("tsv_m", [deltas[0], np.zeros((24, 24)), deltas[1], np.zeros((24, 24))]), sum(deltas))


def test_tsv_m_parts_directions_that_two_tasks_share() -> None:
    """Of two tasks in one plane, each direction turns away from the other's by the same angle (Procrustes)."""
    angle = 0.3
    first, second = np.array([1.0, 0.0]), np.array([math.cos(angle), math.sin(angle)])
    v = np.linalg.qr(random_matrix((9, 2), 3))[0]
    frame = np.linalg.qr(random_matrix((8, 2), 4))[0]
    deltas = [3.0 * np.outer(frame @ first, v[:, 0]), 2.0 * np.outer(frame @ second, v[:, 1])]
    turn = (math.pi / 2 - angle) / 2
    a, b = np.array([math.cos(-turn), math.sin(-turn)]), np.array([math.cos(angle + turn), math.sin(angle + turn)])
    close(merged("tsv_m", deltas), 3.0 * np.outer(frame @ a, v[:, 0]) + 2.0 * np.outer(frame @ b, v[:, 1]))


@pytest.mark.parametrize("method", METHODS)
def test_equal_experts(method: str) -> None:
    """What all share is one direction: TSV-M keeps its leading part, the isotropic ones flatten it."""
    delta = random_matrix((20, 14), 5)
    u, s, vh = np.linalg.svd(delta, full_matrices=False)
    found = merged(method, [delta] * 3)
    if method == "tsv_m":
        close(found, u[:, :4] @ np.diag(s[:4]) @ vh[:4])  # ⌊14 / 3⌋
    elif method == "iso_c":
        close(found, 3 * s.mean() * u @ vh)
    else:
        common, own = shares(14, 3, 0.8)
        gathered = np.concatenate([3 * s[:common], *[s[common : common + own]] * 3])
        close(found, gathered.mean() * u[:, : common + own] @ vh[: common + own])


@pytest.mark.parametrize("shape", SHAPES)
def test_one_expert(shape: tuple[int, int]) -> None:
    delta = random_matrix(shape, 6)
    close(merged("tsv_m", [delta]), delta)
    u, s, vh = np.linalg.svd(delta, full_matrices=False)
    for method in ("iso_c", "iso_cts"):
        close(merged(method, [delta]), s.mean() * u @ vh)


@pytest.mark.parametrize(("method", "tasks"), [("iso_c", 1), ("iso_c", 4), ("iso_cts", 2), ("iso_cts", 4)])
@pytest.mark.parametrize("shape", [(20, 20), (12, 31), (31, 12)])
def test_isotropic_spectra_are_flat(method: str, tasks: int, shape: tuple[int, int]) -> None:
    deltas = [random_matrix(shape, 10 + t) for t in range(tasks)]
    values = np.linalg.svd(merged(method, deltas))[1]
    np.testing.assert_allclose(values, values.mean(), rtol=1e-5)
    if method == "iso_c":
        np.testing.assert_allclose(values.mean(), np.linalg.svd(sum(deltas))[1].mean(), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_sum_of_low_rank_stays_in_its_range(dtype: torch.dtype) -> None:
    """Of adapters that were merged into stored weights, the rounding spans all directions, and none is blown up."""
    base = torch.from_numpy(random_matrix((64, 48), 20) * 0.05).to(dtype)
    deltas = [each * 0.3 for each in planted((64, 48), (3, 2), 21)]
    sources = [(base.to(torch.float64) + torch.from_numpy(delta)).to(dtype) for delta in deltas]
    found = backend("iso_c", base, sources, [{}, {}], {}, name="layer.weight", out=torch.float64)
    values = np.linalg.svd((found - base.to(torch.float64)).numpy())[1]
    wanted = np.linalg.svd(sum(deltas))[1][:5].mean()
    np.testing.assert_allclose(values[:5], wanted, rtol=2e-2 if dtype is torch.bfloat16 else 1e-5)
    assert values[5:].max() < 1e-6


@pytest.mark.parametrize("bits", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_the_noise_of_rounding_is_what_it_says(bits: torch.dtype) -> None:
    base = torch.randn(300, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(bits).double()
    moved = base + 0.1 * torch.randn(300, 200, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    stored = moved.to(bits).double()
    error = float(torch.linalg.matrix_norm(stored - moved, 2))
    assert error < rounding(base, stored) < 1.4 * error
    assert rounding(base.to(bits), stored.to(bits)) == rounding(base, stored)  # of the numbers, not of their dtype
    assert rounding(base, base) == 0.0


def test_a_matrix_that_moved_in_few_elements_keeps_what_moved() -> None:
    """A grid so coarse that most elements stayed is no reason to take the others for noise."""
    base = torch.randn(80, 60, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    fine = base.float() * (1 + 3e-3 * torch.randn(80, 60, generator=torch.Generator().manual_seed(4)))
    expert = fine.to(torch.bfloat16)
    assert 0.1 < float((expert != base).float().mean()) < 0.7
    delta = (expert.double() - base.double()).numpy()
    found = backend("iso_c", base, [expert], [{}], {}, name="layer.weight", out=torch.float64)
    u, s, vh = np.linalg.svd(delta)
    rank = int((s > rounding(base, expert)).sum())
    assert rank > 10
    close((found - base.double()).numpy(), s[:rank].mean() * u[:, :rank] @ vh[:rank])


@given(st.integers(1, 4096), st.integers(1, 40), st.floats(0, 1))
def test_shares_are_the_papers(directions: int, tasks: int, fraction: float) -> None:
    common, own = shares(directions, tasks, fraction)
    assert common + own * tasks == directions and common >= 0 and own >= 0
    wanted = round((directions - int(directions * fraction)) / tasks)
    assert own == wanted or (wanted * tasks > directions and (own + 1) * tasks > directions)


def test_iso_cts_takes_common_directions_from_the_sum_and_others_from_the_tasks() -> None:
    """Planted: a strong common subspace, and one weak direction of each task."""
    directions = planted((10, 12), (6, 1, 1, 1, 1), 30)
    deltas = [5 * directions[0] + 0.5 * own for own in directions[1:]]
    found = merged("iso_cts", deltas, common_fraction=0.6)
    mean = (np.linalg.svd(20 * directions[0])[1][:6].sum() + sum(0.5 * np.linalg.norm(d) for d in directions[1:])) / 10
    wanted = sum(mean * orthogonal(each) for each in directions)
    close(found, wanted)


# Invariants.


@pytest.mark.parametrize("method", METHODS)
@QUICK
@given(st.sampled_from(SHAPES), st.integers(1, 4), st.integers(0, 2**32 - 1), st.sampled_from([0.125, 4.0, -2.0]))
def test_what_the_task_vectors_are_multiplied_with(
    method: str, shape: tuple[int, int], tasks: int, seed: int, factor: float
) -> None:
    """By powers of two nothing else is rounded."""
    deltas = [random_matrix(shape, seed + t).astype(np.float32).astype(np.float64) for t in range(tasks)]
    found = merged(method, deltas)
    close(merged(method, [factor * each for each in deltas]), factor * found, tolerance=1e-5)
    close(merged(method, deltas, scale=factor), factor * found)
    turned = merged(method, [each.T.copy() for each in deltas]).T
    if method != "iso_cts":  # it projects on one side
        close(turned, found, float(np.abs(deltas).max()), tolerance=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_rotations_of_inputs_and_outputs_pass_through(method: str) -> None:
    deltas = [random_matrix((18, 13), 40 + t) for t in range(3)]
    left, right = np.linalg.qr(random_matrix((18, 18), 50))[0], np.linalg.qr(random_matrix((13, 13), 51))[0]
    close(merged(method, [left @ each @ right for each in deltas]), left @ merged(method, deltas) @ right)


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_experts(method: str) -> None:
    """By alias, so the bits do not depend on how a recipe lists them; under other aliases, the numbers do not."""
    deltas = [random_matrix((9, 16), 60 + t) for t in range(3)]
    close(merged(method, deltas[::-1]), merged(method, deltas))
    spelled = [canonical(Assignment.of(method, {alias: {} for alias in order})) for order in ("abc", "cab")]
    assert spelled[0] == spelled[1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (3, 4), (5,), ()])
def test_nothing_moved_or_nothing_there(method: str, shape: tuple[int, ...]) -> None:
    base = torch.ones(shape)
    found = backend(method, base, [base.clone()] * 2, [{}] * 2, {}, name="layer.weight")
    assert torch.equal(found, base)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_matrix_moves_by_the_mean(method: str) -> None:
    generator = torch.Generator().manual_seed(9)
    shapes = {"embed_tokens.weight": (11, 6), "layers.0.mlp.up.bias": (7,), "layers.0.mlp.up.weight": (7, 6)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    sources = [{name: each + torch.randn(each.shape, generator=generator) for name, each in base.items()} for _ in "ab"]
    found = backend_model(method, base, sources, [{}, {}], {"scale": 0.5})
    for name, each in base.items():
        mean = each + 0.25 * sum(source[name] - each for source in sources)
        assert torch.allclose(found[name], mean) == (name != "layers.0.mlp.up.weight")


@pytest.mark.parametrize("method", METHODS)
def test_bf16_models_are_merged_as_the_numbers_that_they_hold(method: str) -> None:
    base = torch.randn(30, 22, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    sources = [
        (base.float() + 0.2 * torch.randn(30, 22, generator=torch.Generator().manual_seed(2 + t))).to(torch.bfloat16)
        for t in range(3)
    ]
    narrow = backend(method, base, sources, [{}] * 3, {}, name="w", out=torch.float32)
    wide = backend(method, base.float(), [each.float() for each in sources], [{}] * 3, {}, name="w")
    assert torch.equal(narrow, wide)
    assert torch.equal(backend(method, base, sources, [{}] * 3, {}, name="w"), narrow.to(torch.bfloat16))


def products(method: str, weights: dict[str, Tensor]) -> tuple[Pool, Values]:
    spelled = canonical(Assignment.of(method, {alias: {} for alias in sorted(weights.keys() - {"base"})}))
    pool = Pool("base", tuple(alias for alias, _ in spelled.sources), ("w",), lambda alias, name: weights[alias])
    return pool, Values.of(spelled)


@pytest.mark.parametrize("method", [*METHODS, "wudi"])
def test_the_number_of_threads_changes_no_bit(method: str) -> None:
    weights = {alias: torch.from_numpy(random_matrix((150, 170), i)).float() for i, alias in enumerate(("base", *"ab"))}
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            pool, values = products(method, weights)
            found.append(get(method).prepare(pool, "w", values).fields[0])
            assert torch.get_num_threads() == threads
        finally:
            torch.set_num_threads(1)
    assert all(torch.equal(found[0], each) for each in found[1:])


@pytest.mark.parametrize("method", [*METHODS, "wudi"])
def test_a_candidate_costs_one_pass(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The product is made once for all scales, and forgotten with the tensor."""
    weights = {alias: torch.from_numpy(random_matrix((8, 9), i)).float() for i, alias in enumerate(("base", *"ab"))}
    pool, values = products(method, weights)
    first = get(method).prepare(pool, "w", values)
    monkeypatch.setattr(type(get(method)), "change", None)
    other = Values({**values.shared, "scale": 0.3}, values.sources)
    again = get(method).prepare(pool, "w", other)
    assert again.fields[0] is first.fields[0] and again.numbers == (0.3,)
    largest = max(float(each.abs().max()) for each in weights.values())
    merged = weights["base"].flatten() + first.fields[0]
    assert float(merged.abs().max()) <= first.gain * largest < math.inf
    pool.forget("w")
    with pytest.raises(TypeError):
        get(method).prepare(pool, "w", values)


@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_not_finite_are_refused(method: str) -> None:
    base = torch.zeros(4, 5)
    broken = base.clone()
    broken[2, 3] = math.nan
    with pytest.raises(MergingError, match="finite"):
        backend(method, base, [broken, base + 1], [{}, {}], {}, name="layer.weight")


# Linear algebra.
