"""The models of a merge: a base and its fine-tunes, opened, checked against each other, and read as one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.checkpoint import Checkpoint, TensorInfo, check_compatible, check_finite, content_hash
from merging.layout import Layout, is_buffer, tied_heads
from merging.pool import Pool
from merging.recipe import MergingError, Recipe, SourceRef

BASE = "base"

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Sources:
    """A base and its experts. Build with :meth:`load`. Tensors are memory-mapped and read-only.

    Attributes:
        base: alias of the base.
        checkpoints: alias -> checkpoint, the base first.
        layout: groups of the tensors that are merged.
        tensors: canonical name -> what the base's header says, for every tensor that is merged, sorted. Canonical names
            are the base's names on disk; a head that is tied to the embedding is not among them.
        frozen: canonical names of what is never merged but copied from the base: integers, booleans, stored constants.
        tied: heads that are stored but tied -> their embedding.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        base: str,
        layout: Layout,
        frozen: tuple[str, ...],
        tied: dict[str, str],
    ):
        self.base = base
        self.checkpoints = dict(checkpoints)
        self.layout = layout
        self.tensors: dict[str, TensorInfo] = {name: checkpoints[base].tensors[name] for name in layout.names}
        self.frozen = frozen
        self.tied = tied
        self._read: dict[tuple[str, str], Tensor] = {}
        self._embedding = _optional_heads(checkpoints[base])
        self._pools: dict[tuple[tuple[str, ...], torch.dtype | None], Pool] = {}

    @staticmethod
    def load(base: Path | str, experts: Mapping[str, Path | str]) -> Sources:
        """Open and check the models. Reads every weight once, to refuse NaN and infinity.

        Args:
            base: folder of the base; its alias is ``base``.
            experts: alias -> folder. May be empty.

        Raises:
            MergingError: a folder is no readable checkpoint, an expert does not fit the base, a weight is not finite.
        """
        if BASE in experts:
            raise MergingError(f"an expert may not be called {BASE!r}: that is the base's name; choose another alias")
        checkpoints = {BASE: Checkpoint.open(base)} | {alias: Checkpoint.open(path) for alias, path in experts.items()}
        origin = checkpoints[BASE]
        heads = _optional_heads(origin)
        for checkpoint in checkpoints.values():
            _check_plain(checkpoint)
            check_compatible(origin, checkpoint, frozenset(heads) | frozenset(_optional_heads(checkpoint)))
            for name in checkpoint.tensors:
                check_finite(checkpoint, name, checkpoint.read(name))
        tied = {head: heads[head] for head in heads if _is_tied(origin, head, heads[head])}
        _check_ties(checkpoints, tied)
        names = [name for name in origin.tensors if name not in tied]
        frozen = tuple(name for name in names if _is_frozen(name, origin.tensors[name]))
        merged = {name: origin.tensors[name].shape for name in names if name not in frozen}
        if not merged:
            raise MergingError(f"expected floating-point weights in {origin.path}, found none")
        return Sources(checkpoints, BASE, Layout.of(merged), frozen, tied)

    @property
    def config(self) -> dict[str, Any]:
        """``config.json`` of the base."""
        return self.checkpoints[self.base].config

    @property
    def path(self) -> Path:
        """Folder of the base."""
        return self.checkpoints[self.base].path

    @cached_property
    def refs(self) -> dict[str, SourceRef]:
        """Alias -> where each model is and the hash of its content, the base included. Hashed when first asked for."""
        return {alias: SourceRef(str(each.path), each.content) for alias, each in self.checkpoints.items()}

    @cached_property
    def canonical_content(self) -> str:
        """Hash of the base's canonical tensors: what a live model that holds the base has for a digest."""
        return content_hash([*self.tensors, *self.frozen], lambda name: self.tensor(self.base, name))

    def tensor(self, alias: str, name: str) -> Tensor:
        """A canonical tensor of a model, as stored. Where a tied expert stores no head, its embedding stands in."""
        key = (alias, name)
        found = self._read.get(key)
        if found is None:
            checkpoint = self.checkpoints[alias]
            stored = name if name in checkpoint.tensors else self._embedding.get(name, name)
            found = self._read[key] = checkpoint.read(stored)
        return found

    def pool(self, aliases: tuple[str, ...], dtype: torch.dtype | None = None) -> Pool:
        """The sources of an assignment, with the cache of their statistics. The same pool for the same arguments."""
        key = (aliases, dtype)
        if key not in self._pools:
            self._pools[key] = Pool(self.base, aliases, tuple(self.tensors), self.tensor, dtype)
        return self._pools[key]

    def bind(self, recipe: Recipe) -> dict[str, str]:
        """The recipe's aliases -> these sources' aliases, found by content.

        Raises:
            MergingError: the recipe was made from other models.
        """
        if recipe.sources == self.refs and recipe.base == self.base:
            return {alias: alias for alias in self.refs}
        held: dict[str, str] = {}
        for alias, ref in self.refs.items():
            held.setdefault(ref.content, alias)
        bound = {}
        for alias, ref in recipe.sources.items():
            own = self.refs.get(alias)
            if own is not None and own.content == ref.content:
                bound[alias] = alias
            elif ref.content in held:
                bound[alias] = held[ref.content]
            else:
                there = f"{own.path} now contains {own.content[:19]}…" if own else "no loaded model has that content"
                raise MergingError(
                    f"the recipe's source {alias!r} ({ref.path}) was {ref.content[:19]}… when it was made; {there}. "
                    "Give the models that the recipe was made from"
                )
        if recipe.base not in bound or self.refs[bound[recipe.base]].content != self.refs[self.base].content:
            raise MergingError(
                f"the recipe's base {recipe.base!r} is not the base that was loaded ({self.path}); load the recipe's "
                "base"
            )
        return bound


