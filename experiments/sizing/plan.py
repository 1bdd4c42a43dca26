"""What is compared: the sizes and their seeds, what is merged, and by which arms. No model, no torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.matrix.arms import Arm
from merging.recipe import Assignment
from zoo.family import Family
from zoo.registry import family as family_of

SKILLS = ("string", "language", "refusal")

MERGES = (("string", "language"), ("string", "refusal"), ("string", "language", "refusal"))

SIZES = ("skills-w64", "skills-w112", "skills-w192")
"""The families, smallest first."""

LARGER = ("skills-w352", "skills-w704")
"""What can be added where a GPU trains them."""

ITEMS = {"search": 128, "holdout": 512}
"""Items of each skill: what parameters are chosen on, and what is reported."""

LAMBDAS = tuple(round(0.1 * step, 1) for step in range(2, 13))
_SCALES: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5)

PER_EXPERT: Mapping[int, tuple[float, ...]] = {2: (0.4, 0.6, 0.8, 1.0, 1.2), 3: (0.4, 0.7, 1.0, 1.3)}
"""How many experts -> the grid of each coefficient: 25 merges of two, 64 of three."""

ONE_LAMBDA, PER_EXPERT_TITLE, BY_WORST = "one λ", "per expert", "per expert, by the worst skill"

_ARMS = (
    Arm("average", "task_arithmetic", mean=True),
    Arm(ONE_LAMBDA, "task_arithmetic", steps=(("coefficient", LAMBDAS),)),
    Arm("TIES, preset", "ties", {"coefficient": 1.0, "density": 0.2}),
    Arm("TIES, best λ", "ties", {"coefficient": 1.0, "density": 0.2}, (("scale", _SCALES),)),
    Arm("DARE-TIES, preset", "dare_ties", {"coefficient": 1.0, "density": 0.5}),
    Arm("DARE-TIES, best λ", "dare_ties", {"coefficient": 1.0, "density": 0.5}, (("scale", _SCALES),)),
)

TITLES = (*(arm.title for arm in _ARMS), PER_EXPERT_TITLE, BY_WORST)


@dataclass(frozen=True)
class Choice:
    """An arm over some experts: candidates by what they are called, and how one is chosen on search items.

    Attributes:
        candidates: label -> assignment, for the whole model.
        worst: by the smallest retention, not the mean.
    """

    candidates: Mapping[str, Assignment]
    worst: bool = False

    def best(self, retentions: Mapping[str, Sequence[float]]) -> str:
        """Of label -> [experts] retentions, the label with the best; the first of equals."""

        def value(label: str) -> float:
            kept = retentions[label]
            return min(kept) if self.worst else sum(kept) / len(kept)

        return max(self.candidates, key=value)


def arms(experts: Sequence[str]) -> dict[str, Choice]:
    """Every arm by title, in the order of the tables."""
    found = {arm.title: Choice(_candidates(arm, experts)) for arm in _ARMS}
    grid = PER_EXPERT[len(experts)]
    each = {
        ", ".join(f"{value:g}" for value in point): Assignment.of(
            "task_arithmetic", {name: {"coefficient": value} for name, value in zip(experts, point, strict=True)}
        )
        for point in itertools.product(grid, repeat=len(experts))
    }
    return found | {PER_EXPERT_TITLE: Choice(each), BY_WORST: Choice(each, worst=True)}


def _candidates(arm: Arm, experts: Sequence[str]) -> dict[str, Assignment]:
    if not arm.steps:
        return {"": arm.assignment(experts, {})}
    ((parameter, values),) = arm.steps
    return {f"{value:g}": arm.assignment(experts, {parameter: value}) for value in values}


def title(experts: Sequence[str]) -> str:
    """The name of a merge."""
    return " + ".join(experts)


def width(name: str) -> int:
    """Of a family's hidden states."""
    found = family_of(name)
    if not isinstance(found, Family):
        raise ValueError(f"expected a family of text skills, found {name}")
    return found.shape.hidden


def doublings(name: str) -> float:
    """log2 of the width: what trends are measured over."""
    return math.log2(width(name))
