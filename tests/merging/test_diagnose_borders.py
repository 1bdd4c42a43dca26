"""Block borders: planted changes are found, scatter gives none, and the cheap profile is the diagnosis's."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from diagnosed_models import noise, sources_of, zeros

from merging.diagnose import DepthProfile, Settings, auto_borders, depth_profile, diagnose
from merging.diagnose import borders as borders_module
from merging.diagnose.borders import MOST_BLOCKS, borders_by_stack, segmentation
from merging.diagnose.results import Measures
from merging.recipe import MergingError

AB = ("a", "b")


def profile_of(ratios: np.ndarray, cosines: np.ndarray, conflicts: np.ndarray, stack: str = "") -> DepthProfile:
    """Two experts, of which these are the numbers by depth."""
    depths = {
        (stack, depth): Measures(
            elements=100,
            base_norm=1.0,
            norm={"a": one, "b": two},
            norm_ratio={"a": float(one), "b": float(two)},
            cosine={AB: float(cosine)},
            sign_conflict={AB: float(conflict), "all": float(conflict)},
        )
        for depth, ((one, two), cosine, conflict) in enumerate(zip(ratios, cosines, conflicts, strict=True))
    }
    return DepthProfile(AB, depths)


def scattered(depths: int, seed: int, scatter: float = 0.01) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    ratios = 0.02 * np.exp(draw.normal(0, scatter, (depths, 2)))
    cosines = draw.normal(0.1, scatter, depths)
    return ratios, cosines, 0.5 - 0.5 * cosines + draw.normal(0, scatter, depths)


@pytest.mark.parametrize("planted", [(0, 12), (0, 1), (0, 23), (0, 6, 18), (0, 4, 8, 20), (0, 2, 9, 13, 19)])
def test_planted_borders(planted: tuple[int, ...]) -> None:
    for seed in range(3):
        ratios, cosines, conflicts = scattered(24, seed)
        for number, start in enumerate(planted[1:], start=1):
            ratios[start:] *= 1.4 if number % 2 else 0.6
            cosines[start:] += 0.15 if number % 2 else -0.1
            conflicts[start:] -= 0.1 * (-1) ** number
        profile = profile_of(ratios, cosines, conflicts)
        assert auto_borders(profile) == planted, seed
        assert auto_borders(profile, len(planted)) == planted, seed


@pytest.mark.parametrize("which", ["ratios", "cosines", "conflicts"])
def test_one_kind_of_change_is_enough(which: str) -> None:
    ratios, cosines, conflicts = scattered(16, 3)
    if which == "ratios":
        ratios[10:, 1] *= 1.5
    elif which == "cosines":
        cosines[10:] += 0.3
    else:
        conflicts[10:] += 0.3
    assert auto_borders(profile_of(ratios, cosines, conflicts)) == (0, 10)


@pytest.mark.parametrize("depths", [4, 8, 24])
def test_scatter_alone_gives_one_block(depths: int) -> None:
    found = [len(auto_borders(profile_of(*scattered(depths, seed)))) for seed in range(30)]
    assert sum(count > 1 for count in found) <= 30 * 2 * borders_module.FALSE_BORDER


def test_a_slope_is_cut_into_a_few_even_blocks() -> None:
    _, cosines, conflicts = scattered(32, 0)
    slope = 0.02 * np.exp(np.linspace(0, 2, 32))[:, None] * np.ones((1, 2))
    found = auto_borders(profile_of(slope, cosines, conflicts))
    sizes = np.diff([*found, 32])
    assert 2 <= len(found) <= MOST_BLOCKS and sizes.max() <= 2 * sizes.min() + 2


def test_the_number_of_blocks_can_be_given() -> None:
    profile = profile_of(*scattered(12, 0))
    for blocks in range(1, 13):
        found = auto_borders(profile, blocks)
        assert len(found) == blocks and found[0] == 0 and list(found) == sorted(set(found)) and found[-1] < 12
    assert auto_borders(profile, 40) == tuple(range(12))


def test_dynamic_programming_finds_the_least_squares() -> None:
    """Against all partitions."""
    values = np.random.default_rng(0).normal(size=(9, 3))

    def cost(starts: tuple[int, ...]) -> float:
        runs = [values[start:stop] for start, stop in zip(starts, (*starts[1:], 9), strict=True)]
        return sum(float(((run - run.mean(0)) ** 2).sum()) for run in runs)

    for blocks in range(1, 6):
        everything = [(0, *rest) for rest in combinations(range(1, 9), blocks - 1)]
        assert segmentation(values, blocks) == min(everything, key=cost)


def test_units_do_not_matter() -> None:
    ratios, cosines, conflicts = scattered(20, 1)
    ratios[13:] *= 1.3
    assert auto_borders(profile_of(ratios, cosines, conflicts)) == (0, 13)
    assert auto_borders(profile_of(1e-4 * ratios, 0.01 * cosines, conflicts)) == (0, 13)


def test_layers_that_were_not_trained() -> None:
    ratios, cosines, conflicts = scattered(12, 0)
    ratios[:5] = 0.0
    profile = profile_of(ratios, cosines, conflicts)
    for depth in range(5):  # of what is zero there is no cosine, and no sign
        profile.depths["", depth].cosine.clear()
        profile.depths["", depth].sign_conflict.clear()
    assert auto_borders(profile) == (0, 5)


def test_they_do_not_hide_another_border() -> None:
    """Of the logarithm of nearly nothing there is no end."""
    ratios, cosines, conflicts = scattered(16, 0)
    ratios[:5] *= 1e-6
    ratios[10:] *= 2.5
    assert auto_borders(profile_of(ratios, cosines, conflicts)) == (0, 5, 10)


def test_without_anything_to_go_by() -> None:
    same = profile_of(np.full((6, 2), 0.1), np.full(6, 0.2), np.full(6, 0.5))
    assert auto_borders(same) == (0,) and auto_borders(same, 3) == (0, 2, 4)
    assert auto_borders(DepthProfile(AB, {})) == ()
    single = profile_of(*scattered(1, 0))
    assert auto_borders(single) == (0,) and auto_borders(single, 4) == (0,)


@pytest.mark.parametrize("depths", range(1, 9))
def test_no_block_for_every_layer(depths: int) -> None:
    """However smooth the numbers are."""
    slope = 0.02 * np.exp(np.arange(depths))[:, None] * np.ones((1, 2))
    found = auto_borders(profile_of(slope, 0.1 * np.arange(depths), 0.5 - 0.05 * np.arange(depths)))
    assert len(found) <= (depths + 1) // 2


def test_several_stacks() -> None:
    ratios, cosines, conflicts = scattered(12, 0)
    ratios[7:] *= 2.0
    one, two = profile_of(ratios, cosines, conflicts, "decoder"), profile_of(*scattered(6, 1), "encoder")
    both = DepthProfile(AB, {**one.depths, **two.depths})
    assert borders_by_stack(both) == {"decoder": (0, 7), "encoder": (0,)}
    assert auto_borders(both) == (0, 7)  # of the one with more blocks
    assert auto_borders(both, 2, stack="encoder")[0] == 0


def test_what_is_refused() -> None:
    profile = profile_of(*scattered(6, 0))
    for wrong in (0, -1, True, 2.0):
        with pytest.raises(MergingError, match="expected a number of blocks from 1 on, or auto"):
            auto_borders(profile, wrong)  # type: ignore[arg-type]
    with pytest.raises(MergingError, match="expected the name of a stack of blocks"):
        auto_borders(profile, stack="vision")


def test_the_profile_of_models(tmp_path: Path) -> None:
    """Experts that pull together in the first layers and apart in the last ones, from weights to borders."""
    base = noise(zeros(depths=10, shape=(16, 24)), 0)
    one, two = noise(base, 1, 0.02), noise(base, 2, 0.02)
    for name in base:
        depth = int(name.split(".")[2]) if "layers" in name else 0
        if depth >= 6:
            two[name] = 0.5 * two[name] - 2.0 * one[name]
    sources = sources_of(tmp_path, base, a=one, b=two)
    told: list[tuple[int, int, str]] = []
    cheap = depth_profile(sources, on_tensor=lambda *each: told.append(each))
    assert auto_borders(cheap) == (0, 6)
    assert len(told) == 31 and told[-1] == (30, 30, "") and all("layers" in name for _, _, name in told[:-1])
    whole = diagnose(sources, Settings(spectra="off"))
    assert cheap == DepthProfile.of(whole) and auto_borders(whole) == (0, 6)
