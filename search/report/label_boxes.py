"""Where a name may stand beside its mark so that it covers little: rectangles in pixels, and what they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Shared area."""
        across = min(self.right, other.right) - max(self.left, other.left)
        up = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, across) * max(0.0, up)

    @property
    def area(self) -> float:
        """In square pixels."""
        return (self.right - self.left) * (self.top - self.bottom)

    def gap(self, x: float, y: float) -> float:
        """How far a point is from it."""
        return math.hypot(max(self.left - x, x - self.right, 0.0), max(self.bottom - y, y - self.top, 0.0))


def places(x: float, y: float, width: float, height: float) -> list[Box]:
    """Where a name may stand around its mark, the nearest first."""
    found = []
    for distance in (8.0, 20.0, 34.0, 52.0):
        for dx, dy in ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)):
            aside = distance * (0.7 if dy else 1.2)
            left = x + aside if dx > 0 else x - aside - width if dx < 0 else x - width / 2
            middle = y + dy * (0.7 * distance + height / 2)
            found.append(Box(left, middle - height / 2, left + width, middle + height / 2))
    return found


def cost(box: Box, taken: list[Box], frame: Box, at: tuple[float, float]) -> float:
    """What covers something or leaves the frame is bad; what is far from its mark a little."""
    return sum(box.overlap(each) for each in taken) + 3.0 * (box.area - box.overlap(frame)) + 3.0 * box.gap(*at)
