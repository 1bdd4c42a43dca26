"""Where vectors are kept, and which there are, by names alone: nothing heavy is imported."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

ENVIRONMENT: Final = "PARETOMERGE_VECTORS"
"""Environment variable that names another store."""

MANIFEST: Final = "vector.json"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
"""Of a vector: also a folder's, on any system."""


def default_store() -> Path:
    """Where vectors are kept: ``PARETOMERGE_VECTORS``, or ``vectors`` in the user's data directory."""
    import platformdirs

    chosen = os.environ.get(ENVIRONMENT)
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_data_dir("paretomerge")) / "vectors"


def found_at(path: Path) -> str:
    """What is at a path, in words for messages: a folder, a file, no regular file, or nothing; nothing too where no
    file system could hold such a path."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return "nothing"
    return "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "no regular file"


def names_in(store: Path) -> list[str]:
    """Names of the vectors in a folder, sorted; links and whatever else lies there are left out."""
    if not store.is_dir():
        return []
    return sorted(
        each.name
        for each in store.iterdir()
        if NAME.fullmatch(each.name) and not each.is_symlink() and (each / MANIFEST).is_file()
    )
