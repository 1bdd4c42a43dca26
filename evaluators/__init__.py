"""Evaluators: a live model in, one score per item out.

Importing this package is cheap: what needs torch and transformers is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from evaluators.contract import (
    SPLITS,
    Direction,
    Engine,
    Evaluator,
    EvaluatorError,
    Generation,
    Items,
    ItemScores,
    LogLikelihood,
    Metric,
    Request,
    Split,
    Status,
    weighted_mean,
)

if TYPE_CHECKING:
    from evaluators.engines.hf import HFEngine
    from evaluators.engines.tokenizer import load_tokenizer
    from evaluators.exact_match import ExactMatch, ExactMatchOptions
    from evaluators.registry import build, names, options_model, source_hash

_LAZY = {
    "ExactMatch": "evaluators.exact_match",
    "ExactMatchOptions": "evaluators.exact_match",
    "HFEngine": "evaluators.engines.hf",
    "build": "evaluators.registry",
    "load_tokenizer": "evaluators.engines.tokenizer",
    "names": "evaluators.registry",
    "options_model": "evaluators.registry",
    "source_hash": "evaluators.registry",
}

__all__ = [
    "SPLITS",
    "Direction",
    "Engine",
    "Evaluator",
    "EvaluatorError",
    "ExactMatch",
    "ExactMatchOptions",
    "Generation",
    "HFEngine",
    "ItemScores",
    "Items",
    "LogLikelihood",
    "Metric",
    "Request",
    "Split",
    "Status",
    "build",
    "load_tokenizer",
    "names",
    "options_model",
    "source_hash",
    "weighted_mean",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
