"""Memory that the processes of one machine share: filled once, unchangeable from then on, gone with its last user.

A piece is an anonymous file of the kernel (``memfd_create``): it has no path, it is as large as memory allows (where
``/dev/shm`` of a container may have 64 MB), and the kernel frees it when the last process that has it open ends,
whatever ends that process. So nothing is ever left behind, and there is nothing to clean up. It is found by its name in
``/proc`` of the processes of the same user. A filled piece is sealed: nobody can write into it or change its size any
more, and only a sealed one is ever taken, so a maker that dies half-way leaves nothing that could be taken for a whole
one.
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = "paretomerge-"

# Newer kernels want to be told that nobody will run the file as a program; older ones do not know the flag.
_NOEXEC_SEAL = 0x0008


def available() -> bool:
    """Whether this system has such memory: Linux has."""
    return hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()


def find(key: str, size: int) -> mmap.mmap | None:
    """A piece that some process of this user holds.

    Args:
        key: what it holds; letters, digits and dashes, 200 at most.
        size: bytes.

    Returns:
        The piece, mapped: what is written into it is seen by this process alone. It lives as long as the mapping.
    """
    if not available():
        return None
    for path in _held(key):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue  # its process ended, or closed it
        try:
            if _is_whole(handle, key, size):
                return mmap.mmap(handle, size, access=mmap.ACCESS_COPY)
        except OSError:
            continue
        finally:
            os.close(handle)  # the mapping keeps one of its own, by which others find it
    return None


def make(key: str, size: int, fill: Callable[[mmap.mmap], None]) -> mmap.mmap:
    """Make a piece, whether or not there is one.

    Args:
        key, size: as for :func:`find`; at least one byte.
        fill: writes all of it, and keeps no view. Zero before.

    Raises:
        OSError: no memory.
    """
    import fcntl  # which not every system has

    handle = _create(_NAME + key)
    try:
        os.posix_fallocate(handle, 0, size)  # now, as an error, and not in the middle of writing, as a signal
        with mmap.mmap(handle, size) as writable:
            fill(writable)
        fcntl.fcntl(handle, fcntl.F_ADD_SEALS, _seals())
        return mmap.mmap(handle, size, access=mmap.ACCESS_COPY)
    finally:
        os.close(handle)


@contextmanager
def making() -> Iterator[None]:
    """Whoever makes pieces does so one after the other: what another makes meanwhile is there to be found, and what is
    free is not given out twice. Where the cache cannot be written it is as if there were nobody else."""
    import fcntl

    from merging.calibration.store import default_cache  # which imports the arenas

    folder = default_cache() / "shared"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # By machine: the cache may be on a file system of many.
        handle = os.open(folder / f"{socket.gethostname()}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _seals() -> int:
    import fcntl

    return fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def _create(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create(name, flags)


def _held(key: str) -> Iterator[Path]:
    """Paths below ``/proc`` of the open files of that name. Only of this user: others' could hold anything."""
    own = os.geteuid()
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        with suppress(OSError):  # it ended, or is hidden
            if process.stat().st_uid == own:
                yield from (path for path in (process / "fd").iterdir() if _is_called(path, key))


def _is_called(handle: Path, key: str) -> bool:
    try:
        return str(handle.readlink()) == f"/memfd:{_NAME}{key} (deleted)"
    except OSError:
        return False  # closed since


def _is_whole(handle: int, key: str, size: int) -> bool:
    """Whether it is what was looked for (the number may have gone to another file since), filled and sealed."""
    import fcntl

    return (
        _is_called(Path(f"/proc/self/fd/{handle}"), key)
        and os.fstat(handle).st_size == size
        and fcntl.fcntl(handle, fcntl.F_GET_SEALS) & _seals() == _seals()
    )
