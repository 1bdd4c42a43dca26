"""Markdown that shows a stranger's text as it is: no markup, no HTML, no link, no mention comes of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from search.report.terminal import visible

_MARKUP = re.compile(r"([\\`*_\[\]|~$])")
_FIRST = re.compile(r"^(#|[-+=](?=[-+=\s]|$)|\d+[.)](?=\s|$))")
_LONGEST = 300


def plain(text: str, most: int = _LONGEST) -> str:
    """Text for a paragraph or a table cell, on one line."""
    line = " ".join(visible(text).split())
    line = line if len(line) <= most else line[: most - 1] + "…"
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _MARKUP.sub(r"\\\1", line)
    # what renderers make links and mentions of without any markup
    line = line.replace("://", "&#58;//").replace("@", "&#64;").replace("www.", "www&#46;")
    return _FIRST.sub(
        lambda found: found[0][:-1] + "\\" + found[0][-1], line
    )  # a heading, a list, a line below a heading


def code(text: str) -> str:
    """Text in a code span, on one line."""
    line = " ".join(visible(text).split())
    runs = [len(run) for run in re.findall(r"`+", line)]
    fence = "`" * (max(runs, default=0) + 1)
    edge = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{edge}{line}{edge}{fence}"


def fenced(text: str, language: str, most_lines: int | None = None) -> str:
    """A block of code; what is longer than so many lines is cut, and that is said below it."""
    lines = text.rstrip("\n").split("\n")
    shown = lines if most_lines is None else lines[:most_lines]
    body = "\n".join(visible(line) for line in shown)
    fence = "`" * max(3, max((len(run) for run in re.findall(r"`+", body)), default=0) + 1)
    cut = f"\n\n… and {len(lines) - len(shown)} lines more." if len(shown) < len(lines) else ""
    return f"{fence}{language}\n{body}\n{fence}{cut}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("\n", " ") for cell in line) + " |" for line in lines)


def folded(summary: str, body: str) -> str:
    """A part that opens on demand, where HTML is rendered."""
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>"
