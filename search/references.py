"""Names that stand for folders wherever a model may be named: ``zoo://…`` and ``vector://NAME``."""

from __future__ import annotations

from pathlib import Path

VECTOR = "vector://"
"""Of the vector store. Known here so that nothing of torch is imported for texts that are none."""


def is_reference(text: object) -> bool:
    """Whether a text is meant as a reference, well-formed or not; otherwise it is a path."""
    import zoo

    return isinstance(text, str) and (zoo.is_reference(text) or text.startswith(VECTOR))


def resolve(text: str) -> Path | None:
    """The folder that a reference names; None where the text is none.

    Raises:
        ZooError, MergingError: it is malformed, or names nothing that is there.
    """
    import zoo

    if zoo.is_reference(text):
        return zoo.resolve(text)
    if not text.startswith(VECTOR):
        return None
    from merging.vectors.references import resolve as vector

    return vector(text)
