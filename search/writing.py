"""Small text files that people ask for by name: whole or not at all."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path

from search.errors import SearchError


def write_whole(path: Path, text: str, check: Callable[[Path], object] | None = None) -> None:
    """Write a text beside ``path`` and give it that name when it is on disk; what was there is replaced.

    Args:
        path: the file.
        text: all of it.
        check: called with the file that was written beside, before it gets its name; what it raises ends it all.

    Raises:
        SearchError: there is no such folder, it may not be written to, or its disk is full. Nothing is left behind.
    """
    from merging.durable import write_text

    if path.is_dir():
        raise SearchError(f"{path}: expected the name of a file to write, found a folder; add a file's name")
    if not path.parent.is_dir():
        raise SearchError(f"{path}: cannot be written, since there is no folder {path.parent}; make it first")
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        write_text(beside, text)
        if check is not None:
            check(beside)
        beside.replace(path)
    except OSError as error:
        raise SearchError(f"{path}: cannot be written: {error.strerror}; name another place") from error
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
