"""Statistics on disk: written once, found by what they depend on, read a matrix at a time.

``<cache>/calibration/<key>/`` holds safetensors files and an ``index.json`` that says what is in them, with their sizes
and hashes. A folder that is there is finished: it was written beside and renamed. One that does not hold what its index
says is made anew. ``fingerprints/`` remembers which statistics belong to a fingerprint, so that a recipe that names one
can be followed where the data are gone.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from merging.durable import flush, write_text
from merging.recipe import MergingError

# Of how it is stored; another number and nothing that was stored is found again.
VERSION = 1

_INDEX = "index.json"
_PARTIAL = ".partial-"
_LOCK = ".lock"
_HASHED_AT_ONCE = 1 << 22


def default_cache() -> Path:
    """The project's cache directory: ``PARETOMERGE_CACHE``, or the platform's for the user."""
    import platformdirs

    chosen = os.environ.get("PARETOMERGE_CACHE")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("paretomerge"))


def key_of(*parts: Any) -> str:
    """Hash in hex of plain data, and of :data:`VERSION`."""
    return hashlib.sha256(_json([VERSION, *parts]).encode()).hexdigest()


@dataclass
class Entry:
    """One folder of statistics. Tensors are read when they are asked for, and their files checked once before.

    Attributes:
        folder: where it is.
        names: canonical tensor name -> what is stored about it.
        facts: numbers about the whole.
        files: file name -> its size in bytes and its sha256 in hex.
    """

    folder: Path
    names: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    _checked: set[str] = field(default_factory=set)

    def read(self, file: str, key: str) -> Tensor:
        """One tensor.

        Raises:
            MergingError: the file was damaged.
        """
        with self.opened(file) as read:
            return read(key)

    @contextmanager
    def opened(self, file: str) -> Iterator[Callable[[str], Tensor]]:
        """A file, within the context: gives a tensor by its key.

        Raises:
            MergingError: it was damaged.
        """
        self.check(file)
        try:
            with safe_open(self.folder / file, framework="pt") as opened:
                yield opened.get_tensor
        except (OSError, SafetensorError) as error:
            raise self._damaged(file, str(error)) from error

    def check(self, *files: str) -> None:
        """Check files, by default all, against the index: size and hash, once.

        Raises:
            MergingError: the first that differs.
        """
        for file in files or self.files:
            if file in self._checked:
                continue
            size, digest = self.files[file]
            path = self.folder / file
            try:
                if path.stat().st_size != size or _hash_of(path) != digest:
                    raise self._damaged(file, "another size or hash than when it was written")
            except OSError as error:
                raise self._damaged(file, str(error)) from error
            self._checked.add(file)

    def _damaged(self, file: str, why: str) -> MergingError:
        return MergingError(
            f"the calibration statistics in {self.folder / file} are damaged ({why}); delete {self.folder} and collect "
            "them again"
        )


@dataclass
class Writer(Entry):
    """An entry that is being written; what was written can be read.

    Attributes:
        lock: held as long as somebody writes.
    """

    lock: IO[str] | None = None

    def write(self, file: str, tensors: Mapping[str, Tensor], names: Mapping[str, dict[str, Any]]) -> None:
        """Write one file, and say what is in it.

        Args:
            file: name of the file.
            tensors: what it holds.
            names: canonical tensor name -> what is stored about it.
        """
        path = self.folder / file
        try:
            save_file({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}, path)
            flush(path)
            self.files[file] = (path.stat().st_size, _hash_of(path))
        except (OSError, SafetensorError) as error:
            raise _unwritable(path, error) from error
        self._checked.add(file)
        self.names |= names


class Store:
    """All entries of a cache."""

    def __init__(self, cache: Path | None = None):
        """Open a store; nothing is touched before something is written.

        Args:
            cache: the cache directory, by default the project's.
        """
        self.root = (cache or default_cache()) / "calibration"

    def find(self, key: str) -> Entry | None:
        """The finished entry of a key; None where there is none, or one that nobody can read."""
        folder = self.root / key
        try:
            data = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
            content = data["content"]
            if data["sha256"] != hashlib.sha256(_json(content).encode()).hexdigest():
                return None
            files = {name: (int(size), str(digest)) for name, (size, digest) in content["files"].items()}
            return Entry(folder, content["names"], content["facts"], files)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def intact(self, key: str) -> Entry | None:
        """As :meth:`find`, with every file checked: None also where one is damaged."""
        entry = self.find(key)
        try:
            if entry is not None:
                entry.check()
        except MergingError:
            return None
        return entry

    def begin(self) -> Writer:
        """An entry to be written. Finish it with :meth:`commit`, or :meth:`abandon` it."""
        folder = self.root / f"{_PARTIAL}{uuid4().hex}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._sweep()
            writer = Writer(folder, lock=_locked(folder.with_suffix(_LOCK)))
            folder.mkdir()
        except OSError as error:
            raise _unwritable(folder, error) from error
        return writer

    def commit(self, writer: Writer, key: str) -> Entry:
        """Make a written entry the key's, whole and on disk. If an intact one is there by now, that one stays."""
        content = {"files": writer.files, "facts": writer.facts, "names": writer.names}
        data = {"sha256": hashlib.sha256(_json(content).encode()).hexdigest(), "content": content}
        target = self.root / key
        try:
            write_text(writer.folder / _INDEX, _json(data))
            if target.exists() and self.intact(key) is None:
                target.rename(aside := self.root / f"{_PARTIAL}{uuid4().hex}")
                shutil.rmtree(aside, ignore_errors=True)
            if not target.exists():
                writer.folder.rename(target)
                flush(self.root)
        except OSError as error:
            if not target.exists():
                raise _unwritable(target, error) from error
        finally:
            self.abandon(writer)
        found = self.find(key)
        if found is None:
            raise MergingError(f"{target} vanished while it was written; collect the statistics again")
        found._checked |= writer._checked if found.files == writer.files else set()
        return found

    def abandon(self, writer: Writer) -> None:
        """Remove what was written so far; nothing after a commit."""
        shutil.rmtree(writer.folder, ignore_errors=True)
        if writer.lock is not None:
            writer.folder.with_suffix(_LOCK).unlink(missing_ok=True)
            writer.lock.close()
            writer.lock = None

    def _sweep(self) -> None:
        """Remove what writers left that were killed: nobody holds their locks."""
        for path in self.root.glob(f"{_PARTIAL}*{_LOCK}"):
            held = _locked(path)
            if held is not None:
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)
                path.unlink(missing_ok=True)
                held.close()

    def remember(self, fingerprint: str, samples: Mapping[str, str], context: Mapping[str, str]) -> None:
        """Note what a fingerprint stands for.

        Args:
            fingerprint: of calibration data.
            samples: content of a source -> hash of its samples.
            context: what else the statistics depend on; the latest is found first.
        """
        known, noted = self.recall(fingerprint)
        if known == dict(samples) and noted[-1:] == [dict(context)]:
            return  # a cache that nobody may write to can be read
        contexts = [each for each in noted if each != dict(context)]
        path = self._note(fingerprint)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{_PARTIAL}{uuid4().hex}")
            write_text(temporary, _json({"samples": dict(samples), "contexts": [*contexts, dict(context)]}))
            temporary.replace(path)
        except OSError as error:
            raise _unwritable(path, error) from error

    def recall(self, fingerprint: str) -> tuple[dict[str, str], list[dict[str, str]]]:
        """The samples and contexts of a fingerprint; both empty where nothing is known of it."""
        try:
            data = json.loads(self._note(fingerprint).read_text(encoding="utf-8"))
            return dict(data["samples"]), [dict(each) for each in data["contexts"]]
        except (OSError, ValueError, KeyError, TypeError):
            return {}, []

    def _note(self, fingerprint: str) -> Path:
        return self.root / "fingerprints" / f"{hashlib.sha256(fingerprint.encode()).hexdigest()}.json"


def _locked(path: Path) -> IO[str] | None:
    """The file, locked until it is closed or its process ends; None where somebody else holds it."""
    handle = path.open("a")
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # a system without such locks: nothing is swept there but what this process wrote
        handle.close()
        return None
    except OSError:
        handle.close()
        return None
    return handle


def _json(data: Any) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASHED_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()


def _unwritable(path: Path, error: Exception) -> MergingError:
    return MergingError(
        f"{path} could not be written: {error}. Free some space, or name another cache directory in PARETOMERGE_CACHE; "
        "what is finished is kept"
    )
