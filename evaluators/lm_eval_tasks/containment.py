"""lm-eval's code runs in here: its seeds, its progress bars and its log leave no trace in the rest of the process."""

from __future__ import annotations

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from evaluators.lm_eval_tasks.code_of_tasks import sandboxed

# What lm-eval's command line seeds the global generators with: tasks that shuffle their documents come out as there.
_PYTHON_SEED = 0
_OTHER_SEED = 1234

_NOISY = ("lm_eval", "datasets", "evaluate", "fsspec", "filelock", "urllib3")


@contextmanager
def contained() -> Iterator[None]:
    """Global generators seeded as lm-eval's command line does, templates in a sandbox, warnings and messages held back;
    after the block all of it is as it was before."""
    with _same_generators(), _same_loggers(), sandboxed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reseed()
        torch.default_generator.manual_seed(_OTHER_SEED)  # torch.manual_seed would seed idle devices, too
        yield


def reseed() -> None:
    """Python's and numpy's global generators at the seeds of lm-eval's command line; only inside :func:`contained`."""
    random.seed(_PYTHON_SEED)
    np.random.seed(_OTHER_SEED)  # noqa: NPY002 - the global generator is the one that tasks use


@contextmanager
def _same_generators() -> Iterator[None]:
    python, numeric, host = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = torch.cuda.get_rng_state_all() if initialized else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numeric)  # noqa: NPY002
        torch.set_rng_state(host)
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)


@contextmanager
def _same_loggers() -> Iterator[None]:
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    # Not their levels: setting one empties the caches of all loggers, 1 ms each, and this runs for every candidate.
    loggers = [logging.getLogger(name) for name in _NOISY]
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    bars = not are_progress_bars_disabled()
    try:
        for logger in loggers:
            logger.handlers, logger.propagate = [logging.NullHandler()], False
        disable_progress_bars()
        yield
    finally:
        for logger, (handlers, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
        if bars:
            enable_progress_bars()
