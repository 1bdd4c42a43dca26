"""One process, one device: the live model stands here and candidates are written into it in turn."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from evaluators.contract import Evaluator, ItemScores, Split
from merging.recipe import MergingError, Recipe
from search.objectives import aggregate, standard_errors

if TYPE_CHECKING:
    from evaluators.contract import Engine
    from merging import Materializer


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
    """All scores of one candidate on one split.

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


def score_model(engine: Engine, evaluators: Mapping[str, Evaluator], split: Split) -> Evaluation:
    """Score the engine's present weights on every item of a split, with every evaluator, prepared before."""
    start = time.perf_counter()
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    scores: dict[str, ItemScores] = {}
    for name, evaluator in evaluators.items():
        scores[name] = evaluator.score(engine, evaluator.items(split).ids)
        values |= aggregate(name, evaluator, scores[name])
        errors |= standard_errors(name, scores[name])
    return Evaluation(values, errors, scores, {"evaluate": time.perf_counter() - start})


class InlineWorker:
    """Materialises a recipe into its own live model and scores it."""

    def __init__(self, materializer: Materializer, engine: Engine, evaluators: Mapping[str, Evaluator]) -> None:
        self._materializer = materializer
        self._engine = engine
        self._evaluators = dict(evaluators)

    def evaluate(self, recipe: Recipe, split: Split) -> Evaluation:
        """Score a recipe on every item of a split.

        Raises:
            CandidateFailed: not mergeable, no finite score, or the model could not be run.
        """
        seconds: dict[str, float] = {}
        start = time.perf_counter()
        try:
            self._materializer.apply(recipe)
            self._engine.weights_changed()
            seconds["materialize"] = time.perf_counter() - start
            start = time.perf_counter()
            evaluation = score_model(self._engine, self._evaluators, split)
            seconds |= evaluation.seconds
        except MergingError as error:
            raise CandidateFailed(str(error), _spent(seconds, start, "materialize")) from error
        except (RuntimeError, ArithmeticError, ValueError, IndexError, MemoryError) as error:
            # a broken merge can break anything downstream of it; none of that may end the search
            raise CandidateFailed(f"{type(error).__name__}: {error}", _spent(seconds, start, "evaluate")) from error
        bad = sorted(name for name, value in evaluation.values.items() if value != value)
        lost = sorted(
            name for name, each in evaluation.scores.items() if all(status == "failed" for status in each.statuses)
        )
        if bad or lost:
            what = f"no finite value for {', '.join(bad)}" if bad else f"every item of {', '.join(lost)} failed"
            raise CandidateFailed(f"{what}: the merged model gives no usable output", seconds)
        return replace(evaluation, seconds=seconds)


def _spent(seconds: dict[str, float], start: float, what: str) -> dict[str, float]:
    return {**seconds, what: seconds.get(what, 0.0) + time.perf_counter() - start}
