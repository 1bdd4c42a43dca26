"""Reading the documentation: fenced blocks, links, headings and the anchors that GitHub gives them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(
    r"^(?P<indent> {0,8})```(?P<language>[\w-]*)[^\n`]*\n(?P<text>.*?)^(?P=indent)```[ \t]*$", re.M | re.S
)
_FILE = re.compile(r"^# file: (?P<name>[\w./-]+)$")
_DIRECTIVE = re.compile(r"^<!-- (?P<key>needs|after): (?P<value>[\w./-]+) -->$", re.M)
_LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?(?P<target>[^)\s>]+)>?[^)]*\)")
_HTML_LINK = re.compile(r"""\b(?:href|src|srcset)=["'](?P<target>[^"'\s]+)""")
_HEADING = re.compile(r"^#{1,6} (?P<text>.+?)(?: #+)?$", re.M)
_ANCHOR = re.compile(r"""<a (?:id|name)=["'](?P<name>[^"']+)""")
_INLINE = re.compile(r"(?<!`)`(?P<text>[^`]+)`(?!`)")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text without the fences, and the line of the page where the text begins."""

    language: str
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, by its first line ``# file: NAME``."""
        match = _FILE.match(self.text.partition("\n")[0])
        return match["name"] if match else None


@dataclass(frozen=True)
class Page:
    """One Markdown file."""

    path: Path

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Every fenced block, in order."""
        return tuple(
            Block(match["language"], _dedented(match["text"], match["indent"]), self.line_at(match.start("text")))
            for match in _FENCE.finditer(self.text)
        )

    @cached_property
    def prose(self) -> str:
        """The page with its fenced blocks blanked out, every line in its place."""
        return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), self.text)

    @property
    def needs(self) -> tuple[str, ...]:
        """The programs without which the page's commands cannot run."""
        return tuple(match["value"] for match in _DIRECTIVE.finditer(self.text) if match["key"] == "needs")

    @property
    def after(self) -> Page | None:
        """The page whose folder this one goes on with."""
        found = [match["value"] for match in _DIRECTIVE.finditer(self.text) if match["key"] == "after"]
        return Page(self.path.parent / found[0]) if found else None

    @cached_property
    def links(self) -> tuple[tuple[str, int], ...]:
        """The target of every link and picture, with its line."""
        text = _INLINE.sub(lambda match: " " * len(match[0]), self.prose)
        found = [*_LINK.finditer(text), *_HTML_LINK.finditer(text)]
        return tuple((match["target"], self.line_at(match.start())) for match in found)

    @cached_property
    def anchors(self) -> frozenset[str]:
        """What a link may name after ``#``, as GitHub makes it of the headings."""
        names: list[str] = []
        for match in _HEADING.finditer(self.prose):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", match["text"])
            slug = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
            again = sum(name == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", name) is not None for name in names)
            names.append(f"{slug}-{again}" if again else slug)
        return frozenset(names) | {match["name"] for match in _ANCHOR.finditer(self.text)}

    @cached_property
    def inline(self) -> tuple[tuple[str, int], ...]:
        """Every piece of inline code, with its line."""
        found = _INLINE.finditer(self.prose)
        return tuple((" ".join(match["text"].split()), self.line_at(match.start())) for match in found)

    def commands(self) -> Iterator[tuple[list[str], int]]:
        """Every ``paretomerge …`` that the page shows, as words without the program's name, with its line."""
        for block in self.blocks:
            for number, line in enumerate(_joined(block.text.split("\n")), block.line):
                yield from ((words, number) for words in command_words(line))
        for code, number in self.inline:
            yield from ((words, number) for words in command_words(code))

    def line_at(self, position: int) -> int:
        """The line of a place in the text, from 1."""
        return self.text.count("\n", 0, position) + 1


def pages(*patterns: str) -> list[Page]:
    """The pages under the repository that match, by default all that people read."""
    patterns = patterns or ("README.md", "CONTRIBUTING.md", "docs/**/*.md", "runs/README.md")
    return [Page(path) for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def command_words(line: str) -> Iterator[list[str]]:
    """The arguments of every call of ``paretomerge`` in a line of shell."""
    for match in re.finditer(r"(?:^|(?<=[\s|;(/\"]))paretomerge(?= |$)(?P<rest>[^|;&)\n]*)", line):
        rest = match["rest"].partition("  #")[0].rstrip(" \\")
        try:
            yield shlex.split(rest, comments=True)
        except ValueError:  # half a quotation: `$(paretomerge … "…")`
            yield rest.replace('"', " ").replace("'", " ").split()


def _joined(lines: list[str]) -> Iterator[str]:
    """Lines with those that a backslash continues; the continued ones stay as empty lines, so that numbers hold."""
    waiting, empty = "", 0
    for line in lines:
        waiting += line.removeprefix("> ") if waiting else line
        if waiting.endswith("\\"):
            waiting, empty = waiting[:-1], empty + 1
            continue
        yield waiting
        yield from [""] * empty
        waiting, empty = "", 0
    if waiting:
        yield waiting


def _dedented(text: str, indent: str) -> str:
    return "".join(line.removeprefix(indent) for line in text.splitlines(keepends=True))
