"""``vector.json``: what a task vector is, of which base, how each tensor is stored, and the hash of everything.

The file comes from strangers. It is read bounded, every value is checked by hand, and it names plain files of its own
folder only. Its ``id`` is the SHA-256 of all the rest in canonical JSON: two people who see the same id have the same
vector, down to the last byte of every tensor.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from merging.bounded import printable, read_json
from merging.checkpoint import TensorInfo
from merging.files import unique
from merging.recipe import MergingError
from merging.vectors.entries import Entry, check_file_name
from merging.vectors.places import MANIFEST, NAME, found_at

FORMAT = "paretomerge-vector/1"
CARD = "README.md"
SHARD = re.compile(r"vector-\d{5}-of-\d{5}\.safetensors", re.ASCII)

LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}", re.ASCII)

SKETCH = "base sketch"
"""Key of the base's sketch in a shard; those of tensors' parts have a colon (:func:`part_key`)."""

Value = int | float | str | bool


def part_key(tensor: str, part: str) -> str:
    """What a part of a tensor is called in its shard."""
    return f"{tensor}:{part}"


@dataclass(frozen=True)
class ModelFacts:
    """What is kept of a model that is not there: the base, or the fine-tune.

    Attributes:
        name: what strangers may know it by: its id on the Hub, or the name of its folder.
        content: :attr:`merging.checkpoint.Checkpoint.content` of its tensors.
        model_type, architecture: as its ``config.json`` states them; "" where it does not.
        dtype: of most of its weights, such as ``bfloat16``.
        tokenizer: hash of its tokens and their numbers; None where it has no tokenizer.
        bytes: of all its tensors.
        license: as its card states it; None where it does not.
    """

    name: str
    content: str
    model_type: str
    architecture: str
    dtype: str
    tokenizer: str | None
    bytes: int
    license: str | None = None

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dict(vars(self))

    @staticmethod
    def from_entry(entry: Entry) -> ModelFacts:
        """The inverse of :meth:`as_data`."""
        return ModelFacts(
            name=entry.text("name", 300),
            content=entry.digest("content"),
            model_type=entry.text("model_type"),
            architecture=entry.text("architecture"),
            dtype=entry.text("dtype"),
            tokenizer=entry.digest("tokenizer", optional=True) or None,
            bytes=entry.count("bytes"),
            license=entry.text("license", optional=True) or None,
        )


@dataclass(frozen=True)
class Part:
    """One piece of a stored tensor.

    Attributes:
        file: the shard that holds it.
        dtype: as stored, such as ``uint8``.
        shape: as stored.
        sha256: of its bytes, hex.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"file": self.file, "dtype": self.dtype, "shape": list(self.shape), "sha256": self.sha256}

    @staticmethod
    def from_entry(entry: Entry) -> Part:
        """The inverse of :meth:`as_data`."""
        file = entry.text("file")
        if not SHARD.fullmatch(file):
            entry.refuse("file", "a name such as vector-00001-of-00002.safetensors", file)
        return Part(file, entry.dtype("dtype"), entry.shape("shape"), entry.hex("sha256"))

    @property
    def bytes(self) -> int:
        """As stored."""
        return math.prod(self.shape) * _dtype(self.dtype).itemsize


