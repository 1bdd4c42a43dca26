"""Options of ``paretomerge vector`` that say more than one word."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from merging import plain_yaml
from merging.vectors.extract import Coding
from search.errors import SearchError


def parse_coding(budget: float | None, codec: str | None, option: list[str] | None, exact: bool) -> Coding:
    """How to store, of the options.

    Raises:
        SearchError, MergingError: they contradict each other, or are malformed.
    """
    if exact and (codec not in (None, "exact") or budget):
        raise SearchError("expected one of --exact, --budget and --codec, found two; leave one out")
    if option and codec is None:
        raise SearchError("--option is for --codec CODEC; add it, or leave --option out")
    options: dict[str, object] = {}
    for each in option or []:
        key, sign, text = each.partition("=")
        try:
            value = plain_yaml.load(text) if sign and key else None
        except plain_yaml.PlainYamlError:
            value = None
        if not isinstance(value, int | float | str | bool):
            raise SearchError(f"--option {each}: expected KEY=VALUE, such as rank=16")
        options[key.replace("-", "_")] = value
    return Coding(codec, options, budget)


def parse_scales(given: Sequence[str], aliases: Mapping[str, str]) -> dict[str, float]:
    """Alias -> scale, of ``0.8`` for all or ``NAME=0.8`` for one.

    Raises:
        SearchError: malformed, or of a vector that is not named.
    """
    found: dict[str, float] = {}
    for each in given:
        name, sign, text = each.rpartition("=")
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise SearchError(f"--scale {each}: expected a number, or NAME=NUMBER, such as 0.8 or legal-v2=0.8")
        wanted = [alias for alias, own in aliases.items() if not sign or name in (own, alias)]
        if not wanted:
            raise SearchError(f"--scale {each}: expected one of {', '.join(aliases.values())}, found {name!r}")
        found |= dict.fromkeys(wanted, number)
    return found
