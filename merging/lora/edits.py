"""What an adapter does to one tensor: the arithmetic of LoRA, DoRA and replaced weights.

An edit takes the tensor as the base has it, in float32, and gives the adapted one. Its weights are read from the
adapter's file when they are needed, and let go again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from merging.composed import Factored, Factors
from merging.conversion import Shape
from merging.linear_algebra import one_thread

# Reads weights of an adapter: float32 on the CPU, but for replacements, which keep their dtype.
Thunk = Callable[[], Tensor]


class Edit(Protocol):
    """One step from the base's tensor to the adapted one."""

    @property
    def factors(self) -> Factors | None:
        """The step as an addition of a product, where it is exactly that."""

    def __call__(self, weight: Tensor) -> Tensor:
        """The adapted tensor.

        Args:
            weight: float32 or float64, contiguous, on the CPU; may be changed.

        Returns:
            Of the same shape.
        """


@dataclass(frozen=True, eq=False)
class LowRank:
    """W + left·right: a LoRA, its scale folded in. [rows, r] and [r, columns] of the tensor as it is stored."""

    left: Thunk
    right: Thunk

    @property
    def factors(self) -> Factors | None:
        """See :class:`Edit`."""
        return Factors.of(self.left(), self.right())

    def __call__(self, weight: Tensor) -> Tensor:
        """See :class:`Edit`."""
        made = Factors.of(self.left(), self.right())
        return weight.add_(made.dense().reshape(weight.shape).to(weight.dtype))


@dataclass(frozen=True, eq=False)
class Stack:
    """W[e] + left[e]·right[e]: one product for each expert of a stack, which no product of two matrices is.

    Attributes:
        left: [experts, rows, r].
        right: [experts, r, columns].
    """

    left: Thunk
    right: Thunk
    factors: None = None

    def __call__(self, weight: Tensor) -> Tensor:
        """See :class:`Edit`."""
        left, right = self.left(), self.right()
        with one_thread():
            for number in range(weight.shape[0]):
                made = left[number].contiguous() @ right[number].contiguous()
                weight[number].add_(made.to(weight.dtype))
        return weight


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """DoRA (Liu et al. 2024, arXiv 2402.09353, equation 5): m · (W + Δ)/‖W + Δ‖, the norm of each output's weights.

    Attributes:
        low_rank: adds Δ.
        magnitude: m, one number for each output.
        axis: of the outputs in the stored tensor, seen as a matrix [shape[0], everything else]: 0, or 1 for what is
            stored the other way round, and for embeddings.
    """

    low_rank: LowRank
    magnitude: Thunk
    axis: int
    factors: None = None

    def __call__(self, weight: Tensor) -> Tensor:
        """See :class:`Edit`."""
        shape = weight.shape
        matrix = self.low_rank(weight).reshape(shape[0], -1)
        with one_thread():
            norm = torch.linalg.vector_norm(matrix, dim=1 - self.axis)
        factor = self.magnitude().reshape(-1).to(matrix.dtype) / norm
        return matrix.mul_(factor[:, None] if self.axis == 0 else factor[None, :]).reshape(shape)


@dataclass(frozen=True, eq=False)
class Whole:
    """A replacement: a trained head, norm or bias."""

    value: Thunk
    factors: None = None

    def __call__(self, weight: Tensor) -> Tensor:
        """See :class:`Edit`."""
        return self.value().to(weight.dtype, copy=True).reshape(weight.shape).contiguous()


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of an embedding, replaced: trained tokens.

    Attributes:
        indices: which.
        value: [rows, width].
    """

    indices: tuple[int, ...]
    value: Thunk
    factors: None = None

    def __call__(self, weight: Tensor) -> Tensor:
        """See :class:`Edit`."""
        return weight.index_copy_(0, torch.tensor(self.indices), self.value().to(weight.dtype))


@dataclass(frozen=True, eq=False)
class Within:
    """An edit of a part of the tensor, which is a parameter of its own in the live model.

    Attributes:
        edit: of the part.
        shape, strides, offset: of the part in the tensor.
    """

    edit: Edit
    shape: Shape
    strides: Shape
    offset: int

    @property
    def factors(self) -> Factors | None:
        """See :class:`Edit`."""
        return None

    def __call__(self, weight: Tensor) -> Tensor:
        """See :class:`Edit`."""
        part = weight.as_strided(self.shape, self.strides, weight.storage_offset() + self.offset)
        part.copy_(self.edit(part.clone(memory_format=torch.contiguous_format)))
        return weight


@dataclass(frozen=True)
class Edited:
    """All that an adapter does to a tensor, as a :class:`merging.composed.Change`.

    Attributes:
        edits: in this order.
        dtype: of the composed tensor.
    """

    edits: tuple[Edit, ...]
    dtype: torch.dtype

    @property
    def factors(self) -> Factors | None:
        """See :class:`merging.composed.Change`."""
        found = [each.factors for each in self.edits]
        known = [each for each in found if each is not None]
        if len(known) < len(found):
            return None
        if len(known) == 1:
            return known[0]
        return Factors(torch.cat([each.left for each in known], 1), torch.cat([each.right for each in known]))

    def compose(self, base: Tensor) -> Tensor:
        """See :class:`merging.composed.Change`."""
        known = self.factors
        if known is not None:
            return Factored(known, self.dtype).compose(base)
        if len(self.edits) == 1 and isinstance(self.edits[0], Whole):
            return self.edits[0].value().to(self.dtype, copy=True).reshape(base.shape).contiguous()
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        with torch.no_grad():
            weight = base.to(wide, copy=True).contiguous()
            for edit in self.edits:
                weight = edit(weight)
        return weight.to(self.dtype).contiguous()