@dataclass(frozen=True)
class StoredTensor:
    """How one tensor of the fine-tune is stored.

    Attributes:
        codec: which of :mod:`merging.vectors.codec`.
        parameters: of the codec.
        parts: name of the codec's part -> where it is.
        dtype, shape: of the fine-tune's tensor.
        base_shape: of the base's tensor.
        norm: ‖Δ‖, the length of the change.
        error: ‖Δ−Δ̂‖/‖Δ‖, of what is composed; 0 where that is the fine-tune, bit by bit.
        bytes: of all parts.
        module: kind of module that it belongs to, such as ``attention``.
    """

    codec: str
    parameters: Mapping[str, Value]
    parts: Mapping[str, Part]
    dtype: str
    shape: tuple[int, ...]
    base_shape: tuple[int, ...]
    norm: float
    error: float
    bytes: int
    module: str

    @property
    def info(self) -> TensorInfo:
        """Of the composed tensor."""
        return TensorInfo(_dtype(self.dtype), self.shape, MANIFEST)

    @property
    def full_bytes(self) -> int:
        """What the fine-tune's tensor takes."""
        return self.info.numel * self.info.dtype.itemsize

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **vars(self),
            "parameters": dict(self.parameters),
            "parts": {name: part.as_data() for name, part in self.parts.items()},
            "shape": list(self.shape),
            "base_shape": list(self.base_shape),
        }

    @staticmethod
    def from_entry(entry: Entry) -> StoredTensor:
        """The inverse of :meth:`as_data`."""
        found = StoredTensor(
            codec=entry.text("codec"),
            parameters=entry.scalars("parameters"),
            parts={name: Part.from_entry(each) for name, each in entry.entries("parts").items()},
            dtype=entry.dtype("dtype"),
            shape=entry.shape("shape"),
            base_shape=entry.shape("base_shape"),
            norm=entry.norm("norm"),
            error=entry.norm("error"),
            bytes=entry.count("bytes"),
            module=entry.text("module"),
        )
        if found.bytes != (size := sum(part.bytes for part in found.parts.values())):
            entry.refuse("bytes", f"{size}, those of its parts", str(found.bytes))
        return found


@dataclass(frozen=True)
class Score:
    """A score that somebody measured, with their evaluator on their data.

    Attributes:
        of: ``base``, ``vector`` (the base with it) or ``expert`` (the fine-tune).
        metric: ``evaluator.metric``.
        value, low, high: the score and its 95 % interval.
        items: that it was measured on.
        split: search, selection or holdout.
    """

    of: str
    metric: str
    value: float
    low: float
    high: float
    items: int
    split: str

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dict(vars(self))

    @staticmethod
    def from_entry(entry: Entry) -> Score:
        """The inverse of :meth:`as_data`."""
        of = entry.text("of")
        if of not in ("base", "vector", "expert"):
            entry.refuse("of", "base, vector or expert", of)
        value, low, high = (entry.number(key, signed=True) for key in ("value", "low", "high"))
        return Score(of, entry.text("metric"), value, low, high, entry.count("items"), entry.text("split"))


