"""One process, one device: the live model stands here and candidates are written into it in turn."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from evaluators.contract import Evaluator, ItemScores, Split
from merging.recipe import MergingError, Recipe
from search.objectives import aggregate, clusters_of, standard_errors
from search.workers.evaluation import CandidateFailed, Evaluation, Items, check_usable

if TYPE_CHECKING:
    from evaluators.contract import Engine
    from merging import Materializer


def score_model(
    engine: Engine, evaluators: Mapping[str, Evaluator], split: Split, items: Items | None = None
) -> Evaluation:
    """Score the engine's present weights with every evaluator, prepared before.

    Args:
        engine: asks the live model.
        evaluators: by name.
        split: which split.
        items: evaluator -> ids; every item of the split if None.
    """
    start = time.perf_counter()
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    scores: dict[str, ItemScores] = {}
    for name, evaluator in evaluators.items():
        ids = evaluator.items(split).ids if items is None else items.get(name, ())
        if not ids:
            continue
        scores[name] = evaluator.score(engine, ids)
        values |= aggregate(name, evaluator, scores[name])
        errors |= standard_errors(name, scores[name], clusters_of(evaluator, split))
    return Evaluation(values, errors, scores, {"evaluate": time.perf_counter() - start})


class InlineWorker:
    """Materialises a recipe into its own live model and scores it."""

    def __init__(self, materializer: Materializer, engine: Engine, evaluators: Mapping[str, Evaluator]) -> None:
        self._materializer = materializer
        self._engine = engine
        self._evaluators = dict(evaluators)

    def evaluate(self, recipe: Recipe, split: Split, items: Items | None = None) -> Evaluation:
        """See :class:`search.workers.evaluation.Worker`. A recipe that stands in the live model is not written again.

        Raises:
            CandidateFailed: not mergeable, no finite score, or the model could not be run. Of some items nothing is
                said: a few that failed may be one rung's bad luck, see :func:`search.workers.evaluation.check_usable`.
        """
        seconds: dict[str, float] = {}
        start = time.perf_counter()
        try:
            self._materializer.apply(recipe)
            self._engine.weights_changed()
            seconds["materialize"] = time.perf_counter() - start
            start = time.perf_counter()
            evaluation = score_model(self._engine, self._evaluators, split, items)
            seconds |= evaluation.seconds
        except MergingError as error:
            raise CandidateFailed(str(error), _spent(seconds, start, "materialize")) from error
        except (RuntimeError, ArithmeticError, ValueError, IndexError, MemoryError) as error:
            # a broken merge can break anything downstream of it; none of that may end the search
            raise CandidateFailed(f"{type(error).__name__}: {error}", _spent(seconds, start, "evaluate")) from error
        evaluation = replace(evaluation, seconds=seconds)
        if items is None:
            check_usable(evaluation)
        return evaluation


def _spent(seconds: dict[str, float], start: float, what: str) -> dict[str, float]:
    return {**seconds, what: seconds.get(what, 0.0) + time.perf_counter() - start}
