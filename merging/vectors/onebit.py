"""One bit: the sign of τ, and one size for every row (BitDelta, Liu et al. 2024, arXiv 2402.10193).

τ̂ = a·sgn(τ) with a = mean |τ| of the row, which is the best such a in squares. BitDelta has one size a matrix; one a
row costs little more and is never worse. Of normally distributed τ the relative error is √(1 − 2/π) ≈ 0.60: large, and
often harmless. A vector has one size; zero counts as positive.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from merging.files import TensorInfo
from merging.pool import pieces
from merging.recipe import Value
from merging.vectors.added import Added
from merging.vectors.frames import malformed
from merging.vectors.shapes import matrices
from merging.vectors.tensors import PIECE, Pair

Parts = tuple[dict[str, Value], dict[str, Tensor]]


def encode(pair: Pair) -> Parts:
    """Signs, eight to a byte with the first in the highest bit, and sizes."""
    rows, columns = rows_of(pair.shape)
    signs = [np.packbits((each >= 0).numpy()) for each in pair.deltas()]
    sizes = np.zeros(rows)
    for start, stop in pieces(pair.numel, PIECE):
        ends = np.arange(start // columns * columns, stop, columns).clip(start) - start
        first = start // columns
        sizes[first : first + len(ends)] += np.add.reduceat(np.abs(pair.delta(start, stop).numpy()), ends, dtype=float)
    return {}, {
        "signs": torch.from_numpy(np.concatenate([np.empty(0, np.uint8), *signs])),
        "sizes": torch.from_numpy((sizes / max(1, columns)).astype(np.float32)),
    }


def decode(info: TensorInfo, signs: Tensor, sizes: Tensor) -> Added:
    """What adds a·sgn(τ) to the base.

    Raises:
        MergingError: malformed.
    """
    rows, columns = rows_of(info.shape)
    count = -(-info.numel // 8)  # pieces have whole bytes
    if signs.dtype != torch.uint8 or tuple(signs.shape) != (count,):
        raise malformed(f"{count} bytes of signs", f"{signs.dtype} of shape {list(signs.shape)}")
    if sizes.dtype != torch.float32 or tuple(sizes.shape) != (rows,):
        raise malformed(f"{rows} sizes in float32", f"{sizes.dtype} of shape {list(sizes.shape)}")
    packed = signs.numpy()

    def deltas() -> Iterator[Tensor]:
        for start, stop in pieces(info.numel, PIECE):
            bits = np.unpackbits(packed[start // 8 : (stop + 7) // 8], count=stop - start)
            first, last = start // columns, -(-stop // columns)
            lengths = np.diff((np.arange(first, last + 1) * columns).clip(start, stop))
            size = sizes[first:last].repeat_interleave(torch.from_numpy(lengths))
            yield torch.where(torch.from_numpy(bits).bool(), size, -size)

    return Added(info.shape, info.dtype, deltas)


def error_of(pair: Pair) -> float:
    """The relative error that it will have, in closed form: √(1 − Σ_rows n·a²/‖τ‖²), not counting roundings."""
    _, columns = rows_of(pair.shape)
    total = pair.energy()
    if not total:
        return 0.0
    sizes = encode(pair)[1]["sizes"].double()
    return math.sqrt(max(0.0, 1.0 - columns * float(sizes.square().sum()) / total))


def rows_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """How many rows share a size each, and their length."""
    view = matrices(shape)
    return view.stack[0] * view.rows, view.columns
