"""A run in Optuna's terms, kept up with its database: read again and again, written never."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from search.constraints import Constraints
from search.dashboard.figures import figures
from search.dashboard.genes import Parameters
from search.dashboard.storage import MirrorStorage
from search.dashboard.trials import Candidates, Trials
from search.errors import user_errors
from search.events import Asked, Chosen, Failed, Finished, RungReached, Scored, Told
from search.objectives import Objectives
from search.optimizers.optuna_table import quiet
from search.report.terminal import visible
from search.results import Results
from search.stages import stage_names
from search.store import DATABASE, Store

Say = Callable[[str], None]

_READ = (Asked, RungReached, Scored, Failed, Told, Chosen, Finished)
PATIENCE = 20.0
"""Figures are drawn anew no sooner than after so many times what drawing them took the last time."""
_MARKUP = str.maketrans({sign: f"\\{sign}" for sign in r"\`*_{}[]()<>#+-.!|~$&:"})


class Mirror:
    """A study that shows a run.

    Args:
        folder: the run directory.
        everything: show every gene, however many there are.
        say: told what goes wrong while the run is followed.

    Attributes:
        storage: for optuna-dashboard; has the trials from the start, figures and note after the first :meth:`poll`.
        parameters: what is shown of genomes.

    Raises:
        SearchError: no run is there, or it is damaged, or has not begun.
    """

    def __init__(self, folder: Path, *, everything: bool = False, say: Say = lambda line: None) -> None:
        self._folder = folder
        self._say = say
        results = Results.load(folder)
        budget = max(results.config.search.budget.candidates, len(results.candidates))
        self.parameters = Parameters(results.stages, budget, everything=everything)
        objectives = Objectives.from_data(results.started.objectives)
        directions = [each.metric.direction for each in objectives.targets]
        self.storage = MirrorStorage(visible(results.name), directions)
        constraints = Constraints.from_data(results.started.constraints, results.started.clusters)
        self._trials = Trials(self.parameters, objectives, constraints, stage_names(results.config))
        self._candidates = Candidates()
        self._last = 0
        self._file = _identity(folder)
        self._drawn = 0.0
        self._took = 0.0
        self._stale = True
        self._trouble = ""
        self._shown = ""
        with quiet():
            self.storage.study.set_metric_names(list(objectives.names))
        self._read()

    def poll(self) -> bool:
        """Read what is new, and draw anew where that is due. True if anything was new.

        Raises:
            SearchError: the database is not there, is locked or damaged.
        """
        if _identity(self._folder) != self._file:  # a salvage has put another one there
            self._file, self._last, self._candidates = _identity(self._folder), 0, Candidates()
            self.storage.clear_trials()
        news = self._read()
        self._stale = self._stale or news
        if self._stale and time.monotonic() >= self._drawn + PATIENCE * self._took:
            self._decorate(Results.load(self._folder))
        return news

    def follow(self, stop: threading.Event, every: float = 2.0) -> None:
        """Poll until told to stop. Trouble is said once, and tried again: the run may be starting anew, or its file
        system be away for a while."""
        passing: tuple[type[Exception], ...] = (*user_errors(), OSError)
        while True:
            try:
                self.poll()
                self._trouble = ""
            except passing as error:  # a thread that ends would say nothing
                if str(error) != self._trouble:
                    self._trouble = str(error)
                    self._say(f"not up to date: {error}")
            if stop.wait(every):
                return

    def _read(self) -> bool:
        """Take in the log from where it was left."""
        dirty: set[int] = set()
        before = self._last
        store = Store.open(self._folder, read_only=True)
        try:
            for entry in store.entries(*_READ, after=self._last):
                self._last = entry.seq
                id = self._candidates.take(entry.at, entry.event)
                if id is not None and id >= 0:
                    dirty.add(id)
        finally:
            store.close()
        if dirty:
            known = self._candidates.known
            repeats = {id for id, each in known.items() if each.outcome is not None and each.outcome.of in dirty}
            self.storage.set_trials(
                {id: self._trials.of(known[id], known) for id in dirty | repeats}, self._trials.lost
            )
        return self._last != before

    def _decorate(self, results: Results) -> None:
        """What stands around the trials: figures and a note."""
        start = time.monotonic()
        drawn = list(figures(results))
        from optuna_dashboard import save_note, save_plotly_graph_object

        with self.storage.changing(), quiet():
            for name, figure in drawn:
                save_plotly_graph_object(self.storage.study, figure, graph_object_id=name)
            text = self._note(results)
            if text != self._shown:
                save_note(self.storage.study, text)
                self._shown = text
        self._drawn = time.monotonic()
        self._took = self._drawn - start
        self._stale = False

    def _note(self, results: Results) -> str:
        """Markdown; what comes from the run is escaped."""
        split = results.split
        lines = [
            f"## {_plain(results.name)}: {results.state}",
            "",
            "A mirror of the run, which stays as it is whatever is clicked here.",
            "",
            "- A trial is a candidate. Its values are its scores on the search split; scores on the selection split, "
            "and on the holdout where that was opened, are among its attributes.",
            "- *Pruned*: stopped early, on some of the items. *Fail*: no model or no score came of it.",
            "- The analytics page has the front with intervals, the hypervolume's course, and a recipe.",
        ]
        if results.constraints.all:
            says = ", ".join(_plain(str(each)) for each in results.constraints.all)
            lines.append(f"- Constraints: {says}. Trials that break one are marked, and are not among the best.")
        if self.parameters.thinned:
            lines.append(f"- Shown are {self.parameters.thinned}: more would make this page slow.")
        if results.chosen is not None:
            scores = ", ".join(f"{_plain(name)} {value:.4g}" for name, value in self._scores(results).items())
            lines.append(f"- Chosen: candidate {results.chosen}, on the {split} split: {scores}.")
        lines.append(f"- The holdout was opened {_times(results.openings)}.")
        return "\n".join(lines)

    def _scores(self, results: Results) -> dict[str, float]:
        values = results.values(results.chosen if results.chosen is not None else -1, results.split)
        return {name: values[name] for name in results.objectives.names if name in values}


def _plain(text: str) -> str:
    """Text that Markdown is to show as it is."""
    return " ".join(visible(text).split()).translate(_MARKUP)


def _times(number: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(number, f"{number} times")


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = (folder / DATABASE).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
