"""What a config asks for, in numbers: stages, genes, items, finals. No weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from evaluators.contract import SPLITS, Evaluator
from search.config import LoadedConfig
from search.forecast import Items, Outline, StageOutline, items_of
from search.objectives import Objectives
from search.racing import Racer
from search.stages import Stage

GRID = "task arithmetic "


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
