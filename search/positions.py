"""Where in a YAML file a value stands, so that an error can point at it.

PyYAML keeps line and column of every node in its composed tree; pydantic names a wrong value by its path of keys.
This module joins the two.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from merging import bounded, plain_yaml
from search.errors import SearchError

Location = tuple[str | int, ...]

_LONGEST = 1000
"""Characters of a line that is still shown: beyond it a caret helps nobody."""

_WIDEST = 90
"""Characters of a line that are shown at once."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the path of keys to it, what to say, and whether the key itself is what is wrong."""

    location: Location
    message: str
    at_key: bool = False


@dataclass(frozen=True)
class Placed:
    """A message and where in the file it belongs.

    Attributes:
        path: of keys, with dots; "" where it is of the file as a whole.
        message: what to say, the path of keys before it.
        line, column: from 1; None where the file has no such place.
        excerpt: the line, or a part of it, and a second one with the caret; "" where there is nothing to show.
    """

    path: str
    message: str
    line: int | None = None
    column: int | None = None
    excerpt: str = ""


class ConfigError(SearchError):
    """What is wrong with a config file, every error at its place.

    Attributes:
        file: the config.
        placed: the errors, in the order in which they were found.
    """

    def __init__(self, file: Path, placed: Sequence[Placed], note: str = "") -> None:
        """Args:
        file: the config.
        placed: one or more errors.
        note: said after all of them.
        """
        super().__init__("\n\n".join(shown(file, each) for each in placed) + note)
        self.file = file
        self.placed = tuple(placed)
        self._note = note

    def __reduce__(self) -> tuple[Any, ...]:
        return ConfigError, (self.file, self.placed, self._note)


class YamlSource:
    """A YAML file as data and as text with positions.

    Attributes:
        text: the file as it was read.
        data: what the file says (an empty mapping for an empty file).
    """

    def __init__(self, path: Path) -> None:
        """Read and parse.

        Raises:
            ConfigError: unreadable, not UTF-8, not YAML, not a mapping, a key twice, or a tag that asks for an object.
        """
        self.path = path
        try:
            self.text = bounded.read_text(path, bounded.LARGEST_CONFIG)
        except FileNotFoundError as error:
            raise _unreadable(path, f"expected a config file, found nothing there{_nearby(path)}") from error
        except IsADirectoryError as error:
            raise _unreadable(path, "expected a config file in YAML, found a folder") from error
        except UnicodeDecodeError as error:
            raise _unreadable(path, f"expected UTF-8 text, found byte {error.start} that is not") from error
        except OSError as error:
            raise _unreadable(path, f"cannot be read: {error.strerror}") from error
        self._lines = self.text.splitlines()
        try:
            self._node = plain_yaml.compose(self.text)
            # before `<<` is merged: a key that is written there overrides one that is merged
            repeats = plain_yaml.repeated_keys(self._node)
            self.data: Any = {} if self._node is None else plain_yaml.construct(self._node)
        except plain_yaml.PlainYamlError as error:
            mark = error.problem_mark or error.context_mark
            raise ConfigError(path, [self._placed(mark, "", f"not valid YAML: {error.reason}")]) from error
        if not isinstance(self.data, dict):
            found = type(self.data).__name__
            raise _unreadable(path, f"expected keys such as `models:` and `evaluators:` at the top, found {found}")
        repeated = [
            self._placed(second, "", f"key {key!r} stands here and in line {first.line + 1}; keep one of them")
            for key, first, second in repeats
        ]
        if repeated:
            raise ConfigError(path, repeated)

    def error(self, problems: Sequence[Problem], note: str = "") -> ConfigError:
        """All problems as one error, each with file:line:column, the line and a caret; ``note`` follows them."""
        return ConfigError(self.path, [self.place(each) for each in problems], note)

    def place(self, problem: Problem) -> Placed:
        """Where a problem stands: at its key or value, or at the deepest of its parents that the file has."""
        name = ".".join(str(part) for part in problem.location)
        message = f"{name}: {problem.message}" if name else problem.message
        return self._placed(self._mark(problem.location, problem.at_key), name, message)

    def _mark(self, location: Location, at_key: bool = False) -> Any:
        """The mark of the value at ``location`` (of its key, where it is a collection), or of the deepest of its
        parents that the file has."""
        node, mark = self._node, self._node.start_mark if self._node else None
        for part in location:
            if isinstance(node, yaml.MappingNode):
                pairs = reversed(node.value)  # what `<<` has merged stands first, and counts least
                found = next(((key, value) for key, value in pairs if key.value == str(part)), None)
                if found is None:
                    continue  # a union's tag, or a key that is missing: stay at the parent
                key, node = found
                scalar = isinstance(node, yaml.ScalarNode) and not at_key
                mark = node.start_mark if scalar else key.start_mark
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                mark = node.start_mark
        return mark

    def _placed(self, mark: Any, path: str, message: str) -> Placed:
        if mark is None:
            return Placed(path, message)
        line = self._lines[mark.line] if mark.line < len(self._lines) else ""
        excerpt = "\n".join(_excerpt(line, mark.column)) if line and len(line) <= _LONGEST else ""
        return Placed(path, message, mark.line + 1, mark.column + 1, excerpt)


def shown(file: Path, placed: Placed) -> str:
    """``file:line:column: message``, and the line with a caret beneath it."""
    where = str(file) if placed.line is None else f"{file}:{placed.line}:{placed.column}"
    lines = [f"{where}: {placed.message}", *(f"    {line}" for line in placed.excerpt.splitlines())]
    return "\n".join(lines)


def _excerpt(line: str, column: int) -> Iterator[str]:
    """A line and the caret below it; of a long line, what stands around the caret, so that the two stay together on a
    terminal that breaks lines."""
    line = line.replace("\t", " ")
    start = 0 if len(line) <= _WIDEST else max(0, min(column - _WIDEST // 2, len(line) - _WIDEST))
    part = line[start : start + _WIDEST]
    before, after = "…" if start else "", "…" if start + _WIDEST < len(line) else ""
    yield before + part + after
    yield " " * (len(before) + column - start) + "^"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def _unreadable(path: Path, message: str) -> ConfigError:
    """Of the file as a whole."""
    return ConfigError(path, [Placed("", message)])


def _nearby(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" (nor a folder {folder})"
    return "." + did_you_mean(path.name, [each.name for each in folder.iterdir()])
