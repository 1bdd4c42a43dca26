"""A vector as one file: ``.zip`` or ``.tar``. Reading one trusts nothing in it.

No member is ever unpacked where its name says: the manifest is read first, and of the rest only the plain files that it
names are copied, each of exactly the size that it states. Anything else in the archive refuses it all.
"""

from __future__ import annotations

import errno
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from merging.bounded import LARGEST_JSON, printable
from merging.recipe import MergingError
from merging.vectors.manifest import CARD, Manifest
from merging.vectors.places import MANIFEST, found_at
from merging.vectors.source import check_companions

ENDINGS = (".zip", ".tar")

_OTHERS = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".tbz2", ".txz")
_LARGEST_CARD = 2_000_000
_MOST_MEMBERS = 100_000
_AT_ONCE = 1 << 20
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


def is_archive(path: Path | str) -> bool:
    """Whether a path is meant as an archive, by its ending."""
    return str(path).lower().endswith(ENDINGS)


def check_kind(path: Path | str) -> None:
    """Refuse an archive of a kind that is neither read nor written, by its ending.

    Raises:
        MergingError: it is one.
    """
    if str(path).lower().endswith(_OTHERS):
        raise MergingError(
            f"expected an archive that ends in {' or '.join(ENDINGS)}, found {printable(str(path))}; what a vector "
            "holds is compressed already"
        )


def write_archive(folder: Path, name: str, file: Path) -> None:
    """Pack a vector's folder, nothing compressed twice.

    Args:
        folder: of the vector; its files are compared with the manifest before they are packed.
        name: of the folder in the archive.
        file: new, ending as one of :data:`ENDINGS`.

    Raises:
        MergingError: the vector is damaged.
        OSError: it cannot be written.
    """
    manifest = Manifest.read(folder)
    check_companions(folder, manifest, shards=True)
    files = [each for each in (MANIFEST, CARD, *sorted(manifest.files)) if (folder / each).is_file()]
    if file.suffix.lower() == ".zip":
        with zipfile.ZipFile(file, "x", zipfile.ZIP_STORED) as packed:
            for each in files:
                packed.write(folder / each, f"{name}/{each}")
        return
    with tarfile.open(file, "x:", format=tarfile.PAX_FORMAT) as tar:
        for each in files:
            info = tarfile.TarInfo(f"{name}/{each}")  # without owner and rights of this machine
            info.size = (folder / each).stat().st_size
            with (folder / each).open("rb") as stream:
                tar.addfile(info, stream)


def read_archive(file: Path, folder: Path) -> Manifest:
    """Unpack a vector into an empty folder.

    Args:
        file: of a stranger, perhaps.
        folder: existing and empty; half a vector may stay there where this fails.

    Raises:
        MergingError: it is no archive of a vector and nothing else, or is damaged.
        OSError: the folder cannot be written.
    """
    if (found := found_at(file)) != "a file":
        raise MergingError(f"expected an archive of a task vector at {printable(str(file))}, found {found} there")
    try:
        with _opened(file) as members:
            return _unpacked(file, members, folder)
    except _BROKEN as error:
        raise MergingError(_broken(file, error)) from error
    except OSError as error:  # of the archive, which states impossible places or may not be read; or of the folder
        if error.errno != errno.EINVAL and error.filename != str(file):
            raise
        raise MergingError(_broken(file, error)) from error


