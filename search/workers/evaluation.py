"""What a worker gives back: the scores of one candidate, or the reason why there are none."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from evaluators.contract import Evaluator, ItemScores, Split
from merging.recipe import Recipe
from search.objectives import aggregate, clusters_of, standard_errors

Array = npt.NDArray[np.float64]
Items = Mapping[str, Sequence[str]]
"""evaluator -> ids of items."""


class CandidateFailed(Exception):
    """Nothing usable came of a candidate. The search records the reason and goes on.

    Attributes:
        reason: for people.
        seconds: what was spent on it.
    """

    def __init__(self, reason: str, seconds: dict[str, float]) -> None:
        super().__init__(reason)
        self.reason = reason.encode("utf-8", "replace").decode()  # it may quote anything, but the log is UTF-8
        self.seconds = seconds


@dataclass(frozen=True)
class Evaluation:
    """Scores of one candidate on a split, or on some of its items.

    Attributes:
        values: ``evaluator.metric`` -> aggregate.
        errors: ``evaluator.metric`` -> standard error.
        scores: evaluator -> item scores.
        seconds: "materialize" and "evaluate", wall.
    """

    values: dict[str, float]
    errors: dict[str, float]
    scores: dict[str, ItemScores]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """How many items were scored, over all evaluators."""
        return sum(len(each) for each in self.scores.values())


def check_usable(evaluation: Evaluation, needed: Collection[str] | None = None) -> None:
    """Refuse scores that say nothing of a model.

    Args:
        evaluation: on all items, or on those of the rungs so far.
        needed: the metrics that must have a value; None for all. Of the others the items so far may say nothing (the
            metrics of single tasks, where there are more tasks than items in a rung).

    Raises:
        CandidateFailed: a metric without a finite value, or an evaluator of which every item failed.
    """
    bad = sorted(
        name
        for name, value in evaluation.values.items()
        if not math.isfinite(value) and (needed is None or name in needed or _says_something(evaluation, name))
    )
    lost = sorted(
        name for name, each in evaluation.scores.items() if all(status == "failed" for status in each.statuses)
    )
    mute = sorted(
        name for name, each in evaluation.scores.items() if all(status == "unscored" for status in each.statuses)
    )
    if mute:
        raise CandidateFailed(
            f"every item of {', '.join(mute)} is unscored: the evaluator came to no verdict on any answer",
            evaluation.seconds,
        )
    if bad or lost:
        what = f"no finite value for {', '.join(bad)}" if bad else f"every item of {', '.join(lost)} failed"
        raise CandidateFailed(f"{what}: the merged model gives no usable output", evaluation.seconds)


def audible(evaluation: Evaluation) -> Evaluation:
    """Without the metrics of which no item says anything: none of a rare task's items is in a minibatch, say. They are
    no numbers, which is what the store takes. To be asked after :func:`check_usable`, which refuses the others."""
    silent = {name for name, value in evaluation.values.items() if not math.isfinite(value)}
    if not silent:
        return evaluation
    values = {name: value for name, value in evaluation.values.items() if name not in silent}
    errors = {name: error for name, error in evaluation.errors.items() if name not in silent}
    return replace(evaluation, values=values, errors=errors)


def _says_something(evaluation: Evaluation, name: str) -> bool:
    """Whether any item counts for a metric, ``evaluator.metric``."""
    evaluator, _, metric = name.partition(".")
    weights = evaluation.scores[evaluator].weights.get(metric)
    return weights is None or bool((weights > 0.0).any())


class Worker(Protocol):
    """Turns a recipe into scores."""

    def evaluate(self, recipe: Recipe, split: Split, items: Items | None = None) -> Evaluation:
        """Score on a split, or raise :class:`CandidateFailed`.

        Args:
            recipe: what to materialise.
            split: which split.
            items: evaluator -> which of its items; every item if None. Evaluators that are not named, or with no ids,
                are not asked.
        """
        ...


def joined(parts: Sequence[Evaluation], evaluators: Mapping[str, Evaluator], split: Split) -> Evaluation:
    """The evaluation on all items of several, which share none. Items come in the evaluator's own order.

    Args:
        parts: at least one.
        evaluators: that gave the scores: they know how items become one number.
        split: that the items are of.
    """
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    scores: dict[str, ItemScores] = {}
    seconds: dict[str, float] = {}
    for name, evaluator in evaluators.items():
        found = [part.scores[name] for part in parts if name in part.scores]
        if not found:
            continue
        scores[name] = _concatenated(found, evaluator.items(split).ids)
        values |= aggregate(name, evaluator, scores[name])
        errors |= standard_errors(name, scores[name], clusters_of(evaluator, split))
    for part in parts:
        for what, spent in part.seconds.items():
            seconds[what] = seconds.get(what, 0.0) + spent
    return Evaluation(values, errors, scores, seconds)


def _concatenated(parts: Sequence[ItemScores], order: Sequence[str]) -> ItemScores:
    place = {id: position for position, id in enumerate(order)}
    ids = [id for part in parts for id in part.ids]
    by_place = np.argsort([place[id] for id in ids], kind="stable")
    metrics = list(parts[0].values)

    def gathered(of: Sequence[Mapping[str, Array]], metric: str) -> Array:
        return np.asarray(np.concatenate([each[metric] for each in of])[by_place])

    statuses = [status for part in parts for status in part.statuses]
    return ItemScores(
        ids=tuple(ids[index] for index in by_place),
        values={metric: gathered([part.values for part in parts], metric) for metric in metrics},
        weights={metric: gathered([part.weights for part in parts], metric) for metric in metrics},
        statuses=tuple(statuses[index] for index in by_place),
    )
