"""Files that people ask for by name: whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from search.errors import SearchError


def write_whole(
    path: Path,
    content: str | bytes,
    what: str,
    *,
    advice: str = "",
    check: Callable[[Path], object] | None = None,
) -> None:
    """Write a file beside ``path`` and give it that name when it is on disk; what was there is replaced.

    Args:
        path: the file.
        content: all of it; text is written as UTF-8, with question marks for what is no valid text.
        what: it is, for messages: "the report".
        advice: a sentence that ends a message.
        check: called with the file that was written beside, before it gets its name; what it raises ends it all.

    Raises:
        SearchError: there is no such folder, it may not be written to, or its disk is full. Nothing is left behind.
    """
    from merging.durable import clear_abandoned, flush, hold

    def refused(why: str) -> SearchError:
        return SearchError(f"{path}: {what} cannot be written: {why}{f'. {advice}' if advice else ''}")

    if path.exists() and not path.is_file():
        kind = "a folder; add a file's name" if path.is_dir() else "no file; name another place"
        raise refused(f"this is {kind}")
    if not path.parent.is_dir():
        raise refused(f"there is no folder {path.parent}; make it first")
    beside = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
    held = -1
    try:
        clear_abandoned(path.parent, f".{glob.escape(path.name)}.partial-*")
        with beside.open("xb") as file:
            held = hold(beside)
            file.write(content if isinstance(content, bytes) else content.encode("utf-8", errors="replace"))
        flush(beside)
        if check is not None:
            check(beside)
        beside.replace(path)
    except OSError as error:
        raise refused(f"{error.strerror}; name another place") from error
    finally:
        if held >= 0:
            os.close(held)
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
