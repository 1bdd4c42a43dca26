"""Folders that appear whole or not at all: written beside their place, made durable, and renamed."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from safetensors import SafetensorError

from merging.bounded import printable
from merging.durable import clear_abandoned, flush, hold
from merging.recipe import MergingError

PARTIAL = ".partial-"
"""What the name of a folder that is being written has behind that of its place."""


@contextlib.contextmanager
def beside(place: Path, alone: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext) -> Iterator[Path]:
    """An empty folder beside a place, gone when the block ends unless it was renamed.

    Args:
        place: that the folder is to become.
        alone: held while the folder is made, and what others have left is cleared away: a folder that was just made
            and is not marked yet must not be taken for one of those.

    Raises:
        MergingError: it cannot be written, with the reason; also of what the block writes.
    """
    partial: Path | None = None
    held = -1
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with alone():
            everyone = alone is not contextlib.nullcontext
            clear_abandoned(place.parent, f".{'*' if everyone else glob.escape(place.name)}{PARTIAL}*")
            partial = Path(tempfile.mkdtemp(prefix=f".{place.name}{PARTIAL}", dir=place.parent))
            held = hold(partial)
        yield partial
    except (OSError, SafetensorError) as error:
        raise MergingError(why(error, place)) from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        if held >= 0:
            os.close(held)


def settle(partial: Path) -> None:
    """Give a folder's files the usual rights, and wait until they are on disk."""
    mask = os.umask(0)
    os.umask(mask)
    for file in partial.iterdir():
        file.chmod(0o666 & ~mask)  # safetensors makes private files
        flush(file)
    partial.chmod(0o777 & ~mask)  # mkdtemp makes private folders
    flush(partial)


def publish(partial: Path, place: Path) -> None:
    """Make a folder durable, then give it its name."""
    settle(partial)
    partial.replace(place)
    flush(place.parent)


def why(error: Exception, place: Path) -> str:
    """What went wrong on the way to a place."""
    full = getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT} or "No space left" in str(error)
    if full:
        return (
            f"the disk became full while {place} was written; nothing was left behind. Free some space or choose "
            "another disk"
        )
    reason = getattr(error, "strerror", None) or str(error)
    file = getattr(error, "filename", None)
    if file is not None and PARTIAL not in str(file):  # of a model, say, that is copied from
        reason = f"{printable(str(file))}: {reason}"
    return f"{place} could not be written ({reason}); nothing was left behind"
