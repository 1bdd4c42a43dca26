"""A folder of pickled weights (``.bin``) as one of safetensors: the same bits, without the format that can run code."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from merging.bounded import copy_within
from merging.checkpoint import INDEX, PICKLE, PICKLE_INDEX, SINGLE, Checkpoint
from merging.companions import write_json
from merging.compatibility import declares_ties, optional_heads
from merging.export import SHARD_BYTES
from merging.files import SafetensorsFile
from merging.new_folder import beside, publish
from merging.recipe import MergingError
from merging.tokens import copy_tokenizer
from merging.verification import same_bits

_BESIDE = ("config.json", "generation_config.json", "README.md", "LICENSE*", "*processor_config.json")
"""What is copied beside the tokenizer. Never code."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        folder: the new one.
        files: names of its weight files.
        tensors: how many were written, each compared with its source.
        bytes: of their elements.
        tied: heads that were left out, since the config says that they are the embedding, and the bits agree.
    """

    folder: Path
    files: tuple[str, ...]
    tensors: int
    bytes: int
    tied: tuple[str, ...]


@torch.no_grad()
def convert_pickles(
    source: Path | str, out: Path | str, *, max_shard_size: int = SHARD_BYTES, say: Say = lambda _: None
) -> Converted:
    """Write a model's pickled weights as safetensors, with its config and tokenizer.

    The pickles are read by torch's weights-only loader, which builds tensors and runs no code, and mapped where they
    are of the format of 2020 and later. What is written is read back and compared bit by bit, file by file; at most one
    file's tensors are in memory. The folder appears whole or not at all.

    Args:
        source: a folder with ``config.json`` and ``pytorch_model.bin``, or shards of it with their index.
        out: the new folder; may exist if it is empty.
        max_shard_size: bytes of tensors in one file, unless a single tensor is larger.
        say: told one line a file.

    Raises:
        MergingError: there are no such weights, they hold more than tensors, a file is damaged, or the disk is full;
            nothing is left behind.
    """
    source, out = Path(source), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MergingError(f"expected {out} to be a new or empty folder, found content there; choose another folder")
    _check_source(source)
    checkpoint = Checkpoint.open(source, allow_pickle=True)
    tied = _tied(checkpoint)
    files = _plan(checkpoint, tied, max_shard_size)
    total = sum(_bytes(checkpoint, name) for names in files.values() for name in names)
    _check_space(out, total)
    with beside(out) as partial:
        for file, names in files.items():
            say(f"{file}: {len(names)} tensors")
            _write(checkpoint, names, partial / file)
        if set(files) != {SINGLE}:
            weight_map = {name: file for file, names in files.items() for name in names}
            write_json(partial / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        for name in _companions(source):
            copy_within(source / name, source, partial / name)
        copy_tokenizer(source, partial)
        written = Checkpoint.open(partial)
        if set(written.tensors) != set(checkpoint.tensors) - set(tied):
            raise MergingError(_damaged(out, "tensors are missing in its index"))
        publish(partial, out)
    return Converted(out, tuple(files), sum(map(len, files.values())), total, tied)


def _check_source(source: Path) -> None:
    if not source.is_dir():
        raise MergingError(f"expected a model folder at {source}, found {'a file' if source.exists() else 'nothing'}")
    for name in (SINGLE, INDEX):
        if (source / name).is_file():
            raise MergingError(
                f"expected pickled weights in {source}, found {name}: it has safetensors already; name the folder as "
                "it is"
            )
    if not any((source / name).is_file() for name in (PICKLE, PICKLE_INDEX)):
        raise MergingError(f"expected {PICKLE} or {PICKLE_INDEX} in {source}, found neither")


def _tied(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Heads that are the embedding under another name, as save_pretrained leaves them out."""
    if not declares_ties(checkpoint):
        return ()
    return tuple(
        head
        for head, embedding in optional_heads(checkpoint).items()
        if head in checkpoint.tensors and same_bits(checkpoint.read(head), checkpoint.read(embedding))
    )


def _plan(checkpoint: Checkpoint, tied: tuple[str, ...], most: int) -> dict[str, list[str]]:
    """File -> tensors: those of a pickle stay together, and a large pickle becomes several files."""
    groups: list[list[str]] = []
    shards = dict.fromkeys(info.shard for info in checkpoint.tensors.values())
    for shard in sorted(shards):
        size = most + 1
        for name, info in checkpoint.tensors.items():
            if info.shard != shard or name in tied:
                continue
            if size + _bytes(checkpoint, name) > most:
                groups.append([])
                size = 0
            groups[-1].append(name)
            size += _bytes(checkpoint, name)
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{at:05d}-of-{len(groups):05d}.safetensors": names for at, names in enumerate(groups, start=1)}


def _write(checkpoint: Checkpoint, names: list[str], file: Path) -> None:
    """One file, read back and compared."""
    save_file(dict(_apart(checkpoint, names)), file, metadata={"format": "pt"})
    written = SafetensorsFile(file)
    for name in names:
        if not same_bits(checkpoint.read(name), written.read(name)):
            raise MergingError(_damaged(file.parent, f"the weights of {name} have other bits than in the pickle"))


def _apart(checkpoint: Checkpoint, names: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Tensors without memory in common, which the format does not know."""
    seen: set[int] = set()
    for name in names:
        tensor = checkpoint.read(name)
        place = tensor.untyped_storage().data_ptr()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        yield name, tensor if whole and place not in seen else tensor.clone()
        seen.add(place)


def _companions(source: Path) -> list[str]:
    found = (file for pattern in _BESIDE for file in source.glob(pattern) if file.is_file())
    return sorted({file.name for file in found})


def _bytes(checkpoint: Checkpoint, name: str) -> int:
    info = checkpoint.tensors[name]
    return info.numel * info.dtype.itemsize


def _check_space(out: Path, needed: int) -> None:
    parent = next(each for each in out.absolute().parents if each.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise MergingError(
            f"{out} needs {needed / 1e9:.2f} GB, and {parent} has {free / 1e9:.2f} GB free; free some space or choose "
            "another disk"
        )


def _damaged(folder: Path, why: str) -> str:
    return f"what was written to {folder} is not what was read: {why}; the disk may be damaged. Nothing was left behind"