@dataclass(frozen=True)
class FileFacts:
    """A file of the folder: how many bytes it has, and their SHA-256, hex."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All that ``vector.json`` says.

    Attributes:
        name: what its maker called it.
        base, expert: the two models that it is the difference of.
        content: hash of the tensors that base and vector compose: the fine-tune's own where nothing is lost.
        base_norm: ‖θ0‖ over all tensors that have a change or could have one.
        license: of the vector; None where none is stated.
        tensors: name on disk -> how it is stored.
        sketch: of the base (:mod:`merging.vectors.sketch`), to tell how far another base is.
        files: every other file of the folder but the card, which is its owner's to edit.
        provenance: tool, creation time (UTC), command without paths, recipe of a merge.
        scores: measured by somebody.
    """

    name: str
    base: ModelFacts
    expert: ModelFacts
    content: str
    base_norm: float
    license: str | None
    tensors: Mapping[str, StoredTensor]
    sketch: Part | None
    files: Mapping[str, FileFacts]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    scores: tuple[Score, ...] = ()

    @property
    def id(self) -> str:
        """``sha256:…`` of all that it says."""
        text = json.dumps(self._said(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def bytes(self) -> int:
        """Of the stored tensors."""
        return sum(each.bytes for each in self.tensors.values())

    @property
    def norm(self) -> float:
        """‖τ‖ of the whole model."""
        return math.sqrt(math.fsum(each.norm**2 for each in self.tensors.values()))

    @property
    def error(self) -> float:
        """‖τ−τ̂‖/‖τ‖ of the whole model; 0 where nothing is changed."""
        lost = math.fsum((each.error * each.norm) ** 2 for each in self.tensors.values())
        return math.sqrt(lost) / self.norm if self.norm else 0.0

    @property
    def distance(self) -> float:
        """‖τ‖/‖θ0‖: how far the fine-tune went."""
        return self.norm / self.base_norm if self.base_norm else 0.0

    @property
    def is_exact(self) -> bool:
        """Whether base and vector compose the fine-tune, bit by bit."""
        return all(each.error == 0 for each in self.tensors.values())

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON; :meth:`from_data` reads it back, equal."""
        return {**self._said(), "id": self.id}

    def _said(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "name": self.name,
            "base": self.base.as_data(),
            "expert": self.expert.as_data(),
            "content": self.content,
            "base_norm": self.base_norm,
            "license": self.license,
            "sketch": None if self.sketch is None else self.sketch.as_data(),
            "files": {name: dict(vars(each)) for name, each in sorted(self.files.items())},
            "provenance": dict(self.provenance),
            "scores": [each.as_data() for each in self.scores],
            "tensors": {name: each.as_data() for name, each in sorted(self.tensors.items())},
        }

    def scored(self, scores: tuple[Score, ...]) -> Manifest:
        """The same vector with more scores; one of the same model, metric and split is replaced."""
        new = {(each.of, each.metric, each.split) for each in scores}
        kept = tuple(each for each in self.scores if (each.of, each.metric, each.split) not in new)
        return replace(self, scores=kept + scores)

    @staticmethod
    def read(folder: Path, shown: object = None) -> Manifest:
        """The manifest of a vector's folder.

        Args:
            folder: of the vector.
            shown: what messages call it, where it is a copy of something; its path if None.

        Raises:
            MergingError: there is none, it contradicts itself, or is of a version that is not known.
        """
        if (there := found_at(folder)) != "a folder":
            raise MergingError(f"expected the folder of a task vector at {printable(str(folder))}, found {there}")
        try:
            data = read_json(folder / MANIFEST, unique)
        except FileNotFoundError:
            raise MergingError(
                f"expected a task vector in {folder}, found no {MANIFEST} there; one is made of an adapter by "
                "`paretomerge vector add`, of a model by `paretomerge vector extract`"
            ) from None
        except (OSError, ValueError) as error:
            raise MergingError(
                f"expected JSON in {shown or folder}/{MANIFEST}, found something else ({error}); get the vector again"
            ) from error
        return Manifest.from_data(data, f"{shown or folder}/{MANIFEST}")

    @staticmethod
    def from_data(data: Any, file: object) -> Manifest:
        """The inverse of :meth:`as_data`.

        Args:
            data: anything that JSON can say.
            file: where it stood, for messages.

        Raises:
            MergingError: it is no manifest, or its id is not that of what it says.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            other = printable(repr(data.get("format") if isinstance(data, dict) else type(data).__name__))
            raise MergingError(
                f"expected a task vector of format {FORMAT} in {file}, found {other}; one of a later version needs a "
                "later paretomerge"
            )
        entry = Entry(data, file)
        sketch, name = entry.optional("sketch"), entry.text("name")
        if not NAME.fullmatch(name):
            entry.refuse("name", "letters, digits, dots, dashes and underscores", name)
        found = Manifest(
            name=name,
            base=ModelFacts.from_entry(entry.entry("base")),
            expert=ModelFacts.from_entry(entry.entry("expert")),
            content=entry.digest("content"),
            base_norm=entry.norm("base_norm"),
            license=entry.text("license", optional=True) or None,
            tensors={tensor: StoredTensor.from_entry(each) for tensor, each in entry.entries("tensors").items()},
            sketch=None if sketch is None else Part.from_entry(sketch),
            files={file_name: _file(file_name, each) for file_name, each in entry.entries("files").items()},
            provenance=entry.plain("provenance"),
            scores=tuple(Score.from_entry(each) for each in entry.listed("scores")),
        )
        _check(found, entry)
        return found


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found


def _file(name: str, entry: Entry) -> FileFacts:
    check_file_name(name, entry.where)
    return FileFacts(entry.count("bytes"), entry.hex("sha256"))


def _check(manifest: Manifest, entry: Entry) -> None:
    """What no single value shows."""
    parts = [part for each in manifest.tensors.values() for part in each.parts.values()]
    parts += [manifest.sketch] if manifest.sketch is not None else []
    if lost := sorted({part.file for part in parts} - manifest.files.keys()):
        entry.refuse("files", "every shard that a tensor lies in", f"none of {lost[0]}")
    if reserved := sorted({MANIFEST, CARD} & manifest.files.keys()):
        entry.refuse("files", "files beside the manifest and the card", reserved[0])
    if not manifest.tensors:
        entry.refuse("tensors", "at least one tensor", "none")
    if entry.digest("id") != manifest.id:
        entry.refuse("id", f"{manifest.id[:19]}…, the hash of what the file says", entry.digest("id"))
