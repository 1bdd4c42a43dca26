"""One run that is struck again and again, and what is checked after every blow."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launching import Fault, Launcher, Started
from searches import COMMAND, Searches, Snapshot, differences, events, inconsistencies

KILLED = -9

Moment = Callable[[Started], None]
"""Waits for the moment at which a run is to be killed."""


class Struck:
    """A run under fire.

    Attributes:
        faults: everything that was found wrong so far.
        kills: blows that it died of.
        finished: it has come to its end by itself.
    """

    def __init__(
        self,
        launcher: Launcher,
        searches: Searches,
        name: str,
        options: Sequence[str] = (),
        faults: Sequence[Fault] = (),
    ) -> None:
        """Prepare; nothing is started.

        Args:
            launcher: starts its processes.
            searches: where it lies.
            name: of the run.
            options: more of the command line.
            faults: that are there at every start, besides those of a blow.
        """
        self._launcher, self._searches, self.name = launcher, searches, name
        self._options, self._always = tuple(options), tuple(faults)
        self._before = Snapshot([], {}, {})
        self.faults: list[str] = []
        self.kills = 0
        self.finished = False

    @property
    def folder(self) -> Path:
        """Its directory."""
        return self._searches.run(self.name)

    def start(self, *faults: Fault, options: Sequence[str] = ()) -> Started:
        """The command that starts it, or goes on with it."""
        return self._launcher.start(
            *COMMAND, "--name", self.name, *self._options, *options,
            folder=self._searches.folder,
            environment=self._searches.environment(self.name),
            faults=[*self._always, *faults],
        )  # fmt: skip

    def strike(self, *faults: Fault, moment: Moment | None = None, what: str = "") -> bool:
        """Start it, and kill it at a moment, or let it die of the faults.

        Returns:
            Whether it died of that: else it had come to its end before.
        """
        run = self.start(*faults)
        if moment is not None:
            moment(run)
            run.kill()
        status = run.wait()
        self.check(f"kill {self.kills + 1} ({what or (faults[0] if faults else 'a random moment')})")
        if status == KILLED:
            self.kills += 1
            return True
        if status == 0:
            self.finished = True
        else:
            self.faults.append(f"it ended by itself with {status}: {run.output}")
        return False

    def check(self, after: str) -> None:
        """Whether all is still there that was there at the last look. It must not be running."""
        try:
            found = Snapshot.of_copy(self.folder)
        except Exception as error:
            self.faults.append(f"{after}: the run cannot be read: {type(error).__name__}: {error}")
            return
        self.faults += [f"{after}: {each}" for each in self._before.lost(found)]
        self._before = found

    @property
    def concluded(self) -> int:
        """Candidates that were told, at the last look."""
        return len(self._before.concluded)

    def strike_report(self) -> None:
        """Kill it while the report of the finished run is written; the same command then writes it."""
        for target, after in (("search.report.html:render", True), ("merging.durable:flush", False)):
            self.strike(("kill_at_call", {"target": target, "after": after}), what=f"in the report, {target}")
            if not after and not list(self.folder.glob(".report.html.partial-*")):
                self.faults.append("not killed between the report's writing and its name")
            report = self.folder / "report.html"
            if report.exists() and not report.read_text(encoding="utf-8").rstrip().endswith("</html>"):
                self.faults.append("half a report")
        self.finish()
        if not (self.folder / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>"):
            self.faults.append("no whole report")

    def strike_export(self) -> bytes:
        """Kill exports of the finished run's choice, and then let one end.

        Returns:
            The weights.
        """
        out = self._searches.folder / f"export of {self.name}"
        command = ("export", str(self.folder), "--knee", "--out", str(out))
        for target in ("merging.export:save_file", "merging.export:_write_companions", "merging.export:publish"):
            for after in (False, True):
                fault = ("kill_at_call", {"target": target, "after": after})
                run = self._launcher.start(*command, folder=self._searches.folder, faults=[fault])
                if run.wait() != KILLED:
                    self.faults.append(f"export was not killed in {target}: {run.output}")
                self.kills += 1
                whole = target.endswith(":publish") and after
                if out.exists() != whole:
                    self.faults.append(f"killed in {target}, the export is {'missing' if whole else 'there'}")
                if whole:
                    shutil.rmtree(out)
        run = self._launcher.start(*command, folder=self._searches.folder)
        if run.wait() != 0:
            self.faults.append(f"export does not come to its end: {run.output}")
        left = sorted(each.name for each in out.parent.glob(f".{out.name}.*"))
        if left:
            self.faults.append(f"exports that were killed have left {left}")
        self.check("after the export")
        return (out / "model.safetensors").read_bytes()

    def finish(self, *options: str) -> None:
        """Let it go on to its end, undisturbed."""
        run = self.start(options=options)
        if run.wait() != 0:
            self.faults.append(f"it does not come to its end: {run.output}")
        self.check("at the end")
        self.faults += inconsistencies(self.folder)
        self.finished = True

    def compare(self, calm: str, more: int | None = None) -> int:
        """Compare it, finished, with the undisturbed run.

        Args:
            calm: name of that run, in the same folder.
            more: evaluations that may have been repeated; as many as there were kills if None.

        Returns:
            Evaluations that were repeated.
        """
        self.faults += differences(self._searches.run(calm), self.folder)
        repeated = self._searches.evaluations(self.name) - self._searches.evaluations(calm)
        most = self.kills if more is None else more
        if not 0 <= repeated <= most:
            self.faults.append(f"{repeated} repeated evaluations, where there may be {most}")
        return repeated


def of_the_start(chance: random.Random, seconds: float) -> Moment:
    """Any moment of the first so many seconds of a start, its set-up among them; or the end, if that is earlier."""

    def wait(run: Started) -> None:
        _sleep(run, chance.uniform(0.0, seconds))

    return wait


def of_the_search(chance: random.Random, most: int, folder: Path) -> Moment:
    """Soon after a start has logged some events, ``most`` at most; or the end, if that is earlier."""
    wanted = events(folder) + chance.randint(1, most)

    def wait(run: Started) -> None:
        while run.status is None and events(folder) < wanted:
            time.sleep(0.005)
        _sleep(run, chance.uniform(0.0, 0.1))

    return wait


def _sleep(run: Started, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while run.status is None and time.monotonic() < deadline:
        time.sleep(0.002)
