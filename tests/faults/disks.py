"""Disks that are small, or cannot be written: real ones, in memory, where this user may mount them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A mounted file system of a few pages.

    Attributes:
        folder: where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, size: int) -> None:
        """Bytes that it holds, files and folders together."""
        _mount("-o", f"remount,size={size}", str(self.folder))

    def protect(self, read_only: bool) -> None:
        """Whether nothing on it can be written, by root neither."""
        _mount("-o", f"remount,{'ro' if read_only else 'rw'}", str(self.folder))


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[SmallDisk]:
    """Mount one for the length of a ``with`` block; skip the test where that is not allowed."""
    folder.mkdir(parents=True)
    try:
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk takes a right that this user lacks; limited file sizes are tested instead")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)
