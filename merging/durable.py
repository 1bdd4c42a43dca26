"""Files that are on disk when the call returns, and what is left of those that never came so far."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a text, and wait until it is on disk."""
    path.write_text(text, encoding="utf-8")
    flush(path)


def flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hold(path: Path) -> int:
    """Mark a file or folder as being written by this process, for as long as the descriptor is open, however the
    process ends. Where a file system knows no such locks, nothing marks it, and nothing is ever taken for abandoned."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _lock(descriptor)
    except OSError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def clear_abandoned(folder: Path, pattern: str) -> None:
    """Remove what processes that were killed have left behind: files and folders that nobody holds.

    Args:
        folder: where they lie; other people's files may be there too.
        pattern: of the names of those, and only those, that are made to be held by :func:`hold`.
    """
    for left in folder.glob(pattern):
        if left.is_symlink():
            continue
        try:
            descriptor = os.open(left, os.O_RDONLY)
        except OSError:
            continue
        try:
            _lock(descriptor)
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        except OSError:  # held, or of somebody else
            continue
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> None:
    import fcntl  # which not every system has

    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
