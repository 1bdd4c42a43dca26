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
    Sampling,
    Split,
    Status,
    weighted_mean,
)

if TYPE_CHECKING:
    from evaluators.base import ItemEvaluator, Verdict
    from evaluators.engines.forward import HFForwardEngine
    from evaluators.engines.hf import HFEngine
    from evaluators.engines.memory import fitting, passing
    from evaluators.engines.opening import open_engine
    from evaluators.engines.tokenizer import load_tokenizer
    from evaluators.exact_match import ExactMatch, ExactMatchOptions
    from evaluators.registry import build, names, options_model, source_hash

_LAZY = {
    "ExactMatch": "evaluators.exact_match",
    "ExactMatchOptions": "evaluators.exact_match",
    "HFEngine": "evaluators.engines.hf",
    "HFForwardEngine": "evaluators.engines.forward",
    "ItemEvaluator": "evaluators.base",
    "Verdict": "evaluators.base",
    "build": "evaluators.registry",
    "fitting": "evaluators.engines.memory",
    "load_tokenizer": "evaluators.engines.tokenizer",
    "names": "evaluators.registry",
    "open_engine": "evaluators.engines.opening",
    "options_model": "evaluators.registry",
    "passing": "evaluators.engines.memory",
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
    "HFForwardEngine",
    "ItemEvaluator",
    "ItemScores",
    "Items",
    "LogLikelihood",
    "Metric",
    "Request",
    "Sampling",
    "Split",
    "Status",
    "Verdict",
    "build",
    "fitting",
    "load_tokenizer",
    "names",
    "open_engine",
    "options_model",
    "passing",
    "source_hash",
    "weighted_mean",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
