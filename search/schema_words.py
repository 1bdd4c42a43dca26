"""A JSON schema in a person's words: what a key takes, and which keys are below it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

Facts = dict[str, Any]

_NAMES = {"string": "text", "integer": "integer", "number": "number", "boolean": "yes or no", "null": "nothing"}

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def type_words(section: Facts, whole: Facts) -> str:
    """``number > 0``, ``race or halving``, ``list of text``, ``keys``.

    Args:
        section: of a schema.
        whole: with the ``$defs`` that it refers to.
    """
    return " or ".join(dict.fromkeys(_words(section, whole)))


def described(section: Facts, whole: Facts) -> Facts:
    """What a section with keys says of them: itself, or the one alternative that has keys."""
    section = _resolved(section, whole)
    if "properties" in section or "patternProperties" in section:
        return section
    for each in (*section.get("anyOf", []), *section.get("oneOf", []), *section.get("prefixItems", [])):
        found = described(each, whole)
        if "properties" in found or "patternProperties" in found:
            return found
    items = section.get("items")
    return described(items, whole) if isinstance(items, dict) else section


def children(section: Facts, whole: Facts) -> dict[str, Facts]:
    """The keys of fixed name below a section."""
    found: dict[str, Facts] = described(section, whole).get("properties", {})
    return found


def child(section: Facts, name: str, whole: Facts) -> Facts | None:
    """What stands under a key; None if there can be none of that name. Indices of lists are no keys."""
    if name.isdigit() and "items" in _resolved(section, whole):
        return dict(_resolved(section, whole)["items"])
    inner = described(section, whole)
    if name in inner.get("properties", {}):
        return dict(inner["properties"][name])
    for pattern, each in inner.get("patternProperties", {}).items():
        if re.search(pattern, name):
            return dict(each)
    for each in inner.get("allOf", []):  # of an evaluator or a tracker, whose keys depend on its name
        then = described(each.get("then", {}), whole)
        if name in then.get("properties", {}):
            return dict(then["properties"][name])
    free = inner.get("additionalProperties")
    return dict(free) if isinstance(free, dict) else None


def _resolved(section: Facts, whole: Facts) -> Facts:
    if "$ref" not in section:
        return section
    target = whole["$defs"][section["$ref"].removeprefix("#/$defs/")]
    return {**target, **{key: each for key, each in section.items() if key != "$ref"}}


def _words(section: Facts, whole: Facts) -> Iterator[str]:
    section = _resolved(section, whole)
    for alternatives in ("anyOf", "oneOf"):
        if alternatives in section and "properties" not in section:
            for each in section[alternatives]:
                yield from _words(each, whole)
            return
    if "const" in section:
        yield _value(section["const"])
    elif "enum" in section:
        yield from map(_value, section["enum"])
    elif section.get("type") == "array":
        yield _list(section, whole)
    elif section.get("type") == "object" or "properties" in section:
        yield "keys"
    elif str(section.get("pattern", "")).startswith(r"\.py"):
        yield "path/to/file.py:Name"
    else:
        yield _range(_NAMES.get(str(section.get("type")), "anything"), section)


def _list(section: Facts, whole: Facts) -> str:
    if "prefixItems" in section:
        return f"[{', '.join(type_words(each, whole) for each in section['prefixItems'])}]"
    items = section.get("items")
    return f"list of {type_words(items, whole)}" if isinstance(items, dict) and items else "list"


def _range(name: str, section: Facts) -> str:
    parts = [f"{sign} {section[key]:g}" for key, sign in _BOUNDS.items() if section.get(key) is not None]
    return f"{name} {', '.join(parts)}" if parts else name


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "nothing" if value is None else str(value)
