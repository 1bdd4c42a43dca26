"""Proposes merges, schedules their evaluation, remembers everything, reports.

The public names load on first use, so that ``import search`` is quick and imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.config import LoadedConfig, load_config
    from search.errors import SearchError
    from search.results import Results
    from search.run import Run
    from search.schema import Config

__version__ = "0.1.0"

__all__ = ["Config", "LoadedConfig", "Results", "Run", "SearchError", "__version__", "load_config"]

_WHERE = {
    "Config": "search.schema",
    "LoadedConfig": "search.config",
    "load_config": "search.config",
    "SearchError": "search.errors",
    "Results": "search.results",
    "Run": "search.run",
}


def __getattr__(name: str) -> Any:
    """Public names, imported when first used (PEP 562)."""
    from importlib import import_module

    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'search' has no attribute {name!r}")
