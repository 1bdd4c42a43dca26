"""Merging: checkpoints, recipes, methods, and a recipe into a live model or a folder.

The public names below are imported when they are first used, so that ``import merging`` is cheap. The export is
:func:`merging.export.export`: a name here would be hidden by its module.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merging.checkpoint import Checkpoint, TensorInfo
    from merging.configs import read_config
    from merging.differences import check_compatible
    from merging.layout import Layout
    from merging.materialize import Applied, Materializer, MergeFailed, Sources, load_model
    from merging.mergekit import read_mergekit
    from merging.recipe import Assignment, Group, MergingError, Recipe, SourceRef

_HOMES = {
    "Applied": "merging.materialize",
    "Assignment": "merging.recipe",
    "Checkpoint": "merging.checkpoint",
    "Group": "merging.recipe",
    "Layout": "merging.layout",
    "Materializer": "merging.materialize",
    "MergeFailed": "merging.materialize",
    "MergingError": "merging.recipe",
    "Recipe": "merging.recipe",
    "SourceRef": "merging.recipe",
    "Sources": "merging.materialize",
    "TensorInfo": "merging.checkpoint",
    "check_compatible": "merging.differences",
    "load_model": "merging.materialize",
    "read_config": "merging.configs",
    "read_mergekit": "merging.mergekit",
}

__all__ = [
    "Applied",
    "Assignment",
    "Checkpoint",
    "Group",
    "Layout",
    "Materializer",
    "MergeFailed",
    "MergingError",
    "Recipe",
    "SourceRef",
    "Sources",
    "TensorInfo",
    "check_compatible",
    "load_model",
    "read_config",
    "read_mergekit",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'merging' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
