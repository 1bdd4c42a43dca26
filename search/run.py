"""A run: its directory, what it is made of, and what must be unchanged for it to go on.

``runs/<name>/`` holds ``config.yaml`` as given, ``resolved.yaml``, ``environment.json``, ``run.db`` and what is made
from them. The same command resumes. A changed config, model, evaluator or data set is refused with what differs; only
the budget may grow.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from evaluators import registry
from evaluators.contract import SPLITS, Evaluator
from search.config import LoadedConfig, resolved_yaml
from search.errors import NothingFeasible, SearchError
from search.events import LOG_VERSION, Event, Finished, Listener, Picked, Resumed, RunStarted, Told
from search.finals import Finals, holdout_hashes
from search.ledger import Ledger
from search.lock import RunLock
from search.loop import Search
from search.objectives import clusters_of
from search.optimizers import registry as optimizers
from search.racing import Racer
from search.results import Results
from search.schema import Config, OptimizerConfig
from search.setup import Setup, set_up, stages_of
from search.stages import Stage, build_optimizer
from search.store import CONTROL, DATABASE, Store
from search.unchanged import refuse_changed_config, refuse_changed_inputs, with_its_defaults
from search.virtual import Say
from search.workers.inline import InlineWorker

_LOG = logging.getLogger("paretomerge")

PACKAGES = (
    "paretomerge", "torch", "transformers", "safetensors", "tokenizers", "numpy", "scipy", "cma", "cmaes", "optuna",
    "moocore",
)  # fmt: skip


class Run:
    """One search in its directory, from the first start to the finish, over any number of interruptions."""

    def __init__(
        self,
        loaded: LoadedConfig,
        folder: Path,
        listeners: Sequence[Listener] = (),
        say: Say = _LOG.info,
    ) -> None:
        """Args:
        loaded: the config.
        folder: the run directory; made if it is not there.
        listeners: hear every event after it is stored.
        say: told one line for every step of the set-up that takes long.
        """
        self._say = say
        self._loaded = loaded
        self.folder = folder
        self._listeners = list(listeners)
        self._store: Store | None = None

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
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SearchError(f"{self.folder}: the run directory cannot be made: {error.strerror}") from error
        with RunLock(self.folder):
            chosen = self._execute(should_stop)
        if self._loaded.config.search.control:
            # where chance finds nothing that keeps the constraints, there is no control's choice to compare with
            with contextlib.suppress(NothingFeasible):
                Run(_control(self._loaded), self.folder / CONTROL, self._listeners, self._say).execute(should_stop)
        return chosen

    def _execute(self, should_stop: Callable[[], bool]) -> int | None:
        started = self._open()
        try:
            if started is not None:
                self._loaded = with_its_defaults(self._loaded, started)
                refuse_changed_config(self._loaded.config, started, self.folder)
                if self._is_finished():
                    return None
            setup = set_up(self._loaded, started.threads if started else None, say=self._say)
            return self._search(setup, started, should_stop)
        finally:
            if self._store is not None:
                self._store.close()

    def _open(self) -> RunStarted | None:
        """The stored beginning of the run, or None for a new one."""
        if not (self.folder / DATABASE).exists():
            return None
        try:
            store = Store.open(self.folder)
            started = store.started()
        except SearchError:
            if _has_tables(self.folder / DATABASE):
                raise
            started = None  # killed while the very first transaction was being written: nothing was stored yet
        else:
            if started is not None:
                self._store = store
                return started
            store.close()
        for path in self.folder.glob(f"{DATABASE}*"):
            path.unlink()
        return started

    def _is_finished(self) -> bool:
        """Whether there is nothing left to do: of a budget with two limits, either may have grown."""
        budget, reserve = self._loaded.config.search.budget, self._loaded.config.search.reserve
        finished = [each for each in self._opened.events(Finished) if isinstance(each, Finished)]
        if not any(each.budget >= budget.candidates for each in finished):
            return False
        told = [each.outcome for each in self._opened.events(Told) if isinstance(each, Told)]
        items = sum(each.items for each in told if each.state != "duplicate")
        spent = budget.items is not None and items >= round(budget.items * (1.0 - reserve))
        return spent or len(told) >= budget.candidates

    @property
    def _opened(self) -> Store:
        if self._store is None:
            raise RuntimeError("the store is not open")
        return self._store

    def _search(self, setup: Setup, started: RunStarted | None, should_stop: Callable[[], bool]) -> int:
        config = self._loaded.config
        version = started.version if started else LOG_VERSION
        stages = stages_of(config, setup, started.stage_ends if started else None, version)
        now = self._beginning(setup, stages)
        if started is None:
            _write_run_files(self.folder, self._loaded)
            self._store = Store.create(self.folder)
            self._emit(now)
        else:
            refuse_changed_inputs(started, now, self.folder)
        worker = InlineWorker(setup.materializer, setup.engine, setup.evaluators)
        search = self._driver(setup, stages, worker, started or now, should_stop)
        if started is not None:
            store = self._opened
            different = search.restore(store.events(), lambda id: store.item_scores(id, "search"))
            self._emit(Resumed(config.search.budget.candidates, different))
        budget = config.search.budget
        reserved = config.search.reserve
        search.run(budget.candidates, None if budget.items is None else round(budget.items * (1.0 - reserved)))
        return self._finals(setup, stages, worker, should_stop).run(config.search, search.items)

    def _driver(
        self,
        setup: Setup,
        stages: Sequence[Stage],
        worker: InlineWorker,
        started: RunStarted,
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
            worker,
            objectives,
            self._emit,
            should_stop,
            evaluators=setup.evaluators,
            racer=racer if staged else None,
            constraints=setup.constraints,
        )

    def _finals(
        self, setup: Setup, stages: Sequence[Stage], worker: InlineWorker, should_stop: Callable[[], bool]
    ) -> Finals:
        return Finals(
            self._opened,
            stages,
            worker,
            setup.evaluators,
            setup.objectives,
            self._emit,
            should_stop,
            constraints=setup.constraints,
            ledger=Ledger(self.folder),
        )

    def open_holdout(self, candidate: int, rule: str, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Look at the holdout for one more candidate, that somebody picked for another mix.

        Args:
            candidate: a finalist.
            rule: by which it was picked; logged.
            should_stop: asked before the evaluation.

        Raises:
            SearchError, MergingError, EvaluatorError, ZooError: the run cannot be written, or has changed.
        """
        with RunLock(self.folder):
            started = self._open()
            if started is None:
                raise SearchError(f"{self.folder}: this run has not begun yet")
            try:
                self._loaded = with_its_defaults(self._loaded, started)
                picked = Picked(candidate, rule)
                known = picked in list(self._opened.events(Picked))
                if candidate in self._opened.scores("holdout"):
                    if not known:
                        self._emit(picked)
                    return
                refuse_changed_config(self._loaded.config, started, self.folder)
                setup = set_up(self._loaded, started.threads, say=self._say)
                stages = stages_of(self._loaded.config, setup, started.stage_ends, started.version)
                refuse_changed_inputs(started, self._beginning(setup, stages), self.folder)
                worker = InlineWorker(setup.materializer, setup.engine, setup.evaluators)
                if not known:
                    self._emit(picked)
                self._finals(setup, stages, worker, should_stop).open([candidate])
            finally:
                self._opened.close()

    def _beginning(self, setup: Setup, stages: Sequence[Stage]) -> RunStarted:
        import torch

        checkpoints = setup.sources.checkpoints
        return RunStarted(
            config=self._loaded.config.model_dump(mode="json"),
            sources={alias: ref.content for alias, ref in setup.sources.refs.items()},
            paths={alias: str(each.path.absolute()) for alias, each in checkpoints.items()},
            groups=[str(group) for group in setup.sources.layout.groups],
            tensors=_tensors(self._loaded.config, setup),
            objectives=setup.objectives.as_data(),
            evaluators={name: self._identity(name, each) for name, each in setup.evaluators.items()},
            engine=setup.engine.fingerprint,
            threads=torch.get_num_threads(),
            stage_ends=[stage.end for stage in stages if stage.end is not None],
            reference=list(setup.objectives.reference),
            items={
                name: {split: list(evaluator.items(split).ids) for split in SPLITS}
                for name, evaluator in setup.evaluators.items()
            },
            clusters={
                name: {id: of for split in SPLITS for id, of in (clusters_of(evaluator, split) or {}).items()}
                for name, evaluator in setup.evaluators.items()
                if any(clusters_of(evaluator, split) for split in SPLITS)
            },
            constraints=setup.constraints.as_data(),
            metrics={
                f"{name}.{each.name}": {"direction": each.direction, "low": each.low, "high": each.high}
                for name, evaluator in setup.evaluators.items()
                for each in evaluator.metrics
            },
            plugins=_plugins(self._loaded),
            holdouts=holdout_hashes(setup.evaluators),
            folder=str(self._loaded.path.parent.absolute()),
            version=LOG_VERSION,
            made_by={alias: recipe.to_yaml() for alias, recipe in setup.made_by.items()},
            calibration="" if setup.calibration is None else setup.calibration.fingerprint,
        )

    def _identity(self, name: str, evaluator: Evaluator) -> str:
        """An evaluator's fingerprint, and of a plug-in its source: a changed one gives other scores."""
        kind = str(self._loaded.config.evaluators[name]["type"])
        if kind in registry.BUILT_IN:
            return evaluator.fingerprint
        return f"{evaluator.fingerprint} {registry.source_hash(kind, folder=self._loaded.path.parent)}"

    def _emit(self, *events: Event) -> None:
        self._opened.append(*events)
        for event in events:
            for listener in list(self._listeners):
                try:
                    listener.on(event)
                except Exception as error:  # a display must never stop a search
                    self._listeners.remove(listener)
                    print(f"{type(listener).__name__} failed and is switched off: {error}", file=sys.stderr)


