"""How much better a candidate looked where it was selected than where it was not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from search.statistics.intervals import Interval
from search.statistics.samples import StatisticsError


@dataclass(frozen=True)
class Optimism:
    """Search score − holdout score, turned so that positive means that the search flattered.

    Attributes:
        value: in the metric's unit; nan where either score is missing.
        low: lower limit.
        high: upper limit.
        level: confidence of the limits.
    """

    value: float
    low: float
    high: float
    level: float


def optimism(search: Interval, holdout: Interval, direction: Literal["maximize", "minimize"] = "maximize") -> Optimism:
    """Difference of two independent scores with the limits of both combined: each side's distance squared and added
    (Newcombe, Statist. Med. 17, 1998, method 10 for proportions; Zou & Donner, Statist. Med. 27, 2008, in general).

    The limits are those of the sampling of items. They do not correct the search score for having been selected: that
    is what the value estimates.

    Args:
        search: of one candidate on the items it was selected on.
        holdout: of the same candidate on others, at the same level.
        direction: of the metric.

    Raises:
        StatisticsError: two levels.
    """
    if search.level != holdout.level:
        raise StatisticsError(f"expected intervals of one level, found {search.level} and {holdout.level}")
    difference = search.value - holdout.value
    if math.isnan(difference):
        return Optimism(math.nan, -math.inf, math.inf, search.level)
    low = difference - math.hypot(search.value - search.low, holdout.high - holdout.value)
    high = difference + math.hypot(search.high - search.value, holdout.value - holdout.low)
    if direction == "minimize":
        difference, low, high = -difference, -high, -low
    return Optimism(difference, low, high, search.level)
