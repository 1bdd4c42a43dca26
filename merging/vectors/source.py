"""A task vector over its base, read as the fine-tune: every part is hashed whenever it is read, before decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.bounded import printable
from merging.checkpoint import Checkpoint, check_depth, read_object
from merging.composed import Change, Composed, Factors
from merging.files import SafetensorsFile
from merging.recipe import MergingError
from merging.tokens import read_vocabulary
from merging.vectors.codec import decode
from merging.vectors.manifest import SHARD, SKETCH, FileFacts, Manifest, Part, StoredTensor, part_key
from merging.vectors.sketch import distance, sketch_of
from merging.verification import sha256_of

CONFIG = "config.json"

_MOST_MORE = 1 << 18
"""An axis of a fine-tune's tensor has at most so many entries more than the base's: those of new tokens."""


class VectorModel(Composed):
    """A base with a task vector: the fine-tune, as far as the vector's codecs keep it.

    Attributes:
        manifest: of the vector.
        forced: whether the base is another than the one that the vector was made from.
    """

    def __init__(self, path: Path, base: Checkpoint, manifest: Manifest, *, forced: bool = False):
        shards = Shards(path, manifest)
        changes: dict[str, Change] = {
            name: StoredChange(name, each, shards, path)
            for name, each in manifest.tensors.items()
            if each.codec != "equal"
            or each.info.dtype != base.tensors[name].dtype
            or each.shape != base.tensors[name].shape  # rows cut off, or zeros appended
        }
        config = _config(path, len(manifest.tensors)) if CONFIG in manifest.files else None
        notes = (_far(path, manifest, base),) if forced else ()
        super().__init__(path, base, changes, config=config, notes=notes)
        self.manifest = manifest
        self.forced = forced
        resized = {name: each.shape for name, each in manifest.tensors.items() if name in changes}
        self.tensors = {name: replace(info, shape=resized.get(name, info.shape)) for name, info in self.tensors.items()}


class Shards:
    """The weight files of a vector's folder, opened when they are needed.

    Args:
        folder: of the vector.
        manifest: says what must be in them.
    """

    def __init__(self, folder: Path, manifest: Manifest):
        self._folder = folder
        self._manifest = manifest
        self._open: dict[str, SafetensorsFile] = {}

    def read(self, key: str, part: Part) -> Tensor:
        """A part, in memory of its own.

        Raises:
            MergingError: it is not there, or has other bytes than the manifest says.
        """
        if part.file not in self._open:
            check_within(self._folder / part.file, self._folder)
            self._open[part.file] = SafetensorsFile(self._folder / part.file)
        file = self._open[part.file]
        info = file.tensors.get(key)
        if info is None or info.shape != part.shape or str(info.dtype) != f"torch.{part.dtype}":
            raise MergingError(
                _damaged(self._folder / part.file, f"{printable(key)} is not in it as the manifest says")
            )
        out = torch.empty(info.shape, dtype=info.dtype)
        with file.reader(key) as read:
            read(out, 0)
        if hash_of(out) != part.sha256:
            raise MergingError(
                _damaged(self._folder / part.file, f"the bytes of {printable(key)} have another SHA-256")
            )
        return out

    def parts(self, name: str, stored: StoredTensor) -> dict[str, Tensor]:
        """All parts of a tensor, verified."""
        return {part: self.read(part_key(name, part), each) for part, each in stored.parts.items()}

    def sketch(self) -> Tensor | None:
        """[tensors, 64] float32, of the base; None where the vector has none."""
        part = self._manifest.sketch
        return None if part is None else self.read(SKETCH, part)


@dataclass(frozen=True, eq=False)
class StoredChange:
    """What becomes of one tensor of the base; read from disk, verified and decoded each time that it is asked for."""

    name: str
    stored: StoredTensor
    shards: Shards
    path: Path

    @property
    def dtype(self) -> torch.dtype:
        """Of the composed tensor."""
        return self.stored.info.dtype

    @property
    def factors(self) -> Factors | None:
        """See :class:`merging.composed.Change`."""
        if self.stored.codec not in ("factored", "svd") or self.stored.shape != self.stored.base_shape:
            return None
        return self._decoded().factors

    def compose(self, base: Tensor) -> Tensor:
        """See :class:`merging.composed.Change`."""
        return self._decoded().compose(resized(base, self.stored.shape))

    def _decoded(self) -> Change:
        parts = self.shards.parts(self.name, self.stored)
        try:
            return decode(self.stored.info, self.stored.codec, dict(self.stored.parameters), parts)
        except MergingError as error:
            raise MergingError(f"{self.path}, tensor {printable(self.name)}: {error}") from error


def open_vector(path: Path, base: Checkpoint, *, force: bool = False) -> VectorModel:
    """Put a vector onto its base. Nothing is decoded yet.

    Args:
        path: folder of the vector.
        base: the model that it was made from; hashed to see that it is that one.
        force: take another base of the same architecture and shapes; what comes of it is nobody's fine-tune.

    Raises:
        MergingError: the folder is damaged, or the base is another one (with how far it is), or of other tokens or
            shapes.
    """
    manifest = Manifest.read(path)
    check_companions(path, manifest)
    check_fits(path, manifest, base)
    same = base.content == manifest.base.content
    if not same and not force:
        raise MergingError(_another_base(path, manifest, base))
    if not force:
        _check_tokens(path, manifest, base)
    if not same:
        _check_additive(path, manifest)
    return VectorModel(path, base, manifest, forced=not same)


def check_fits(path: Path, manifest: Manifest, base: Checkpoint) -> None:
    """Refuse a base that is built otherwise: nothing can be added to it.

    Raises:
        MergingError: another architecture, or other shapes.
    """
    kind = str(base.config.get("model_type") or "")
    if kind != manifest.base.model_type:
        raise MergingError(
            f"expected a base of model_type {printable(manifest.base.model_type)!r} for the task vector {path} (made "
            f"from {printable(manifest.base.name)}), found {printable(kind)!r} in {base.path}; give that base"
        )
    for name, each in manifest.tensors.items():
        info = base.tensors.get(name)
        if info is None or info.shape != each.base_shape:
            found = "no such tensor" if info is None else str(list(info.shape))
            raise MergingError(
                f"expected {printable(name)} of {list(each.base_shape)} in the base {base.path}, as the task vector "
                f"{path} was made from {printable(manifest.base.name)}, found {found}; give that base"
            )
        wider = [to - own for own, to in zip(each.base_shape, each.shape, strict=False)]
        if len(each.shape) != len(each.base_shape) or max(wider, default=0) > _MOST_MORE:
            raise MergingError(
                f"expected {printable(name)} of about the base's shape {list(each.base_shape)} in the task vector "
                f"{path}, found {printable(str(list(each.shape)))}; the vector is damaged: get it again"
            )


def base_distance(path: Path, manifest: Manifest, base: Checkpoint) -> float | None:
    """‖θ0−θ0′‖/‖θ0‖ of the vector's base and another one, estimated from the sketch that the vector carries (see
    :mod:`merging.vectors.sketch`); None where it carries none.

    Raises:
        MergingError: the sketch is damaged.
    """
    found = Shards(path, manifest).sketch()
    names = sorted(manifest.tensors)
    if found is None or not manifest.base_norm:
        return None
    here, _ = sketch_of(base, names)
    if found.shape != here.shape or found.dtype != here.dtype:
        raise MergingError(_damaged(path, "its sketch of the base has another size"))
    if not bool(torch.isfinite(found).all()):
        raise MergingError(_damaged(path, "its sketch of the base is not finite"))
    return distance(found, here) / manifest.base_norm


def check_companions(folder: Path, manifest: Manifest, *, shards: bool = False, shown: object = None) -> None:
    """Compare the files beside the manifest with it.

    Args:
        folder: of the vector.
        manifest: its.
        shards: compare the weight files too; else only that they are there, whole: their parts are hashed when they
            are read.
        shown: what messages call the folder, where it is a copy of something; its path if None.

    Raises:
        MergingError: one is missing, has other bytes, or is a link out of the folder.
    """
    for name, facts in manifest.files.items():
        check_file(folder, name, facts, hashed=shards or not SHARD.fullmatch(name), shown=shown)


def check_file(folder: Path, name: str, facts: FileFacts, *, hashed: bool = True, shown: object = None) -> None:
    """Compare one file with what the manifest says of it.

    Raises:
        MergingError: it is missing, has other bytes, or is a link out of the folder.
    """
    file, named = folder / name, f"{shown or folder}/{name}"
    check_within(file, folder)
    if not file.is_file():
        raise MergingError(_damaged(named, "it is missing"))
    size = file.stat().st_size
    if size != facts.bytes:
        raise MergingError(_damaged(named, f"it has {size} bytes, not {facts.bytes}"))
    if hashed and sha256_of(file) != facts.sha256:
        raise MergingError(_damaged(named, "its SHA-256 is another one"))


def check_within(file: Path, folder: Path) -> None:
    """Refuse a link that leads out of a vector's folder; the Hub's own cache keeps its files beside.

    Raises:
        MergingError: it does.
    """
    found, home = file.resolve(), folder.resolve()
    homes = [home, home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [home]
    if not any(found.is_relative_to(each) for each in homes):
        raise MergingError(
            f"expected {file} to lie in its own folder, found a link to {printable(str(found))}; put a copy of the "
            "file in its place if it belongs to the vector"
        )


def hash_of(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, row-major, hex."""
    return hashlib.sha256(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data).hexdigest()


