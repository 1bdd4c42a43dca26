"""What the pydantic models of a config share: unknown keys are errors, and what says nothing is left out of the log."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A section of the config, without any keys but its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def without(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """What runs of old had no key for is left out where it says nothing: their logs read as ever, and so do new ones
    that do without it."""
    if data.get(key) == value:
        data.pop(key, None)
    return data
