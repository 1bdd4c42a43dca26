"""A run: its directory, what it is made of, and what must be unchanged for it to go on.

``runs/<name>/`` holds ``config.yaml`` as given, ``resolved.yaml``, ``environment.json``, ``run.db`` and what is made
from them. The same command resumes. A changed config, model, evaluator or data set is refused with what differs; only
the budget may grow.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NoReturn

from merging.recipe import Recipe
from search.beginning import beginning
from search.borders import place_borders
from search.budget import Progress
from search.config import LoadedConfig
from search.environment import write_run_files
from search.errors import NothingFeasible, SearchError
from search.events import (
    LOG_VERSION,
    BudgetSpent,
    Event,
    Failed,
    Finished,
    Incident,
    Listener,
    Picked,
    Resumed,
    RunStarted,
    Settled,
    Told,
    Turning,
)
from search.finals import Finals
from search.hybrid import choice_of, first_of, remembered
from search.ledger import Ledger
from search.lock import RunLock
from search.lock_files import LOCK_FILE
from search.loop import Search
from search.minibatch import Minibatches
from search.optimizers.contract import Outcome
from search.patience import Patience
from search.racing import Racer
from search.results import Results
from search.schema import OptimizerConfig
from search.setup import Setup, set_up, stages_of
from search.stages import Stage, build_optimizer
from search.standing import Schedule
from search.store import CONTROL, DATABASE, FIRST, Store
from search.trackers import Mirror, check_installed, open_trackers
from search.unchanged import refuse_changed_config, refuse_changed_inputs, with_its_defaults
from search.virtual import Say
from search.workers.contract import Pool
from search.workers.inline import HANGS, InlinePool, InlineWorker
from search.workers.opening import open_pool, worker_threads

_LOG = logging.getLogger("paretomerge")


class Run:
    """One search in its directory, from the first start to the finish, over any number of interruptions."""

    def __init__(
        self,
        loaded: LoadedConfig,
        folder: Path,
        listeners: Sequence[Listener] = (),
        say: Say = _LOG.info,
        restart: Callable[[], NoReturn] = lambda: os._exit(HANGS),
    ) -> None:
        """Args:
        loaded: the config.
        folder: the run directory; made if it is not there.
        listeners: hear every event after it is stored.
        say: told one line for every step of the set-up that takes long.
        restart: begins this process anew, after a candidate that hangs where nothing can interrupt it. By default the
            process ends: the same command goes on.
        """
        self._say = say
        self._restart = restart
        self._loaded = loaded
        self.folder = folder
        self._listeners = list(listeners)
        self._store: Store | None = None
        self._lock: RunLock | None = None
        workers = loaded.config.workers
        # workers of their own die alone: that the driver ended is no sign against what they were evaluating
        self._patience = Patience(workers.timeout, workers.attempts if workers.kind == "inline" else None)

    @staticmethod
    def reopen(folder: Path) -> Run:
        """A run that has begun, from its directory alone: the config as the run knows it, its relative paths from where
        the config file lay.

        Raises:
            SearchError: no run is there.
        """
        return Run(Results.load(folder).loaded, folder)

    def execute(self, should_stop: Callable[[], bool] = lambda: False) -> int | None:
        """Start, or resume, and go on to the finish.

        Returns:
            The chosen candidate, or None when the run had been finished before and its budget has not grown.

        Raises:
            Interrupted: ``should_stop`` said so.
            NothingFeasible: nothing can be chosen.
            SearchError, MergingError, EvaluatorError, OptimizerError, ZooError: the user's mistakes.
        """
        fresh = not self.folder.exists()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SearchError(f"{self.folder}: the run directory cannot be made: {error.strerror}") from error
        for name in self._loaded.config.trackers:
            with self._loaded.placing("trackers", name):
                check_installed(name)
        trackers = open_trackers(dict(self._loaded.config.trackers.items()), self.folder, self._loaded.config)
        listeners, self._listeners = self._listeners, [*self._listeners, *trackers]
        try:
            with RunLock(self.folder, self._say, should_stop) as self._lock:
                chosen = self._execute(should_stop, shown=listeners)
        except BaseException:
            if fresh and self._lock is not None:
                _remove_unused(self.folder)
            raise
        finally:
            self._listeners = listeners
            for tracker in trackers:
                _close(tracker)
        if self._loaded.config.search.control:
            # where chance finds nothing that keeps the constraints, there is no control's choice to compare with
            with contextlib.suppress(NothingFeasible):
                _turn(self._listeners, self.folder / CONTROL)
                control = Run(_control(self._loaded), self.folder / CONTROL, self._listeners, self._say, self._restart)
                control.execute(should_stop)
        return chosen

    def _execute(self, should_stop: Callable[[], bool], shown: Sequence[Listener] = ()) -> int | None:
        started = self._open()
        try:
            if started is not None:
                self._loaded = remembered(with_its_defaults(self._loaded, started), started)
                refuse_changed_config(self._loaded.config, started, self.folder)
                if self._is_finished(started):
                    return None
            elif self._loaded.config.first is not None and self._loaded.first is None:
                self._loaded = replace(self._loaded, first=self._run_first(should_stop, shown))
            threads = started.threads if started else worker_threads(self._loaded)
            live = self._loaded.config.workers.kind == "inline"
            setup = set_up(self._loaded, threads, live=live, say=self._say)
            return self._search(setup, started, should_stop)
        finally:
            if self._store is not None:
                self._store.close()

    def _run_first(self, should_stop: Callable[[], bool], shown: Sequence[Listener]) -> Recipe:
        """Run, or go on with, the first search of a hybrid, and say what it has chosen."""
        folder = self.folder / FIRST
        _turn(shown, folder)
        first = Run(first_of(self._loaded), folder, shown, self._say, self._restart)
        try:
            first.execute(should_stop)
        except NothingFeasible as error:
            raise NothingFeasible(f"the first search, in {folder}: {error}") from error
        _turn(shown, self.folder)
        return choice_of(folder, self._loaded.config)

    def _open(self) -> RunStarted | None:
        """The stored beginning of the run, or None for a new one."""
        if not (self.folder / DATABASE).exists():
            return None
        store = Store.open(self.folder)
        started = store.started()
        if started is not None:
            self._store = store
            return started
        store.close()  # killed before the very first event: nothing was stored yet
        for path in (*self.folder.glob(f"{DATABASE}-*"), self.folder / DATABASE):  # its log would outlive it
            path.unlink()
        return None

    def _is_finished(self, started: RunStarted) -> bool:
        """Whether there is nothing left to do: the finals are over, and no limit has grown beyond what was spent."""
        settings = self._loaded.config.search
        progress = Progress(started.reference, len(started.stage_ends))
        ended: BudgetSpent | None = None
        finished = False
        for event in self._opened.events(Told, BudgetSpent, Finished):
            if isinstance(event, Told):
                progress.note(event)
            elif isinstance(event, BudgetSpent):
                ended = event
            finished = isinstance(event, Finished)
        as_it_ended = ended is not None and ended.budget == settings.budget.model_dump(mode="json")
        return finished and (as_it_ended or progress.reached(settings.budget, settings.reserve) is not None)

    @property
    def _opened(self) -> Store:
        if self._store is None:
            raise RuntimeError("the store is not open")
        return self._store

    def _search(self, setup: Setup, started: RunStarted | None, should_stop: Callable[[], bool]) -> int:
        config = self._loaded.config
        version = started.version if started else LOG_VERSION
        borders = started.borders if started else place_borders(config, setup.sources, self._say)
        stages = stages_of(config, setup, started.stage_ends if started else None, version, borders)
        kind = self._schedule_kind(started)
        if started is not None:
            self._refuse_changes(setup, stages, started)
        pool = self._open_pool(setup)
        try:
            # vLLM says only in its workers what it is
            setup.engine_fingerprint = setup.engine_fingerprint or getattr(pool, "engine", "")
            schedule = Schedule(kind, pool.slots if started is None else started.window)
            if started is None:
                write_run_files(self.folder, self._loaded)
                self._store = Store.create(self.folder)
                started = beginning(self._loaded, setup, stages, schedule, _threads(), borders)
                self._emit(started)
                search = self._driver(setup, stages, pool, started, schedule, should_stop)
            else:
                self._refuse_changes(setup, stages, started)
                search = self._driver(setup, stages, pool, started, schedule, should_stop)
                store = self._opened
                let_go = self._lock is not None and self._lock.was_let_go
                different = search.restore(store.events(), lambda id: store.item_scores(id, "search"), let_go=let_go)
                self._emit(Resumed(config.search.budget.candidates, different, let_go))
            search.run(config.search.budget, config.search.reserve)
            return self._finals(setup, stages, pool, should_stop).run(config.search, search.items)
        finally:
            pool.close()

    def _open_pool(self, setup: Setup) -> Pool:
        pool = open_pool(
            self._loaded, setup, self.folder, _threads(), self._say, self._on_hang, batch_tokens=self._halved()
        )
        if self._loaded.config.search.budget.gpu_hours is not None and not pool.gpus:
            pool.close()
            raise self._loaded.error(
                ("search", "budget", "gpu_hours"), "expected workers that have a GPU; these have none: use hours"
            )
        return pool

    def _halved(self) -> float | None:
        """Of batches that did not fit on an earlier start: they are not tried again."""
        log = self._store.events(Incident) if self._store is not None else ()
        return min((each.value for each in log if isinstance(each, Incident) and each.value), default=None)

    def _schedule_kind(self, started: RunStarted | None) -> Literal["strict", "steady"]:
        """As the run began, or as the config says."""
        settings = self._loaded.config.workers
        if started is None:
            return settings.schedule or ("strict" if settings.kind == "inline" else "steady")
        kind: Literal["strict", "steady"] = "steady" if started.schedule == "steady" else "strict"
        if settings.schedule not in (None, kind):
            raise SearchError(
                f"{self.folder}: this run was started under a {kind} schedule, and workers.schedule is now "
                f"{settings.schedule}. Its log would say neither; set it back, or give the search another --name."
            )
        return kind

    def _refuse_changes(self, setup: Setup, stages: list[Stage], started: RunStarted) -> None:
        now = beginning(self._loaded, setup, stages, Schedule(), _threads(), started.borders)
        if not now.engine:
            now = replace(now, engine=started.engine)  # known once the workers are there, and asked again then
        refuse_changed_inputs(started, now, self.folder)

    def _driver(
        self,
        setup: Setup,
        stages: Sequence[Stage],
        pool: Pool,
        started: RunStarted,
        schedule: Schedule,
        should_stop: Callable[[], bool],
    ) -> Search:
        config, objectives = self._loaded.config, setup.objectives
        planned = _planned(stages, started.config["search"]["budget"]["candidates"])
        racer = Racer(setup.evaluators, objectives, config.search.fidelity)
        staged = started.version >= 2 and len(racer.rungs) > 1
        return Search(
            stages,
            lambda stage, seconds: build_optimizer(
                config, stage, planned[stage.index], len(objectives.targets), seconds, self._loaded.path.parent
            ),
            pool,
            objectives,
            self._emit,
            should_stop,
            evaluators=setup.evaluators,
            racer=racer if staged else None,
            minibatches=Minibatches.wanted(setup.evaluators, config.search),
            constraints=setup.constraints,
            schedule=schedule,
            patience=self._patience,
        )

    def _finals(self, setup: Setup, stages: Sequence[Stage], pool: Pool, should_stop: Callable[[], bool]) -> Finals:
        return Finals(
            self._opened,
            stages,
            pool,
            setup.evaluators,
            setup.objectives,
            self._emit,
            should_stop,
            constraints=setup.constraints,
            ledger=Ledger(self.folder),
            patience=self._patience,
        )

    def _on_hang(self, candidate: int, detail: str) -> None:
        """A candidate hangs where nothing can interrupt it: note that it failed, and begin this process anew."""
        store = Store.open(self.folder)  # from now on what hangs cannot write any more, should it wake
        if any(each.id == candidate and each.state == "running" for each in store.candidates()):
            store.append(Failed(candidate, "search", detail), Settled(candidate, Outcome("failed", reason=detail)))
        store.close()
        print(f"candidate {candidate}: {detail}", file=sys.stderr, flush=True)
        self._restart()

    def open_holdout(self, candidate: int, rule: str, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Look at the holdout for one more candidate, that somebody picked for another mix.

        Args:
            candidate: a finalist.
            rule: by which it was picked; logged.
            should_stop: asked before the evaluation.

        Raises:
            SearchError, MergingError, EvaluatorError, ZooError: the run cannot be written, or has changed, or is the
                first search of a hybrid.
        """
        if self._loaded.of_first:
            raise SearchError(f"{self.folder}: the first search of a hybrid leaves its holdout closed")
        with RunLock(self.folder, self._say, should_stop) as self._lock:
            started = self._open()
            if started is None:
                raise SearchError(f"{self.folder}: this run has not begun yet")
            try:
                self._loaded = remembered(with_its_defaults(self._loaded, started), started)
                picked = Picked(candidate, rule)
                known = picked in list(self._opened.events(Picked))
                if candidate in self._opened.scores("holdout"):
                    if not known:
                        self._emit(picked)
                    return
                refuse_changed_config(self._loaded.config, started, self.folder)
                setup = set_up(self._loaded, started.threads, say=self._say)
                stages = stages_of(self._loaded.config, setup, started.stage_ends, started.version, started.borders)
                self._refuse_changes(setup, stages, started)
                pool = InlinePool(InlineWorker(setup.materializer, setup.engine, setup.evaluators))
                if not known:
                    self._emit(picked)
                self._finals(setup, stages, pool, should_stop).open([candidate])
            finally:
                self._opened.close()

    def _emit(self, *events: Event) -> None:
        if self._lock is not None:
            self._lock.refuse_if_lost()
        self._opened.append(*events)
        for event in events:
            for listener in list(self._listeners):
                try:
                    listener.on(event)
                except Exception as error:  # a display must never stop a search
                    self._listeners.remove(listener)
                    print(f"{_name(listener)} failed and is switched off: {error}", file=sys.stderr)


