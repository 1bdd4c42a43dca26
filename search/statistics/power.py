"""What a number of items can resolve, before anything is evaluated.

Paired tests of 0/1 items: Connor, Biometrics 43, 1987 (after Miettinen 1968): with discordance ψ, the share of items on
which two systems differ, and difference δ,  n = (z_α √ψ + z_β √(ψ − δ²))² / δ². For other items, whose differences have
the standard deviation s, n = (z_α + z_β)² s² / δ².
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from search.statistics.intervals import wilson
from search.statistics.samples import StatisticsError


def items_needed(
    difference: float,
    *,
    discordance: float | None = None,
    sd: float | None = None,
    alpha: float = 0.05,
    power: float = 0.8,
    sides: int = 2,
) -> int:
    """Items on which a true difference is found significant with probability ``power``.

    Args:
        difference: > 0, in the metric's unit (0.02: two points of accuracy); at most the discordance.
        discordance: share of 0/1 items on which the two systems differ, in (0, 1]. Give it or ``sd``.
        sd: standard deviation of the items' paired differences, > 0.
        alpha: level of the test, after whatever adjustment for many tests.
        power: in (0, 1).
        sides: 1 or 2.

    Raises:
        StatisticsError: neither or both of discordance and sd, or anything out of range.
    """
    at_level, at_power = _quantiles(alpha, power, sides)
    spread = _spread(discordance, sd)
    if not 0.0 < difference <= (math.inf if discordance is None else discordance):
        raise StatisticsError(
            f"expected a difference above 0 and no larger than the discordance, found {difference}: systems that "
            "differ on a share of the items cannot differ by more in their means"
        )
    rest = spread if discordance is None else math.sqrt(discordance - difference**2)
    return math.ceil(((at_level * spread + at_power * rest) / difference) ** 2 - 1e-9)


def detectable_difference(
    n: int,
    *,
    discordance: float | None = None,
    sd: float | None = None,
    alpha: float = 0.05,
    power: float = 0.8,
    sides: int = 2,
) -> float:
    """The smallest true difference that a paired test on ``n`` items finds with probability ``power``.

    Arguments and errors as for :func:`items_needed`, whose inverse it is.

    Returns:
        In the metric's unit; nan where no difference that such a discordance allows can be found on so few items.
    """
    at_level, at_power = _quantiles(alpha, power, sides)
    spread = _spread(discordance, sd)
    if n < 1:
        return math.nan
    if discordance is None:
        return (at_level + at_power) * spread / math.sqrt(n)
    # the larger root of δ²(n + z_β²) − 2 δ z_α √(nψ) + ψ (z_α² − z_β²) = 0
    inner = n + at_power**2 - at_level**2
    if inner < 0.0:
        return math.nan
    found = spread * (math.sqrt(n) * at_level + at_power * math.sqrt(inner)) / (n + at_power**2)
    return found if found <= discordance else math.nan


def half_width(n: int, share: float = 0.5, level: float = 0.95) -> float:
    """Half the width of Wilson's interval for ``share`` of ``n`` 0/1 items; nan without items."""
    if n < 1:
        return math.nan
    low, high = wilson(share * n, n, level)
    return (high - low) / 2.0


def _quantiles(alpha: float, power: float, sides: int) -> tuple[float, float]:
    if not (0.0 < alpha < 1.0 and 0.0 < power < 1.0 and sides in (1, 2)):
        raise StatisticsError(
            f"expected alpha and power between 0 and 1 and 1 or 2 sides, found alpha {alpha}, power {power}, sides "
            f"{sides}"
        )
    at_level, at_power = special.ndtri(np.array([1.0 - alpha / sides, power]))
    return float(at_level), float(at_power)


def _spread(discordance: float | None, sd: float | None) -> float:
    """Standard deviation of the paired differences where there is no difference."""
    if (discordance is None) == (sd is None):
        raise StatisticsError("expected either the discordance of 0/1 items or the sd of paired differences, not both")
    if discordance is not None:
        if not 0.0 < discordance <= 1.0:
            raise StatisticsError(f"expected a discordance in (0, 1], found {discordance}")
        return math.sqrt(discordance)
    if sd is None or not 0.0 < sd < math.inf:
        raise StatisticsError(f"expected a standard deviation above 0, found {sd}")
    return sd
