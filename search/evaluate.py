"""Scoring a model folder with a config's evaluators, outside of any search."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from evaluators.contract import ItemScores, Split
from search.config import LoadedConfig
from search.errors import SearchError
from search.setup import build_evaluators, prepare_evaluators
from search.statistics import Interval, interval_of_score
from search.workers.evaluation import Evaluation
from search.workers.inline import score_model


def counted(scores: ItemScores, metric: str) -> int:
    """How many items a metric says something of: harmful prompts alone have a refusal rate."""
    statuses = scores.statuses or ("ok",) * len(scores)
    weights = scores.weights[metric]
    return sum(bool(weight) and status != "unscored" for weight, status in zip(weights, statuses, strict=True))


class Evaluated(NamedTuple):
    """A model's scores.

    Attributes:
        evaluation: as of a candidate.
        intervals: ``evaluator.metric`` -> its 95 % interval.
    """

    evaluation: Evaluation
    intervals: dict[str, Interval]


def evaluate_model(loaded: LoadedConfig, model_path: Path, split: Split) -> Evaluated:
    """Load a model as it lies on disk and score it.

    Args:
        loaded: whose evaluators and engine settings to use.
        model_path: a Hugging Face folder.
        split: which items.

    Raises:
        SearchError, MergingError, EvaluatorError: the model, the data or the config is wrong.
    """
    import torch

    from evaluators import open_engine
    from merging import load_model

    settings = loaded.config.engine
    if not model_path.is_dir():
        raise SearchError(f"expected a folder with a model, found nothing at {model_path}")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    evaluators = build_evaluators(loaded)
    model = load_model(model_path, dtype=loaded.config.models.dtype, device=settings.device)
    engine = open_engine(
        model,
        model_path,
        kind=settings.kind,
        batch_tokens=settings.batch_tokens,
        device=settings.device,
        vllm=settings.vllm,
    )
    prepare_evaluators(loaded, evaluators, engine)
    found = score_model(engine, evaluators, split)
    metrics = {f"{name}.{metric.name}": metric for name, each in evaluators.items() for metric in each.metrics}
    intervals = {}
    for name, value in found.values.items():
        items = counted(found.scores[name.partition(".")[0]], metrics[name].name)
        bounds = (metrics[name].low, metrics[name].high)
        intervals[name] = interval_of_score(value, found.errors[name], items, bounds)
    return Evaluated(found, intervals)
