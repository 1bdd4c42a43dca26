"""Where blocks of layers should begin that get coefficients of their own: where the task vectors' statistics change.

Of every depth there are the experts' norm ratios (in logarithms, since they differ by factors), the cosines of all
pairs, and their sign conflicts. Depths are cut into runs in which these are about constant: of all ways to cut them
into k runs the one with the least squares is found by dynamic programming (Bellman 1961), and k by a penalty on every
further border.

How far values scatter from depth to depth is the lesser of what their first and their second differences say, in the
median: a few steps change the former little, a slope the latter. Of few depths it is widened, as those tell little. A
further border must explain more than chance would at the best of all places, by the tail bound of Laurent and Massart
(2000) for χ², and a share of the whole variation that is worth a gene.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from merging.diagnose.measures import Tally
from merging.diagnose.results import Diagnosis, Measures, Settings
from merging.diagnose.stream import OnTensor, Walk
from merging.recipe import MergingError
from merging.sources import Sources

MOST_BLOCKS = 8
"""Blocks that are placed at most where their number is not given; and no more than half of the depths, rounded up."""

FALSE_BORDER = 0.05
"""With statistics that only scatter, how often a border is placed, at most."""

WORTH = 0.05
"""Of the sum of squares around the mean, what a border has to explain."""

# Median of the first and the second differences, without sign, of independent normal values of deviation 1.
_DIFFERENCES = {1: 0.6745 * math.sqrt(2.0), 2: 0.6745 * math.sqrt(6.0)}

# Of the deviation of a value over all depths, the least that is taken for scatter: without noise everything is a step.
_LEAST_SCATTER = 0.05

# By how much a scatter that was seen in few differences is widened: simulated (tests/merging/test_diagnose_borders.py).
_FEW = 3.0

# ‖τ‖/‖θ0‖ below this fraction of the largest of an expert is taken for that: a layer that was not trained has none.
_LEAST_RATIO = 0.1


@dataclass(frozen=True)
class DepthProfile:
    """What borders are placed by.

    Attributes:
        aliases: of the experts, in order.
        depths: (stack, depth) -> measures of a block, without singular values.
    """

    aliases: tuple[str, ...]
    depths: dict[tuple[str, int], Measures]

    @staticmethod
    def of(diagnosis: Diagnosis) -> DepthProfile:
        """What a diagnosis says of depths."""
        return DepthProfile(diagnosis.aliases, diagnosis.depths)

    @property
    def stacks(self) -> tuple[str, ...]:
        """Names of the stacks of blocks: ("",) where there is one, () where there is none."""
        return tuple(sorted({stack for stack, _ in self.depths}))


def depth_profile(
    sources: Sources, density: float = 0.2, seed: int = 0, on_tensor: OnTensor | None = None
) -> DepthProfile:
    """What borders need, and no more: one pass over the tensors of the blocks, nothing of which is decomposed.

    Args:
        sources: a base and one expert or more.
        density, seed: see :class:`merging.diagnose.results.Settings`.
        on_tensor: see :func:`merging.diagnose.stream.diagnose`.

    Raises:
        MergingError: as :func:`merging.diagnose.stream.diagnose`.
    """
    settings = Settings(density=density, seed=seed, spectra="off")
    walk = Walk(sources, settings.density, settings.seed)
    groups = {name: sources.layout.group(name) for name in sources.tensors}
    inside = [name for name, group in groups.items() if group.depth is not None]
    depths: dict[tuple[str, int], Tally] = {}
    with walk.threads() as threads:
        for number, name in enumerate(inside):
            if on_tensor is not None:
                on_tensor(number, len(inside), name)
            with sources.borrowed(name):
                tally = walk.count(name, threads)
            walk.pool.forget(name)
            place = (groups[name].stack, groups[name].depth or 0)
            depths.setdefault(place, Tally(len(walk.aliases))).join(tally)
    if on_tensor is not None:
        on_tensor(len(inside), len(inside), "")
    return DepthProfile(walk.aliases, {place: depths[place].measures(walk.aliases) for place in sorted(depths)})


def auto_borders(
    profile: Diagnosis | DepthProfile, blocks: int | None = None, stack: str | None = None
) -> tuple[int, ...]:
    """First depths of the blocks of one stack, 0 the first of them.

    Args:
        profile: of the models; depths of all experts.
        blocks: how many; as many as there are depths where those are fewer. None: 1 to :data:`MOST_BLOCKS`, as many as
            the statistics support.
        stack: of which stack; None: the only one, or of several the one with the most blocks.

    Returns:
        Ascending; () where the model has no blocks.

    Raises:
        MergingError: there is no such stack, or fewer than 1 block is asked for.
    """
    if blocks is not None and (type(blocks) is not int or blocks < 1):
        raise MergingError(f"expected a number of blocks from 1 on, or auto, found {blocks!r}")
    if isinstance(profile, Diagnosis):
        profile = DepthProfile.of(profile)
    if not profile.depths and stack is None:
        return ()
    if stack is None:
        stack = max(profile.stacks, key=lambda each: len(_of_stack(profile, each)))
    if stack not in profile.stacks:
        known = ", ".join(map(repr, profile.stacks)) or "there is none"
        raise MergingError(f"expected the name of a stack of blocks ({known}), found {stack!r}")
    values = _features(_of_stack(profile, stack), profile.aliases)
    if not values.shape[1]:  # all depths are alike
        found = np.array_split(np.arange(len(values)), min(blocks or 1, len(values)))
        return tuple(int(each[0]) for each in found)
    return segmentation(values, blocks)


def borders_by_stack(profile: Diagnosis | DepthProfile, blocks: int | None = None) -> dict[str, tuple[int, ...]]:
    """As :func:`auto_borders`, of every stack of blocks."""
    return {stack: auto_borders(profile, blocks, stack) for stack in profile.stacks}


def segmentation(values: np.ndarray, blocks: int | None = None) -> tuple[int, ...]:
    """The runs of rows in which values are most nearly constant.

    Args:
        values: [depths, features], each feature in units of its scatter.
        blocks: how many runs; None: see the module.

    Returns:
        First row of every run, ascending.
    """
    depths, features = values.shape
    most = min((depths + 1) // 2, MOST_BLOCKS) if blocks is None else min(depths, blocks)
    costs, starts = _partitions(_costs(values), most)
    if blocks is not None:
        return starts[-1]
    surprise = math.log(max(depths, 2) / FALSE_BORDER)
    chance = features + 2.0 * math.sqrt(features * surprise) + 2.0 * surprise
    price = max(chance, WORTH * costs[0])
    best = min(range(most), key=lambda more: costs[more] + price * more)
    return starts[best]


def _of_stack(profile: DepthProfile, stack: str) -> list[Measures]:
    return [profile.depths[place] for place in sorted(profile.depths) if place[0] == stack]


def _features(depths: Sequence[Measures], aliases: Sequence[str]) -> np.ndarray:
    """[depths, features] in units of their scatter; those that are the same at all depths are left out."""
    pairs = list(combinations(aliases, 2))
    ratios = np.array([[each.norm_ratio.get(alias, 0.0) for alias in aliases] for each in depths])
    least = np.where(ratios.max(0) > 0.0, ratios.max(0) * _LEAST_RATIO, 1.0)
    families = [
        np.log(np.maximum(ratios, least)),
        np.array([[each.cosine.get(pair, 0.0) for pair in pairs] for each in depths]),
        np.array([[each.sign_conflict.get(pair, 0.5) for pair in pairs] for each in depths]),
    ]
    scaled = [_in_scatter(family) for family in families if family.size]
    return np.concatenate([np.empty((len(depths), 0)), *scaled], axis=1)


def _in_scatter(values: np.ndarray) -> np.ndarray:
    """One family of features, such as all cosines, each over how far it scatters from depth to depth."""
    depths = len(values)
    deviation = values.std(0)
    varied = deviation > 1e-9 * np.abs(values).max(0).clip(1e-30)
    values, deviation = values[:, varied], deviation[varied]
    if depths < 2 or not values.size:
        return np.empty((depths, 0))
    orders = [order for order in _DIFFERENCES if order < depths]
    scatter = np.min([_scatter(values, order) for order in orders], axis=0) * (1.0 + _FEW / (depths - 1))
    scatter = np.maximum(scatter, _LEAST_SCATTER * deviation)
    found: np.ndarray = (values - values.mean(0)) / scatter
    return found


def _scatter(values: np.ndarray, order: int) -> np.ndarray:
    """[features] deviation of independent noise that would have these differences; at least that of the family."""
    steps = np.abs(np.diff(values, n=order, axis=0))
    found: np.ndarray = np.maximum(np.median(steps, axis=0), np.median(steps)) / _DIFFERENCES[order]
    return found


def _costs(values: np.ndarray) -> np.ndarray:
    """[depths, depths + 1] squared distances of the rows start … stop − 1 from their mean."""
    depths = len(values)
    sums = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(0)])
    squares = np.concatenate([[0.0], (values**2).sum(1).cumsum()])
    costs = np.zeros((depths, depths + 1))
    for start in range(depths):
        for stop in range(start + 1, depths + 1):
            total = sums[stop] - sums[start]
            costs[start, stop] = max(0.0, squares[stop] - squares[start] - total @ total / (stop - start))
    return costs


def _partitions(costs: np.ndarray, most: int) -> tuple[list[float], list[tuple[int, ...]]]:
    """Of the best way to cut all rows into 1 … ``most`` runs: its cost, and the first rows of the runs."""
    depths = len(costs)
    least = costs[0].copy()  # of the rows before each stop
    cuts: list[np.ndarray] = []
    totals = [float(least[depths])]
    found: list[tuple[int, ...]] = [(0,)]
    for number in range(1, most):
        cut = np.zeros(depths + 1, dtype=int)
        longer = np.full(depths + 1, np.inf)
        for stop in range(number + 1, depths + 1):
            starts = np.arange(number, stop)
            totalled = least[starts] + costs[starts, stop]
            cut[stop] = starts[int(totalled.argmin())]
            longer[stop] = totalled.min()
        cuts.append(cut)
        least = longer
        totals.append(float(least[depths]))
        first: list[int] = []
        stop = depths
        for each in reversed(cuts):
            stop = int(each[stop])
            first.append(stop)
        found.append((0, *reversed(first)))
    return totals, found
