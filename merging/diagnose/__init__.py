"""What predicts whether models merge: from the weights alone, and with data (docs/guide/diagnose.md).

The public names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merging.diagnose.borders import DepthProfile, auto_borders, borders_by_stack, depth_profile
    from merging.diagnose.results import FORMAT, Diagnosis, Measures, Settings
    from merging.diagnose.stream import diagnose

_HOMES = {
    "FORMAT": "results",
    "DepthProfile": "borders",
    "Diagnosis": "results",
    "Measures": "results",
    "Settings": "results",
    "auto_borders": "borders",
    "borders_by_stack": "borders",
    "depth_profile": "borders",
    "diagnose": "stream",
}

__all__ = [
    "FORMAT",
    "DepthProfile",
    "Diagnosis",
    "Measures",
    "Settings",
    "auto_borders",
    "borders_by_stack",
    "depth_profile",
    "diagnose",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'merging.diagnose' has no attribute {name!r}")
    return getattr(importlib.import_module(f"merging.diagnose.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
