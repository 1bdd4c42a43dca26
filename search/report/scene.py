"""What a picture of the front shows, in numbers: dots, marks, their intervals and the ranges of the axes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

from search.objectives import Target
from search.report.facts import Facts, better
from search.report.markup import count

_REFERENCES = ("s", "D", "p", "h", "8", "d")
_BASELINES = ("^", "v", "P", "X", "<", ">")
_MOST_BARS = 60
_ENOUGH = 20
_TAIL = 0.02
_FAR = 1.5
"""Of at least :data:`_ENOUGH` candidates, the share :data:`_TAIL` may lie outside the frame on the bad side, where the
frame would grow by this factor for them: a few broken ones must not shrink the rest."""


@dataclass(frozen=True)
class Mark:
    """A candidate that is drawn for itself.

    Attributes:
        id: candidate number.
        label: its name; "" for members of the front without one.
        role: "chosen", "reference", "baseline" or "front".
        symbol: matplotlib's.
        size: points.
        layer: what is drawn over what.
    """

    id: int
    label: str
    role: str
    symbol: str
    size: float
    layer: int


@dataclass(frozen=True)
class Spread:
    """A score and how far its 95 % interval reaches on either side, >= 0; 0 where it is not known."""

    value: float
    below: float
    above: float


class Scene:
    """See the module docstring.

    Args:
        facts: of the run.
        highlight: the candidate with the star; the pick if None.
    """

    def __init__(self, facts: Facts, highlight: int | None = None) -> None:
        self._facts = facts
        self._results = facts.results
        self.targets: tuple[Target, ...] = facts.targets
        self.star = facts.pick if highlight is None else highlight
        if highlight is not None:
            facts.results.candidate(highlight)  # says so where there is none

    @cached_property
    def cloud(self) -> list[int]:
        """Complete candidates, ascending."""
        return [id for id in self._facts.scored if all(math.isfinite(self.searched(id, each)) for each in self.targets)]

    @cached_property
    def infeasible(self) -> set[int]:
        """Those of the cloud that break a constraint on the search split."""
        return {id for id in self.cloud if self._results.judge.violation(id, "search") > 0.0}

    @cached_property
    def marks(self) -> list[Mark]:
        """From the back to the front: the front, baselines, references, the star."""
        star = self.star
        references, baselines = itertools.cycle(_REFERENCES), itertools.cycle(_BASELINES)
        named = []
        for each in self._facts.baselines:
            symbol = next(references if each.role == "reference" else baselines)
            if each.id not in (star, self._same(star)):
                named.append(Mark(each.id, each.name, each.role, symbol, 7.5, 11 if each.role == "reference" else 10))
        taken = {star, self._same(star), *(each.id for each in named)}
        front = [Mark(id, "", "front", "o", 5.5, 9) for id in self._results.front if id not in taken]
        stars = [] if star is None else [Mark(self._same(star), self._star_label(star), "chosen", "*", 15.0, 12)]
        return [*front, *sorted(named, key=lambda each: (each.layer, -named.index(each))), *stars]

    @property
    def cloud_label(self) -> str:
        """For the legend."""
        hidden = sum(
            any(not low <= self.searched(id, each) <= high for each, (low, high) in self._ranges.items())
            for id in self.cloud
        )
        outside = f"; {hidden} lie outside" if hidden else ""
        return f"candidate, search scores{outside}"

    @property
    def has_front(self) -> bool:
        """Whether there is more to the front than the star."""
        return any(id != self._same(self.star) for id in self._results.front)

    @property
    def front_label(self) -> str:
        """For the legend."""
        return f"front, {self._results.split} scores"

    @property
    def title(self) -> str:
        """Whose front this is, and what the bars are."""
        scored = count(len(self.cloud), "candidate")
        state = "" if self._results.state == "finished" else f" ({self._results.state})"
        return f"{self._results.name}{state}: {scored}; marks at {self._results.split} scores, 95 % intervals"

    def searched(self, id: int, target: Target) -> float:
        """A candidate's search score; NaN where there is none."""
        found = self._facts.score(id, "search", target)
        return math.nan if found is None else found[0]

    def interval(self, id: int, target: Target) -> Spread | None:
        """Of a mark, on the split on which it is drawn; None where it has no finite score there."""
        split = self._facts.best_split(id)
        found = self._facts.score(id, split, target)
        if found is None or not math.isfinite(found[0]):
            return None
        limits = self._results.interval(id, split, target.name)
        below, above = found[0] - limits.low, limits.high - found[0]
        return Spread(found[0], below if 0 <= below < math.inf else 0.0, above if 0 <= above < math.inf else 0.0)

    def with_bars(self, mark: Mark) -> bool:
        """Bars of a long front, or in many small plots, cover each other and everything else."""
        if mark.role == "chosen":
            return True
        return len(self.targets) <= 3 and (mark.role != "front" or len(self._results.front) <= _MOST_BARS)

    def border(self, across: Target, up: Target) -> list[tuple[float, float]]:
        """The front's places along the first axis."""
        found = [(self.interval(id, across), self.interval(id, up)) for id in self._results.front]
        return sorted((one.value, other.value) for one, other in found if one is not None and other is not None)

    def range_of(self, target: Target) -> tuple[float, float]:
        """Limits of an axis: every mark with its interval, and all candidates but a few that lie far off."""
        return self._ranges[target]

    @cached_property
    def _ranges(self) -> dict[Target, tuple[float, float]]:
        return {target: self._range(target) for target in self.targets}

    def _range(self, target: Target) -> tuple[float, float]:
        marks: list[float] = []
        for mark in self.marks:
            found = self.interval(mark.id, target)
            if found is not None:
                bars = self.with_bars(mark)
                marks += [found.value - bars * found.below, found.value + bars * found.above]
        cloud = sorted(self.searched(id, target) for id in self.cloud)
        cut = math.ceil(_TAIL * len(cloud)) if len(cloud) >= _ENOUGH else 0
        near = cloud[cut:] if better(target, 1.0, 0.0) else cloud[: len(cloud) - cut]
        whole, most = _ends([*cloud, *marks]), _ends([*near, *marks])
        low, high = most if whole[1] - whole[0] > _FAR * (most[1] - most[0]) else whole
        room = 0.05 * (high - low) or 0.05 * abs(high) or 0.05
        return low - room, high + room

    def _same(self, id: int | None) -> int:
        """Whose scores a candidate has: its own, or those of the one that it repeats."""
        if id is None:
            return -1
        of = self._facts.candidates[id].duplicate_of
        return id if of is None else of

    def _star_label(self, star: int) -> str:
        names = [each.name for each in self._facts.baselines if each.id == self._same(star)]
        first = self._facts.pick_name if star == self._facts.pick else "exported merge"
        split = self._facts.best_split(self._same(star))
        where = "" if split == self._results.split else f", {split} scores"
        return " = ".join([f"{first} ({star}{where})", *names])


def _ends(values: list[float]) -> tuple[float, float]:
    return (min(values), max(values)) if values else (0.0, 1.0)
