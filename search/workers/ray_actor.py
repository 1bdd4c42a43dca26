"""What runs in a worker of Ray: a live model of its own, which scores what the driver sends.

Only plain data goes back: an exception of ours would have to survive pickling, on a machine that may not have it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from search.workers.contract import Task
from search.workers.crew import Answer
from search.workers.evaluation import CandidateFailed
from search.workers.identity import CodeIdentity, Identity

if TYPE_CHECKING:
    from search.config import LoadedConfig
    from search.workers.inline import InlinePool

PASSED_ON = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM",
             "CUBLAS_WORKSPACE_CONFIG")  # fmt: skip
"""Variables of the driver's environment that workers get, and those whose names begin with ``PARETOMERGE_``."""


class Mistake(NamedTuple):
    """A user's mistake that a worker found: raised in the driver as what it is.

    Attributes:
        kind: name of the class.
        message: for people.
    """

    kind: str
    message: str


class Home(NamedTuple):
    """What a worker is given to begin with.

    Attributes:
        environment: variables, set before any library is imported that reads them.
        threads: CPU threads.
        folder: where the driver was started: relative paths of the config are relative to it, if it is there.
    """

    environment: Mapping[str, str]
    threads: int
    folder: str


def environment(threads: int) -> dict[str, str]:
    """What of this process's environment a worker gets, and how many threads its libraries may take."""
    passed = {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith("PARETOMERGE_")}
    return {**passed, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


class Scorer:
    """The actor. Its calls come one after the other, in the main thread of a process of its own."""

    def __init__(self, home: Home) -> None:
        """Nothing heavy is imported yet: first the driver hears what it would be."""
        os.environ.update(home.environment)
        self._home = home
        self._pool: InlinePool | None = None
        self._leaving = False

    def identify(self) -> tuple[str, CodeIdentity] | Mistake:
        """Where this is, and which code would score."""
        from search.errors import SearchError

        try:
            return socket.gethostname(), CodeIdentity.here()
        except SearchError as error:
            return Mistake("SearchError", str(error))

    def set_up(self, loaded: LoadedConfig) -> Identity | Mistake:
        """Load models, data and engine.

        Args:
            loaded: the run's config.
        """
        from search.errors import user_errors
        from search.setup import set_up
        from search.workers.inline import InlinePool, InlineWorker

        with suppress(OSError):  # another machine may not have that folder, and absolute paths do not need it
            os.chdir(self._home.folder)
        here = _on_own_device(loaded)
        _take_share(here.config.workers.gpus)
        try:
            setup = set_up(here, self._home.threads, home="shared")
            identity = Identity.of(here, setup)
        except user_errors() as error:
            return _mistake(error)
        worker = InlineWorker(setup.materializer, setup.engine, setup.evaluators)
        self._pool = InlinePool(worker, on_hang=self._unfit)
        return identity

    def evaluate(self, task: Task) -> Answer | Mistake:
        """Score a task."""
        from search.errors import user_errors

        if self._pool is None:
            raise RuntimeError("the worker was not set up")
        try:
            self._pool.submit(task)
            (done,) = self._pool.wait()
        except user_errors() as error:
            return _mistake(error)
        if isinstance(done.result, CandidateFailed):
            return Answer(None, done.result.reason, done.result.seconds, done.notes, self._leaving)
        return Answer(done.result, notes=done.notes, leaving=self._leaving)

    def _unfit(self, candidate: int, detail: str) -> None:
        """Nothing in this process can go on: the driver ends it, after the answer or without one."""
        self._leaving = True


def _take_share(gpus: float | None) -> None:
    """Of a device that workers share, each may fill its part: else each would count all that is free as its own."""
    import torch

    if gpus is not None and 0.0 < gpus < 1.0 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(gpus)


def raised(mistake: Mistake) -> Exception:
    """The user's mistake as the exception that it was."""
    from search.errors import SearchError, user_errors

    kinds: dict[str, Any] = {each.__name__: each for each in user_errors()}
    error: Exception = kinds.get(mistake.kind, SearchError)(mistake.message)
    return error


def _mistake(error: Exception) -> Mistake:
    from search.errors import user_errors

    kind = next(each for each in type(error).__mro__ if each in user_errors())
    return Mistake(kind.__name__, str(error))


def _on_own_device(loaded: LoadedConfig) -> LoadedConfig:
    """The config as it reads where Ray shows a worker its own devices only, and numbers them from 0."""
    engine = loaded.config.engine
    if not engine.device.startswith("cuda:"):
        return loaded
    return replace(
        loaded, config=loaded.config.model_copy(update={"engine": engine.model_copy(update={"device": "cuda"})})
    )