@dataclass(frozen=True)
class _Member:
    """A file in an archive: what it is called, how many bytes it says it has, and what opens it."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


def _unpacked(file: Path, members: Mapping[str, _Member], folder: Path) -> Manifest:
    if MANIFEST not in members:
        raise MergingError(f"expected a task vector in {file}, found no {MANIFEST} in it")
    _copy(file, members[MANIFEST], folder / MANIFEST, LARGEST_JSON)
    manifest = Manifest.read(folder, file)
    if strange := sorted(members.keys() - {MANIFEST, CARD, *manifest.files}):
        raise MergingError(_refusal(file, strange[0], "which its manifest does not name"))
    for name, facts in manifest.files.items():
        if name not in members:
            raise MergingError(f"expected {name} in {file}, found none; the vector is damaged: get it again")
        if members[name].size != facts.bytes:
            raise MergingError(
                f"expected {facts.bytes} bytes of {name} in {file}, found {members[name].size}; the vector is damaged: "
                "get it again"
            )
        _copy(file, members[name], folder / name, facts.bytes)
    if CARD in members:
        _copy(file, members[CARD], folder / CARD, _LARGEST_CARD)
    check_companions(folder, manifest, shards=True, shown=file)
    return manifest


def _copy(file: Path, member: _Member, target: Path, most: int) -> None:
    left = most
    with member.open() as source, target.open("xb") as out:
        while piece := source.read(min(_AT_ONCE, left + 1)):
            left -= len(piece)
            if left < 0:
                raise MergingError(f"{file}: {member.name} has more than the {most} bytes that it may have")
            out.write(piece)


@contextmanager
def _opened(file: Path) -> Iterator[Mapping[str, _Member]]:
    """Plain name -> member."""
    if file.suffix.lower() == ".zip":
        with zipfile.ZipFile(file) as packed:
            yield _plain(file, _in_zip(file, packed))
    elif file.suffix.lower() == ".tar":
        with tarfile.open(file, "r:") as tar:
            yield _plain(file, _in_tar(file, tar))
    else:
        raise MergingError(f"expected an archive that ends in {' or '.join(ENDINGS)}, found {file}")


def _in_zip(file: Path, packed: zipfile.ZipFile) -> Iterator[_Member]:
    for info in packed.infolist():
        if info.is_dir():
            continue
        mode = info.external_attr >> 16
        if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
            raise MergingError(_refusal(file, info.filename, "which is a link or a device"))
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise MergingError(_refusal(file, info.filename, "which is encrypted, or compressed in an unusual way"))
        yield _Member(info.filename, info.file_size, lambda info=info: packed.open(info))  # type: ignore[misc]


def _in_tar(file: Path, tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        if info.isdir():
            continue
        if not info.isreg() or info.issparse():
            raise MergingError(_refusal(file, info.name, "which is a link or a device"))
        yield _Member(info.name, info.size, lambda info=info: _stream(tar, info))  # type: ignore[misc]


def _stream(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    found = tar.extractfile(info)
    if found is None:
        raise tarfile.TarError(f"{info.name} cannot be read")
    return found


def _plain(file: Path, members: Iterator[_Member]) -> dict[str, _Member]:
    """Members by their own name; all lie at the top, or in one folder."""
    found: dict[str, _Member] = {}
    folders = set()
    for member in members:
        head, sign, name = member.name.removeprefix("./").rpartition("/")
        hostile = "/" in head or head in (".", "..") or (sign and not head) or any(c in member.name for c in "\\:\0")
        if hostile or name in ("", ".", ".."):
            raise MergingError(_refusal(file, member.name, "which would lie outside of the vector's folder"))
        folders.add(head)
        if name in found or len(folders) > 1:
            raise MergingError(_refusal(file, member.name, "where one folder with every file once was expected"))
        if len(found) >= _MOST_MEMBERS:
            raise MergingError(f"expected an archive of a task vector at {file}, found too many files in it")
        found[name] = member
    return found


def _broken(file: Path, error: Exception) -> str:
    return (
        f"expected an archive of a task vector at {file}, found one that cannot be read, is damaged or of another kind "
        f"({printable(str(error)) or type(error).__name__}); get it again"
    )


def _refusal(file: Path, name: str, why: str) -> str:
    return (
        f"expected the files of one task vector in {file}, found {printable(name)!r}, {why}. The archive is damaged or "
        "not to be trusted; nothing was taken from it"
    )
