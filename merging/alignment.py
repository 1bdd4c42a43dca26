"""Reading tensors whose rows are tokens as if all models had one vocabulary.

Every model keeps its own files; what changes is which of its rows stands where. In the merged model's vocabulary

- a token that an expert lacks has the base's row there: its task vector is 0,
- a token that the base lacks has the mean of the rows of those experts that have it, as if that were the base's,
- a row that is no token (padding) is the base's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from merging.files import Read
from merging.tokens import United

Rows = np.ndarray[Any, np.dtype[np.int64]]

# Opens a model's own tensor: alias, canonical name -> reads of it and its dtype.
Open = Callable[[str, str], AbstractContextManager[tuple[Read, torch.dtype]]]

NONE = -1

# Keys of configs that hold token ids.
_TOKEN_ID = re.compile(r"(_token_(id|ids|index)|suppress_tokens)$")

_AT_ONCE = 1 << 20  # elements that are gathered at a time


class Alignment:
    """Where the rows of every model stand in the merged model's vocabulary. Build with
    :func:`merging.vocabulary.align`.

    Attributes:
        choice: ``base``, ``union`` or ``path:`` and the hash of the tokenizer's tokens.
        rows: of the merged model's embedding.
        axes: canonical name -> axis of tokens, of the tensors that are aligned.
        ids: token -> id in the merged model.
        united: the tokenizer that was made for it, where one was.
        notes: what somebody who merges should know, one sentence each.
        rows_before: of the base's own embedding.
        moved: id of a base's token that changed -> the new one, or None where the token is gone.
    """

    def __init__(
        self,
        choice: str,
        rows: int,
        axes: Mapping[str, int],
        indices: Mapping[str, Rows | None],
        base: str,
        ids: Mapping[str, int],
        united: United | None,
        notes: tuple[str, ...],
        rows_before: int,
        moved: Mapping[int, int | None],
    ):
        self.choice = choice
        self.rows = rows
        self.axes = axes
        self.ids = ids
        self.united = united
        self.notes = notes
        self.rows_before = rows_before
        self.moved = moved
        self._indices = indices
        self._base = base
        self._averages: dict[str, Tensor] = {}

    def moves(self, alias: str, name: str) -> bool:
        """Whether a model's tensor is another one after the alignment than in its file."""
        return name in self.axes and self._indices[alias] is not None

    def shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor in the merged model."""
        axis = self.axes.get(name)
        return shape if axis is None else (*shape[:axis], self.rows, *shape[axis + 1 :])

    def dtype(self, alias: str, own: torch.dtype, base: torch.dtype) -> torch.dtype:
        """That of an aligned tensor: one that also holds the rows of the base exactly, where it needs any."""
        borrows = alias != self._base and bool((self._index(alias) == NONE).any())
        return torch.promote_types(own, base) if borrows else own

    @contextmanager
    def reader(self, alias: str, name: str, width: int, open: Open) -> Iterator[Read]:
        """Reads of an aligned tensor. Like those of a file, but from whole rows to whole rows.

        Args:
            alias: the model.
            name: canonical name, one of ``axes``.
            width: elements of a row.
            open: reads the models' own tensors.
        """
        step = max(1, _AT_ONCE // width)

        def read(out: Tensor, start: int) -> None:
            block = out.view(-1, width)
            for first in range(0, len(block), step):
                part = block[first : first + step]
                rows = np.arange(len(part)) + (start // width + first)
                part.copy_(self._rows(alias, name, rows, width, open))

        yield read

    def _index(self, alias: str) -> Rows:
        index = self._indices[alias]
        return np.arange(self.rows) if index is None else index

    def _rows(self, alias: str, name: str, rows: Rows, width: int, open: Open) -> Tensor:
        """[rows, width] of a model, in the merged model's numbering."""
        own = self._index(alias)[rows]
        have = own != NONE
        if have.all():
            return _gather(alias, name, own, width, open)
        fill = self._rows if alias != self._base else self._invented
        filled = fill(self._base, name, rows[~have], width, open)
        kept = _gather(alias, name, own[have], width, open)
        out = torch.empty(len(rows), width, dtype=self.dtype(alias, kept.dtype, filled.dtype))
        mask = torch.from_numpy(have)
        out[mask] = kept.to(out.dtype)
        out[~mask] = filled.to(out.dtype)
        return out

    def _invented(self, base: str, name: str, rows: Rows, width: int, open: Open) -> Tensor:
        """[rows, width] of tokens that the base has no rows for: means over experts, in float64, rounded once."""
        total = torch.zeros(len(rows), width, dtype=torch.float64)
        count = torch.zeros(len(rows), 1, dtype=torch.float64)
        for alias in self._indices:
            own = self._index(alias)[rows]
            have = torch.from_numpy(own != NONE)
            if alias != base and have.any():
                total[have] += _gather(alias, name, own[own != NONE], width, open).to(torch.float64)
                count[have] += 1
        unknown = count[:, 0] == 0
        if unknown.any():
            total[unknown], count[unknown] = self._average(name, width, open), 1.0
        with open(base, name) as (_, dtype):
            return (total / count).to(dtype)

    def _average(self, name: str, width: int, open: Open) -> Tensor:
        """[width] mean of the base's rows: where nothing is known of a token."""
        if name not in self._averages:
            own = self._index(self._base)
            own = np.unique(own[own != NONE])
            step = max(1, _AT_ONCE // width)
            total = torch.zeros(width, dtype=torch.float64)
            for first in range(0, len(own), step):
                total += _gather(self._base, name, own[first : first + step], width, open).to(torch.float64).sum(0)
            self._averages[name] = total / max(len(own), 1)
        return self._averages[name]


def resized(config: dict[str, Any], alignment: Alignment) -> dict[str, Any]:
    """A config with the number of tokens of the merged model, at the levels that state it."""
    before = alignment.rows_before
    stated = config.get("vocab_size") == before
    out = config | ({"vocab_size": alignment.rows} if stated else {})
    for key, value in config.items():
        if isinstance(value, dict) and value.get("vocab_size") == before:
            out[key] = value | {"vocab_size": alignment.rows}
            stated = True
    if not stated and alignment.rows != before:  # left to the default of the class
        text = config.get("text_config")
        out |= (
            {"text_config": text | {"vocab_size": alignment.rows}}
            if isinstance(text, dict)
            else {"vocab_size": alignment.rows}
        )
    return out


def renumbered(config: dict[str, Any], alignment: Alignment) -> dict[str, Any]:
    """A config whose token ids (``eos_token_id`` and the like) are those of the same tokens in the merged model.

    An id of a token that is no longer there is left out.
    """
    moved = alignment.moved
    if not moved:
        return config
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            out[key] = renumbered(value, alignment)
        elif not _TOKEN_ID.search(key):
            out[key] = value
        elif isinstance(value, list):
            out[key] = [moved.get(each, each) for each in value if moved.get(each, each) is not None]
        elif (new := moved.get(value, value)) is not None or value is None:
            out[key] = new
    return out


def _gather(alias: str, name: str, rows: Rows, width: int, open: Open) -> Tensor:
    """[rows, width] some rows of a model's own tensor, read in runs of neighbours."""
    with open(alias, name) as (read, dtype):
        out = torch.empty(len(rows), width, dtype=dtype)
        ends = np.flatnonzero(np.diff(rows) != 1) + 1
        for first, last in zip((0, *ends.tolist()), (*ends.tolist(), len(rows)), strict=True):
            if last > first:
                read(out[first:last].view(-1), int(rows[first]) * width)
    return out
