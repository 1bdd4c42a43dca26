"""Whether plain data out of JSON is of a declared type: a log may come from somebody else, and be anything."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_LARGEST = 2**63


def check_fields(cls: type, data: dict[str, Any]) -> None:
    """Check what is about to be the arguments of a dataclass.

    Args:
        cls: the dataclass.
        data: field -> value, as JSON has it: lists for tuples, whole numbers for floats.

    Raises:
        ValueError: names the first field that is of another type.
    """
    hints = _hints(cls)
    for name, value in data.items():
        if name in hints and not hints[name](value):
            raise ValueError(f"{name} is of the wrong type")


@cache
def _hints(cls: type) -> dict[str, Callable[[Any], bool]]:
    found = get_type_hints(cls)
    logged = [each.name for each in dataclasses.fields(cls) if each.metadata.get("logged", True)]
    return {name: _test(found[name]) for name in logged}


def _test(hint: Any) -> Callable[[Any], bool]:
    """What tells whether a value is of a type."""
    simple = {
        int: lambda value: type(value) is int and abs(value) < _LARGEST,
        float: lambda value: type(value) is float or (type(value) is int and abs(value) < _LARGEST),
        str: lambda value: type(value) is str,
        bool: lambda value: type(value) is bool,
        type(None): lambda value: value is None,
        Any: lambda value: True,
    }
    if hint in simple:
        return simple[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return lambda value: type(value) is str and value in arguments
    if origin in (Union, types.UnionType):
        tests = [_test(each) for each in arguments]
        return lambda value: any(test(value) for test in tests)
    if origin in (list, tuple):
        inside = _test(arguments[0])
        return lambda value: isinstance(value, list | tuple) and all(map(inside, value))
    if origin is dict:
        keys, values = map(_test, arguments)
        return lambda value: isinstance(value, dict) and all(map(keys, value)) and all(map(values, value.values()))
    if dataclasses.is_dataclass(hint):
        fields = _hints(hint)  # type: ignore[arg-type]
        return lambda value: (
            isinstance(value, dict) and all(name in fields and fields[name](each) for name, each in value.items())
        )
    raise TypeError(f"{hint} is no type of plain data")
