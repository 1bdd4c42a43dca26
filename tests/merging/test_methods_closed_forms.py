"""Methods on vectors small enough to merge by hand, and the geometry of those that turn vectors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from comparison import backend
from torch import Tensor

from merging.recipe import MergingError

ZERO = torch.zeros(2)
ROOT = math.sqrt(0.5)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def at(degrees: float, length: float = 1.0) -> Tensor:
    angle = math.radians(degrees)
    return torch.tensor([length * math.cos(angle), length * math.sin(angle)], dtype=torch.float64)


def merge(method: str, base: Tensor, sources: list[Tensor], coefficients: Any = None, **shared: Any) -> Tensor:
    """With one coefficient per source, or one dictionary, or nothing."""
    own: list[dict[str, Any]] = [{} for _ in sources]
    if coefficients is not None:
        own = [dict(each) if isinstance(each, dict) else {"coefficient": float(each)} for each in coefficients]
    return backend(method, base, sources, own, shared)


def close(found: Tensor, wanted: Tensor | list[float], error: float = 1e-6) -> None:
    wanted = torch.as_tensor(wanted, dtype=found.dtype)
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=error)


# Elections.

ROWS = [vector(3, -1, 2, 1, 0, 4), vector(-1, -2, -2, 2, 0, 0), vector(1, 4, 0, -5, 1, -4)]


def keeping(*coefficients: float) -> list[dict[str, float]]:
    return [{"coefficient": c, "density": 1.0} for c in coefficients]


def test_ties_by_hand() -> None:
    """Sums 3, 1, 0, −2, 1, 0. Where they are 0 the paper's rule changes nothing; zeros do not count in the mean."""
    close(merge("ties", torch.zeros(6), ROWS, keeping(1, 1, 1)), [2.0, 4.0, 0.0, -5.0, 1.0, 0.0])
    close(merge("ties", torch.zeros(6), ROWS, keeping(1, 1, 1), normalize=False), [4.0, 4.0, 0.0, -5.0, 1.0, 0.0])
    close(merge("ties", torch.ones(6), [1 + r for r in ROWS], keeping(1, 1, 1), scale=0.5), [2, 3, 1, -1.5, 1.5, 1])


def test_mergekit_counts_a_tie_as_positive_and_divides_by_the_weights() -> None:
    merged = merge("ties", torch.zeros(6), ROWS, keeping(1, 1, 1), convention="mergekit")
    close(merged, [2.0, 4.0, 2.0, -5.0, 1.0, 4.0])
    # Weighted 2, 1, 1: sums 6, 0, 2, −1, 1, 4.
    merged = merge("ties", torch.zeros(6), ROWS, keeping(2, 1, 1), convention="mergekit")
    close(merged, [(6 + 1) / 3, 4 / 1, 4 / 2, -5 / 1, 1 / 1, 8 / 2])
    merged = merge("ties", torch.zeros(6), ROWS, keeping(2, 1, 1))
    close(merged, [(6 + 1) / 2, 0.0, 4 / 1, -5 / 1, 1 / 1, 8 / 1])


def test_negative_coefficients_turn_votes() -> None:
    """c = (1, −1): the second source votes with its sign turned, and both conventions count it so."""
    a, b = vector(2, 3), vector(-4, 1)
    close(merge("ties", ZERO, [a, b], keeping(1, -1)), [3.0, 3.0])
    # Σ_A c is 0 in the first place, where the divisor becomes 1; in the second, 3 of weight 1 stands alone.
    close(merge("ties", ZERO, [a, b], keeping(1, -1), convention="mergekit"), [6.0, 3.0])


@pytest.mark.parametrize("method", ["dare_ties", "della", "breadcrumbs_ties"])
def test_the_other_elections_vote_alike(method: str) -> None:
    own: list[dict[str, float]] = keeping(1, 1, 1)
    for values in own:
        values |= {"epsilon": 0.0} if method == "della" else {"gamma": 0.0} if method == "breadcrumbs_ties" else {}
    for convention in ("paper", "mergekit"):
        wanted = merge("ties", torch.zeros(6), ROWS, keeping(1, 1, 1), convention=convention)
        close(merge(method, torch.zeros(6), ROWS, own, convention=convention), wanted)