def _control(loaded: LoadedConfig) -> LoadedConfig:
    """The same search by chance alone."""
    by_chance = {"optimizer": OptimizerConfig(name="random"), "control": False}
    settings = loaded.config.search.model_copy(update=by_chance)
    return replace(loaded, config=loaded.config.model_copy(update={"search": settings}))


def _tensors(config: Config, setup: Setup) -> dict[str, str]:
    """Tensor -> group, where the space needs it."""
    if config.space.granularity != "tensor":
        return {}
    layout = setup.sources.layout
    return {name: str(layout.group(name)) for name in layout.names}


def _plugins(loaded: LoadedConfig) -> dict[str, str]:
    """An optimizer of the user's own -> hash of its source: a changed one proposes otherwise."""
    name = loaded.config.search.optimizer.name
    if name in optimizers.BUILT_IN:
        return {}
    return {name: optimizers.source_hash(name, folder=loaded.path.parent)}


def _planned(stages: Sequence[Stage], budget: int) -> list[int]:
    """How many candidates each stage was to have when the run started."""
    ends = [budget if stage.end is None else stage.end for stage in stages]
    return [max(1, end - start) for start, end in zip([0, *ends], ends, strict=False)]


def _has_tables(path: Path) -> bool:
    import sqlite3

    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
        finally:
            connection.close()
    except sqlite3.Error:
        return True  # damaged is not the same as new


def _write_run_files(folder: Path, loaded: LoadedConfig) -> None:
    environment = {
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
    }
    files = {
        "config.yaml": loaded.source.text,
        "resolved.yaml": resolved_yaml(loaded.config),
        "environment.json": json.dumps(environment, indent=2) + "\n",
    }
    try:
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise SearchError(f"{folder}: the run directory cannot be written: {error.strerror}") from error


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
