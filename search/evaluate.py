"""Scoring a model folder with a config's evaluators, outside of any search."""

from __future__ import annotations

import time
from pathlib import Path

from evaluators.contract import EvaluatorError, ItemScores, Split
from search.config import LoadedConfig
from search.errors import SearchError
from search.objectives import aggregate, standard_errors
from search.run import build_evaluators
from search.workers.inline import Evaluation


def evaluate_model(loaded: LoadedConfig, model_path: Path, split: Split) -> Evaluation:
    """Load a model as it lies on disk and score it.

    Args:
        loaded: whose evaluators and engine settings to use.
        model_path: a Hugging Face folder.
        split: which items.

    Raises:
        SearchError, MergingError, EvaluatorError: the model, the data or the config is wrong.
    """
    import torch

    from evaluators import HFEngine, load_tokenizer
    from merging import load_model

    settings = loaded.config.engine
    if not model_path.is_dir():
        raise SearchError(f"expected a folder with a model, found nothing at {model_path}")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    evaluators = build_evaluators(loaded)
    model = load_model(model_path, dtype=loaded.config.models.dtype, device=settings.device)
    engine = HFEngine(model, load_tokenizer(model_path), batch_tokens=settings.batch_tokens, device=settings.device)
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    scores: dict[str, ItemScores] = {}
    start = time.perf_counter()
    for name, evaluator in evaluators.items():
        try:
            evaluator.prepare(engine)
        except EvaluatorError as error:
            raise loaded.error(("evaluators", name), str(error)) from error
        scores[name] = evaluator.score(engine, evaluator.items(split).ids)
        values |= aggregate(name, evaluator, scores[name])
        errors |= standard_errors(name, scores[name])
    return Evaluation(values, errors, scores, {"evaluate": time.perf_counter() - start})
