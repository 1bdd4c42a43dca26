"""What a config asks for, in numbers: stages, genes, items, finals. No weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from evaluators.contract import SPLITS, Evaluator
from search.config import LoadedConfig
from search.judge import GRID
from search.objectives import Objectives
from search.racing import Racer
from search.ranges import Range
from search.schema import Budget
from search.stages import Stage

Case = Literal["low", "middle", "high"]
CASES: tuple[Case, ...] = ("low", "middle", "high")

RACED = Range(0.5, 0.97, 1.0)
"""Share of an optimizer's candidates that a race lets reach the last rung. In 50 runs of this package, from 100 to 1857
candidates: the median 98 %, the least 74 %. Half is what remains of candidates that are drawn at random."""

RACED_AT_RANDOM = Range(0.4, 0.55, 0.8)
"""The same where candidates are proposed at random: 49 to 57 % in five runs."""


class Items(NamedTuple):
    """How many items of each evaluator, by its name, are scored together."""

    of: Mapping[str, int]

    @property
    def total(self) -> int:
        """Over all evaluators."""
        return sum(self.of.values())


@dataclass(frozen=True)
class StageOutline:
    """One stage, as planned.

    Attributes:
        name: "baselines", "per-expert" or "full".
        candidates: planned; the last stage goes on to the budget.
        numbers: genes that are numbers.
        categories: genes that are choices.
        climbs: whether its candidates climb rungs; baselines are scored on every item.
    """

    name: str
    candidates: int
    numbers: int
    categories: int
    climbs: bool


@dataclass(frozen=True)
class Outline:
    """What a config asks for.

    Attributes:
        stages: in order.
        rungs: items that are new in each; one entry where nobody is stopped early.
        splits: "search", "selection" and "holdout" -> all items of it.
        rule: how candidates are stopped.
        keep: share that goes on from a rung, under halving.
        at_random: whether candidates are drawn at random, which a race stops more of.
        budget: when the search ends.
        reserve: share of all items that is kept for the finalists.
        finalists: at most so many; what the reserve pays for if None.
        compared: baselines that go to the finals with them.
        workers: evaluating side by side.
        gpus: that a worker keeps busy.
        control: a random search with the same budget comes after.
        holdout: it is opened at the end.
    """

    stages: tuple[StageOutline, ...]
    rungs: tuple[Items, ...]
    splits: Mapping[str, Items]
    budget: Budget
    reserve: float
    finalists: int | None
    compared: int
    rule: Literal["race", "halving"] = "race"
    keep: float = 1 / 3
    at_random: bool = False
    workers: int = 1
    gpus: float = 0.0
    control: bool = False
    holdout: bool = True

    @property
    def staged(self) -> bool:
        """Whether candidates can be stopped early."""
        return len(self.rungs) > 1

    def reaching(self, rung: int, case: Case) -> float:
        """Share of a stage's candidates that are scored on a rung.

        ``low`` is the case in which most are stopped early.
        """
        if rung == 0:
            return 1.0
        if self.rule == "halving":
            # a stage's first candidates are judged leniently, and later ones tend to be better than those before them:
            # more go on than the share that is kept, and the middle is taken half-way
            share = self.keep**rung
            return {"low": share, "middle": (1.0 + share) / 2.0, "high": 1.0}[case]
        # a race stops most of those that it stops at the first rung
        return float(getattr(RACED_AT_RANDOM if self.at_random else RACED, case))


def outline_of(
    loaded: LoadedConfig,
    evaluators: Mapping[str, Evaluator],
    stages: Sequence[Stage],
    *,
    workers: int = 1,
    gpus: float = 0.0,
) -> Outline:
    """The outline of a run with this config.

    Args:
        loaded: the config.
        evaluators: with their data read; they need not be prepared.
        stages: of the search, see :func:`search.stages.build_stages`.
        workers: evaluating side by side.
        gpus: that each of them keeps busy.

    Raises:
        SearchError: an objective that no evaluator has; points at its line.
    """
    search = loaded.config.search
    rungs = Racer(evaluators, Objectives.of(loaded, evaluators), search.fidelity).rungs
    return Outline(
        stages=stage_outlines(stages, search.budget.candidates),
        rungs=items_of([{name: len(ids) for name, ids in rung.items()} for rung in rungs]),
        splits={split: Items({name: len(each.items(split)) for name, each in evaluators.items()}) for split in SPLITS},
        budget=search.budget,
        reserve=search.reserve,
        finalists=search.finalists,
        compared=compared(stages),
        rule=search.fidelity.rule,
        keep=search.fidelity.keep,
        at_random=search.optimizer.name in ("random", "sobol", "grid"),
        workers=workers,
        gpus=gpus,
        control=search.control,
        holdout=search.holdout,
    )


def stage_outlines(stages: Sequence[Stage], budget: int) -> tuple[StageOutline, ...]:
    """How many candidates each stage is planned to have, and over how many genes."""
    ends = [0, *(budget if stage.end is None else min(stage.end, budget) for stage in stages)]
    return tuple(
        StageOutline(
            stage.name,
            max(0, end - start),
            0 if stage.fixed else stage.space.box.continuous,
            0 if stage.fixed else len(stage.space.box.categories),
            not stage.fixed,
        )
        for stage, (start, end) in zip(stages, pairwise(ends), strict=True)
    )


def compared(stages: Sequence[Stage]) -> int:
    """Baselines that go to the finals: all but the grid of λ, of which the best one does, and the best with one
    coefficient per expert. Fewer where two of them are one candidate."""
    labels = [label for stage in stages for label, _ in stage.fixed]
    found = [label for label in labels if not label.startswith(GRID)]
    return len(found) + (len(found) < len(labels)) + any(stage.name == "per-expert" for stage in stages)


def items_of(counts: Sequence[Mapping[str, int]]) -> tuple[Items, ...]:
    """Rungs from plain counts."""
    return tuple(Items(dict(each)) for each in counts)
