"""``paretomerge init``."""

from __future__ import annotations


def init() -> None:
    """Write a config for your models and data, from a preset."""
