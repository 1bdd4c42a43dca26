"""Vectors put onto a base: the recipe of it, and the models that it takes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from merging.bounded import printable
from merging.checkpoint import Checkpoint
from merging.compatibility import is_frozen
from merging.composed import Composed
from merging.files import Read
from merging.methods.registry import canonical_recipe
from merging.opening import open_model
from merging.recipe import Assignment, MergingError, Recipe
from merging.sources import BASE, Sources
from merging.vectors.source import VectorModel, open_vector, tokens_of

ORIGIN = "made_from"
"""Alias of the base that vectors were made from, where they are put onto another one."""


@dataclass(frozen=True)
class Equipment:
    """A merge that puts vectors onto a base.

    Attributes:
        recipe: of it; exact where one vector is put on once.
        sources: the models that it takes.
        folders: alias -> where each lies; the base included.
        tokenizer_from: alias whose tokenizer and settings belong to the result; None for the rule of merges.
        notes: what the person who asks for it should know, one sentence each.
    """

    recipe: Recipe
    sources: Sources
    folders: Mapping[str, Path]
    tokenizer_from: str | None = None
    notes: tuple[str, ...] = field(default=())


def equip(
    base: Path,
    vectors: Mapping[str, Path],
    *,
    scales: Mapping[str, float] | None = None,
    force: bool = False,
    made_from: Path | None = None,
    tokenizer: Path | str | None = None,
) -> Equipment:
    """The merge θ = θ0 + Σ s·τ of vectors over a base.

    One vector, once, is the fine-tune: its weights are taken as they are, so that an exact vector gives every bit back.

    Args:
        base: folder of a model.
        vectors: alias -> folder of a vector, or of an adapter.
        scales: alias -> s; 1 where it is not named.
        force: put them onto another base than the one that they were made from.
        made_from: with ``force``, that one: τ is then the exact difference there, whatever the vectors' codecs.
        tokenizer: see :meth:`merging.sources.Sources.load`; where None, one vector brings the tokens that it was
            trained with, and several keep the base's.

    Raises:
        MergingError: a vector is damaged, belongs to another base, or does not fit; ``made_from`` without ``force``.
    """
    if not vectors:
        raise MergingError("expected the name of at least one vector to equip the base with, found none")
    if made_from is not None and not force:
        raise MergingError("--made-from is for putting vectors onto another base than their own: add --force for that")
    chosen = dict.fromkeys(vectors, 1.0) | dict(scales or {})
    if unknown := sorted(chosen.keys() - vectors.keys()):
        raise MergingError(f"expected a scale of one of {', '.join(vectors)}, found one of {printable(unknown[0])!r}")
    origin = open_model(base)
    if made_from is not None:
        return _moved(origin, open_model(made_from), vectors, chosen, tokenizer)
    opened = {alias: _open(path, origin, force) for alias, path in vectors.items()}
    single = next(iter(opened)) if len(opened) == 1 and chosen == {next(iter(opened)): 1.0} else None
    tokens, companion = _tokenizer(origin, opened[single] if single else None, tokenizer)
    sources = Sources.opened({BASE: origin, **opened}, tokens)
    if single is not None:
        assignment = Assignment.of("linear", {single: {"coefficient": 1.0}})
        dtype = _one_dtype(opened[single], origin)
    else:
        assignment = Assignment.of("task_arithmetic", {alias: {"coefficient": chosen[alias]} for alias in opened})
        dtype = None
    recipe = _recipe(sources, assignment, dtype, tokens)
    folders = {BASE: base, **vectors}
    notes = (*sources.notes, *(_config_notes(opened) if single else ()))
    return Equipment(recipe, sources, folders, single if companion else None, notes)


def alone(sources: Sources, alias: str, dtype: str | None = None) -> Recipe:
    """The recipe of a model's own weights, as they are.

    Args:
        sources: the models.
        alias: which of them.
        dtype: of the result; the base's if None.
    """
    assignment = Assignment.of("linear", {alias: {"coefficient": 1.0}})
    return canonical_recipe(Recipe(BASE, sources.refs, dict.fromkeys(sources.layout.groups, assignment), dtype=dtype))


class _OverItsOwnBase(Checkpoint):
    """A composed model that is read as any model: its base is not that of the merge, whose tensors would be wrong."""

    def __init__(self, model: Checkpoint):
        super().__init__(model.path, model.config, model.tensors, {})
        self._model = model

    @property
    def home(self) -> Path:
        """As of the model."""
        return self._model.home

    @property
    def companions(self) -> Path:
        """As of the model."""
        return self._model.companions

    def read(self, name: str) -> Tensor:
        """As of the model."""
        return self._model.read(name)

    @contextmanager
    def reader(self, name: str) -> Iterator[Read]:
        """As of the model."""
        with self._model.reader(name) as read:
            yield read


def aliases_of(names: list[str]) -> dict[str, str]:
    """Alias -> name: what a recipe may call vectors that are named so.

    Raises:
        MergingError: a name stands there twice.
    """
    found: dict[str, str] = {}
    for name in names:
        if name in found.values():
            raise MergingError(
                f"the vector {printable(name)!r} is named twice; give --scale {printable(name)}=2 instead"
            )
        alias = re.sub(r"[^A-Za-z0-9_.-]", "_", Path(name.partition("://")[2] or name).name) or "vector"
        while alias in found or alias in (BASE, ORIGIN):
            alias += "_"
        found[alias] = name
    return found


def _open(path: Path, base: Checkpoint, force: bool) -> Checkpoint:
    from merging.opening import is_adapter, is_vector

    if is_vector(path):
        return open_vector(path, base, force=force)
    if is_adapter(path):
        return open_model(path, base)
    raise MergingError(
        f"expected a task vector or an adapter at {path}, found neither; a whole model is merged by `paretomerge merge`"
        " or made a vector by `paretomerge vector extract`"
    )


def _moved(
    base: Checkpoint,
    origin: Checkpoint,
    vectors: Mapping[str, Path],
    scales: Mapping[str, float],
    tokenizer: Path | str | None,
) -> Equipment:
    """θ0′ + Σ s·(θ_t − θ0): with the fine-tunes composed over their own base, and that base taken off again."""
    opened = {alias: _open(path, origin, False) for alias, path in vectors.items()}
    apart = {alias: _OverItsOwnBase(each) for alias, each in opened.items()}
    sources = Sources.opened({BASE: base, **apart, ORIGIN: origin}, tokenizer or "base")
    weights = {alias: {"coefficient": scales[alias]} for alias in opened}
    total = sum(scales[alias] for alias in opened)
    assignment = Assignment.of("task_arithmetic", {**weights, ORIGIN: {"coefficient": -total}})
    recipe = _recipe(sources, assignment, None, tokenizer or "base")
    first = next(iter(opened.values()))
    notes = (
        f"{', '.join(vectors)} {'are' if len(vectors) > 1 else 'is'} put onto another base than {origin.path}, where "
        f"{'they were' if len(vectors) > 1 else 'it was'} made; score the result before you rely on it.",
        *_distances(base, first, next(iter(vectors.values()))),
    )
    return Equipment(recipe, sources, {BASE: base.path, **vectors, ORIGIN: origin.path}, None, (*notes, *sources.notes))


def _distances(base: Checkpoint, vector: Checkpoint, path: Path) -> tuple[str, ...]:
    from merging.vectors.source import apart_words

    return (f"{apart_words(path, vector.manifest, base)}.",) if isinstance(vector, VectorModel) else ()


def _tokenizer(base: Checkpoint, vector: Checkpoint | None, wanted: Path | str | None) -> tuple[Path | str, bool]:
    """(whose vocabulary the result has, whether the vector gives tokenizer files and settings)."""
    if wanted is not None or vector is None or not isinstance(vector, Composed):
        return wanted or "base", False
    own = vector.companions
    if own == base.companions:
        return "base", False
    same = tokens_of(own) == tokens_of(base.companions)
    return ("base", True) if same else (own, False)


def _one_dtype(vector: Checkpoint, base: Checkpoint) -> str | None:
    """The dtype of the fine-tune, where all its weights have one and the base's are others."""
    merged = [name for name, info in base.tensors.items() if not is_frozen(name, info)]
    found = {vector.tensors[name].dtype for name in merged}
    if len(found) != 1 or found == {base.tensors[name].dtype for name in merged}:
        return None
    only: torch.dtype = found.pop()
    return str(only).removeprefix("torch.")


def _recipe(sources: Sources, assignment: Assignment, dtype: str | None, tokens: Path | str) -> Recipe:
    from merging.configs import tokenizer_path

    recipe = Recipe(BASE, sources.refs, dict.fromkeys(sources.layout.groups, assignment), dtype=dtype)
    recipe = replace(recipe, tokenizer=sources.tokenizer, tokenizer_path=tokenizer_path(sources, tokens))
    return canonical_recipe(recipe)


def _config_notes(opened: Mapping[str, Checkpoint]) -> tuple[str, ...]:
    return tuple(
        f"the fine-tune of {alias} has a config.json of its own; the model that is written has the base's, with the "
        "number of its tokens: compare the two."
        for alias, each in opened.items()
        if isinstance(each, VectorModel) and "config.json" in each.manifest.files
    )
