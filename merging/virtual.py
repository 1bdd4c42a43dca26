"""Virtual experts: merges that are made once, kept in the cache, and then taken for models like any other.

``<cache>/virtual/<key>/model`` is a model folder as :func:`merging.export.export` writes it, with ``made.json`` in it:
the hash of what it contained when it was made. The key is the recipe's hash, the code of this package, and the dtype of
the live model in which calibration data were looked at. A folder that is there is finished: it was written beside and
renamed, under a lock that ends with its holder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from merging.bounded import read_json
from merging.calibration.contract import Calibration
from merging.calibration.store import default_cache
from merging.checkpoint import Checkpoint
from merging.code import code_hash
from merging.configs import needed_calibration
from merging.durable import flush, write_text
from merging.export import export
from merging.recipe import MergingError, Recipe
from merging.sources import Sources

DTYPE = "float32"
"""Of their weights: what a search makes of them is rounded once, as if the method had run in every candidate."""

_LOCK = ".lock"
_MODEL = "model"
_FACTS = "made.json"
_PARTIAL = ".partial-"


class Made(NamedTuple):
    """A virtual expert in the cache.

    Attributes:
        folder: the model.
        content: hash of its tensors (:attr:`merging.checkpoint.Checkpoint.content`).
        seconds: what making it took; None where it was there already.
    """

    folder: Path
    content: str
    seconds: float | None


def folder_of(recipe: Recipe, cache: Path | None = None, live_dtype: str | None = None) -> Path:
    """Where what a recipe makes is kept, or would be.

    Args:
        recipe: canonical.
        cache: the cache directory, by default the project's.
        live_dtype: of the model that statistics of calibration data are collected in, the base's if None; of no account
            where the recipe needs none.

    Raises:
        MergingError: it needs several kinds of data.
    """
    collected_in = live_dtype if needed_calibration(recipe) is not None else None
    parts = [recipe.hash, code_hash(Path(__file__).parent), collected_in]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return (cache or default_cache()) / "virtual" / key[:32]


def find(recipe: Recipe, cache: Path | None = None, live_dtype: str | None = None) -> Made | None:
    """What was made of a recipe before, read once to see that it is still what it was; None where it is not there, or
    was damaged.

    Args:
        recipe, cache, live_dtype: as in :func:`folder_of`.
    """
    folder = folder_of(recipe, cache, live_dtype) / _MODEL
    try:
        wanted = read_json(folder / _FACTS)["content"]
        content = Checkpoint.open(folder).content
    except (OSError, ValueError, KeyError, TypeError, MergingError):
        return None
    return Made(folder, content, None) if content == wanted else None


def make(
    recipe: Recipe,
    sources: Sources,
    *,
    calibration: Callable[[], Calibration | None] = lambda: None,
    cache: Path | None = None,
    live_dtype: str | None = None,
    on_wait: Callable[[], None] = lambda: None,
) -> Made:
    """Make a virtual expert, unless it is there; two processes that want the same one make it once.

    Args:
        recipe: canonical; of dtype :data:`DTYPE`, or the result is rounded twice.
        sources: the models that it is made from.
        calibration: called where the recipe needs it and the expert is not there yet: statistics, collected.
        cache, live_dtype: as in :func:`folder_of`.
        on_wait: called once where another process holds the lock.

    Raises:
        MergeFailed: the result is not finite.
        MergingError: the recipe does not fit, or the cache cannot be written.
    """
    found = find(recipe, cache, live_dtype)
    if found is not None:
        return found
    place = folder_of(recipe, cache, live_dtype)
    with locked(place, on_wait):
        found = find(recipe, cache, live_dtype)
        return found if found is not None else _make(recipe, sources, calibration(), place)


def _make(recipe: Recipe, sources: Sources, calibration: Calibration | None, place: Path) -> Made:
    start = time.perf_counter()
    for left in place.glob(f".*{_PARTIAL.strip('.')}*"):  # by a process that was killed: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    partial = place / f"{_PARTIAL}{os.getpid()}"
    try:
        export(recipe, sources, partial, calibration=calibration)
        content = Checkpoint.open(partial).content
        (partial / "mergekit.yaml").unlink(missing_ok=True)  # it would name folders of this machine
        write_text(partial / _FACTS, json.dumps({"content": content, "recipe": recipe.hash}) + "\n")
        shutil.rmtree(place / _MODEL, ignore_errors=True)  # damaged, or it would have been found
        partial.rename(place / _MODEL)
        flush(place)
    except OSError as error:
        raise MergingError(_why(error, place)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Made(place / _MODEL, content, time.perf_counter() - start)


@contextlib.contextmanager
def locked(place: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a folder of the cache, made if it is not there; the kernel drops a dead holder's.

    Raises:
        MergingError: the folder cannot be written.
    """
    import fcntl

    try:
        place.mkdir(parents=True, exist_ok=True)
        handle = (place / _LOCK).open("a")
    except OSError as error:
        raise MergingError(_why(error, place)) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _why(error: OSError, place: Path) -> str:
    full = "the disk is full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else error.strerror or str(error)
    return (
        f"{place} in the cache could not be written ({full}); nothing half was left behind. Free some space or make "
        "the folder writable, or name another cache directory in PARETOMERGE_CACHE"
    )