def test_a_trim_comes_before_the_vote() -> None:
    """At 1/3 each source keeps two: 3 and 4; one of its twos …; the vote sees only these."""
    a, b = vector(5, 1, 1, 4, 1, 1), vector(-1, -3, 1, -6, 1, 1)
    own = [{"coefficient": 1.0, "density": 1 / 3}] * 2
    close(merge("ties", torch.zeros(6), [a, b], own), [5.0, -3.0, 0.0, -6.0, 0.0, 0.0])
    # L1 norms 13 and 13, kept 9 and 9.
    wanted = torch.tensor([5.0, -3.0, 0.0, -6.0, 0.0, 0.0]) * 13 / 9
    close(merge("ties", torch.zeros(6), [a, b], own, rescale=True), wanted)


def test_rescaling_precedes_the_vote() -> None:
    """Densities 1 and 1/2: the survivor of the second source is doubled, and then outvotes the first."""
    size = 400
    a, b = torch.full((size,), 1.5), torch.full((size,), -1.0)
    own = [{"coefficient": 1.0, "density": 1.0}, {"coefficient": 1.0, "density": 0.5}]
    merged = merge("dare_ties", torch.zeros(size), [a, b], own)
    assert sorted({*merged.tolist()}) == [-2.0, 1.5]
    assert {*merge("dare_ties", torch.zeros(size), [a, b], own, rescale=False).tolist()} == {1.5}


# Selections.


def test_magmax_takes_the_largest_and_the_first_of_equals() -> None:
    a, b, c = vector(1, -3, 2, 0), vector(-2, 1, -2, 0), vector(1, 3, 1, 0)
    close(merge("magmax", torch.zeros(4), [a, b, c], [1, 1, 1]), [-2.0, -3.0, 2.0, 0.0])
    # Coefficients act on the chosen and do not choose.
    close(merge("magmax", torch.zeros(4), [a, b, c], [10, 0.5, 1], scale=2.0), [-2.0, -60.0, 40.0, 0.0])


def test_sce_by_hand() -> None:
    """Energies 1 and 3 in four: where both agree, the mean weighs ¼ and ¾; where not, the larger sum wins."""
    a, b = vector(1, 1, -1, 1), vector(1, 3, 1, -1)
    energy = [4 / 16, 12 / 16]
    close(merge("sce", torch.zeros(4), [a, b]), [1.0, energy[0] + 3 * energy[1], 0.0, 0.0])
    close(merge("sce", torch.zeros(4), [a, b], convention="mergekit"), [1.0, 2.5, 1.0, 1.0])
    # Variances 0, 1, 1, 1: one position of mergekit's int(3 · ½), the first of equals.
    merged = merge("sce", torch.zeros(4), [a, b], density=0.5, convention="mergekit")
    close(merged, [0.0, (1 * 1 + 3 * 9) / 10, 0.0, 0.0])
    # The paper's: 4 · ¼ = 1 position of largest variance.
    c, d = vector(1, 1, 2, 5), vector(1, 2, 3, 1)
    close(merge("sce", torch.zeros(4), [c, d], density=0.25), [0.0, 0.0, 0.0, (25 * 5 + 1) / 26])


def test_mergekits_sce_weighs_light_fine_tunes_alike() -> None:
    """Below 1e-6 in all, energies do not count there; in the paper they do."""
    a, b = torch.full((8,), 1e-4), torch.full((8,), 3e-4)
    close(merge("sce", torch.zeros(8), [a, b], convention="mergekit"), torch.full((8,), 2e-4), 1e-10)
    close(merge("sce", torch.zeros(8), [a, b]), torch.full((8,), 2.8e-4), 1e-10)


@pytest.mark.parametrize("agreement", [0, 1, 2, 3, 4])
def test_consensus_counts_the_tasks_that_an_element_serves(agreement: int) -> None:
    """m_t = |d_t| ≥ ½ |M − d_t|: three, two, one and no task of three."""
    sources = [vector(1, 4, 8, 2), vector(1, 4, 1, -6), vector(1, 0, 1, 4)]
    # By element: M = 3, 8, 10, 0; counts: 1 ≥ 1 three times; 4 ≥ 2 twice, 0 ≥ 4 not; 8 ≥ 1, 1 ≥ 4.5 not; 2 ≥ 1 …
    counts, total = [3, 2, 1, 3], [3.0, 8.0, 10.0, 0.0]
    own = [{"coefficient": 1.0, "threshold": 0.5}] * 3
    wanted = [value if count >= agreement else 0.0 for count, value in zip(counts, total, strict=True)]
    close(merge("consensus_ta", torch.zeros(4), sources, own, agreement=agreement), wanted)


