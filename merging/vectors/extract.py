"""A fine-tune and its base to the folder of a task vector: tensor by tensor, read back before it counts."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from merging.bounded import LARGEST_RECIPE, copy_within, printable, read_text
from merging.checkpoint import Checkpoint, check_finite
from merging.companions import without_places, write_json
from merging.compatibility import optional_heads
from merging.composed import factors_of
from merging.durable import write_text
from merging.layout import Layout
from merging.recipe import MergingError, Recipe, SourceRef
from merging.sources import BASE, Sources
from merging.tokens import TOKENIZER_FILES, copy_tokenizer
from merging.vectors.budget import choose
from merging.vectors.cards import card
from merging.vectors.codec import Encoded, encode, encode_factors, fits
from merging.vectors.manifest import (
    CARD,
    LICENCE,
    SKETCH,
    FileFacts,
    Manifest,
    ModelFacts,
    Part,
    StoredTensor,
    part_key,
)
from merging.vectors.places import MANIFEST
from merging.vectors.sketch import sketch_of
from merging.vectors.source import CONFIG, VectorModel, hash_of, resized, tokens_of
from merging.verification import same_bits, sha256_of

SHARD_BYTES = 512 * 1024**2
"""A shard is written when it has so much: what is in memory beside the tensor that is encoded."""

GENERATION = "generation_config.json"
_NOISE = ("transformers_version", "torch_dtype", "dtype", "_name_or_path", "use_cache")

OnTensor = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Coding:
    """How tensors are to be stored.

    Attributes:
        codec: one of :mod:`merging.vectors.codec` for every tensor that is changed, with ``options`` of its own; exact
            if None and no budget is given.
        budget: the smallest codec of each tensor whose relative error is at most this; 0 is exact.
    """

    codec: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 <= self.budget < 1:
            raise MergingError(
                f"expected a budget from 0 (exact) to below 1, the relative error that each tensor may have, found "
                f"{self.budget:g}"
            )
        if self.budget is not None and self.codec is not None:
            raise MergingError("expected a budget, which chooses codecs, or one codec, found both; give one of them")

    @property
    def words(self) -> str:
        """As on the command line."""
        if self.budget:
            return f"--budget {self.budget:g}"
        options = "".join(f" --{key.replace('_', '-')} {value}" for key, value in self.options.items())
        return "--exact" if self.codec in (None, "exact") else f"--codec {self.codec}{options}"


@dataclass(frozen=True)
class About:
    """What cannot be read from the weights.

    Attributes:
        name: of the vector.
        base, expert: what strangers may know the models by; the names of their folders if "".
        license: of the vector; None where none is stated.
        base_license, expert_license: as the models' cards state them.
        tool: name and version of the program that extracts.
        command: with which it does, without paths.
    """

    name: str
    base: str = ""
    expert: str = ""
    license: str | None = None
    base_license: str | None = None
    expert_license: str | None = None
    tool: str = "paretomerge"
    command: str = ""


@torch.no_grad()
def write_vector(
    folder: Path,
    base: Checkpoint,
    expert: Checkpoint,
    about: About,
    coding: Coding = Coding(),
    on_tensor: OnTensor = lambda done, total, name: None,
) -> Manifest:
    """Write what an expert changes of a base into an existing, empty folder, and read it back.

    One tensor of each model is in memory at a time, and at most one shard. A source that keeps its change in factors,
    such as an adapter, stays factored.

    Args:
        folder: that is to become the vector; half a vector stays there where this fails.
        base: a model folder.
        expert: a fine-tune of it, an adapter or another vector over it.
        about: name, licence and the like.
        coding: how.
        on_tensor: told of each tensor that is done, how many there are, and its name.

    Raises:
        MergingError: the models do not fit, a weight is not finite, or what was written does not read back.
        OSError, SafetensorError: it cannot be written.
    """
    if about.license is not None and not LICENCE.fullmatch(about.license):
        raise MergingError(
            f"expected a licence as the Hub names them, such as apache-2.0, found {printable(about.license)!r}"
        )
    Sources.opened({BASE: base, "expert": expert})  # for its refusals
    names = _stored_names(base, expert)
    layout = Layout.of({name: base.tensors[name].shape for name in names})
    shards, tensors = _Shards(folder), {}
    total = len(names)
    for done, (name, own) in enumerate(names.items(), start=1):
        encoded, norm = _encoded(name, base, expert, own, coding)
        info = expert.tensors[own]
        tensors[name] = StoredTensor(
            codec=encoded.codec,
            parameters=dict(encoded.parameters),
            parts={part: shards.add(part_key(name, part), tensor) for part, tensor in encoded.tensors.items()},
            dtype=str(info.dtype).removeprefix("torch."),
            shape=info.shape,
            base_shape=base.tensors[name].shape,
            norm=norm,
            error=float(encoded.error),
            bytes=encoded.bytes,
            module=layout.group(name).kind,
        )
        on_tensor(done, total, name)
    sketch, base_norm = sketch_of(base, sorted(tensors))
    part = shards.add(SKETCH, sketch)
    renamed = shards.finish()
    _write_companions(folder, base, expert)
    manifest = Manifest(
        name=about.name,
        base=facts_of(base, about.base, about.base_license),
        expert=facts_of(expert, about.expert, about.expert_license),
        content=base.content,  # for now
        base_norm=base_norm,
        license=about.license,
        tensors={name: _placed(each, renamed) for name, each in tensors.items()},
        sketch=replace(part, file=renamed[part.file]),
        files={file.name: file_facts(file) for file in sorted(folder.iterdir())},
        provenance=_provenance(about, coding, expert),
    )
    manifest = replace(manifest, content=_read_back(folder, base, expert, manifest))
    write_manifest(folder, manifest)
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest and the card that follows from it into a vector's folder; each whole or not at all."""
    texts = {
        CARD: card(manifest),
        MANIFEST: json.dumps(manifest.as_data(), indent=1, sort_keys=True, allow_nan=False) + "\n",
    }
    beside = {name: folder / f".{name}.new" for name in texts}
    try:
        for name, text in texts.items():
            write_text(beside[name], text)
        for name, file in beside.items():
            file.replace(folder / name)
    finally:
        for file in beside.values():
            file.unlink(missing_ok=True)


