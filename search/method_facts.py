"""All that a merge method declares, as plain data and in words."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from merging.methods import Method, Parameter, Values
    from merging.recipe import Assignment, Value

_ALIASES = ("math", "code", "chat", "law", "chemistry", "poetry")


def is_method(name: str) -> bool:
    """Whether a method has that name; ``path/to/file.py:ClassName`` always counts as one."""
    from merging.methods import names

    return name in names() or ".py:" in name


def method_facts(name: str) -> dict[str, Any]:
    """All that a method declares, as plain data.

    Args:
        name: of a method, or ``path/to/file.py:ClassName``.

    Returns:
        name, formula, paper, doc (paragraphs), scope, symmetric, needs, conventions, parameters, example (an
        assignment as recipes hold it; None where none can be made up).

    Raises:
        MergingError: no such method, or a plug-in that cannot be loaded.
    """
    from merging.methods import DELTA_SCALE, get

    method = get(name)
    example = _example(method, name)
    text = inspect.getdoc(type(method)) or ""
    conventions = next((each.choices for each in method.parameters if each.name == "convention"), ())
    return {
        "name": name,
        "formula": method.formula,
        "paper": method.paper,
        "doc": [" ".join(paragraph.replace("``", "").split()) for paragraph in text.split("\n\n") if paragraph.strip()],
        "scope": method.scope,
        "symmetric": method.symmetric,
        "needs": {
            "base": method.needs.base,
            "base_with": [] if method.needs.base or example is None else _where_base_is_read(method, example),
            "sources": [method.needs.minimum, method.needs.maximum],
            "calibration": method.needs.calibration,
        },
        "conventions": list(conventions),
        "fixed": sorted(method.fixed),
        "parameters": [_parameter_facts(each) for each in (*method.parameters, DELTA_SCALE)],
        "example": None if example is None else example.as_data(),
    }


def needs_text(needs: dict[str, Any]) -> str:
    """``base, exactly 2 sources, data``, or ``base with on=task_vectors``."""
    low, high = needs["sources"]
    parts = ["base"] if needs["base"] else [f"base with {' or '.join(needs['base_with'])}"] * bool(needs["base_with"])
    if low == high:
        parts.append(f"exactly {low} source{'s' * (low != 1)}")
    else:
        parts += [f"at least {low} sources"] * (low > 1) + [f"at most {high} sources"] * (high is not None)
    return ", ".join(parts + ["calibration"] * needs["calibration"]) or "nothing but sources"


def range_text(facts: dict[str, Any]) -> str:
    """``0 … 1``, ``0 and more``, ``any number``, ``paper or mergekit``, ``yes or no``."""
    if facts["choices"]:
        return " or ".join(facts["choices"])
    if facts["type"] in ("bool", "str"):
        return {"bool": "yes or no", "str": "text"}[facts["type"]]
    noun = "integer" if facts["type"] == "int" else "number"
    low, high = facts["low"], facts["high"]
    if low is None and high is None:
        return f"any {noun}"
    if low is None or high is None:
        return f"at most {_number(high)}" if low is None else f"{_number(low)} and more"
    return f"{_number(low)} … {_number(high)}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def default_text(facts: dict[str, Any]) -> str:
    """``required``, ``yes``, ``0.2``: what a recipe that says nothing gets."""
    default = facts["default"]
    if default is None:
        return "required"
    if isinstance(default, bool):
        return "yes" if default else "no"
    return str(default) if isinstance(default, str) else _number(default)


def _parameter_facts(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "type": parameter.type.__name__,
        "doc": parameter.doc,
        "default": parameter.default,
        "low": parameter.type(parameter.low) if math.isfinite(parameter.low) else None,
        "high": parameter.type(parameter.high) if math.isfinite(parameter.high) else None,
        "choices": list(parameter.choices),
        "per_source": parameter.per_source,
    }


def _example(method: Method, name: str) -> Assignment | None:
    """An assignment of two sources, or of as many as the method takes, with every parameter written out."""
    from merging.methods import canonical
    from merging.recipe import Assignment, MergingError

    needs = method.needs
    count = max(needs.minimum, min(2, needs.maximum or 2))
    own = [each for each in method.parameters if each.per_source and each.default is None]
    aliases = [_ALIASES[number] if number < len(_ALIASES) else f"expert{number}" for number in range(count)]
    sources: dict[str, dict[str, Value]] = {
        alias: {each.name: _plausible(each, number) for each in own} for number, alias in enumerate(aliases)
    }
    shared = {each.name: _plausible(each, 0) for each in method.parameters if not each.per_source and not _given(each)}
    if needs.calibration:
        shared["calibration"] = "sha256:…"
    try:
        return canonical(Assignment.of(name, sources, **shared))
    except MergingError:  # a stranger's method may want numbers that cannot be guessed
        return None


def _given(parameter: Parameter) -> bool:
    return parameter.default is not None


def _plausible(parameter: Parameter, number: int) -> Value:
    """A value that a parameter without default may have; sources get different ones."""
    if parameter.type is str:
        return parameter.choices[0] if parameter.choices else "…"
    if parameter.type is bool:
        return False
    low, high = parameter.low, parameter.high
    value = 0.6 - 0.2 * number
    if math.isfinite(low) and not math.isfinite(high):
        value = low + (1 if parameter.type is int else 0.001)
    elif not low <= value <= high:
        value = (low + high) / 2 if math.isfinite(low) else high
    return round(value) if parameter.type is int else round(value, 6)


def _where_base_is_read(method: Method, example: Assignment) -> list[str]:
    """``on=task_vectors`` and the like: which choices make the method read the base."""
    from merging.methods import Values

    found: list[str] = []
    values: Values = Values.of(example)
    for parameter in method.parameters:
        options: tuple[Value, ...] = parameter.choices or ((False, True) if parameter.type is bool else ())
        if parameter.per_source or not options:
            continue
        reading = [
            option
            for option in options
            if method.reads_base(Values({**values.shared, parameter.name: option}, values.sources))
        ]
        if 0 < len(reading) < len(options):
            found += [f"{parameter.name}={option}" for option in reading]
    return found
