"""Calibration inputs: a few unlabelled inputs of each expert, as the model is asked with them.

Importing this package is cheap: what needs torch is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluators.calibration.inputs import Input
    from evaluators.calibration.leaks import item_contents, overlap
    from evaluators.calibration.options import InputsOptions
    from evaluators.calibration.reading import read_inputs
    from evaluators.calibration.recorder import Recorder
    from evaluators.calibration.recording import record_inputs
    from evaluators.calibration.rows import Content, Drawn, draw_rows

_LAZY = {
    "Content": "evaluators.calibration.rows",
    "Drawn": "evaluators.calibration.rows",
    "Input": "evaluators.calibration.inputs",
    "InputsOptions": "evaluators.calibration.options",
    "Recorder": "evaluators.calibration.recorder",
    "draw_rows": "evaluators.calibration.rows",
    "overlap": "evaluators.calibration.leaks",
    "read_inputs": "evaluators.calibration.reading",
    "record_inputs": "evaluators.calibration.recording",
    "item_contents": "evaluators.calibration.leaks",
}

__all__ = [
    "Content",
    "Drawn",
    "Input",
    "InputsOptions",
    "Recorder",
    "draw_rows",
    "item_contents",
    "overlap",
    "read_inputs",
    "record_inputs",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
