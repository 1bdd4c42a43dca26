"""Where in a model something stands out: runs of depths of one module kind, in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

from merging.diagnose.results import Diagnosis, Measures
from merging.recipe import Group

SMALLEST = 0.002
"""Groups with a smaller share of the model's elements (norms, biases) are not looked at: their numbers scatter."""

_PLAIN = {"mlp": "MLP", "attention": "attention", "norm": "norms", "other": "other weights"}


@dataclass(frozen=True)
class Region:
    """Groups of one kind at neighbouring depths.

    Attributes:
        stack, kind: as in :class:`merging.recipe.Group`.
        first, last: depths, both in it; None for what lies outside the blocks.
        value: the most extreme of its groups' values.
        share: of the model's elements, in [0, 1].
    """

    stack: str
    kind: str
    first: int | None
    last: int | None
    value: float
    share: float

    @property
    def text(self) -> str:
        """``layers 18–24 MLP``, ``layer 3 attention of encoder``, ``the embedding``."""
        kind = _PLAIN.get(self.kind, self.kind)
        tower = f" of {self.stack}" if self.stack else ""
        if self.first is None:
            return f"the {kind}{tower}"
        span = f"layer {self.first}" if self.first == self.last else f"layers {self.first}–{self.last}"
        return f"{span} {kind}{tower}"


def regions(diagnosis: Diagnosis, value: Callable[[Measures], float | None], stands_out: float) -> list[Region]:
    """Runs of groups whose value reaches a threshold, the most extreme first.

    What is almost everywhere stands out nowhere: where half of a model's elements reach it, there are none.

    Args:
        diagnosis: with its groups.
        value: of a group; None where it has none. Larger stands out.
        stands_out: the threshold.
    """
    elements = max(diagnosis.whole.elements, 1)
    found: dict[tuple[str, str], list[tuple[Group, float, int]]] = {}
    for group, measures in diagnosis.groups.items():
        number = value(measures) if measures.elements >= SMALLEST * elements else None
        if number is not None and number >= stands_out:
            found.setdefault((group.stack, group.kind), []).append((group, number, measures.elements))
    runs = [
        Region(
            stack,
            kind,
            run[0][0].depth,
            run[-1][0].depth,
            max(number for _, number, _ in run),
            sum(count for _, _, count in run) / elements,
        )
        for (stack, kind), members in found.items()
        for run in _neighbours(members)
    ]
    if sum(each.share for each in runs) >= 0.5:
        return []
    return sorted(runs, key=lambda each: (-each.value, each.stack, each.kind, each.first or 0))


def listed(places: list[Region], most: int = 3) -> str:
    """The first few, in words."""
    named = [each.text for each in places[:most]]
    more = len(places) - len(named)
    if more:
        named.append(f"{more} more {'place' if more == 1 else 'places'}")
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def _neighbours(members: list[tuple[Group, float, int]]) -> list[list[tuple[Group, float, int]]]:
    """Members of one kind, cut into runs of successive depths."""
    ordered = sorted(members, key=lambda each: -1 if each[0].depth is None else each[0].depth)
    outside = [[each] for each in ordered if each[0].depth is None]
    inside = [each for each in ordered if each[0].depth is not None]
    runs = groupby(enumerate(inside), key=lambda pair: (pair[1][0].depth or 0) - pair[0])
    return [*outside, *([each for _, each in run] for _, run in runs)]
