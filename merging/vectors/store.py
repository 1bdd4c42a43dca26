"""The vector store: a folder with a folder for every vector, each whole or not there.

A vector is written beside its place and renamed, under a lock that the kernel drops with its holder: two processes that
add at once lose nothing, a full disk or a kill leaves nothing half. A name is a plain word; links in the store are not
followed.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from merging.bounded import copy_within, printable
from merging.checkpoint import Checkpoint
from merging.durable import flush
from merging.new_folder import PARTIAL, beside, settle, why
from merging.recipe import MergingError
from merging.vectors.manifest import CARD, Manifest, Score
from merging.vectors.places import MANIFEST, NAME, default_store, names_in
from merging.vectors.source import Shards, VectorModel, check_companions, check_fits, check_within

_LOCK = ".lock"
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)

Write = Callable[[Path], Manifest]
"""Fills an empty folder with a vector."""


def check_name(name: str) -> str:
    """A name that can be a folder's on any system, or a refusal.

    Raises:
        MergingError: it cannot.
    """
    if not NAME.fullmatch(name) or _RESERVED.fullmatch(name) or name.endswith("."):
        raise MergingError(
            "expected the name of a vector to be letters, digits, dots, dashes and underscores, at most 100, beginning "
            f"with a letter or digit, and none that a system keeps for itself, such as con, found {printable(name)!r}; "
            "choose another name"
        )
    return name


class Store:
    """A folder of vectors.

    Args:
        path: the folder; :func:`default_store` if None. It is made when something is added.
    """

    def __init__(self, path: Path | str | None = None):
        self.path = default_store() if path is None else Path(path).expanduser()
        if self.path.exists() and not self.path.is_dir():
            raise MergingError(f"expected a folder for the vector store at {self.path}, found a file; name another")

    def names(self) -> list[str]:
        """Of the vectors that are there, sorted; links and whatever else lies there are left out."""
        return names_in(self.path)

    def folder(self, name: str) -> Path:
        """Where a vector lies.

        Raises:
            MergingError: there is none of that name.
        """
        place = self.path / check_name(name)
        if place.is_symlink():
            raise MergingError(
                f"expected a vector at {place}, found a link, which a store does not follow; import what it points to"
            )
        if not (place / MANIFEST).is_file():
            there = self.names()
            known = f"it has {', '.join(there[:12])}{' …' if len(there) > 12 else ''}" if there else "it is empty"
            raise MergingError(
                f"there is no vector {name!r} in the store {self.path}; {known}. `paretomerge vector list` says more, "
                "--store or PARETOMERGE_VECTORS names another store"
            )
        return place

    def manifest(self, name: str) -> Manifest:
        """What a vector is.

        Raises:
            MergingError: there is none of that name, or its manifest is damaged.
        """
        return Manifest.read(self.folder(name))

    def add(self, name: str, write: Write, *, replace: bool = False) -> Path:
        """Add a vector.

        Args:
            name: in this store.
            write: fills the folder that will become it.
            replace: put it in the place of one of that name, which is removed.

        Returns:
            Its folder.

        Raises:
            MergingError: the name is taken, or the store cannot be written. The store is as it was.
        """
        place = self.path / check_name(name)
        if not replace:
            self.check_free(name)
        with beside(place, self.alone) as partial:
            write(partial)
            self.take(name, partial, replace=replace)
        return place

    def take(self, name: str, partial: Path, *, replace: bool = False) -> Path:
        """Give a folder of this store that is written, and checked, its name.

        Args:
            name: in this store.
            partial: of :func:`beside`.
            replace: as in :meth:`add`.

        Raises:
            MergingError: the name is no name, or taken.
            OSError: it cannot be written.
        """
        place = self.path / check_name(name)
        settle(partial)
        with self.alone():
            gone = self._aside(place) if replace and (place.is_symlink() or place.exists()) else None
            try:
                self.check_free(name)
                partial.replace(place)
            except BaseException:
                if gone is not None:
                    gone.replace(place)
                raise
            flush(self.path)
            if gone is not None:
                _delete(gone)
        return place

    def remove(self, name: str) -> None:
        """Remove a vector; at any instant it is there, whole, or it is not.

        Raises:
            MergingError: there is none of that name, or it cannot be removed.
        """
        place = self.folder(name)
        try:
            with self.alone():
                _delete(self._aside(place))
            flush(self.path)
        except OSError as error:
            raise MergingError(f"{place} could not be removed: {error.strerror or error}") from error

    def scored(self, name: str, scores: tuple[Score, ...]) -> Manifest:
        """Keep scores with a vector. Its manifest and card are written anew, each whole; its tensors stay as they are.

        Raises:
            MergingError: there is none of that name, or it cannot be written.
        """
        from merging.vectors.extract import write_manifest

        folder = self.folder(name)
        try:
            with self.alone():
                manifest = Manifest.read(folder).scored(scores)
                write_manifest(folder, manifest)
            return manifest
        except OSError as error:
            raise MergingError(why(error, folder)) from error

    def check_free(self, name: str) -> None:
        """Refuse a name that is none, or is taken.

        Raises:
            MergingError: says what to do.
        """
        place = self.path / check_name(name)
        if place.is_symlink() or place.exists():
            raise MergingError(
                f"expected a new name, found {place.name} in the store {self.path} already; choose another, remove "
                "that one (`paretomerge vector remove`), or add --replace"
            )

    @staticmethod
    def _aside(place: Path) -> Path:
        """Take its name from a vector: nobody sees half of one. Returns what is to be deleted."""
        gone = place.with_name(f".{place.name}{PARTIAL}{secrets.token_hex(4)}")
        place.replace(gone)
        return gone

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One writer at a time; where a file system has no locks, renaming alone has to do."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK).open("a") as handle:
            with contextlib.suppress(ImportError, OSError):
                import fcntl

                fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _delete(gone: Path) -> None:
    if gone.is_symlink():
        gone.unlink()
    else:
        shutil.rmtree(gone, ignore_errors=True)  # what cannot be removed is cleared away by whoever adds next


def copy_vector(source: Path, folder: Path) -> Manifest:
    """Copy a vector's folder into an empty one: the manifest, the card, and the files that the manifest names, each
    compared with its hash.

    Args:
        source: of a stranger, perhaps.
        folder: existing and empty.

    Raises:
        MergingError: it is damaged, or leads out of its folder.
        OSError: it cannot be written.
    """
    manifest = Manifest.read(source)
    for file in (MANIFEST, CARD, *manifest.files):
        if file == CARD and not (source / file).is_file():
            continue
        check_within(source / file, source)
        if not (source / file).is_file():
            raise MergingError(f"expected {file} in {source}, found none; the vector is damaged: get it again")
        copy_within(source / file, source, folder / file)
    copied = Manifest.read(folder, source)
    check_companions(folder, copied, shards=True, shown=source)
    return copied


def verify(folder: Path, base: Checkpoint | None = None) -> tuple[Manifest, list[str]]:
    """Hash everything that a vector's folder holds, and read every part as it is read when it is used.

    Args:
        folder: of the vector.
        base: its base: every tensor is composed too, and the result's hash compared. Without it nothing is decoded.

    Returns:
        The manifest, and what is not wrong but should be known.

    Raises:
        MergingError: names the first thing that is not what the manifest says.
    """
    manifest = Manifest.read(folder)
    check_companions(folder, manifest, shards=True)
    shards = Shards(folder, manifest)
    for name, stored in manifest.tensors.items():
        shards.parts(name, stored)
    shards.sketch()
    known = {MANIFEST, CARD, *manifest.files}
    notes = [f"{printable(each.name)} is no part of the vector" for each in folder.iterdir() if each.name not in known]
    if base is not None:
        check_fits(folder, manifest, base)
        if base.content != manifest.base.content:
            notes.append(f"{base.path} is not the base of this vector: nothing was composed")
        elif (found := VectorModel(folder, base, manifest).content) != manifest.content:
            raise MergingError(
                f"base and vector {folder} compose a model of content {found[:19]}…, where its manifest says "
                f"{manifest.content[:19]}…; this version of paretomerge or this machine computes it differently, or "
                "the vector was made wrongly: do not use it"
            )
    return manifest, notes
