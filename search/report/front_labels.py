"""Where the names of marks stand in a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search.report.label_boxes import Box

_SIDES = (
    "top right", "bottom right", "top left", "bottom left", "middle right", "middle left", "top center",
    "bottom center",
)  # fmt: skip
_CROWDED = 250.0
"""Covered pixels² beyond which a name is left to the legend."""


def label_sides(
    names: Mapping[int, str], places: Mapping[int, tuple[float, float]], width: float = 560.0
) -> dict[int, str]:
    """Where each name stands beside its mark so that few names cover each other, or a mark: the best free side, the
    first named first. Reckoned in the pixels of a plot of middling size; an estimate is enough.

    Args:
        names: candidate -> its name, the most important first.
        places: of all marks that must not be covered: candidate -> (x, y) in any units.
        width: of the plot, in pixels, about.

    Returns:
        candidate -> plotly's ``textposition``; those without a free side are left out.
    """
    if not places:
        return {}
    ids = list(places)
    xs = _stretched([places[id][0] for id in ids], width)
    ys = _stretched([places[id][1] for id in ids], 320.0)
    at = dict(zip(ids, zip(xs, ys, strict=True), strict=True))
    taken = [Box(x - 7, y - 7, x + 7, y + 7) for x, y in at.values()]
    found = {}
    for place, (id, name) in enumerate(names.items()):
        boxes = [_box(*at[id], 6.5 * len(name), side) for side in _SIDES]
        costs = [
            sum(box.overlap(other) for other in taken)
            + 20 * (max(0.0, -30 - box.left) + max(0.0, box.right - width - 60))
            for box in boxes
        ]
        best = costs.index(min(costs))
        if place and costs[best] > _CROWDED:
            continue
        found[id] = _SIDES[best]
        taken.append(boxes[best])
    return found


def _stretched(values: Sequence[float], length: float) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / ((high - low) or 1.0) * length for value in values]


def _box(x: float, y: float, length: float, side: str) -> Box:
    left = x + 8 if "right" in side else x - 8 - length if "left" in side else x - length / 2
    bottom = y + 8 if "top" in side else y - 22 if "bottom" in side else y - 7
    return Box(left, bottom, left + length, bottom + 14)
