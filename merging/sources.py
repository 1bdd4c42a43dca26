"""The models of a merge: a base and its fine-tunes, opened, checked against each other, and read as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.alignment import Alignment, renumbered, resized
from merging.binding import bind
from merging.checkpoint import Checkpoint, TensorInfo, check_finite, check_room, content_hash, read_object
from merging.compatibility import check_plain, check_ties, is_frozen, is_tied, may_lack, optional_heads
from merging.composed import Factors
from merging.composing import Composing
from merging.differences import check_compatible
from merging.files import Read
from merging.layout import Layout
from merging.opening import open_model, open_models
from merging.pool import Pool
from merging.recipe import MergingError, Recipe, SourceRef
from merging.scan import far, scan
from merging.tokens import copy_tokenizer, write_united
from merging.vocabulary import Axes, align

BASE = "base"


class Sources:
    """A base and its experts. Build with :meth:`load`. Tensors are read-only.

    Attributes:
        base: alias of the base.
        checkpoints: alias -> checkpoint as it is on disk, the base first.
        layout: groups of the tensors that are merged.
        tensors: canonical name -> dtype and shape in the base, for every tensor that is merged, sorted. Canonical names
            are the base's names on disk; a head that is tied to the embedding is not among them. Where vocabularies
            were aligned, shapes are those of the merged model.
        frozen: canonical names of what is never merged but copied from the base: integers, booleans, stored constants.
        tied: heads that are stored but tied -> their embedding.
        companions: folder of the model that gives the tokenizer.
        distance: alias of each expert -> ‖τ‖/‖θ0‖ over all merged tensors.
        notes: what somebody who merges these models should know, one sentence each.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, Checkpoint],
        base: str,
        layout: Layout,
        frozen: tuple[str, ...],
        tied: dict[str, str],
        alignment: Alignment | None = None,
        companions: Path | None = None,
    ):
        self.base = base
        self.checkpoints = dict(checkpoints)
        self.layout = layout
        self.frozen = frozen
        self.tied = tied
        self.companions = companions or checkpoints[base].path
        self.distance: dict[str, float] = {}
        self.notes: tuple[str, ...] = () if alignment is None else alignment.notes
        self.notes += tuple(note for each in checkpoints.values() for note in getattr(each, "notes", ()))
        self._alignment = alignment
        self._vocabulary: Path | str = "base"
        self._read: dict[tuple[str, str], Tensor] = {}
        self._composing = Composing(checkpoints, base)
        self._borrowed: str | None = None
        self._embedding = optional_heads(checkpoints[base])
        self._pools: dict[tuple[tuple[str, ...], torch.dtype | None], Pool] = {}
        self.tensors: dict[str, TensorInfo] = {name: self.info(base, name) for name in layout.names}

    @staticmethod
    def load(
        base: Path | str,
        experts: Mapping[str, Path | str],
        *,
        tokenizer: Path | str = "base",
        allow_pickle: bool = False,
    ) -> Sources:
        """Open and check the models. Reads every weight once, to refuse NaN and infinity and to measure distances.

        Args:
            base: folder of the base; its alias is ``base``.
            experts: alias -> folder of a model, an adapter or a task vector (:func:`merging.opening.open_model`). May
                be empty.
            tokenizer: whose tokens the merged model has, where the models' differ: ``base``, ``union`` (the base's and
                those that only experts have), or a folder with tokenizer files.
            allow_pickle: read ``pytorch_model.bin`` where there is nothing better.

        Raises:
            MergingError: a folder is no readable checkpoint, an expert does not fit the base, a weight is not finite,
                or vocabularies differ and cannot be matched.
        """
        if BASE in experts:
            raise MergingError(f"an expert may not be called {BASE!r}: that is the base's name; choose another alias")
        checkpoints = open_models(base, experts, name=BASE, allow_pickle=allow_pickle)
        sources = Sources._checked(checkpoints, tokenizer)
        sources._scan(tuple(experts))
        return sources

    def joined(self, experts: Mapping[str, Path | str]) -> Sources:
        """These models and merges of them, as further experts. Only those are read: what is known of the others is
        kept. How far a merge is from the base is no reason for a note.

        Args:
            experts: alias -> folder; aliases that are not taken.

        Raises:
            MergingError: as :meth:`load`.
        """
        more = {alias: open_model(path, self.checkpoints[self.base]) for alias, path in experts.items()}
        sources = Sources._checked({**self.checkpoints, **more}, self._vocabulary)
        sources.distance = dict(self.distance)
        sources._scan(tuple(more))
        sources.notes = self.notes
        return sources

    @staticmethod
    def opened(checkpoints: Mapping[str, Checkpoint], tokenizer: Path | str = "base") -> Sources:
        """Models that fit each other, as :meth:`load` checks them, and of whose weights none is looked at: for what can
        be told from headers. Whether they are finite, and how far they are from the base, is not known.

        Args:
            checkpoints: alias -> model, "base" among them.
            tokenizer: as in :meth:`load`.

        Raises:
            MergingError: they do not fit each other.
        """
        return Sources._checked(checkpoints, tokenizer)

    @staticmethod
    def _checked(checkpoints: Mapping[str, Checkpoint], tokenizer: Path | str) -> Sources:
        """Models that fit each other; their weights are not looked at yet."""
        origin = checkpoints[BASE]
        heads = optional_heads(origin)
        axes = {alias: Axes.of(checkpoint) for alias, checkpoint in checkpoints.items()}
        for alias, checkpoint in checkpoints.items():
            check_plain(checkpoint)
            optional = may_lack(origin) | may_lack(checkpoint)
            tokens = {name: axis for name, axis in axes[BASE].axes.items() if axes[alias].axes.get(name) == axis}
            check_compatible(origin, checkpoint, optional, tokens)
        tied = {head: heads[head] for head in heads if is_tied(origin, head, heads[head])}
        check_ties(origin, checkpoints.values(), tied)
        alignment = align(tokenizer, BASE, checkpoints, axes)
        names = [name for name in origin.tensors if name not in tied]
        frozen = tuple(name for name in names if is_frozen(name, origin.tensors[name]))
        merged = {
            name: origin.tensors[name].shape if alignment is None else alignment.shape(name, origin.tensors[name].shape)
            for name in names
            if name not in frozen
        }
        if not merged:
            raise MergingError(f"expected floating-point weights in {origin.path}, found none")
        companions = origin.path if tokenizer in ("base", "union") else Path(tokenizer)
        sources = Sources(checkpoints, BASE, Layout.of(merged), frozen, tied, alignment, companions)
        sources._vocabulary = tokenizer
        return sources

    @property
    def tokenizer(self) -> str | None:
        """How vocabularies were aligned: ``base``, ``union`` or ``path:`` and the hash of the tokens; None where there
        was nothing to align. Part of a recipe, since it changes the result."""
        return None if self._alignment is None else self._alignment.choice

    @property
    def config(self) -> dict[str, Any]:
        """``config.json`` of the base, with the vocabulary of the merged model."""
        config = self.checkpoints[self.base].config
        if self._alignment is None:
            return config
        return renumbered(resized(config, self._alignment), self._alignment)

    @property
    def generation_config(self) -> dict[str, Any] | None:
        """``generation_config.json`` of the base, with the token ids of the merged model; None where there is none."""
        file = self.path / "generation_config.json"
        if not file.is_file():
            return None
        data = read_object(file, f"{file} was removed while it was read; restore it")
        return data if self._alignment is None else renumbered(data, self._alignment)

    def write_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer of the merged model into an existing folder; nothing where its source has none."""
        if self._alignment is not None and self._alignment.united is not None:
            write_united(self._alignment.united, self.companions, folder)
        else:
            copy_tokenizer(self.companions, folder)

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

    def source_name(self, alias: str, name: str) -> str:
        """The name under which a model's tensors are kept here; a view that renames tensors translates."""
        return name

    def tensor(self, alias: str, name: str) -> Tensor:
        """A canonical tensor of a model: memory-mapped as stored, or what was placed, or aligned in memory.

        Where a tied expert stores no head, its embedding stands in. What an adapter or a vector changes is composed
        whenever it is asked for, and not kept.
        """
        key = (alias, self.source_name(alias, name))
        found = self._read.get(key)
        if found is None:
            if self.composes(alias, name):
                found = self._composed(alias, name)
                if name != self._borrowed:
                    return found
            elif self._moves(*key) or name == self._borrowed:
                info = self.info(alias, name)
                found = torch.empty(info.shape, dtype=info.dtype)
                self.read_into(alias, name, found)
            else:
                found = self.checkpoints[alias].read(self._stored(*key))
            self._read[key] = found
        return found

    def composes(self, alias: str, name: str) -> bool:
        """Whether :meth:`tensor` makes this tensor anew whenever it is asked for."""
        key = (alias, self.source_name(alias, name))
        in_memory = key in self._read or self._moves(*key)
        return not in_memory and self._composing.changes(alias, self._stored(*key))

    def _composed(self, alias: str, name: str) -> Tensor:
        key = (alias, self.source_name(alias, name))
        placed = None if self._moves(self.base, key[1]) else self._read.get((self.base, key[1]))
        return self._composing.compose(key, self._stored(*key), placed, mapped=name != self._borrowed)

    @contextmanager
    def borrowed(self, name: str) -> Iterator[None]:
        """Within the context, tensors of this name are read into memory of their own, which is let go afterwards.

        For whoever goes through a model once: no file is mapped, so that no page of one stays in memory.
        """
        before = set(self._read)
        self._borrowed = name
        try:
            yield
        finally:
            self._borrowed = None
            for key in self._read.keys() - before:
                del self._read[key]

    def info(self, alias: str, name: str) -> TensorInfo:
        """Dtype and shape of what :meth:`tensor` gives. Dtypes may differ from model to model, and from tensor to
        tensor."""
        name = self.source_name(alias, name)
        info = self.checkpoints[alias].tensors[self._stored(alias, name)]
        if self._alignment is None or not self._moves(alias, name):
            return info
        dtype = self._alignment.dtype(alias, info.dtype, self.checkpoints[self.base].tensors[name].dtype)
        return replace(info, dtype=dtype, shape=self._alignment.shape(name, info.shape))

    def factors(self, alias: str, name: str) -> Factors | None:
        """A canonical tensor's task vector in factored form, as an adapter has it; None where it is not known so, or
        where vocabularies move its rows. Read from disk, unless they were given to :meth:`keep_factors`."""
        key = (alias, self.source_name(alias, name))
        return self._composing.kept(key) if self._moves(*key) else self._composing.factors(key, self._stored(*key))

    def keep_factors(self, alias: str, name: str, factors: Factors) -> None:
        """From now on these stand for the tensor's own, which they equal, in memory."""
        self._composing.keep((alias, self.source_name(alias, name)), factors)

    def read_into(self, alias: str, name: str, out: Tensor) -> None:
        """Read a canonical tensor from disk into memory that is given; nothing is mapped.

        Args:
            alias: the model.
            name: canonical name.
            out: contiguous, on the CPU, of the dtype and number of elements that :meth:`info` says; overwritten.

        Raises:
            MergingError: ``out`` does not fit, or the file was changed.
        """
        check_room(name, self.info(alias, name), out)
        with self._reader(alias, self.source_name(alias, name)) as (read, _):
            read(out, 0)

    @contextmanager
    def pieces(self, alias: str, name: str) -> Iterator[tuple[Read, int]]:
        """Reads of a canonical tensor by pieces, as it takes part in the merge: ``read(out, start)`` as in
        :meth:`merging.checkpoint.Checkpoint.reader`; and the number of elements that starts and lengths are multiples
        of, 1 but where vocabularies were aligned."""
        with self._reader(alias, self.source_name(alias, name)) as (read, _):
            aligned = self._alignment is not None and name in self._alignment.axes
            yield read, self._width(name) if aligned else 1

    def place(self, alias: str, name: str, tensor: Tensor) -> None:
        """From now on :meth:`tensor` returns this one, on whatever device it is: the same elements, kept elsewhere.

        Raises:
            MergingError: it has another dtype or shape.
        """
        info = self.info(alias, name)
        if tensor.dtype != info.dtype or tuple(tensor.shape) != info.shape:
            raise MergingError(
                f"expected {list(info.shape)} of {info.dtype} to stand for {name} of {alias!r}, found "
                f"{list(tensor.shape)} of {tensor.dtype}"
            )
        self._read[alias, self.source_name(alias, name)] = tensor

    def pool(self, aliases: tuple[str, ...], dtype: torch.dtype | None = None) -> Pool:
        """The sources of an assignment, with the cache of their statistics. The same pool for the same arguments."""
        key = (aliases, dtype)
        if key not in self._pools:
            self._pools[key] = Pool(
                self.base,
                aliases,
                tuple(self.tensors),
                self.tensor,
                dtype,
                lambda alias: self.refs[alias].content,
                self.config,
                {name: info.shape for name, info in self.tensors.items()},
                self.factors,
                self.composes,
            )
        return self._pools[key]

    def bind(self, recipe: Recipe) -> dict[str, str]:
        """The recipe's aliases -> these sources' aliases, found by content.

        Raises:
            MergingError: the recipe was made from other models.
        """
        # Sources.load aligns to the base where it is not told otherwise, and so does a recipe that says nothing.
        if (recipe.tokenizer or "base") != (self.tokenizer or "base"):
            raise MergingError(
                f"the recipe was made with the vocabulary of {recipe.tokenizer or 'base'!r}, the models were loaded "
                f"with that of {self.tokenizer or 'base'!r}; give the same tokenizer"
            )
        return bind(recipe, self.refs, self.base)

    def _stored(self, alias: str, name: str) -> str:
        """The name on disk: that of the embedding where a tied model stores no head."""
        return name if name in self.checkpoints[alias].tensors else self._embedding.get(name, name)

    def _moves(self, alias: str, name: str) -> bool:
        return self._alignment is not None and self._alignment.moves(alias, name)

    @contextmanager
    def _own(self, alias: str, name: str) -> Iterator[tuple[Read, torch.dtype]]:
        """Reads of a model's own tensor, whatever its vocabulary."""
        checkpoint, stored = self.checkpoints[alias], self._stored(alias, name)
        with checkpoint.reader(stored) as read:
            yield read, checkpoint.tensors[stored].dtype

    @contextmanager
    def _reader(self, alias: str, name: str) -> Iterator[tuple[Read, torch.dtype]]:
        """Reads of a tensor as it takes part in the merge."""
        if self._alignment is None or not self._moves(alias, name):
            with self._own(alias, name) as own:
                yield own
        else:
            with self._alignment.reader(alias, name, self._width(name), self._own) as read:
                yield read, self.info(alias, name).dtype

    def _width(self, name: str) -> int:
        """Elements of a row, in a tensor with an axis of tokens."""
        info = self.info(self.base, name)
        return info.numel // info.shape[self._alignment.axes[name]] if self._alignment else 1

    def _scan(self, experts: tuple[str, ...]) -> None:
        """Refuse what is not finite, and measure how far these experts are from the base."""

        def refuse(alias: str, name: str) -> None:
            checkpoint, stored = self.checkpoints[alias], self._stored(alias, name)
            check_finite(checkpoint, stored, checkpoint.read(stored))

        infos = {alias: {name: self.info(alias, name) for name in self.tensors} for alias in (self.base, *experts)}
        axes = self._alignment.axes if self._alignment else {}
        widths = {name: self._width(name) for name in axes if name in self.tensors}
        opener = lambda alias, name, stack: stack.enter_context(self._reader(alias, name))[0]  # noqa: E731
        self.distance |= scan(self.base, infos, widths, opener, refuse)
        self.notes += far(self.path, {alias: self.checkpoints[alias].path for alias in self.distance}, self.distance)
