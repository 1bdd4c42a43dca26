"""Does an exported model score what its candidate scored? Loaded as anybody would, compared weight by weight with a
live model that holds the recipe, and asked every stored item again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluators.contract import SPLITS, Engine, Evaluator, Split
from search.config import LoadedConfig
from search.results import Results

if TYPE_CHECKING:
    from search.setup import Setup

ROUNDING = 1e-4
"""How far scores of a path may be apart, relative to the larger of 1 and the score: its export is a second model of the
same bits, and some processors add up products in another order where memory is aligned otherwise."""


@dataclass(frozen=True)
class SplitScores:
    """One evaluator on one split.

    Attributes:
        split: of the items.
        evaluator: its name.
        items: how many have a stored score.
        unequal: how many scores differ from the stored ones, over all metrics; of a path, by more than
            :data:`ROUNDING`.
        means: metric -> plain mean of the item scores.
    """

    split: Split
    evaluator: str
    items: int
    unequal: int
    means: dict[str, float]


@dataclass(frozen=True)
class Rescored:
    """What came of it.

    Attributes:
        tensors: of the live model.
        different: names of those that differ in the loaded export.
        scores: per split and evaluator.
    """

    tensors: int
    different: tuple[str, ...]
    scores: tuple[SplitScores, ...]

    @property
    def same(self) -> bool:
        """Whether all weights and all scores are the stored ones."""
        return not self.different and not any(each.unequal for each in self.scores)


def rescore(results: Results, id: int, folder: Path, loaded: LoadedConfig | None = None) -> Rescored:
    """Load an export with transformers, and score it on every item for which the run has a score.

    The whole model is in memory twice.

    Args:
        results: of the run.
        id: the candidate; one that repeats another is compared with that one's scores.
        folder: its export.
        loaded: the run's config, read elsewhere; the run's own if None.

    Raises:
        SearchError, MergingError, EvaluatorError: models or data of the run cannot be read, or the folder not loaded.
    """
    from merging.live import load_model
    from merging.verification import same_bits
    from search.setup import set_up

    setup = set_up(loaded or results.loaded, results.started.threads)
    model = setup.engine.model
    if model is None:
        raise RuntimeError("an engine without a model cannot be asked for its weights")
    recipe, repeated = results.recipe(id), results.candidate(id).duplicate_of
    setup.materializer.apply(recipe)
    known = id if repeated is None else repeated
    if recipe.layers is not None:
        return _rescore_path(results, setup, known, folder)
    rebuilt = {name: value.clone() for name, value in model.state_dict().items()}
    state = load_model(folder, dtype=getattr(model, "dtype", None)).state_dict()
    different = set(rebuilt) ^ set(state)
    different |= {name for name in set(rebuilt) & set(state) if not same_bits(rebuilt[name], state[name])}
    model.load_state_dict(state)
    setup.engine.weights_changed()
    scores = tuple(_again(setup.evaluators, setup.engine, results.folder, known))
    return Rescored(len(rebuilt), tuple(sorted(different)), scores)


def _rescore_path(results: Results, setup: Setup, id: int, folder: Path) -> Rescored:
    """Of a path through layers: the export is asked as a model of its own, since live hops share weights.

    Args:
        results: of the run.
        setup: its live model lays the candidate's path.
        id: whose scores are stored.
        folder: the export.
    """
    from evaluators import open_engine
    from merging.checkpoint import Checkpoint
    from merging.live import load_model

    settings, dtype = results.config.engine, getattr(setup.engine.model, "dtype", None)
    exported = Checkpoint.open(folder)
    names = tuple(sorted(exported.tensors)) if exported.content != setup.materializer.digest() else ()
    model = load_model(folder, dtype=dtype, device=settings.device)
    for each in model.parameters():
        each.data = each.data.clone()  # out of the mapped file, and aligned as live weights are
    engine = open_engine(
        model, setup.sources.path, kind=settings.kind, batch_tokens=settings.batch_tokens, device=settings.device
    )
    return Rescored(len(exported.tensors), names, tuple(_again(setup.evaluators, engine, results.folder, id, ROUNDING)))


def _again(
    evaluators: Mapping[str, Evaluator], engine: Engine, folder: Path, id: int, tolerance: float = 0.0
) -> Iterator[SplitScores]:
    from search.store import Store

    store = Store.open(folder, read_only=True)
    try:
        for split in SPLITS:
            for name, stored in store.item_scores(id, split).items():
                again = evaluators[name].score(engine, stored.ids)
                unequal = sum(
                    int((~np.isclose(again.values[metric], values, rtol=tolerance, atol=tolerance)).sum())
                    for metric, values in stored.values.items()
                )
                means = {metric: float(np.mean(values)) for metric, values in again.values.items()}
                yield SplitScores(split, name, len(stored), unequal, means)
    finally:
        store.close()