def facts_of(model: Checkpoint, name: str = "", license: str | None = None) -> ModelFacts:
    """What a vector keeps of a model.

    Args:
        model: hashed for it.
        name: what strangers may know it by; the name of its folder if "".
        license: as its card states it.
    """
    counts: Counter[str] = Counter()
    for info in model.tensors.values():
        counts[str(info.dtype).removeprefix("torch.")] += info.numel
    architectures = model.config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else ""
    return ModelFacts(
        name=(name or model.path.absolute().name or "model")[:300],
        content=model.content,
        model_type=str(model.config.get("model_type") or "")[:200],
        architecture=str(first)[:200],
        dtype=counts.most_common(1)[0][0],
        tokenizer=tokens_of(model.companions),
        bytes=sum(info.numel * info.dtype.itemsize for info in model.tensors.values()),
        license=license[:200] if license else None,
    )


def file_facts(file: Path) -> FileFacts:
    """Size and hash of a file."""
    return FileFacts(file.stat().st_size, sha256_of(file))


def _stored_names(base: Checkpoint, expert: Checkpoint) -> dict[str, str]:
    """Name in the base -> name in the expert, of all that the expert says something of. A tied head that only the base
    stores has the expert's embedding; constants that only one of them stores are left alone."""
    heads = optional_heads(base)
    found = {name: name if name in expert.tensors else heads.get(name, "") for name in sorted(base.tensors)}
    return {name: own for name, own in found.items() if own in expert.tensors}


def _encoded(name: str, base: Checkpoint, expert: Checkpoint, own: str, coding: Coding) -> tuple[Encoded, float]:
    """(the tensor's encoding, ‖Δ‖)."""
    one, two = _own(base, name), _own(expert, own)
    check_finite(expert, own, two)
    check_finite(base, name, one)
    one = resized(one, tuple(two.shape))
    norm = _distance(one, two)
    factors = factors_of(expert, own) if coding.codec is None else None
    if factors is not None and factors.rank and tuple(two.shape) == base.tensors[name].shape:
        return encode_factors(factors), norm
    if coding.budget:
        return choose(name, one, two, coding.budget), norm
    codec = coding.codec or "exact"
    if not fits(codec, tuple(two.shape), two.dtype):
        return encode(name, one, two, "exact"), norm
    return encode(name, one, two, codec, **coding.options), norm


def _own(checkpoint: Checkpoint, name: str) -> Tensor:
    """A tensor in memory of its own: no page of a file stays mapped."""
    info = checkpoint.tensors[name]
    out = torch.empty(info.shape, dtype=info.dtype)
    checkpoint.read_into(name, out)
    return out


def _distance(one: Tensor, two: Tensor) -> float:
    """‖two − one‖ in float64, piece by piece; 0 for what holds no floating-point numbers."""
    if not (one.is_floating_point() and two.is_floating_point()):
        return 0.0
    flat, other, squares = one.reshape(-1), two.reshape(-1), []
    for start in range(0, flat.numel(), 1 << 20):
        apart = other[start : start + (1 << 20)].double() - flat[start : start + (1 << 20)].double()
        squares.append(float(apart @ apart))
    return math.sqrt(math.fsum(squares))


