"""Text and JSON out of files that somebody else made: regular files of a bounded size, nested to a bounded depth."""

from __future__ import annotations

import errno
import io
import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

LARGEST_CONFIG = 1_000_000
"""Bytes of the config of a run, which a person writes."""

LARGEST_RECIPE = 16_000_000
"""Bytes of a recipe. One that names each tensor of a model with a hundred thousand has about as much."""

LARGEST_JSON = 100_000_000
"""Bytes of a JSON file in a model folder: as much as the header of a safetensors file may have."""


def read_text(path: Path, most: int, *, regular: bool = False) -> str:
    """A UTF-8 text, its line ends as ``\\n``; never more than ``most`` bytes are read.

    Args:
        path: of the file.
        most: bytes that it may have.
        regular: refuse pipes and devices, on which reading could wait or go on for ever. For files that are found in a
            folder; one that the user names may be a pipe.

    Raises:
        OSError: it cannot be read, is larger, or is no regular file.
        UnicodeDecodeError: it is no UTF-8.
    """
    if regular and not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than the {most / 1e6:.0f} MB that such a file may have", str(path))
    return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8").read()


def read_json(path: Path, objects: Callable[[list[tuple[str, Any]]], dict[str, Any]] = dict) -> Any:
    """A JSON file of a model folder or a cache.

    Args:
        path: of the file.
        objects: makes an object of its pairs.

    Raises:
        OSError: it cannot be read, is too large, or is no regular file.
        ValueError: it is no JSON, or nested too deeply.
    """
    return parse_json(read_text(path, LARGEST_JSON, regular=True), objects)


def parse_json(text: str, objects: Callable[[list[tuple[str, Any]]], dict[str, Any]] = dict) -> Any:
    """JSON out of a text that is held already.

    Args:
        text: of any content.
        objects: makes an object of its pairs.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=objects)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def copy_within(file: Path, folder: Path, target: Path) -> None:
    """Copy a file of a model folder. What is exported is handed on: a link in somebody's model must not put a file of
    this machine into it.

    Raises:
        OSError: it is a link that leads out of the folder, or it cannot be copied.
    """
    if not _is_within(file, folder):
        raise OSError(
            errno.EPERM,
            f"it is a link to {printable(str(file.resolve()))}, outside of its model folder, and what lies there is "
            "not handed on; put a copy of the file in its place if it belongs to the model",
            str(file),
        )
    shutil.copyfile(file, target)


def _is_within(file: Path, folder: Path) -> bool:
    """Whether a file, links followed, lies in a folder; or where the Hub's cache keeps the files of that folder."""
    found, home = file.resolve(), folder.resolve()
    homes = [home]
    if home.parent.name == "snapshots":
        homes.append(home.parent.parent / "blobs")
    return any(found.is_relative_to(each) for each in homes)


def printable(text: str, most: int = 200) -> str:
    """A stranger's text for a message: what a terminal would obey is spelled out, and a long one is cut."""
    cut = text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in cut)
