"""Whether optuna-dashboard is there: an extra to install."""

from __future__ import annotations

import importlib.util

from search.errors import SearchError


def check_installed() -> None:
    """Look for the package, without importing it.

    Raises:
        SearchError: it is not installed; with what to do.
    """
    found = importlib.util.find_spec("optuna_dashboard")
    if found is None or found.origin is None:  # a folder of that name is no package
        raise SearchError(
            "expected the package optuna-dashboard, which is not installed: pip install 'paretomerge[dashboard]'. "
            "`paretomerge watch RUN` and `paretomerge report RUN` do without it"
        )
