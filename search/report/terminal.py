"""Text on a terminal. Names, labels and reasons may come from a stranger's model, data or database."""

from __future__ import annotations

import io
import sys
from typing import TextIO

from rich.text import Text

_KEPT = frozenset("\n\t\xa0")
_LONGEST_LINE = 2000
_MOST_LINES = 400


def visible(text: str) -> str:
    """The text with whatever a terminal would obey spelled out: escape sequences, overprinting, reversed writing. Lines
    that nobody reads to their end are cut, and so is what nobody scrolls through."""
    lines = text.split("\n")
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_MOST_LINES], f"… and {len(lines) - _MOST_LINES} lines more"]
    return "\n".join(_cut("".join(map(_spelled, line[: _LONGEST_LINE + 1])), len(line)) for line in lines)


def cell(text: str) -> Text:
    """The text for a table: brackets in it are no markup either."""
    return Text(visible(text))


def forgiving(stream: TextIO | None = None) -> TextIO:
    """A stream that prints what its encoding has no sign for as ``?``, instead of ending the program.

    Args:
        stream: changed in place where it is a file; standard output if None.
    """
    out = stream or sys.stdout
    if isinstance(out, io.TextIOWrapper) and out.errors == "strict":
        out.reconfigure(errors="replace")
    return out


def _spelled(sign: str) -> str:
    return sign if sign.isprintable() or sign in _KEPT else ascii(sign)[1:-1]


def _cut(line: str, length: int) -> str:
    return line if length <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}… ({length} characters)"
