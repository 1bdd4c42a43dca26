"""What the pydantic models of a config share: unknown keys are errors, and what says nothing is left out of the log."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Strict(BaseModel):
    """A section of the config, without any keys but its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, given: Any, info: ValidationInfo) -> Any:
        """Python takes true for 1, and would search with ``candidates: true``."""
        if isinstance(given, bool) and _is_numeric(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"expected a number, found {str(given).lower()}")
        return given


def _is_numeric(annotation: Any) -> bool:
    """Whether a field takes numbers, perhaps a word or nothing in their place, and no true or false."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _is_numeric(get_args(annotation)[0])
    if origin in (Union, UnionType):
        others = [each for each in get_args(annotation) if each is not NoneType and get_origin(each) is not Literal]
        return bool(others) and all(map(_is_numeric, others))
    return annotation in (int, float)


def without(data: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """What runs of old had no key for is left out where it says nothing: their logs read as ever, and so do new ones
    that do without it."""
    if data.get(key) == value:
        data.pop(key, None)
    return data
