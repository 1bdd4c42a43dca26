"""``vector://NAME``: a vector of the default store, wherever a model may be named."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from merging.recipe import MergingError
from merging.vectors.places import NAME, default_store, names_in

SCHEME: Final = "vector://"


def is_reference(text: object) -> bool:
    """Whether a text is meant as a reference to the store, well-formed or not."""
    return isinstance(text, str) and text.startswith(SCHEME)


def name_of(text: str) -> str:
    """The name in a reference.

    Raises:
        MergingError: it is malformed.
    """
    name = text.removeprefix(SCHEME)
    if not is_reference(text) or not NAME.fullmatch(name):
        raise MergingError(
            f"{text!r} is not a reference to the vector store. Expected vector://NAME, such as vector://legal-v2"
        )
    return name


def resolve(text: str) -> Path:
    """The folder that a reference names.

    Args:
        text: such as ``vector://legal-v2``.

    Raises:
        MergingError: it is malformed, or there is no such vector.
    """
    name = name_of(text)
    from merging.vectors.store import Store

    return Store().folder(name)


def names() -> list[str]:
    """Of the vectors in the default store."""
    return names_in(default_store())
