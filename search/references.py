"""Names that stand for folders wherever a model may be named: ``zoo://…``, ``vector://NAME`` and ``hub://OWNER/NAME``."""

from __future__ import annotations

from pathlib import Path

VECTOR = "vector://"
"""Of the vector store. Known here so that nothing of torch is imported for texts that are none."""

HUB = "hub://"
"""Of models on the Hugging Face Hub; likewise."""


def is_reference(text: object) -> bool:
    """Whether a text is meant as a reference, well-formed or not; otherwise it is a path."""
    import zoo

    return isinstance(text, str) and (zoo.is_reference(text) or text.startswith((VECTOR, HUB)))


def resolve(text: str) -> Path | None:
    """The folder that a reference names; None where the text is none.

    Raises:
        ZooError, MergingError: it is malformed, or names nothing that is there. A model on the Hub that is not on this
            machine is fetched only within :func:`merging.hub_models.downloading`.
    """
    import zoo

    if zoo.is_reference(text):
        return zoo.resolve(text)
    if text.startswith(HUB):
        from merging.hub_models import resolve as hub

        return hub(text)
    if not text.startswith(VECTOR):
        return None
    from merging.vectors.references import resolve as vector

    return vector(text)
