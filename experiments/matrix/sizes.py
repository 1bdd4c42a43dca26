"""Which sets of calibration inputs are compared, and what came of them as a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.matrix.records import Outcome
from experiments.matrix.tables import Estimate

COUNTS = {"skills": (10, 30, 100, 300, 1000), "digits": (10, 30, 100, 300)}
"""Family -> inputs of each expert."""
KINDS = ("own", "another expert's", "mixture", "generic")
COMPARED_AT = 100


@dataclass(frozen=True)
class Case:
    """One set of inputs.

    Attributes:
        kind: one of :data:`KINDS`.
        count: inputs of each expert.
        draw: which of them.
    """

    kind: str
    count: int
    draw: int

    @property
    def title(self) -> str:
        return f"{self.kind}, {self.count}, draw {self.draw}"


def cases(family: str, draws: int) -> list[Case]:
    """Everything that is compared."""
    sizes = [("own", count) for count in COUNTS[family]] + [(kind, COMPARED_AT) for kind in KINDS[1:]]
    return [Case(kind, count, draw) for kind, count in sizes for draw in range(draws)]


def divided(count: int, parts: int) -> list[int]:
    """A number in whole parts that differ by one at most."""
    return [count // parts + (part < count % parts) for part in range(parts)]


def table(outcomes: Sequence[Outcome]) -> str:
    """One family: how the score depends on the number of inputs, and on their kind.

    The error is over training seeds, of the means over draws; beside it the standard deviation over draws, mean of the
    seeds.
    """
    found: dict[tuple[str, int], dict[int, list[float]]] = {}
    for each in outcomes:
        key = (str(each.chosen.get("kind", each.arm)), int(each.chosen.get("count", -1)))
        found.setdefault(key, {}).setdefault(each.seed, []).append(each.mean)
    lines = ["| inputs | of each expert | mean score | sd over draws |", "|---|---|---|---|"]
    for (kind, count), seeds in sorted(found.items(), key=_place):
        spread = [statistics.stdev(draws) for draws in seeds.values() if len(draws) > 1]
        number = "" if count < 0 else str(count)
        error = f"{statistics.fmean(spread):.1f}" if spread else ""
        score = Estimate.of([statistics.fmean(draws) for draws in seeds.values()]).text()
        lines.append(f"| {kind} | {number} | {score} | {error} |")
    return "\n".join(lines)


def _place(entry: tuple[tuple[str, int], object]) -> tuple[int, int]:
    kind, count = entry[0]
    return (KINDS.index(kind) if kind in KINDS else -1, count)
