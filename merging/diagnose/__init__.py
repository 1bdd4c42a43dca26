"""What predicts whether models merge: from the weights alone, and with data (docs/guide/diagnose.md).

The public names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merging.diagnose.borders import DepthProfile, auto_borders, borders_by_stack, depth_profile
    from merging.diagnose.curves import Barrier, LambdaCurve, Redundancy, lambda_curve, loss_barrier, redundancy
    from merging.diagnose.probes import ActivationCheck, Disentanglement, check_activations, disentanglement
    from merging.diagnose.results import FORMAT, Diagnosis, Measures, Settings
    from merging.diagnose.stream import diagnose
    from merging.diagnose.verdicts import Verdict, verdict

_HOMES = {
    "FORMAT": "results",
    "ActivationCheck": "probes",
    "Barrier": "curves",
    "DepthProfile": "borders",
    "Diagnosis": "results",
    "Disentanglement": "probes",
    "LambdaCurve": "curves",
    "Measures": "results",
    "Redundancy": "curves",
    "Settings": "results",
    "Verdict": "verdicts",
    "auto_borders": "borders",
    "borders_by_stack": "borders",
    "check_activations": "probes",
    "depth_profile": "borders",
    "diagnose": "stream",
    "disentanglement": "probes",
    "lambda_curve": "curves",
    "loss_barrier": "curves",
    "redundancy": "curves",
    "verdict": "verdicts",
}

__all__ = [
    "FORMAT",
    "ActivationCheck",
    "Barrier",
    "DepthProfile",
    "Diagnosis",
    "Disentanglement",
    "LambdaCurve",
    "Measures",
    "Redundancy",
    "Settings",
    "Verdict",
    "auto_borders",
    "borders_by_stack",
    "check_activations",
    "depth_profile",
    "diagnose",
    "disentanglement",
    "lambda_curve",
    "loss_barrier",
    "redundancy",
    "verdict",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'merging.diagnose' has no attribute {name!r}")
    return getattr(importlib.import_module(f"merging.diagnose.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