class _Shards:
    """Weight files that are written as they fill up, and get their numbers at the end."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._held: dict[str, Tensor] = {}
        self._size = 0
        self._count = 0

    def add(self, key: str, tensor: Tensor) -> Part:
        """Take a part; its file has no final name yet."""
        tensor = tensor.detach().cpu().contiguous()
        size = tensor.numel() * tensor.element_size()
        if self._held and self._size + size > SHARD_BYTES:
            self._write()
        self._held[key] = tensor.clone() if tensor.untyped_storage().nbytes() != size else tensor
        self._size += size
        return Part(
            self._name(self._count + 1), str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), hash_of(tensor)
        )

    def finish(self) -> dict[str, str]:
        """Write what is left. Returns name so far -> final name."""
        if self._held:
            self._write()
        names = {
            self._name(at): f"vector-{at:05d}-of-{self._count:05d}.safetensors" for at in range(1, self._count + 1)
        }
        for name, final in names.items():
            (self._folder / name).replace(self._folder / final)
        return names

    def _write(self) -> None:
        self._count += 1
        save_file(self._held, self._folder / self._name(self._count))
        self._held, self._size = {}, 0

    @staticmethod
    def _name(at: int) -> str:
        return f"vector-{at:05d}.safetensors"


def _placed(stored: StoredTensor, renamed: Mapping[str, str]) -> StoredTensor:
    return replace(stored, parts={name: replace(part, file=renamed[part.file]) for name, part in stored.parts.items()})


def _write_companions(folder: Path, base: Checkpoint, expert: Checkpoint) -> None:
    """Tokenizer, generation settings and config of the expert, where they are not the base's."""
    ours, theirs = base.companions, expert.companions
    if ours != theirs and _tokenizer_files(theirs) and _tokenizer_files(ours) != _tokenizer_files(theirs):
        copy_tokenizer(theirs, folder)
    settings = theirs / GENERATION
    if settings.is_file() and not (
        (ours / GENERATION).is_file() and sha256_of(ours / GENERATION) == sha256_of(settings)
    ):
        copy_within(settings, theirs, folder / GENERATION)
    if _plain_config(expert.config) != _plain_config(base.config):
        write_json(folder / CONFIG, without_places(expert.config))


def _tokenizer_files(folder: Path) -> dict[str, str]:
    files = (file for pattern in TOKENIZER_FILES for file in folder.glob(pattern))
    return {file.name: sha256_of(file) for file in files if file.is_file() and file.suffix != ".py"}


def _plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in without_places(dict(config)).items() if key not in _NOISE}


def _provenance(about: About, coding: Coding, expert: Checkpoint) -> dict[str, Any]:
    recipe = _recipe_of(expert.path)
    made: dict[str, Any] = {
        "tool": about.tool,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "coding": coding.words,
        "command": about.command,
    }
    return made if recipe is None else made | {"recipe": recipe}


def _recipe_of(folder: Path) -> dict[str, Any] | None:
    """The recipe of a model that is a merge, without places; None where it is none."""
    try:
        recipe = Recipe.from_yaml(read_text(folder / "recipe.yaml", LARGEST_RECIPE, regular=True))
    except (OSError, UnicodeDecodeError, MergingError):
        return None
    return _without_paths(recipe).as_data()


def _without_paths(recipe: Recipe) -> Recipe:
    def named(path: str) -> str:
        return path if "://" in path else Path(path).name or "model"

    sources = {
        alias: SourceRef(named(ref.path), ref.content, None if ref.made_by is None else _without_paths(ref.made_by))
        for alias, ref in recipe.sources.items()
    }
    tokenizer = recipe.tokenizer_path
    return replace(recipe, sources=sources, tokenizer_path=None if tokenizer is None else named(tokenizer))


def _read_back(folder: Path, base: Checkpoint, expert: Checkpoint, manifest: Manifest) -> str:
    """The hash of what base and vector compose, from the files that were written.

    Raises:
        MergingError: nothing may be lost, but something is.
    """
    composed = VectorModel(folder, base, manifest)
    content = composed.content
    if not manifest.is_exact:
        return content
    lost = [
        name
        for name in sorted(composed.tensors)
        if name in expert.tensors and not same_bits(_own(composed, name), _own(expert, name))
    ] if content != expert.content else []  # fmt: skip
    if lost:
        raise MergingError(
            f"{printable(lost[0])} does not read back as the fine-tune has it: a disk is damaged, or {expert.path} was "
            "changed meanwhile; nothing was kept. Check both, and extract again"
        )
    return content