def test_consensus_of_none_is_task_arithmetic_and_of_more_than_all_is_the_base() -> None:
    generator = torch.Generator().manual_seed(3)
    base, *sources = (torch.randn(90, generator=generator) for _ in range(4))
    plain = merge("task_arithmetic", base, sources, [0.4, -0.3, 1.0], scale=0.7)
    close(merge("consensus_ta", base, sources, [0.4, -0.3, 1.0], agreement=0, scale=0.7), plain, 3e-7)
    assert torch.equal(merge("consensus_ta", base, sources, [0.4, -0.3, 1.0], agreement=4), base)


def test_pcb_by_hand() -> None:
    """One source, no clamping, half kept: the elements at or below the cut get nothing, the others are themselves."""
    delta = vector(0.1, -0.2, 0.3, -0.4, 0.5, 0.6)
    merged = merge("pcb", torch.zeros(6), [delta], [1.0], density=0.5, clamp=0.0)
    # Cut at place 3 of the sorted scores, and the largest magnitude is clamped to the one at int(6 − 1) = itself.
    close(merged, [0.0, 0.0, 0.0, 0.0, 0.5, 0.6])
    # Two sources: score e^{2 N²} tanh(d Σ d), shares from the cut up, mean by shares.
    a, b = vector(1.0, 0.0, 0.5, 0.25), vector(0.5, 1.0, 0.0, -0.25)
    merged = merge("pcb", torch.zeros(4), [a, b], [1.0, 2.0], density=0.5, clamp=0.0, scale=0.5).tolist()

    def shares(values: list[float], other: list[float]) -> list[float]:
        sizes = [abs(value) for value in values]
        low, width = min(sizes), max(sizes) - min(sizes)
        score = [
            math.exp(2 * ((abs(d) - low) / width) ** 2) * math.tanh(d * (d + e))
            for d, e in zip(values, other, strict=True)
        ]
        cut = sorted(score)[2]
        return [(max(each, cut) - cut) / (max(score) - cut) for each in score]

    first, second = shares(a.tolist(), b.tolist()), shares(b.tolist(), a.tolist())
    for i in range(4):
        weight = first[i] + second[i]
        above = first[i] * float(a[i]) + 2.0 * second[i] * float(b[i])
        assert merged[i] == pytest.approx(0.5 * above / weight if weight else 0.0, abs=1e-6)


def test_ram_keeps_what_one_model_moved_and_averages_the_rest() -> None:
    a, b, c = vector(4, 4, 4, 0, 1e-6), vector(0, 2, 1, 0, 0), vector(0, 0, 1, 0, 0)
    close(merge("ram", torch.zeros(5), [a, b, c]), [4.0, 3.0, 2.0, 0.0, 0.0], 1e-7)
    # a: two shared, one alone, ratio 2 → α; b and c share all they have.
    close(merge("ramplus_tl", torch.zeros(5), [a, b, c], r=0.5, alpha=0.4), [4.0 * 1.2, 3.0, 2.0, 0.0, 0.0], 1e-6)
    close(merge("ramplus_tl", torch.zeros(5), [a, b, c], r=0.5, alpha=3.0), [4.0 * 2.0, 3.0, 2.0, 0.0, 0.0], 1e-6)


def test_nearswap_takes_what_is_near() -> None:
    base, source = vector(0, 0, 0, 1), vector(0.01, 0.1, 1.0, 1.0)
    close(merge("nearswap", base, [source], t=0.05), [0.01, 0.05, 0.05, 1.0])
    assert torch.equal(merge("nearswap", base, [source], t=0.0), base)
    close(merge("nearswap", base, [source], t=2.0), source)


