"""Models that are known by what they change of a base: adapters, and vectors of the store.

Nothing is written to disk for them: a tensor is composed from the base's when it is asked for, and what they leave as
it is stays the base's own memory. Whoever reads them sees a :class:`merging.checkpoint.Checkpoint` like any other, and
their content has the hash of the same model in a folder of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from merging.checkpoint import Checkpoint
from merging.files import Read
from merging.linear_algebra import one_thread
from merging.recipe import MergingError


@dataclass(frozen=True, eq=False)
class Factors:
    """A task vector of one tensor as a product of two thin matrices. Build with :meth:`of`.

    Δ = (left @ right).reshape(shape of the tensor), in the orientation that the tensor is stored in; whatever scale an
    adapter has is folded in.

    Attributes:
        left: [shape[0], rank] float32, on the CPU.
        right: [rank, everything else] float32, on the CPU.
    """

    left: Tensor
    right: Tensor

    @staticmethod
    def of(left: Tensor, right: Tensor) -> Factors:
        """Copies in memory of their own: how a library sums a product can depend on where a matrix begins.

        Raises:
            MergingError: they do not fit each other.
        """
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
            raise MergingError(
                f"expected factors [rows, rank] and [rank, columns], found {list(left.shape)} and {list(right.shape)}"
            )
        one, two = (
            each.detach().to("cpu", torch.float32, copy=True, memory_format=torch.contiguous_format)
            for each in (left, right)
        )
        return Factors(one, two)

    @property
    def rank(self) -> int:
        """Columns of ``left``: the rank of Δ, or more."""
        return self.left.shape[1]

    @property
    def bound(self) -> float:
        """No |element| of Δ is larger: the largest norm of a row of ``left`` times that of a column of ``right``."""
        if not self.rank or not self.left.numel() or not self.right.numel():
            return 0.0
        rows, columns = (torch.linalg.vector_norm(each, dim=dim) for each, dim in ((self.left, 1), (self.right, 0)))
        return float(rows.max()) * float(columns.max())

    def dense(self) -> Tensor:
        """[rows, columns] float32: the same bits every time, whatever the number of threads."""
        if not self.rank:
            return torch.zeros(self.left.shape[0], self.right.shape[1])
        with torch.no_grad(), one_thread():
            return self.left @ self.right


class Change(Protocol):
    """How one tensor of a composed model is made from the base's."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the composed tensor."""

    @property
    def factors(self) -> Factors | None:
        """The task vector where it is exactly a product of factors."""

    def compose(self, base: Tensor) -> Tensor:
        """The composed tensor.

        Args:
            base: the base's, as it is stored.

        Returns:
            Of the base's shape and of :attr:`dtype`, contiguous, on the CPU, in memory of its own; the same bits every
            time. A replacement as a whole does not look at the base.
        """


@dataclass(frozen=True, eq=False)
class Factored:
    """θ = θ0 + left @ right, in float32, rounded to ``dtype`` at the end.

    Attributes:
        factors: the task vector.
        dtype: of the composed tensor.
    """

    factors: Factors
    dtype: torch.dtype

    @staticmethod
    def over(factors: Factors, base: torch.dtype) -> Factored:
        """As an adapter over a base of a dtype: float32 where the base's is narrower, whose rounding would swallow much
        of so small a change."""
        return Factored(factors, base if base == torch.float64 else torch.float32)

    def compose(self, base: Tensor) -> Tensor:
        """See :class:`Change`."""
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        return self.factors.dense().reshape(base.shape).to(wide).add_(base.to(wide)).to(self.dtype)


class Composed(Checkpoint):
    """A base and what is changed of it, read as a model of its own.

    Attributes:
        path: folder of what changes the base.
        base: the model that it belongs to.
        changes: name on disk -> what becomes of the base's tensor; all others are the base's.
        config: the base's, unless it has its own.
        notes: what somebody who uses it should know, one sentence each.
    """

    def __init__(
        self,
        path: Path,
        base: Checkpoint,
        changes: Mapping[str, Change],
        *,
        config: dict[str, Any] | None = None,
        notes: tuple[str, ...] = (),
    ):
        unknown = sorted(changes.keys() - base.tensors.keys())
        if unknown:
            listed = ", ".join(unknown[:5])
            raise MergingError(
                f"expected {path} to change tensors of the base {base.path}, found {len(unknown)} that the base does "
                f"not have: {listed}. It belongs to another base"
            )
        tensors = {
            name: replace(info, dtype=changes[name].dtype) if name in changes else info
            for name, info in base.tensors.items()
        }
        super().__init__(path, base.config if config is None else config, tensors, {})
        self.base = base
        self.changes: Mapping[str, Change] = dict(sorted(changes.items()))
        self.notes = notes
        self._has_config = config is not None

    @property
    def home(self) -> Path:
        """Folder of its config.json: the base's, unless it has its own."""
        return self.path if self._has_config and (self.path / "config.json").is_file() else self.base.home

    @property
    def companions(self) -> Path:
        """Folder of its tokenizer: its own where there is one, else the base's."""
        own = any((self.path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
        return self.path if own else self.base.companions

    def factors(self, name: str) -> Factors | None:
        """The task vector of a tensor in factored form: of rank 0 where nothing is changed, None where it is changed
        otherwise."""
        if name in self.changes:
            return self.changes[name].factors
        shape = self._info(name).shape
        rows = shape[0] if shape else 1
        return Factors(torch.zeros(rows, 0), torch.zeros(0, math.prod(shape[1:])))

    def read(self, name: str) -> Tensor:
        """The tensor: the base's own, memory-mapped, where it is not changed; else composed, in new memory.

        Raises:
            MergingError: no such tensor, or what it is composed from is damaged.
        """
        self._info(name)
        base = self.base.read(name)
        return self.composed(name, base) if name in self.changes else base

    @contextmanager
    def reader(self, name: str) -> Iterator[Read]:
        """As :meth:`merging.checkpoint.Checkpoint.reader`; a changed tensor is composed once for the context."""
        self._info(name)
        if name not in self.changes:
            with self.base.reader(name) as read:
                yield read
            return
        info = self.base.tensors[name]
        origin = torch.empty(info.shape, dtype=info.dtype)
        self.base.read_into(name, origin)  # not mapped: whoever reads by pieces wants no page of the file to stay
        whole = self.composed(name, origin).reshape(-1)

        def copy(out: Tensor, start: int) -> None:
            flat = out.reshape(-1)
            flat.copy_(whole[start : start + flat.numel()])

        yield copy

    def composed(self, name: str, base: Tensor) -> Tensor:
        """What becomes of a changed tensor.

        Args:
            name: of :attr:`changes`.
            base: the base's tensor, as it is stored.

        Raises:
            MergingError: what it is composed from does not fit, or is damaged.
        """
        change, info = self.changes[name], self.tensors[name]
        found = change.compose(base)
        if tuple(found.shape) != info.shape or found.dtype != info.dtype:
            raise MergingError(
                f"expected {list(info.shape)} of {info.dtype} for {name} in {self.path}, found {list(found.shape)} of "
                f"{found.dtype}; it belongs to another base, or is damaged"
            )
        return found


def factors_of(checkpoint: Checkpoint, name: str) -> Factors | None:
    """The task vector of a model's tensor in factored form; None where it is none that is known so."""
    return checkpoint.factors(name) if isinstance(checkpoint, Composed) else None
