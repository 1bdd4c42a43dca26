"""Is an exported folder the model that its recipe describes? Read back, computed again, compared bit by bit."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from merging.calibration.contract import Calibration
from merging.checkpoint import Checkpoint
from merging.dataflow import folded
from merging.kernel import Resolver, merge_tensor, torch_dtype
from merging.recipe import MergingError, Recipe
from merging.restack import for_recipe
from merging.sources import Sources

_READ_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Verified:
    """What was found in a folder that holds what it should.

    Attributes:
        content: :attr:`merging.checkpoint.Checkpoint.content` of its weights.
        files: weight file -> SHA-256 of its bytes, hex.
        tensors: how many were compared.
    """

    content: str
    files: dict[str, str]
    tensors: int


@torch.no_grad()
def verify_export(folder: Path, recipe: Recipe, sources: Sources, calibration: Calibration | None = None) -> Verified:
    """Open a folder as anybody would, and compare every weight with the recipe's, computed once more from the sources.

    One tensor is in memory at a time. What writing, the disk or a source that changed meanwhile did to the weights is
    found; that the merge itself is the one that was scored is the kernel's promise (exports and live models share it).

    Args:
        folder: as :func:`merging.export.export` writes it.
        recipe: what it should hold.
        sources: the models that it was made from.
        calibration: what was collected for methods that need it.

    Raises:
        MergingError: a tensor is missing, superfluous, of another dtype or shape, or has other bits.
    """
    checkpoint = Checkpoint.open(folder)
    recipe, sources = folded(recipe, sources), for_recipe(sources, recipe)
    wanted = torch_dtype(recipe.dtype)
    expected = {name: (wanted or info.dtype, tuple(info.shape)) for name, info in sources.tensors.items()}
    for name in sources.frozen:
        kept = sources.tensor(sources.base, name)
        expected[name] = (kept.dtype, tuple(kept.shape))
    found = {name: (info.dtype, tuple(info.shape)) for name, info in checkpoint.tensors.items()}
    if wrong := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise MergingError(_refusal(folder, f"{len(wrong)} tensors are missing or of another kind, first {wrong[0]}"))
    resolver = Resolver(sources, recipe, calibration)
    for name, (dtype, shape) in expected.items():
        if name in sources.tensors:
            task = resolver.task(recipe.for_tensor(name, sources.layout.group(name)))
            again = torch.empty(shape, dtype=dtype)
            with sources.borrowed(name):
                merge_tensor(name, task, again)
            task.pool.forget(name)
        else:
            again = sources.tensor(sources.base, name)
        written = torch.empty(shape, dtype=dtype)
        checkpoint.read_into(name, written)
        if not same_bits(again, written):
            raise MergingError(_refusal(folder, f"the weights of {name} have other bits than the recipe gives"))
    return Verified(checkpoint.content, hash_files(folder), len(expected))


def hash_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight file of a folder, hex, by name."""
    return {file.name: sha256_of(file) for file in sorted(folder.glob("*.safetensors"))}


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, hex; a few MB of it are in memory at a time."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(_READ_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Equal shape, dtype and bytes: unlike ``==``, this tells 0.0 from -0.0."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    one, other = (each.detach().cpu().contiguous().reshape(-1).view(torch.uint8) for each in (left, right))
    return one.equal(other)


def _refusal(folder: Path, why: str) -> str:
    return (
        f"the export that was written to {folder.parent} is not what its recipe describes: {why}. A disk or a source "
        "model may be damaged, or was changed meanwhile; nothing was left behind. Check both, and export again"
    )
