"""Second moments of many vectors: summed in float64, half of each symmetric matrix computed and stored."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Rows that are gathered before they are multiplied, in a buffer of that many by the vectors' width.
ROWS = 512

# Columns that are updated, and stored, at once: what lies above them is neither computed nor stored twice.
_COMPUTED = 1024
_STORED = 256


class Moments:
    """Σ x·xᵀ of one kind of vectors.

    Attributes:
        rows: how many vectors there were.
    """

    def __init__(self, width: int, device: torch.device):
        """Begin with none.

        Args:
            width: of the vectors.
            device: that sums; the CPU in place of one without float64.
        """
        place = torch.device("cpu") if device.type == "mps" else device
        self.rows = 0
        self._sum = torch.zeros(width, width, dtype=torch.float64, device=place)
        self._buffer = torch.empty(ROWS, width, dtype=torch.float64, device=place)
        self._filled = 0

    def add(self, rows: Tensor) -> None:
        """Take in [n, width]. Rows are cut where the buffer ends, so that only their order shapes the sum."""
        start = 0
        while start < len(rows):
            part = rows[start : start + ROWS - self._filled]
            self._buffer[self._filled : self._filled + len(part)].copy_(part)
            self._filled += len(part)
            start += len(part)
            if self._filled == ROWS:
                self._flush()
        self.rows += len(rows)

    def result(self, divisor: int) -> Tensor:
        """[width, width], float64, divided; symmetric to the last bit. It is let go here."""
        self._flush()
        whole = self._sum.div_(max(1, divisor))
        self._sum = self._buffer = whole.new_empty(0, 0)
        return _mirrored(whole)

    def _flush(self) -> None:
        rows, width = self._buffer[: self._filled], self._buffer.shape[1]
        for start in range(0, width if self._filled else 0, _COMPUTED):
            stop = min(start + _COMPUTED, width)
            self._sum[start:, start:stop].addmm_(rows[:, start:].t(), rows[:, start:stop])
        self._filled = 0


def panels(key: str, matrix: Tensor) -> dict[str, Tensor]:
    """The lower half of a symmetric matrix, to be stored: panels of columns on the CPU, from the diagonal on."""
    return {
        f"{key}.{start // _STORED}": matrix[start:, start : start + _STORED].contiguous().cpu()
        for start in range(0, len(matrix), _STORED)
    }


def from_panels(key: str, width: int, read: Callable[[str], Tensor]) -> Tensor:
    """The inverse of :func:`panels`.

    Args:
        key: as there.
        width: of the matrix.
        read: gives a panel by its key.
    """
    matrix = torch.zeros(width, width, dtype=torch.float64)
    for start in range(0, width, _STORED):
        matrix[start:, start : start + _STORED] = read(f"{key}.{start // _STORED}")
    return _mirrored(matrix)


def stored_bytes(width: int) -> int:
    """Of the panels of a matrix."""
    return sum(8 * (width - start) * min(_STORED, width - start) for start in range(0, width, _STORED))


def _mirrored(matrix: Tensor) -> Tensor:
    """Its lower half on both sides, in place and by panels, so that no copy of the whole is made."""
    for start in range(0, len(matrix), _STORED):
        stop = min(start + _STORED, len(matrix))
        corner = matrix[start:stop, start:stop]
        corner.copy_(corner.tril() + corner.tril(-1).t())
        matrix[start:stop, stop:] = matrix[stop:, start:stop].t()
    return matrix
