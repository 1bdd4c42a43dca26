"""Does a number rise with the model's size? Paired by training seed, exact, and honest about few seeds.

A seed is a block: its models of all sizes saw the same examples in the same order. The trend is the slope of the value
over log2(width) with a level of its own for every seed (least squares). Its p-value is exact: under the hypothesis that
size does not matter, the values of one seed may be exchanged between its sizes; all exchanges of all seeds are counted.
Nothing is assumed of the distribution, but the smallest p that so few seeds can give is large, and said.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

Block = Mapping[float, float]
"""log2(width) -> value, of one training seed."""

LEVEL = 0.05
POWER = 0.8
MOST = 1_000_000
"""Exchanges that are all counted; of more (four seeds of five sizes have 2·10⁸) so many are drawn."""

_DRAWS = 400
_FEW = 20_000


@dataclass(frozen=True)
class Trend:
    """Of one number over the sizes.

    Attributes:
        seeds: that have at least two sizes.
        slope: change of the value for twice the width, pooled over the seeds.
        by_seed: seed -> its own slope.
        p: two-sided, of the exact test; 1 with nothing to exchange.
        least: the smallest p that these seeds and sizes can give, were the trend perfect.
        low, high: 95 % interval of the mean of ``by_seed`` by Student's t, which assumes normal slopes; nan for fewer
            than two seeds.
        low_left, high_left: smallest and largest pooled slope with one seed left out; nan for fewer than two.
        residual: standard deviation of what the slope and the seeds' levels leave; nan without degrees of freedom.
    """

    seeds: int
    slope: float
    by_seed: Mapping[int, float]
    p: float
    least: float
    low: float
    high: float
    low_left: float
    high_left: float
    residual: float


def trend(blocks: Mapping[int, Block]) -> Trend:
    """The trend of a number.

    Args:
        blocks: training seed -> values; a seed with fewer than two sizes says nothing and is left out.

    Raises:
        ValueError: no seed has two sizes.
    """
    known = {seed: dict(sorted(block.items())) for seed, block in blocks.items() if len(block) > 1}
    if not known:
        raise ValueError("expected at least one training seed with two sizes or more")
    slope = pooled_slope(list(known.values()))
    by_seed = {seed: pooled_slope([block]) for seed, block in known.items()}
    own = list(by_seed.values())
    low = high = math.nan
    if len(own) > 1:
        half = student.ppf(0.975, len(own) - 1) * statistics.stdev(own) / math.sqrt(len(own))
        low, high = float(statistics.fmean(own) - half), float(statistics.fmean(own) + half)
    without = [
        pooled_slope([block for seed, block in known.items() if seed != left]) for left in known if len(known) > 1
    ]
    return Trend(
        len(known), slope, by_seed, exact_p(list(known.values())), least_p(list(known.values())), low, high,
        min(without, default=math.nan), max(without, default=math.nan), _residual(list(known.values()), slope),
    )  # fmt: skip


def pooled_slope(blocks: Sequence[Block]) -> float:
    """Least squares over the sizes with a level for every seed."""
    over = under = 0.0
    for block in blocks:
        x, y = _columns(block)
        over += float((x - x.mean()) @ y)
        under += float((x - x.mean()) @ (x - x.mean()))
    return over / under


def exact_p(blocks: Sequence[Block], most: int = MOST) -> float:
    """Two-sided: twice the share of all exchanges within seeds whose pooled slope is at least as steep, the same way.

    Args:
        blocks: values by size, of each seed.
        most: exchanges that are counted; where there are more, so many are drawn, always the same, and the one that was
            found is among them.
    """
    sums = _exchanges(blocks, most)
    found = sum(float((x - x.mean()) @ y) for x, y in map(_columns, blocks))
    tolerance = 1e-9 * max(1.0, float(np.abs(sums).max()))
    tail = min(np.mean(sums >= found - tolerance), np.mean(sums <= found + tolerance))
    return min(1.0, 2.0 * float(tail))


def least_p(blocks: Sequence[Block]) -> float:
    """What :func:`exact_p` gives where the values rise with size in every seed, by the same."""
    return exact_p([{size: float(place) for place, size in enumerate(sorted(block))} for block in blocks])


def detectable(blocks: Sequence[Block], residual: float, seed: int = 0) -> float:
    """The smallest slope that the exact test would find (two-sided 5 %) in 4 of 5 cases, by simulation.

    Normal noise of this standard deviation is drawn for the same seeds and sizes. inf where no slope would be found:
    the smallest p that is possible is above 5 %.

    Args:
        blocks: say which seeds have which sizes.
        residual: standard deviation of the noise, in units of the value.
        seed: of the draws.
    """
    if least_p(blocks) > LEVEL or not residual > 0.0:
        return math.inf if least_p(blocks) > LEVEL else 0.0
    generator = np.random.default_rng(seed)
    noise = [generator.normal(size=(_DRAWS, len(block))) for block in blocks]

    def power(slope: float) -> float:
        hits = 0
        for draw in range(_DRAWS):
            made = [
                {size: slope * size + residual * each[draw][place] for place, size in enumerate(sorted(block))}
                for block, each in zip(blocks, noise, strict=True)
            ]
            hits += exact_p(made, _FEW) <= LEVEL
        return hits / _DRAWS

    low, high = 0.0, residual
    while power(high) < POWER:
        low, high = high, 2.0 * high
    for _ in range(6):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def _exchanges(blocks: Sequence[Block], most: int) -> np.ndarray:
    """[∏ sizes!, at most ``most``] Σ (x − mean x)·y of the ways to exchange the values within seeds."""
    columns = [_columns(block) for block in blocks]
    if math.prod(math.factorial(len(y)) for _, y in columns) > most:
        generator = np.random.default_rng(0)
        drawn = [generator.permuted(np.tile(y, (most, 1)), axis=1) for _, y in columns]
        for rows, (_, y) in zip(drawn, columns, strict=True):
            rows[0] = y
        return np.asarray(sum(rows @ (x - x.mean()) for rows, (x, _) in zip(drawn, columns, strict=True)))
    sums = np.zeros(1)
    for x, y in columns:
        own = np.array(list(itertools.permutations(y))) @ (x - x.mean())
        sums = (sums[:, None] + own[None, :]).ravel()
    return sums


def _residual(blocks: Sequence[Block], slope: float) -> float:
    squares, freedom = 0.0, -1
    for block in blocks:
        x, y = _columns(block)
        left = y - y.mean() - slope * (x - x.mean())
        squares += float(left @ left)
        freedom += len(block) - 1
    return math.sqrt(squares / freedom) if freedom > 0 else math.nan


def _columns(block: Block) -> tuple[np.ndarray, np.ndarray]:
    sizes = sorted(block)
    return np.array(sizes, dtype=float), np.array([block[size] for size in sizes], dtype=float)
