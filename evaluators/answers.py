"""From generated text to an answer that can be compared: what to extract, what to ignore. Pure functions of text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from evaluators.extraction import LETTERS, choice_letter, json_value

Normalization = Literal["strip", "lower", "squeeze", "punctuation", "nfkc", "casefold", "accents", "articles"]

# Digits, in groups of three with commas or without; a minus sign counts unless it stands between two numbers.
_NUMBER = re.compile(r"(?:(?<!\d)[-\u2212])?(?:(?:\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)")

# What EvoLLM's published evaluator looks for (Akiba et al. 2025; the last match counts): no sign and no group comma.
_SAKANA_NUMBER = re.compile(r"\d*\.?\d+")


def _not_empty(stops: tuple[str, ...]) -> tuple[str, ...]:
    if not all(stops):
        raise ValueError("a stop string must not be empty: it would end every answer before it begins")
    return stops


Stops = Annotated[tuple[str, ...], AfterValidator(_not_empty)]
"""Texts of which the first ends an answer: what :func:`cut` takes, as an option."""


class After(BaseModel):
    """Take what follows the last occurrence of a marker."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    after: str = Field(min_length=1, description="the marker")


class Regex(BaseModel):
    """Take the last match of a regular expression: its first group where it has one, else all of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    regex: str = Field(min_length=1, description="in the syntax of Python's re")

    @field_validator("regex")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


class Choice(BaseModel):
    """Take the letter of a multiple-choice answer, of these and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    choice: str = Field(LETTERS, pattern="^[A-Z]{2,26}$", description="the labels of the choices, as in ABCD")


class Json(BaseModel):
    """Take a value of the last JSON object."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    path: str = Field(
        alias="json", min_length=1, description="keys and list positions, dots between: answer, or result.values.0"
    )


NumberExtraction = Literal["last_number", "sakana-compat"]
"""The two ways to find the last number: with signs and group commas, and as EvoLLM's published evaluator does."""

Extraction = Literal["none", "last_number", "sakana-compat", "choice"] | After | Regex | Choice | Json


def cut(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first of the stop strings."""
    return text[: min((place for place in map(text.find, stop) if place >= 0), default=len(text))]


def extract(text: str, how: Extraction) -> str | None:
    """The answer within ``text``, or None where there is none."""
    if isinstance(how, After):
        _, found, answer = text.rpartition(how.after)
        return answer if found else None
    if isinstance(how, Regex):
        matches = list(re.finditer(how.regex, text))
        if not matches:
            return None
        return matches[-1].group(1 if matches[-1].re.groups else 0)
    if how == "last_number":
        numbers = _NUMBER.findall(text)
        return _plain_number(numbers[-1]) if numbers else None
    if how == "sakana-compat":
        numbers = _SAKANA_NUMBER.findall(text)
        return _float_text(numbers[-1]) if numbers else None
    if isinstance(how, Json):
        return json_value(text, how.path)
    if how == "choice":
        return choice_letter(text)
    if isinstance(how, Choice):
        return choice_letter(text, how.choice)
    return text


def extract_expected(text: str, how: Extraction) -> str | None:
    """The answer within a text that data give as the right one, or None where there is none.

    As :func:`extract`, but for ``sakana-compat``: the published evaluator compares with a number of the data set, and
    reads only what the model wrote by its expression. An expected 1,234 is 1234, which "1,234" is not then.
    """
    if how != "sakana-compat":
        return extract(text, how)
    number = extract(text, "last_number")
    return None if number is None else _float_text(number)


def normalize(text: str, steps: Sequence[Normalization]) -> str:
    """``text`` without the differences that do not count, the steps applied in their order.

    strip: white space at both ends. squeeze: every run of white space becomes one space. lower: lower case.
    casefold: as lower, for every script. punctuation: characters of the Unicode categories P* removed. nfkc: full-width
    letters, ligatures and the like as their plain forms. accents: marks on Latin, Greek and Cyrillic letters removed;
    elsewhere a mark is half of the letter, and stays. articles: the English words a, an, the removed, as SQuAD does.
    """
    for step in steps:
        text = _STEPS[step](text)
    return text


def _plain_number(number: str) -> str:
    """One way to write it: no group commas, no zeros that say nothing, ASCII digits; "-0" is "0"."""
    sign = "-" if number[0] in "-\N{MINUS SIGN}" else ""
    digits = "".join(str(unicodedata.digit(c)) if c.isdigit() else c for c in number if c not in ",-\N{MINUS SIGN}")
    whole, _, fraction = digits.partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    value = f"{whole}.{fraction}" if fraction else whole
    return value if value == "0" else sign + value


def _float_text(number: str) -> str:
    """One way to write what Python's float reads in it: two texts are equal where the numbers are."""
    value = float(number)
    return str(int(value)) if value.is_integer() else repr(value)


def _without_punctuation(text: str) -> str:
    return "".join(letter for letter in text if not unicodedata.category(letter).startswith("P"))


def _without_accents(text: str) -> str:
    parts: list[str] = []
    for letter in unicodedata.normalize("NFC", text):
        apart = unicodedata.normalize("NFD", letter)
        plain = unicodedata.name(apart[0], "").startswith(("LATIN", "GREEK", "CYRILLIC"))
        parts.append(apart[0] if plain else letter)
    return "".join(parts)


_STEPS: dict[Normalization, Callable[[str], str]] = {
    "strip": str.strip,
    "lower": str.lower,
    "squeeze": lambda text: re.sub(r"\s+", " ", text),
    "punctuation": _without_punctuation,
    "nfkc": lambda text: unicodedata.normalize("NFKC", text),
    "casefold": str.casefold,
    "accents": _without_accents,
    "articles": lambda text: re.sub(r"\b(?:a|an|the)\b", " ", text, flags=re.IGNORECASE),
}
