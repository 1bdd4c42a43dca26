"""An edit of a live tensor, as an edit of the tensor that the base has on disk for it."""

from __future__ import annotations

import torch

from merging.conversion import Shape, Strided, row_major
from merging.lora.edits import Edit, LowRank, Magnitudes, Stack, Within
from merging.lora.naming import Place


def placed(edit: Edit, place: Place, stored: Shape) -> Edit | None:
    """The edit for the tensor on disk; products stay products. None where that is not possible.

    Args:
        edit: of the live tensor.
        place: where that is on disk.
        stored: shape of the tensor on disk.
    """
    if place.piece is not None:
        return _joined(edit, place.live, place.piece, stored)
    if place.view is None:
        return edit
    cut = _Cut.of(place.view, place.live, stored)
    if cut is None or isinstance(edit, Magnitudes | Within):
        return None
    if isinstance(edit, Stack):
        return cut.of_stack(edit) if len(stored) == 3 else cut.of_product(_one(edit, cut.number))
    return cut.of_product(edit) if isinstance(edit, LowRank) and len(stored) == 2 else None


def _one(stack: Stack, number: int) -> LowRank:
    return LowRank(lambda: stack.left()[number], lambda: stack.right()[number])


def _joined(edit: Edit, live: Shape, piece: Strided, stored: Shape) -> Edit:
    """A live tensor that the loader split off: zeros elsewhere keep a product one, where it is whole rows."""
    columns = _numel(stored[1:])
    if not isinstance(edit, LowRank) or piece.strides != row_major(live) or columns != _numel(live[1:]):
        return Within(edit, live, piece.strides, piece.offset)
    start, low_rank = piece.offset // columns, edit

    def left() -> torch.Tensor:
        held = low_rank.left()
        padded = held.new_zeros(stored[0], held.shape[1])
        padded[start : start + len(held)] = held
        return padded

    return LowRank(left, low_rank.right)


class _Cut:
    """A block of rows and columns of one live matrix, or of every matrix of a live stack; perhaps transposed."""

    def __init__(self, number: int, rows: slice, columns: slice, turned: bool):
        self.number = number
        self._rows = rows
        self._columns = columns
        self._turned = turned

    @staticmethod
    def of(view: Strided, live: Shape, stored: Shape) -> _Cut | None:
        if len(live) not in (2, 3) or len(stored) not in (2, 3) or len(stored) > len(live):
            return None
        height, width = live[-2:]
        number, rest = divmod(view.offset, height * width)
        row, column = divmod(rest, width)
        stacked = len(stored) == 3
        if stacked and (number or view.strides[0] != height * width):
            return None
        (down, along), strides = stored[-2:], view.strides[-2:]
        if strides == (width, 1):
            return _Cut(number, slice(row, row + down), slice(column, column + along), False)
        if strides == (1, width):
            return _Cut(number, slice(row, row + along), slice(column, column + down), True)
        return None

    def of_product(self, edit: LowRank) -> LowRank:
        if self._turned:
            return LowRank(lambda: edit.right()[:, self._columns].T, lambda: edit.left()[self._rows].T)
        return LowRank(lambda: edit.left()[self._rows], lambda: edit.right()[:, self._columns])

    def of_stack(self, edit: Stack) -> Stack:
        if self._turned:
            return Stack(lambda: edit.right()[:, :, self._columns].mT, lambda: edit.left()[:, self._rows].mT)
        return Stack(lambda: edit.left()[:, self._rows], lambda: edit.right()[:, :, self._columns])


def _numel(shape: Shape) -> int:
    return int(torch.Size(shape).numel())
