"""From a gene in [0, 1] to the number that it stands for, and back: an interval, or equally wide steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search.errors import SearchError

Array = npt.NDArray[np.float64]

DIGITS = 12
GRID = 64
"""Densities are searched in steps of 1/64 (DESIGN §5): their thresholds are found in one pass."""


class SpaceError(SearchError):
    """A space, a genome or a recipe that do not fit: one paragraph, shown without a traceback."""


@dataclass(frozen=True)
class Bounds:
    """From low to high, both included."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise SpaceError(f"expected finite bounds with low < high, found [{self.low}, {self.high}]")


@dataclass(frozen=True)
class Interval:
    """Real numbers from low to high, to 12 significant digits."""

    low: float
    high: float

    def value(self, gene: float) -> float:
        """The number that a gene stands for."""
        return float(f"{self.low + (self.high - self.low) * gene:.{DIGITS - 1}e}") + 0.0

    def gene(self, value: float) -> float:
        """The gene in [0, 1] of a number.

        Raises:
            SpaceError: it lies outside.
        """
        place = (value - self.low) / (self.high - self.low)
        if not -1e-9 <= place <= 1 + 1e-9:
            raise SpaceError(f"expected a number in [{self.low:g}, {self.high:g}], found {value:g}")
        return min(1.0, max(0.0, place))

    def settled(self, gene: float) -> float:
        """The one gene of all that stand for the same number."""
        return gene


@dataclass(frozen=True)
class Steps:
    """Numbers first/per, (first + 1)/per, …, last/per, each with an equal share of [0, 1]; integers where per is 1."""

    first: int
    last: int
    per: int = 1

    def value(self, gene: float) -> float | int:
        """The number that a gene stands for."""
        step = self.first + min(int(gene * self._count), self._count - 1)
        return step if self.per == 1 else step / self.per

    def gene(self, value: float) -> float:
        """The middle of the genes that stand for a number.

        Raises:
            SpaceError: it is none of these numbers.
        """
        step = value * self.per
        if step != round(step) or not self.first <= step <= self.last:
            of = f"multiples of 1/{self.per}" if self.per > 1 else "integers"
            ends = f"{self.first / self.per:g} to {self.last / self.per:g}"
            raise SpaceError(f"expected one of the {of} from {ends}, found {value:g}")
        return (round(step) - self.first + 0.5) / self._count

    def settled(self, gene: float) -> float:
        """The one gene of all that stand for the same number."""
        return self.gene(self.value(gene))

    @property
    def _count(self) -> int:
        return self.last - self.first + 1


Scale = Interval | Steps


def density_steps(low: float, high: float) -> Steps:
    """The densities on the grid from low to high.

    Raises:
        SpaceError: they do not lie in [0, 1], or fewer than two multiples of 1/64 lie between them.
    """
    first, last = math.ceil(low * GRID - 1e-9), math.floor(high * GRID + 1e-9)
    if not 0.0 <= low < high <= 1.0 or first >= last:
        raise SpaceError(
            f"expected bounds of the density in [0, 1] with two or more multiples of 1/{GRID} between them, found "
            f"[{low:g}, {high:g}]; to fix a density, give it among the method's parameters"
        )
    return Steps(first, last, GRID)


def rounded(values: Array, digits: int = DIGITS) -> Array:
    """To significant digits (15 at most), so that sums that differ in their last bits are one number; no negative zero.

    A whole number below 2⁵³ divided by a power of ten up to 1e22 is the double nearest to that decimal, hence rounding
    twice is rounding once.
    """
    size = np.abs(values)
    places = digits - 1 - np.floor(np.log10(np.where(size > 0, size, 1.0)))
    power = 10.0 ** np.clip(places, 0, 22)
    return np.asarray(np.rint(values * power) / power + 0.0)
