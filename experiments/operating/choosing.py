"""What is chosen from what was measured, and how a spread over seeds is written. No model, no torch."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")


def best(scores: Mapping[T, float]) -> T:
    """What scores highest; the first of equals."""
    return max(scores, key=lambda each: scores[each])


def most_kept(points: Mapping[T, tuple[float, float]], level: float) -> T | None:
    """Of what has unlearned enough, what keeps most.

    Args:
        points: candidate -> (score of what shall go, score of what shall stay).
        level: the first may be this high at most.

    Returns:
        The candidate, None if none has unlearned enough. Of equals the one with less of what shall go.
    """
    able = {each: (kept, -gone) for each, (gone, kept) in points.items() if gone <= level}
    return max(able, key=lambda each: able[each]) if able else None


def within(points: Mapping[T, Sequence[float]], floors: Sequence[float]) -> T:
    """The highest first score of those whose other scores reach their floors; the best mean of all scores if none does.

    Args:
        points: candidate -> [1 + n] scores.
        floors: [n] what the scores after the first have to reach.
    """
    able = {
        each: scores[0]
        for each, scores in points.items()
        if all(score >= floor for score, floor in zip(scores[1:], floors, strict=True))
    }
    return best(able or {each: statistics.fmean(scores) for each, scores in points.items()})


def spread(values: Sequence[float], scale: float = 100.0, digits: int = 1) -> str:
    """Mean ± standard deviation over seeds (n − 1); ``–`` where there are none."""
    if not values:
        return "–"
    scaled = [scale * value for value in values]
    if len(scaled) == 1:
        return f"{scaled[0]:.{digits}f}"
    return f"{statistics.fmean(scaled):.{digits}f} ± {statistics.stdev(scaled):.{digits}f}"