def test_arcee_fusion_takes_the_rows_that_changed_what_they_say() -> None:
    """A row that is only shifted has the same softmax: it is unimportant however far it moved."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(40, 16, generator=generator)
    source = base + 0.01 * torch.randn(40, 16, generator=generator)
    source[3] = base[3] + 5.0
    source[7] = base[7].flip(0) + 1.0
    merged = merge("arcee_fusion", base, [source])
    assert torch.equal(merged[3], base[3])
    assert int((merged[7] == source[7]).sum()) >= 15
    assert int((merged == source).sum()) < 120  # outliers of 640, the planted row among them
    assert torch.equal((merged == source) | (merged == base), torch.ones(40, 16, dtype=torch.bool))


def test_passthrough_scales_one_model() -> None:
    base, source = vector(9, 9), vector(2, -3)
    assert torch.equal(merge("passthrough", base, [source]), source)
    assert torch.equal(merge("passthrough", base, [source], scale=-0.5), vector(-1, 1.5))
    assert torch.equal(merge("passthrough", base, [source], scale=0.0), ZERO)


# Arcs.


@pytest.mark.parametrize("method", ["slerp", "nuslerp"])
def test_arcs_turn_at_a_constant_rate(method: str) -> None:
    for t in (0.0, 0.25, 0.5, 0.9, 1.0, 1.4):
        close(merge(method, ZERO.double(), [at(10), at(100)], [1 - t, t]), at(10 + 90 * t), 1e-12)


@pytest.mark.parametrize("method", ["slerp", "nuslerp"])
def test_arcs_of_task_vectors_keep_their_length_where_a_mean_would_shrink_it(method: str) -> None:
    base = torch.tensor([5.0, -3.0], dtype=torch.float64)
    merged = merge(method, base, [base + at(20, 0.1), base + at(110, 0.1)], [1, 1], on="task_vectors")
    close(merged - base, at(65, 0.1), 1e-12)
    assert float((merge("linear", base, [base + at(20, 0.1), base + at(110, 0.1)], [1, 1]) - base).norm()) < 0.071


def test_nuslerp_has_no_straight_shortcut_for_small_angles() -> None:
    """At one degree slerp is a chord, nuslerp still an arc."""
    a, b = at(0), at(1)
    assert float(merge("nuslerp", a, [a, b], [1, 1]).norm()) == pytest.approx(1.0, abs=1e-13)
    assert float(merge("slerp", a, [a, b], [1, 1]).norm()) == pytest.approx(math.cos(math.radians(0.5)), abs=1e-13)
    same = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    close(merge("nuslerp", same, [same, 3 * same], [1, 1]), 2 * same, 1e-12)
    scalars = merge("nuslerp", torch.tensor(0.0), [torch.tensor(0.3), torch.tensor(-0.7)], [1, 1], on="task_vectors")
    close(scalars, torch.tensor(-0.2))


def test_nuslerp_row_by_row_and_column_by_column() -> None:
    """Rows turn by 90° and by 60°; mergekit calls the columns ``row_wise``."""
    a, b = torch.stack([at(0), at(30)]), torch.stack([at(90), at(90)])
    by_row = torch.stack([at(45), at(60)])
    close(merge("nuslerp", a, [a, b], [1, 1], flatten=False), by_row, 1e-12)
    by_column = merge(
        "nuslerp", a.T.contiguous(), [a.T.contiguous(), b.T.contiguous()], [1, 1], flatten=False, row_wise=True
    )
    close(by_column, by_row.T.contiguous(), 1e-12)
    assert not torch.allclose(merge("nuslerp", a, [a, b], [1, 1]), by_row)


def test_multislerp_points_to_the_mean_direction_with_the_mean_length() -> None:
    merged = merge("multislerp", ZERO.double(), [at(0, 2.0), at(90, 4.0)], [1, 1])
    close(merged, at(45, 3.0), 1e-7)
    merged = merge("multislerp", ZERO.double(), [at(0, 2.0), at(90, 4.0)], [3, 1])
    close(merged, at(math.degrees(math.atan2(1, 3)), 2.5), 1e-7)
    base = torch.tensor([7.0, 7.0], dtype=torch.float64)
    sources = [base + at(0), base + at(90)]
    close(merge("multislerp", base, sources, [1, 1], on="task_vectors") - base, at(45), 1e-7)
    close(merge("multislerp", base, sources, [1, 1], normalize=False, on="task_vectors") - base, at(45, 2.0), 1e-7)
    assert torch.equal(merge("multislerp", base, [at(3)], [0.2]), at(3))


def test_multislerp_of_opposites() -> None:
    """Two that cancel are averaged; of three there is no direction left, which is an error."""
    a = vector(1, 0)
    close(merge("multislerp", ZERO, [a, -a], [1, 1]), ZERO)
    thirds = [at(0), at(120), at(240)]
    with pytest.raises(MergingError):
        merge("multislerp", ZERO.double(), thirds, [1, 1, 1])


def test_karcher_of_two_is_the_point_on_their_arc() -> None:
    for first, second in ((1, 1), (3, 1), (1, 9)):
        merged = merge("karcher", ZERO.double(), [at(10, 2.0), at(90, 4.0)], [first, second], max_iter=100, tol=1e-12)
        share = second / (first + second)
        close(merged, at(10 + 80 * share, 2 + 2 * share), 1e-9)


def test_karcher_is_where_the_pulls_cancel() -> None:
    """Σ w_t log_m(u_t) = 0, which the normalised mean is not."""
    generator = torch.Generator().manual_seed(4)
    units = [torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(4)]
    units = [unit / unit.norm() for unit in units]
    weights = [0.1, 0.2, 0.3, 0.4]

    def pull(m: Tensor) -> float:
        total = torch.zeros(5, dtype=torch.float64)
        for weight, unit in zip(weights, units, strict=True):
            angle = math.acos(float(unit @ m))
            total += weight * angle / math.sin(angle) * (unit - (unit @ m) * m)
        return float(total.norm())

    merged = merge("karcher", torch.zeros(5, dtype=torch.float64), units, weights, max_iter=200, tol=1e-12)
    assert float(merged.norm()) == pytest.approx(1.0, abs=1e-12)
    mean = sum((w * u for w, u in zip(weights, units, strict=True)), torch.zeros(5, dtype=torch.float64))
    assert pull(merged) < 1e-9 < 1e-2 < pull(mean / mean.norm())


def test_karcher_leaves_zeros_out_of_the_direction_but_not_of_the_length() -> None:
    merged = merge("karcher", ZERO.double(), [at(0), at(60), 0 * at(0)], [1, 1, 1])
    close(merged, at(30, 2 / 3), 1e-9)
    assert torch.equal(merge("karcher", ZERO, [ZERO, ZERO], [1, 1]), ZERO)


@pytest.mark.parametrize("method", ["slerp", "nuslerp", "multislerp", "karcher"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opposites_stay_finite_and_bounded(method: str, dtype: torch.dtype) -> None:
    """No one arc joins them, and 1 / sin Ω is rounding alone: an expert and its negation must not explode."""
    generator = torch.Generator().manual_seed(2)
    for size in (1, 2, 3, 64):
        a = torch.randn(size, generator=generator).to(dtype)
        for factor in (-1.0, -0.5, -2.0):  # exact in every dtype: near opposites the factors of an arc do grow
            for coefficients in ((1.0, 1.0), (0.3, 0.5), (2.0, 0.1)):
                merged = merge(method, a, [a, factor * a], coefficients)
                assert float(merged.float().norm()) <= 3.05 * float(a.float().norm())  # not a number would fail, too


@pytest.mark.parametrize(("degrees", "paper", "mergekit"), [(0, 1, 1), (60, 2 / 3, 2 / 3), (90, 0, 0), (120, 0, -2)])
def test_model_stock_stops_between_base_and_mean(degrees: float, paper: float, mergekit: float) -> None:
    base = torch.tensor([3.0, 4.0], dtype=torch.float64)
    sources = [base + at(0, 0.5), base + at(degrees, 0.2)]
    middle = (at(0, 0.5) + at(degrees, 0.2)) / 2
    close(merge("model_stock", base, sources), base + paper * middle, 1e-12)
    close(merge("model_stock", base, sources, convention="mergekit"), base + mergekit * middle, 1e-12)


def test_model_stock_at_the_pole_gives_the_base() -> None:
    """Two opposite task vectors, and three at 120°: 1 + (N − 1) c is zero."""
    opposite = [at(0), at(180, 3.0)]
    thirds = [at(0, 2.0), at(120), at(240)]
    for sources in (opposite, thirds):
        close(merge("model_stock", ZERO.double(), sources), ZERO.double(), 1e-12)
    close(merge("model_stock", ZERO.double(), opposite, convention="mergekit"), ZERO.double(), 1e-12)


def test_model_stock_row_by_row() -> None:
    a = torch.stack([at(0), at(0), at(0)])
    b = torch.stack([at(0), at(60), at(90)])
    wanted = torch.stack([at(0), (at(0) + at(60)) / 3, 0 * at(0)])
    close(merge("model_stock", torch.zeros(3, 2, dtype=torch.float64), [a, b], row_wise=True), wanted, 1e-12)
    cosine = float((a * b).sum()) / 3
    whole = 2 * cosine / (1 + cosine) * (a + b) / 2
    close(merge("model_stock", torch.zeros(3, 2, dtype=torch.float64), [a, b]), whole, 1e-12)
