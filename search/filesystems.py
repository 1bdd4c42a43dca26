"""On what a run directory lies, and what its database may do there.

A database in WAL mode shares memory between its processes, which no network file system carries from one machine to
another (sqlite.org/wal.html); a rollback journal needs byte-range locks that every machine sees
(sqlite.org/lockingv3.html).
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from search.errors import SearchError

Journal = Literal["wal", "delete"]

LOCAL = frozenset((
    "apfs", "aufs", "bcachefs", "btrfs", "ecryptfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "fuseblk", "hfs",
    "hfsplus", "jfs", "msdos", "nilfs2", "ntfs", "ntfs3", "overlay", "ramfs", "reiserfs", "rootfs", "squashfs", "tmpfs",
    "ufs", "vfat", "xfs", "zfs",
))  # fmt: skip
"""One kernel serves all their users. Whatever is not named here counts as shared between machines."""

_NO_OVERWRITING = (
    "it keeps whole objects: a database cannot overwrite a page in place, and a power cut may lose all of it"
)
_LOCAL_LOCKS = "its byte-range locks are seen by one machine only, so that two machines could write at once"
_OBJECT_STORES = (
    "alluxio", "alluxio-fuse", "blobfuse", "blobfuse2", "cosfs", "curlftpfs", "davfs", "davfs2", "dbfs", "drive",
    "fuse_dfs", "gcsfuse", "geesefs", "google-drive-ocamlfuse", "goofys", "hdfs", "hf-mount", "mount-s3",
    "mountpoint-s3", "obsfs", "onedriver", "ossfs", "ossfs2", "rclone", "s3fs", "webdav",
)  # fmt: skip
_WITHOUT_SHARED_LOCKS = ("afs", "auristorfs", "gvfsd-fuse", "sshfs")
_REFUSED = dict.fromkeys(_OBJECT_STORES, _NO_OVERWRITING) | dict.fromkeys(_WITHOUT_SHARED_LOCKS, _LOCAL_LOCKS)
"""Why a kind is refused; a FUSE file system (``fuse.<name>``, or ``fuse`` mounted from ``<name>``) by its name."""
_LOCAL_LOCK_OPTIONS = frozenset(("nolock", "local_lock=all", "local_lock=posix", "localflock", "nobrl"))
"""Of NFS (nfs(5)), Lustre and CIFS (mount.cifs(8)): byte-range locks are not told to the server."""
_WHAT_TO_DO = "Let the run lie on a local disk (`paretomerge run --name`, from a folder there), and copy it afterwards."

_LOCK_BYTE = 0x40000000
"""Where SQLite's own locks begin: PENDING_BYTE of its file format."""
_TRY_THE_LOCK = f"""
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDWR)
try:
    fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, {_LOCK_BYTE})
except (BlockingIOError, PermissionError):
    print("refused")
else:
    print("taken")
"""


@dataclass(frozen=True)
class FileSystem:
    """A mounted file system.

    Attributes:
        kind: as the mount table calls it: "ext4", "nfs4", "fuse.sshfs".
        mounted: where.
        options: of the mount.
        source: device or server, as the mount table calls it.
    """

    kind: str
    mounted: Path
    options: frozenset[str] = frozenset()
    source: str = ""

    @property
    def local(self) -> bool:
        """Whether this machine alone serves it, so that what its kernel says of locks is true for every user."""
        return self.kind in LOCAL


def file_system_of(path: Path) -> FileSystem:
    """What a path lies on: the longest mount point above it, the last mounted where several share one.

    Args:
        path: may not exist yet; symbolic links are followed.

    Returns:
        The file system; kind "unknown" where the mount table names none.
    """
    resolved = Path(os.path.realpath(path))
    found = FileSystem("unknown", Path(resolved.anchor))
    for each in psutil.disk_partitions(all=True):
        mounted = Path(each.mountpoint)
        if resolved.is_relative_to(mounted) and (
            found.kind == "unknown" or len(mounted.parts) >= len(found.mounted.parts)
        ):
            found = FileSystem(each.fstype, mounted, frozenset(each.opts.split(",")), each.device)
    return found


def kind_of(path: Path) -> str:
    """The kind of the file system that a path lies on: "ext4", "nfs4", "fuse.sshfs", …; "unknown" if no table says."""
    return file_system_of(path).kind


def journal_for(folder: Path) -> Journal:
    """The journal that keeps a run's database whole in this folder.

    Args:
        folder: the run directory; exists and can be written.

    Returns:
        "wal" on a local file system; "delete", a rollback journal, where several machines may see the file and a trial
        has shown that one process's byte-range lock stops another.

    Raises:
        SearchError: no database can be kept whole there; says why and what to do.
    """
    found = file_system_of(folder)
    if found.local:
        return "wal"
    reason = _reason_against(found) or _reason_in_practice(folder)
    if reason:
        raise SearchError(
            f"{folder}: expected a file system on which a database survives, found {found.kind} (mounted at "
            f"{found.mounted}): {reason}. {_WHAT_TO_DO}"
        )
    return "delete"


def _reason_against(found: FileSystem) -> str:
    """Why the mount table speaks against it; "" if nothing does."""
    kind, _, name = found.kind.partition(".")
    if kind in ("fuse", "macfuse", "osxfuse") and not name:
        name = found.source
    reason = _REFUSED.get(name or kind)
    if reason:
        return reason
    told = sorted(_LOCAL_LOCK_OPTIONS & found.options)
    return f"it is mounted with {', '.join(told)}, so that {_LOCAL_LOCKS}" if told else ""


def _reason_in_practice(folder: Path) -> str:
    """Why a trial of byte-range locks between two processes speaks against it; "" if they hold."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".lock-trial-") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _LOCK_BYTE)
            held = _tried_elsewhere(file.name)
            fcntl.lockf(file, fcntl.LOCK_UN, 1, _LOCK_BYTE)
            free = _tried_elsewhere(file.name)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.ENOSPC, errno.ENOENT):
            raise SearchError(f"{folder}: expected a folder that can be written: {error.strerror}") from error
        return f"a byte-range lock could not be taken ({error.strerror})"
    if (held, free) == ("refused", "taken"):
        return ""
    if held == "taken":
        return "two processes were given the same byte-range lock at once"
    return f"byte-range locks do not work (while one was held: {held}; after it was freed: {free})"


def _tried_elsewhere(path: str) -> str:
    """What another process meets that tries the lock: "refused", "taken", or its last line of error."""
    command = [sys.executable, "-I", "-S", "-c", _TRY_THE_LOCK, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout.strip() or (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