def _optional_heads(checkpoint: Checkpoint) -> dict[str, str]:
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    return tied_heads(shapes, Layout.of(shapes))


def _is_frozen(name: str, info: TensorInfo) -> bool:
    return info.dtype not in FLOATS or is_buffer(name, info.shape)


def _is_tied(checkpoint: Checkpoint, head: str, embedding: str) -> bool:
    """Stored twice, but one parameter: the config says so and the bytes agree."""
    return _ties_embeddings(checkpoint) and _same_bits(checkpoint.read(head), checkpoint.read(embedding))


def _ties_embeddings(checkpoint: Checkpoint) -> bool:
    config = checkpoint.config
    for level in (config, config.get("text_config"), config.get("decoder")):
        if isinstance(level, dict) and "tie_word_embeddings" in level:
            return bool(level["tie_word_embeddings"])
    from transformers import AutoConfig  # only the architecture's class knows its default

    try:
        loaded = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    except Exception:  # an architecture that this transformers does not know: what is stored is what there is
        return False
    return bool(getattr(loaded, "tie_word_embeddings", False))


def _check_ties(checkpoints: Mapping[str, Checkpoint], tied: Mapping[str, str]) -> None:
    """Where the base has one tensor for head and embedding, an expert must not have two different ones."""
    base = checkpoints[BASE]
    for checkpoint in checkpoints.values():
        for head, embedding in _optional_heads(checkpoint).items():
            one_in_base = head in tied or head not in base.tensors
            if one_in_base and not _same_bits(checkpoint.read(head), checkpoint.read(embedding)):
                raise MergingError(
                    f"in the base {base.path} {head} is tied to {embedding}, but {checkpoint.path} stores two "
                    "different tensors there; an untied fine-tune cannot be merged into a tied base"
                )


def _check_plain(checkpoint: Checkpoint) -> None:
    method = checkpoint.config.get("quantization_config")
    odd = [
        name
        for name, info in checkpoint.tensors.items()
        if info.dtype.is_complex or (info.dtype.itemsize == 1 and info.dtype.is_floating_point)
    ]
    if method or odd:
        found = "a quantization_config in config.json" if method else f"{checkpoint.tensors[odd[0]].dtype} in {odd[0]}"
        raise MergingError(
            f"expected unquantised weights in {checkpoint.path}, found {found}; the optimum of a quantised model is "
            "another optimum: merge the unquantised models, quantise afterwards"
        )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
