"""How a tensor is seen as matrices where a codec needs some: by its shape alone, so that decoding needs no more."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class View:
    """A stack of matrices, row-major as the tensor is.

    Attributes:
        count: of them; 0 for a tensor that is one matrix.
        rows, columns: of each.
    """

    count: int
    rows: int
    columns: int

    @property
    def stack(self) -> tuple[int, int, int]:
        """Shape to see the tensor in."""
        return max(1, self.count), self.rows, self.columns


def matrices(shape: tuple[int, ...]) -> View:
    """[first axis, all others], as merging sees a convolution too; for a stack of matrices, each of them.

    A tensor of three axes is a stack where its last two could have a higher rank each than the first axis allows: so
    are mixtures of experts stored, [experts, in, out]. A vector is one row.
    """
    if len(shape) < 2:
        return View(0, 1, math.prod(shape))
    if len(shape) == 3 and shape[0] < min(shape[1:]):
        return View(*shape)
    return View(0, shape[0], math.prod(shape[1:]))
