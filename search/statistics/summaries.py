"""An interval from what is stored of a score: its value, its standard error, and how many items it is of."""

from __future__ import annotations

import math

from scipy import special

from search.statistics.intervals import Interval, wilson


def interval_of_score(value: float, error: float, n: int, bounds: tuple[float, float], level: float = 0.95) -> Interval:
    """Wilson's interval where value and error are those of n items of two values, the metric's bounds; else Student's.

    The item scores say more (:func:`search.statistics.interval`); this one needs no look at them, so a table of many
    candidates can have it.

    Args:
        value: of the metric.
        error: its standard error.
        n: items, or clusters, with a verdict.
        bounds: the metric's own; infinite where it has none. The limits stay inside.
        level: in (0, 1).
    """
    low, high = bounds
    width = high - low
    if n < 2 or not math.isfinite(error):
        return Interval(value, low, high, level, n, "bounds")
    if math.isfinite(width) and width > 0.0:
        share = min(1.0, max(0.0, (value - low) / width))
        binomial = width * math.sqrt(share * (1.0 - share) / (n - 1))
        if math.isclose(error, binomial, rel_tol=1e-6, abs_tol=1e-12):
            below, above = wilson(share * n, n, level)
            return Interval(value, min(value, low + width * below), max(value, low + width * above), level, n, "wilson")
        if error == 0.0:  # all alike: a share of others so large would have shown (the rule of three, exactly)
            unseen = 1.0 - ((1.0 - level) / 2.0) ** (1.0 / n)
            return Interval(
                value, value - unseen * (value - low), value + unseen * (high - value), level, n, "constant"
            )
    half = float(special.stdtrit(n - 1, 0.5 + level / 2.0)) * error
    return Interval(value, max(low, value - half), min(high, value + half), level, n, "t")
