"""Calibration: what a few unlabelled inputs per expert tell about its weights."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merging.calibration.collected import CollectedCalibration
    from merging.calibration.contents import by_content
    from merging.calibration.contract import Calibration, Gram, Statistic
    from merging.calibration.grams import CalibrationPlan
    from merging.calibration.samples import Samples

_HOMES = {
    "Calibration": "contract",
    "CalibrationPlan": "grams",
    "CollectedCalibration": "collected",
    "Gram": "contract",
    "Samples": "samples",
    "Statistic": "contract",
    "by_content": "contents",
}

__all__ = ["Calibration", "CalibrationPlan", "CollectedCalibration", "Gram", "Samples", "Statistic", "by_content"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'merging.calibration' has no attribute {name!r}")
    return getattr(importlib.import_module(f"merging.calibration.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
