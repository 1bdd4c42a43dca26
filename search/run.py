"""A run: its directory, what it is made of, and what must be unchanged for it to go on.

``runs/<name>/`` holds ``config.yaml`` as given, ``resolved.yaml``, ``environment.json``, ``run.db`` and what is made
from them. The same command resumes. A changed config, model, evaluator or data set is refused with what differs; only
the budget may grow.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluators import registry
from evaluators.contract import SPLITS, Evaluator, EvaluatorError
from search.config import LoadedConfig, resolved_yaml
from search.errors import SearchError
from search.events import Event, Finished, Listener, Resumed, RunStarted
from search.finals import Finals
from search.lock import RunLock
from search.loop import Search
from search.objectives import Objectives
from search.schema import Config
from search.stages import Stage, build_optimizer, build_stages
from search.store import DATABASE, Store
from search.workers.inline import InlineWorker

if TYPE_CHECKING:
    from evaluators.contract import Engine
    from merging import Materializer, Sources

PACKAGES = ("paretomerge", "torch", "transformers", "safetensors", "tokenizers", "numpy", "cma", "moocore")


_LOG = logging.getLogger("paretomerge")


@dataclass
class Setup:
    """Everything that scores candidates, ready to work.

    Attributes:
        sources: the models.
        materializer: writes recipes into the live model.
        engine: asks the live model.
        evaluators: name -> prepared evaluator.
        objectives: resolved.
    """

    sources: Sources
    materializer: Materializer
    engine: Engine
    evaluators: dict[str, Evaluator]
    objectives: Objectives


def set_up(loaded: LoadedConfig, threads: int | None = None) -> Setup:
    """Load models, data and engine, and check all of it.

    Args:
        loaded: the config.
        threads: CPU threads; the config's, or torch's own choice, if None.

    Raises:
        SearchError, MergingError, EvaluatorError, ZooError: what is wrong, and where.
    """
    import torch

    from evaluators import HFEngine, load_tokenizer
    from merging import Materializer, Sources, load_model

    config = loaded.config
    torch.set_num_threads(threads or config.engine.threads or torch.get_num_threads())
    evaluators = build_evaluators(loaded)
    objectives = Objectives.of(loaded, evaluators)
    base, experts = model_paths(loaded)
    sources = Sources.load(base, experts)
    for note in sources.notes:
        _LOG.warning("note: %s", note)
    model = load_model(base, dtype=config.models.dtype, device=config.engine.device)
    engine = HFEngine(model, load_tokenizer(base), batch_tokens=config.engine.batch_tokens, device=config.engine.device)
    prepare_evaluators(loaded, evaluators, engine)
    return Setup(sources, Materializer(sources, model), engine, evaluators, objectives)


def model_paths(loaded: LoadedConfig) -> tuple[Path, dict[str, Path]]:
    """Folders of the base and of every expert.

    Raises:
        SearchError: one is not there; points at its line.
    """
    import zoo

    def find(location: tuple[str | int, ...], reference: str) -> Path:
        try:
            path = loaded.resolve(reference)
        except zoo.ZooError as error:
            raise loaded.error(location, str(error)) from error
        if not path.is_dir():
            raise loaded.error(location, f"expected a folder with a model, found nothing at {path}")
        return path

    models = loaded.config.models
    experts = {name: find(("models", "experts", name), path) for name, path in models.experts.items()}
    return find(("models", "base"), models.base), experts


def build_evaluators(loaded: LoadedConfig) -> dict[str, Evaluator]:
    """The config's evaluators, their data read.

    Raises:
        SearchError: data that is missing or bad; points at the evaluator's line.
    """
    import zoo

    result: dict[str, Evaluator] = {}
    for name in loaded.config.evaluators:
        try:
            kind, options = loaded.evaluator_options(name)
            result[name] = registry.build(kind, options, folder=loaded.path.parent)
        except (EvaluatorError, zoo.ZooError) as error:
            raise loaded.error(("evaluators", name), str(error)) from error
    return result


def prepare_evaluators(loaded: LoadedConfig, evaluators: Mapping[str, Evaluator], engine: Engine) -> None:
    """Let every evaluator check and tokenise its data.

    Raises:
        SearchError: data that this engine cannot use; points at the evaluator's line.
    """
    for name, evaluator in evaluators.items():
        try:
            evaluator.prepare(engine)
        except EvaluatorError as error:
            raise loaded.error(("evaluators", name), str(error)) from error


class Run:
    """One search in its directory, from the first start to the finish, over any number of interruptions."""

    def __init__(self, loaded: LoadedConfig, folder: Path, listeners: Sequence[Listener] = ()) -> None:
        """Args:
        loaded: the config.
        folder: the run directory; made if it is not there.
        listeners: hear every event after it is stored.
        """
        self._loaded = loaded
        self.folder = folder
        self._listeners = list(listeners)
        self._store: Store | None = None

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
            started = self._open()
            try:
                if started is not None:
                    self._refuse_changed_config(started)
                    if self._is_finished():
                        return None
                setup = set_up(self._loaded, started.threads if started else None)
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
        budget = self._loaded.config.search.budget.candidates
        return any(isinstance(each, Finished) and each.budget >= budget for each in self._opened.events(Finished))

    @property
    def _opened(self) -> Store:
        if self._store is None:
            raise RuntimeError("the store is not open")
        return self._store

    def _search(self, setup: Setup, started: RunStarted | None, should_stop: Callable[[], bool]) -> int:
        config = self._loaded.config
        stages = build_stages(
            config, setup.sources.layout.groups, setup.sources.refs, started.stage_ends if started else None
        )
        now = self._beginning(setup, stages)
        if started is None:
            _write_run_files(self.folder, self._loaded)
            self._store = Store.create(self.folder)
            self._emit(now)
        else:
            _refuse_changes(started, now, self.folder)
        objectives = setup.objectives
        worker = InlineWorker(setup.materializer, setup.engine, setup.evaluators)
        planned = _planned(stages, (started or now).config["search"]["budget"]["candidates"])
        search = Search(
            stages,
            lambda stage: build_optimizer(config, stage, planned[stage.index], len(objectives.targets)),
            worker,
            objectives,
            self._emit,
            should_stop,
        )
        budget = config.search.budget.candidates
        if started is not None:
            different = search.restore(self._opened.events())
            self._emit(Resumed(budget, different))
        search.run(budget)
        finals = Finals(self._opened, stages, worker, setup.evaluators, objectives, self._emit, should_stop)
        return finals.run(config.search.finalists, budget)

    def _beginning(self, setup: Setup, stages: Sequence[Stage]) -> RunStarted:
        import torch

        base, experts = model_paths(self._loaded)
        return RunStarted(
            config=self._loaded.config.model_dump(mode="json"),
            sources={alias: ref.content for alias, ref in setup.sources.refs.items()},
            paths={alias: str(path.absolute()) for alias, path in {"base": base, **experts}.items()},
            groups=[str(group) for group in setup.sources.layout.groups],
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

    def _refuse_changed_config(self, started: RunStarted) -> None:
        """Raises SearchError with a diff unless the config is the stored one, or differs in a grown budget only."""
        now = self._loaded.config
        before = Config.model_validate(started.config)
        grown = now.search.budget.candidates >= before.search.budget.candidates
        settings = before.search.model_copy(update={"budget": now.search.budget})
        if grown and before.model_copy(update={"search": settings}) == now:
            return
        lines = list(
            difflib.unified_diff(
                resolved_yaml(before).splitlines(),
                resolved_yaml(now).splitlines(),
                "as started",
                "now",
                lineterm="",
                n=0,
            )
        )
        raise SearchError(
            f"{self.folder}: this run was started with another config; only search.budget.candidates may grow. Restore "
            "the config, or give the changed search another --name. What differs:\n" + "\n".join(lines)
        )


def _refuse_changes(started: RunStarted, now: RunStarted, folder: Path) -> None:
    """Raises SearchError unless models, layout, data and engine are what the run was started with."""
    changed = [f"model {name!r}" for name in _differing(started.sources, now.sources)]
    changed += [f"evaluator {name!r} (its data, options or code)" for name in _differing(
        started.evaluators, now.evaluators
    )]  # fmt: skip
    if started.groups != now.groups:
        changed.append("the layout of the models")
    if started.engine != now.engine:
        changed.append(f"the engine (was {started.engine}, is {now.engine})")
    if started.objectives != now.objectives:
        changed.append("the objectives' metrics or bounds")
    if changed:
        raise SearchError(
            f"{folder}: since this run was started, these have changed: {'; '.join(changed)}. Its stored scores would "
            "not belong to them. Restore them, or start a new run with another --name."
        )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]


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
