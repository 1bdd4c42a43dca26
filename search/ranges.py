"""Estimates with their range; durations and sizes as people say them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """What is expected, between what it may well come down to and what it may well grow to.

    Attributes:
        low: plausible from below.
        middle: expected.
        high: plausible from above; infinite where nothing bounds it.
    """

    low: float
    middle: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.middle <= self.high:
            raise ValueError(f"expected low <= middle <= high, found {self.low}, {self.middle}, {self.high}")

    @staticmethod
    def exactly(value: float) -> Range:
        """A range without width."""
        return Range(value, value, value)

    def __add__(self, other: Range) -> Range:
        """Ends add up: an outer bound, since the parts rarely all go wrong together."""
        return Range(self.low + other.low, self.middle + other.middle, self.high + other.high)

    def scaled(self, factor: float) -> Range:
        """All three times a factor >= 0."""
        return Range(self.low * factor, self.middle * factor, self.high * factor)

    def duration(self) -> str:
        """``3 h 20 min (2 h 10 min to 5 h)``, of seconds; the range is left out where it would say the same."""
        low, middle, high = duration(self.low), duration(self.middle), duration(self.high)
        return middle if low == middle == high else f"{middle} ({low} to {high})"

    def as_data(self) -> dict[str, float]:
        """For JSON."""
        return {"low": self.low, "middle": self.middle, "high": self.high}


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 4 h``: two units at most, and no more digits than people use.

    Args:
        seconds: >= 0; infinity is "without end", NaN is "unknown".
    """
    if math.isnan(seconds):
        return "unknown"
    if math.isinf(seconds):
        return "without end"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 89.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes and hours < 24 else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def precise(seconds: float) -> str:
    """The same for what may be very short: ``3.1 ms``, ``0.42 s``, ``12 min``."""
    if seconds < 0.0995:
        return f"{1000 * seconds:.2g} ms"
    return f"{seconds:.2g} s" if seconds < 9.95 else duration(seconds)


def size_text(size: float) -> str:
    """``14.0 GB``, ``16.6 MB``, ``0.59 MB``, of bytes; a size that is lacking is negative."""
    if abs(size) >= 1e8:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if abs(size) >= 1e6 else f"{size / 1e6:.2g} MB"
