"""The pool of a config: this process alone, or actors of Ray."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from search.config import LoadedConfig
from search.schema import WorkersConfig
from search.setup import Setup
from search.virtual import Say
from search.workers.contract import Pool

OnHang = Callable[[int, str], None]


def worker_threads(loaded: LoadedConfig) -> int | None:
    """CPU threads of each worker as the config says, or as there is room for; None leaves it to torch."""
    settings = loaded.config.workers
    given = settings.threads or loaded.config.engine.threads
    if given is not None or settings.kind == "inline":
        return given
    return max(1, (os.cpu_count() or 1) // (settings.count or _devices(settings.gpus or 1.0)))


def _devices(gpus: float) -> int:
    """Workers that this machine has GPUs for; 1 without any."""
    import torch

    return max(1, int(torch.cuda.device_count() / gpus))


def open_pool(
    loaded: LoadedConfig,
    setup: Setup,
    folder: Path,
    threads: int,
    say: Say,
    on_hang: OnHang | None = None,
    *,
    batch_tokens: float | None = None,
) -> Pool:
    """Workers that are ready for tasks.

    Args:
        loaded: the run's config.
        setup: with a live model, where the kind is inline.
        folder: the run directory.
        threads: CPU threads of each worker.
        say: told one line for every step that takes long.
        on_hang: see :class:`search.workers.inline.InlinePool`.
        batch_tokens: at most so many in this process, where more did not fit before.

    Raises:
        SearchError, MergingError, EvaluatorError: a worker cannot be had, or is not what the driver is.
    """
    settings: WorkersConfig = loaded.config.workers
    if settings.kind == "inline":
        from search.workers.inline import InlinePool, InlineWorker

        worker = InlineWorker(setup.materializer, setup.engine, setup.evaluators)
        if batch_tokens is not None:
            worker.batch_tokens = batch_tokens
        return InlinePool(worker, on_hang=on_hang)
    from search.workers.identity import Identity
    from search.workers.ray import open_ray_pool

    return open_ray_pool(loaded, settings, folder, threads, Identity.of(loaded, setup), say)
