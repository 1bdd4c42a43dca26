"""Merge methods: the contract, the registry, and one module per family."""

from merging.methods.contract import (
    CALIBRATION,
    DELTA_SCALE,
    Context,
    Elements,
    Elementwise,
    Inputs,
    Method,
    Needs,
    Parameter,
    Values,
    suggest,
)
from merging.methods.registry import canonical, canonical_recipe, get, is_ready, names, source_hash

__all__ = [
    "CALIBRATION",
    "DELTA_SCALE",
    "Context",
    "Elements",
    "Elementwise",
    "Inputs",
    "Method",
    "Needs",
    "Parameter",
    "Values",
    "canonical",
    "canonical_recipe",
    "get",
    "is_ready",
    "names",
    "source_hash",
    "suggest",
]