def tokens_of(folder: Path) -> str | None:
    """Hash of a model's tokens; None where it has none that can be read."""
    try:
        found = read_vocabulary(folder)
    except MergingError:
        return None
    return None if found is None else found.content


def resized(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The tensor with rows (or entries of another axis) left out, or zeros appended, so that it has this shape: what a
    fine-tune with more tokens, or fewer, is compared with."""
    if tuple(tensor.shape) == shape:
        return tensor
    out = torch.zeros(shape, dtype=tensor.dtype)
    kept = tuple(slice(min(a, b)) for a, b in zip(tensor.shape, shape, strict=True))
    out[kept] = tensor[kept]
    return out


def byte_encoded(manifest: Manifest) -> Iterator[str]:
    """Names of the tensors that are stored as differences of bytes, which mean something over their own base alone."""
    for name, each in manifest.tensors.items():
        if each.codec == "exact" and not is_additive(each.parameters):
            yield name


def is_additive(parameters: Mapping[str, object]) -> bool:
    """Whether an exactly stored tensor is kept as numbers that are added to the base's."""
    return parameters.get("form") == "sum"


def _config(path: Path, tensors: int) -> dict[str, Any]:
    """The fine-tune's config, as bounded as a model's own.

    Raises:
        MergingError: it is none.
    """
    found = read_object(path / CONFIG, _damaged(path / CONFIG, "it is missing"))
    check_depth(found, tensors, path)
    return found


def _check_additive(path: Path, manifest: Manifest) -> None:
    names = list(byte_encoded(manifest))
    if names:
        raise MergingError(
            f"the task vector {path} keeps {len(names)} tensors, first {printable(names[0])}, as differences of bytes, "
            f"which make sense over {printable(manifest.base.name)} alone, also with --force. Say where that base lies "
            "(--made-from FOLDER), and the difference is taken there; or extract the vector again by --codec bf16"
        )


def _check_tokens(path: Path, manifest: Manifest, base: Checkpoint) -> None:
    wanted, found = manifest.base.tokenizer, tokens_of(base.companions)
    if wanted is not None and found is not None and wanted != found:
        raise MergingError(
            f"expected the tokenizer of {printable(manifest.base.name)} beside the base {base.path}, for the task "
            f"vector {path}, found one with other tokens or other numbers ({found[:19]}…, not {wanted[:19]}…); restore "
            "the tokenizer files of that base"
        )


def _another_base(path: Path, manifest: Manifest, base: Checkpoint) -> str:
    return (
        f"expected the base {printable(manifest.base.name)} ({manifest.base.content[:19]}…), which the task vector "
        f"{path} was made from, found {base.path} ({base.content[:19]}…). {apart_words(path, manifest, base)}. Give "
        "the vector's own base; who knows better puts it onto another one by `paretomerge vector equip --force`"
    )


def _far(path: Path, manifest: Manifest, base: Checkpoint) -> str:
    return (
        f"{path} was made from {printable(manifest.base.name)} and is put onto another base, {base.path}. "
        f"{apart_words(path, manifest, base)}; score the result before you rely on it."
    )


def apart_words(path: Path, manifest: Manifest, base: Checkpoint) -> str:
    """How far a base is from the vector's own, as a clause."""
    apart = base_distance(path, manifest, base)
    if apart is None:
        return "How far the two bases are apart is not known"
    return (
        f"The bases are apart by ‖θ0−θ0′‖/‖θ0‖ = {apart:.3g} (estimated), and the vector is ‖τ‖/‖θ0‖ = "
        f"{manifest.distance:.3g} long"
    )


def _damaged(file: object, why: str) -> str:
    return f"expected {file} as the vector's manifest says, found that {why}; the vector is damaged: get it again"
