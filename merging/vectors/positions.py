"""Where some elements of a piece lie: the gaps between them, whose upper bytes are zeros and compress to nothing."""

from __future__ import annotations

import numpy as np

from merging.vectors.frames import Frames, malformed
from merging.vectors.tensors import Bits

_GAP = np.dtype("<u4")


def gaps(index: Bits) -> Bits:
    """How many elements lie before each of some, since the one before it.

    Args:
        index: ascending, none twice.
    """
    found: Bits = (np.diff(index, prepend=-1) - 1).astype(_GAP)
    return found


def count(frames: Frames, number: int, most: int) -> int:
    """How many positions a frame holds, before it is unpacked.

    Raises:
        MergingError: no whole number of them, or more than there are elements.
    """
    held, rest = divmod(frames.sizes[number], _GAP.itemsize)
    if rest or held > most:
        raise malformed(f"at most {most} positions in a frame", f"{frames.sizes[number]} bytes of them")
    return held


def positions(frames: Frames, number: int, most: int) -> Bits:
    """The inverse of :func:`gaps`: int64, ascending, below ``most``.

    Raises:
        MergingError: one is not.
    """
    held = count(frames, number, most)
    found: Bits = np.cumsum(frames.unpack(number, _GAP, held).astype(np.int64) + 1) - 1
    if held and found[-1] >= most:
        raise malformed(f"positions below {most}", int(found[-1]))
    return found
