"""Where in a YAML file a value stands, so that an error can point at it.

PyYAML keeps line and column of every node in its composed tree; pydantic names a wrong value by its path of keys.
This module joins the two.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from merging import bounded, plain_yaml
from search.errors import SearchError

Location = tuple[str | int, ...]

_WIDEST = 1000
"""Characters of a line that is still shown: beyond it a caret helps nobody."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the path of keys to it, what to say, and whether the key itself is what is wrong."""

    location: Location
    message: str
    at_key: bool = False


class YamlSource:
    """A YAML file as data and as text with positions.

    Attributes:
        text: the file as it was read.
        data: what the file says (an empty mapping for an empty file).
    """

    def __init__(self, path: Path) -> None:
        """Read and parse.

        Raises:
            SearchError: unreadable, not UTF-8, not YAML, not a mapping, a key twice, or a tag that asks for an object.
        """
        self.path = path
        try:
            self.text = bounded.read_text(path, bounded.LARGEST_CONFIG)
        except FileNotFoundError as error:
            raise SearchError(f"{path}: expected a config file, found nothing there{_nearby(path)}") from error
        except IsADirectoryError as error:
            raise SearchError(f"{path}: expected a config file in YAML, found a folder") from error
        except UnicodeDecodeError as error:
            raise SearchError(f"{path}: expected UTF-8 text, found byte {error.start} that is not") from error
        except OSError as error:
            raise SearchError(f"{path}: cannot be read: {error.strerror}") from error
        self._lines = self.text.splitlines()
        try:
            self._node = plain_yaml.compose(self.text)
            # before `<<` is merged: a key that is written there overrides one that is merged
            repeats = plain_yaml.repeated_keys(self._node)
            self.data: Any = {} if self._node is None else plain_yaml.construct(self._node)
        except plain_yaml.PlainYamlError as error:
            mark = error.problem_mark or error.context_mark
            raise SearchError(self._at(mark, f"not valid YAML: {error.reason}")) from error
        if not isinstance(self.data, dict):
            raise SearchError(
                f"{path}: expected keys such as `models:` and `evaluators:` at the top, found "
                f"{type(self.data).__name__}"
            )
        repeated = [
            self._at(second, f"key {key!r} stands here and in line {first.line + 1}; keep one of them")
            for key, first, second in repeats
        ]
        if repeated:
            raise SearchError("\n\n".join(repeated))

    def show(self, problems: Sequence[Problem]) -> str:
        """All problems, each with file:line:column, the line and a caret."""
        return "\n\n".join(self._at(self._mark(each.location, each.at_key), self._say(each)) for each in problems)

    @staticmethod
    def _say(problem: Problem) -> str:
        name = ".".join(str(part) for part in problem.location)
        return f"{name}: {problem.message}" if name else problem.message

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

    def _at(self, mark: Any, message: str) -> str:
        if mark is None:
            return f"{self.path}: {message}"
        text = f"{self.path}:{mark.line + 1}:{mark.column + 1}: {message}"
        line = self._lines[mark.line] if mark.line < len(self._lines) else ""
        if line and len(line) <= _WIDEST:
            text += f"\n    {line}\n    {' ' * mark.column}^"
        return text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""


def _nearby(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" (nor a folder {folder})"
    return "." + did_you_mean(path.name, [each.name for each in folder.iterdir()])
