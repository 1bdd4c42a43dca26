"""What a check has found: errors, warnings and notes, each at its place in the config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from search.errors import user_errors
from search.positions import ConfigError, Location, Placed, Problem, YamlSource, shown

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")

_LOGGER = logging.getLogger("paretomerge")
_CODE_IS_RUN = "note: the code of "


@dataclass(frozen=True)
class Finding:
    """One thing to say.

    Attributes:
        level: an error keeps the search from starting, or from meaning anything; a warning is most likely not what was
            meant; a note is worth knowing.
        placed: what, and where in the config.
    """

    level: Level
    placed: Placed

    def as_data(self, file: Path) -> dict[str, Any]:
        """For JSON: level, message, file, line, column and path; the last three null or empty where there is none."""
        placed = self.placed
        return {
            "level": self.level, "message": placed.message, "file": str(file), "line": placed.line,
            "column": placed.column, "path": placed.path,
        }  # fmt: skip

    def as_text(self, file: Path) -> str:
        """``level: file:line:column: message``, and, but for notes, the line and a caret."""
        placed = replace(self.placed, excerpt="") if self.level == "note" else self.placed
        return f"{self.level}: {shown(file, placed)}"


class Findings:
    """Collects what is found; the same thing at the same place is kept once.

    Args:
        source: the config, for places in it.
    """

    def __init__(self, source: YamlSource) -> None:
        self._source = source
        self._found: dict[tuple[Level, str, str], Finding] = {}
        self._at: list[Location] = [()]
        self._where: Callable[[Location], Location] = lambda location: location

    def error(self, location: Location, message: str, *, at_key: bool = False) -> None:
        """Something that has to be corrected."""
        self._add("error", location, message, at_key)

    def warn(self, location: Location, message: str, *, at_key: bool = False) -> None:
        """Something that is most likely not what was meant."""
        self._add("warning", location, message, at_key)

    def note(self, location: Location, message: str, *, at_key: bool = False) -> None:
        """Something worth knowing."""
        self._add("note", location, message, at_key)

    def problems(self, problems: list[Problem]) -> None:
        """Errors of the file itself."""
        for each in problems:
            self._add("error", each.location, each.message, each.at_key)

    @contextmanager
    def at(self, *location: str | int) -> Iterator[None]:
        """Within the context, a user's mistake that is raised becomes an error here, or at the place that it names
        itself; what is logged becomes a note here."""
        self._at.append(location)
        try:
            yield
        except ConfigError as error:
            for placed in error.placed:
                self._keep("error", placed)
        except user_errors() as error:
            self._add("error", location, str(error), at_key=False)
        finally:
            self._at.pop()

    @contextmanager
    def elsewhere(self, where: Callable[[Location], Location]) -> Iterator[None]:
        """Within the context, what is found at a place belongs to another one.

        Args:
            where: place -> where the file has it.
        """
        self._where = where
        try:
            yield
        finally:
            self._where = lambda location: location

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the context, what the packages log for people becomes a note where the check is at work. That code of
        a plug-in is about to run is still said at once, in case it never comes back."""
        handler = _Listener(self)
        others = list(_LOGGER.handlers)
        for each in others:
            each.addFilter(_runs_code)
        _LOGGER.addHandler(handler)
        try:
            yield
        finally:
            _LOGGER.removeHandler(handler)
            for each in others:
                each.removeFilter(_runs_code)

    def hear(self, text: str) -> None:
        """A line of the log."""
        self._add("note", self._at[-1], text.removeprefix("note: "), at_key=False)

    @property
    def sorted(self) -> tuple[Finding, ...]:
        """Errors, then warnings, then notes; each in the order of the file."""
        found = list(self._found.values())
        return tuple(sorted(found, key=_order))

    @property
    def errors(self) -> int:
        """How many errors there are so far."""
        return sum(each.level == "error" for each in self._found.values())

    def _add(self, level: Level, location: Location, message: str, at_key: bool) -> None:
        self._keep(level, self._source.place(Problem(self._where(location), message, at_key)))

    def _keep(self, level: Level, placed: Placed) -> None:
        self._found.setdefault((level, placed.path, placed.message), Finding(level, placed))


class _Listener(logging.Handler):
    def __init__(self, findings: Findings) -> None:
        super().__init__(logging.WARNING)
        self._findings = findings

    def emit(self, record: logging.LogRecord) -> None:
        self._findings.hear(record.getMessage())


def _runs_code(record: logging.LogRecord) -> bool:
    return record.getMessage().startswith(_CODE_IS_RUN)


def _order(finding: Finding) -> tuple[int, int, int]:
    return LEVELS.index(finding.level), finding.placed.line or 0, finding.placed.column or 0
