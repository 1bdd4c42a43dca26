"""Many tests at once: with twenty comparisons at 5 %, one is expected to 'succeed' by chance alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from search.statistics.samples import Array, StatisticsError


def holm(p: npt.ArrayLike) -> Array:
    """Holm's adjusted p-values (Scand. J. Statist. 6, 1979): rejecting those <= α keeps the chance of any false
    rejection at α, whatever the dependence between the tests.

    Args:
        p: [n] in [0, 1]; nan where there is no test, which counts for nothing.

    Returns:
        [n] max over the smaller ones of (n − rank) · p, at most 1; nan stays nan.

    Raises:
        StatisticsError: not one-dimensional, or beyond [0, 1].
    """
    given = np.asarray(p, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(given))
    if given.ndim != 1 or (len(tested) and not 0.0 <= given[tested].min() <= given[tested].max() <= 1.0):
        raise StatisticsError("expected a list of p-values between 0 and 1, found something else")
    order = tested[np.argsort(given[tested], kind="stable")]
    adjusted = np.full(len(given), np.nan)
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * given[order]))
    return adjusted


def adjust(nested: Mapping[Any, Any]) -> dict[Any, Any]:
    """Holm over all p-values of nested mappings, such as finalist -> objective -> baseline -> p.

    Returns:
        The same nesting, with adjusted values.
    """
    adjusted = iter(holm(list(_leaves(nested))).tolist())
    return _replaced(nested, adjusted)


def _leaves(nested: Mapping[Any, Any]) -> Iterator[float]:
    for each in nested.values():
        if isinstance(each, Mapping):
            yield from _leaves(each)
        else:
            yield float(each)


def _replaced(nested: Mapping[Any, Any], values: Iterator[float]) -> dict[Any, Any]:
    return {key: _replaced(each, values) if isinstance(each, Mapping) else next(values) for key, each in nested.items()}
