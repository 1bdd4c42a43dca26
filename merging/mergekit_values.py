"""Values in mergekit's YAML: a scalar, a gradient, or filters.

A gradient is a list, interpolated linearly over the blocks of a slice. Filters are a list of ``{filter, value}``, of
which the first counts whose filter is a substring of the tensor's name (none, or "*": every name). Outside the blocks
a gradient has its first value, at the embedding and at the head alike: so does mergekit.
"""

from __future__ import annotations

import math
from typing import Any

from merging.methods.contract import suggest
from merging.recipe import MergingError, Value


def evaluate(value: Any, name: str, position: float) -> Any:
    """The value for one tensor.

    Args:
        value: as the YAML has it.
        name: of the tensor.
        position: of its block in the slice, from 0 to 1; see :func:`position_of`.

    Returns:
        A plain value, None where no filter matches.

    Raises:
        MergingError: malformed.
    """
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        for rule in value:
            for key in rule:
                if key not in {"filter", "value"}:
                    raise MergingError(
                        f"a filter of tensor {name}: unknown key {key!r}{suggest(str(key), ('filter', 'value'))}"
                    )
            if rule.get("filter") in {None, "*"} or str(rule["filter"]) in name:
                return evaluate(rule.get("value"), name, position)
        return None
    if isinstance(value, list):
        return _gradient(value, position)
    return value


def position_of(index: int, length: int) -> float:
    """Where block ``index`` of a slice of ``length`` blocks lies on a gradient; a single block is its end."""
    return index / (length - 1) if length > 1 else 1.0


def typed(value: Any, type_: type[Value], what: str) -> Value:
    """A value as a parameter of that type.

    Raises:
        MergingError: it is another thing.
    """
    if type_ is bool:
        if isinstance(value, bool) or value in (0, 1):
            return bool(value)
        raise MergingError(f"expected true or false for {what}, found {value!r}")
    found = number(value, what)
    if type_ is int:
        if found != int(found):
            raise MergingError(f"expected an integer for {what}, found {value!r}")
        return int(found)
    return found


def number(value: Any, what: str) -> float:
    """A finite number.

    Raises:
        MergingError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise MergingError(f"expected a number for {what}, found {value!r}")
    return float(value)


def _gradient(knots: list[Any], position: float) -> Any:
    if not knots:
        raise MergingError("expected a gradient with at least one value, found an empty list")
    scaled = position * (len(knots) - 1)
    if isinstance(knots[0], bool | str):
        return knots[int(scaled)]
    nearest = round(scaled)
    if abs(scaled - nearest) < 1e-9:  # a knot: index / 47 · 47 is not always the index
        return number(knots[nearest], "a gradient")
    low = math.floor(scaled)
    part = scaled - low
    return (1.0 - part) * number(knots[low], "a gradient") + part * number(knots[low + 1], "a gradient")
