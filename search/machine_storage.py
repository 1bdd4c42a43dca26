"""Disk and caches, for ``paretomerge doctor``: where, how large, and what may be emptied."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from search.machine import Finding, size

MOST_FILES = 50_000
"""After so many files the size of a folder is said as `at least`."""

LITTLE = 2e9
"""Bytes of free space below which a run is likely to stop for want of it."""

OF_THE_CACHE = {
    "zoo": "trained model families; `paretomerge zoo build` makes them again",
    "virtual": "virtual experts; made again by the run that needs them",
    "calibration": "statistics of calibrated methods; collected again",
    "inputs": "calibration inputs; recorded again",
    "shared": "models shared between workers of this machine; of no use when no run is going",
    "benchmarks": "models of the benchmarks; made again",
}
"""Folder of our cache -> what it holds."""


def disk() -> Iterator[Finding]:
    """Free space where runs, caches and temporary files lie, and what may be emptied."""
    from zoo.cache import root

    cache = root()
    places = {"here": Path.cwd(), "cache": cache, "temporary": Path(tempfile.gettempdir()), "memory": Path("/dev/shm")}
    for name, path in places.items():
        if name != "memory" or path.is_dir():
            yield _space(name, path)
    yield _writable(cache)
    if cache.is_dir():
        for each in sorted(path for path in cache.iterdir() if path.is_dir()):
            yield _cache(f"cache/{each.name}", each, OF_THE_CACHE.get(each.name, "not known to this version"))
    for name, path in _others().items():
        if path.is_dir():
            yield _cache(name, path, f"{path}; not ours, other programs use it too")


def folder_size(folder: Path, most: int = MOST_FILES) -> tuple[int, bool]:
    """Bytes of the files below a folder, and whether all were counted. Links are not followed."""
    total = count = 0
    for place, _, files in os.walk(folder):
        for name in files:
            count += 1
            if count > most:
                return total, False
            try:
                total += Path(place, name).lstat().st_size
            except OSError:  # removed meanwhile
                continue
    return total, True


def _cache(name: str, folder: Path, what: str) -> Finding:
    held, whole = folder_size(folder)
    return Finding("disk", name, "ok", f"{'' if whole else 'at least '}{size(held)}, {what}", "", {"bytes": held})


def _space(name: str, path: Path) -> Finding:
    existing = next(each for each in (path, *path.parents) if each.exists())
    free = shutil.disk_usage(existing).free
    little = free < LITTLE and name != "memory"
    do = "make room before a run: it stops, and goes on where it was, when the disk is full" if little else ""
    return Finding("disk", name, "note" if little else "ok", f"{size(free)} free, {path}", do, {"free": free})


def _writable(cache: Path) -> Finding:
    existing = next(each for each in (cache, *cache.parents) if each.exists())
    if os.access(existing, os.W_OK):
        return Finding("disk", "cache writable", "ok", "yes")
    do = "name another cache directory in PARETOMERGE_CACHE"
    return Finding("disk", "cache writable", "broken", f"no: {existing}", do)


def _others() -> dict[str, Path]:
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    inductor = Path(
        os.environ.get("TORCHINDUCTOR_CACHE_DIR") or Path(tempfile.gettempdir()) / f"torchinductor_{_user()}"
    )
    return {"hub cache": home, "kernels of torch": inductor}


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
