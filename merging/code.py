"""Which code computed something: for caches, in which nothing may outlive a change of it."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path


@cache
def code_hash(folder: Path) -> str:
    """sha256 in hex of all Python files below a package's folder, by their names and bytes; read once a process."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