def _control(loaded: LoadedConfig) -> LoadedConfig:
    """The same search by chance alone."""
    by_chance = {"optimizer": OptimizerConfig(name="random"), "control": False}
    settings = loaded.config.search.model_copy(update=by_chance)
    return replace(loaded, config=loaded.config.model_copy(update={"search": settings, "trackers": {}}))


def _remove_unused(folder: Path) -> None:
    """Remove a run directory that this process made, and in which nothing has begun: there is nothing but its lock."""
    with contextlib.suppress(OSError):
        if [each.name for each in folder.iterdir()] == [f"{LOCK_FILE}.1"]:
            (folder / f"{LOCK_FILE}.1").unlink()
            folder.rmdir()


def _turn(listeners: Sequence[Listener], folder: Path) -> None:
    """Tell displays whose events come next."""
    for listener in listeners:
        if isinstance(listener, Turning):
            listener.turn_to(folder)


def _close(tracker: Mirror) -> None:
    try:
        tracker.close()
    except Exception as error:  # it only looks on
        print(f"{_name(tracker)} could not be closed: {error}", file=sys.stderr)


def _name(listener: Listener) -> str:
    return str(getattr(listener, "name", type(listener).__name__))


def _threads() -> int:
    """Of torch: as the config, or the run's first start, has set them."""
    import torch

    return torch.get_num_threads()


def _planned(stages: Sequence[Stage], budget: int) -> list[int]:
    """How many candidates each stage was to have when the run started."""
    ends = [budget if stage.end is None else stage.end for stage in stages]
    return [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]
