"""``README.md`` of an export: front matter and text, put together and written."""

from __future__ import annotations

from pathlib import Path

from search.card.body import body
from search.card.facts import CardFacts
from search.card.loading import loading_of
from search.card.metadata import metadata

CARD = "README.md"


def write_card(facts: CardFacts) -> Path:
    """Write the card into the export's folder.

    Args:
        facts: what it may say.

    Returns:
        Its path.

    Raises:
        OSError: it cannot be written.
    """
    from huggingface_hub import ModelCard

    loading = loading_of(facts.folder)
    card = ModelCard(f"---\n{metadata(facts, loading).to_yaml()}\n---\n\n{body(facts, loading)}")
    path = facts.folder / CARD
    # a lone surrogate out of a stranger's file is no reason to lose the card
    path.write_bytes(card.content.encode("utf-8", errors="replace"))
    return path
