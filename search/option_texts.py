"""What the options of evaluators, optimizers and trackers mean, in the words of their own models.

A pydantic model says it in the descriptions of its fields, or in the ``Attributes:`` section of its docstring.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

_ENTRY = re.compile(r"    (?P<name>\w+): (?P<text>\S.*)")
_NEXT = re.compile(r"        +(?P<text>\S.*)")


def attribute_texts(model: type[BaseModel]) -> dict[str, str]:
    """Field -> what the ``Attributes:`` sections of a model and its parents say of it; the model's own words win."""
    found: dict[str, str] = {}
    for each in reversed(model.__mro__):
        if "model_fields" not in dir(each) or not each.__doc__:
            continue
        found |= _section(inspect.cleandoc(each.__doc__))
    return {name: text for name, text in found.items() if name in model.model_fields}


def describe(model: type[BaseModel], properties: dict[str, Any]) -> None:
    """Fill in, in place, what the properties of a model's JSON schema do not say themselves."""
    texts = attribute_texts(model)
    for name, each in properties.items():
        if "description" in each:
            continue
        if name in texts:
            each["description"] = texts[name]
        elif name.endswith("_field"):
            each["description"] = f"the record's field with the {name.removesuffix('_field')}"


def first_sentence(text: str | None) -> str:
    """The first sentence of a docstring, on one line, without reST's marks."""
    paragraph = " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())
    plain = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", paragraph).replace("``", "")
    return re.split(r"(?<=[.!?])\s", plain, maxsplit=1)[0]


def _section(doc: str) -> dict[str, str]:
    lines = doc.splitlines()
    if "Attributes:" not in lines:
        return {}
    found: dict[str, str] = {}
    name = ""
    for line in lines[lines.index("Attributes:") + 1 :]:
        if entry := _ENTRY.fullmatch(line):
            name = entry["name"]
            found[name] = entry["text"]
        elif name and (more := _NEXT.fullmatch(line)):
            found[name] += f" {more['text']}"
        elif line.strip():
            break
    return {name: text.replace("``", "") for name, text in found.items()}
