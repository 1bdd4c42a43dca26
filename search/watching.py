"""Following a run from its database alone, from another process: only what is new is read each time.

The database is opened for reading, looked at, and let go of again, so that whoever writes, upgrades or salvages it is
never in the way of a watcher, nor the other way round.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from search.course import HEARD, Course
from search.errors import SearchError
from search.first_config import is_first, name_of
from search.lock import is_held
from search.store import CONTROL, DATABASE, Store, under_way
from search.store.reading import Entry

State = Literal["setting up", "running", "interrupted", "finished"]


@dataclass(frozen=True)
class Look:
    """What one look at a run has found.

    Attributes:
        state: "setting up" as long as nothing is stored.
        course: how far it is; None while it is being set up.
        trouble: why the database could not be read this time, for people; "" where it could. Then the rest is as it
            was at the last look.
        disk: bytes left where the run is; None where that cannot be told.
        control: the run's control is being searched now.
        first: this is the first search of a hybrid, whose second one has not begun.
    """

    state: State
    course: Course | None
    trouble: str = ""
    disk: int | None = None
    control: bool = False
    first: bool = False


class Watcher:
    """Looks at a run again and again. Never writes to it. Of a hybrid it shows the first search, until the second one
    has begun.

    Args:
        folder: the run directory.

    Raises:
        SearchError: no run is there, nor is one being set up.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._course: Course | None = None
        self._last: Entry | None = None
        self._state: State = "setting up"
        self._place = folder
        if not (under_way(folder) / DATABASE).exists() and not is_held(folder):
            Store.open(folder, read_only=True)  # says what is missing

    @property
    def name(self) -> str:
        """The run's name; see :func:`search.first_config.name_of`."""
        course = self._course
        return name_of(self._place, first=course is not None and is_first(self._place, course.config, course.started))

    def look(self) -> Look:
        """The run as it is now. Whatever keeps the database from being read is said in :attr:`Look.trouble`: the next
        look may find it again."""
        trouble = ""
        try:
            self._read()
        except SearchError as error:
            trouble = str(error)
        return Look(
            self._state, self._course, trouble, _free(self.folder), is_held(self.folder / CONTROL),
            self._place != self.folder,
        )  # fmt: skip

    def _read(self) -> None:
        held = is_held(self.folder)  # before the log is: what is then written last was written by that holder
        if (place := under_way(self.folder)) != self._place:
            self._place, self._course, self._last = place, None, None
        held = held or is_held(place)
        if not (place / DATABASE).exists() and held and self._course is None:
            return
        store = Store.open(place, read_only=True)
        try:
            if not self._goes_on(store):
                self._course, self._last = None, None
            if self._course is None:
                started = store.started()
                if started is None:
                    return
                self._course = Course(started, place)
            for entry in store.entries(*HEARD, after=self._last.seq if self._last else 0):
                self._course.note(entry.event, entry.at)
                self._last = entry
        finally:
            store.close()
        self._state = self._course.state(held=held)
        if place != self.folder and self._state == "finished":
            self._state = "interrupted"  # the second search is still to come

    def _goes_on(self, store: Store) -> bool:
        """Whether the database still holds what was read of it: it may be another run's by now, or a salvaged one."""
        if self._last is None:
            return True
        there = next(store.entries(*HEARD, after=self._last.seq - 1), None)
        return there is not None and (there.seq, there.at) == (self._last.seq, self._last.at)


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None
