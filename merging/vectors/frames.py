"""Numbers in compressed frames: one Zstandard frame for a piece of a tensor, its bytes sorted by their significance.

The upper bytes of small numbers are alike, and lie together once the bytes of a piece are sorted by their place in the
number ("shuffled"): that is what a compressor finds. The frames of a part follow each other, each after its length in
8 bytes.

Nothing of a stranger's is unpacked before its size is known: a frame must state what it holds, and what it states must
be what the tensor's shape asks for. The library's own limit of the output is no limit for frames that state a size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import zstandard
from torch import Tensor

from merging.recipe import MergingError
from merging.vectors.tensors import Bits

LEVEL = 3

_LENGTH = 8


def malformed(expected: str, found: object) -> MergingError:
    """What is said of a part that cannot be: nobody's mistake but that of who made or sent the vector."""
    return MergingError(
        f"a tensor of the vector is damaged, or not what it is said to be: expected {expected}, found {found}; "
        "fetch the vector again, or extract it again"
    )


def pack(arrays: Iterable[Bits]) -> Tensor:
    """Flat arrays of numbers, a frame for each, as one part: uint8."""
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    found = bytearray()
    for array in arrays:
        frame = compressor.compress(_shuffled(array))
        found += len(frame).to_bytes(_LENGTH, "little")
        found += frame
    return torch.from_numpy(np.frombuffer(found, dtype=np.uint8))


class Frames:
    """The frames of a part, none of them unpacked yet.

    Attributes:
        sizes: bytes that each will have when it is unpacked.
    """

    def __init__(self, part: Tensor, count: int):
        """Find them.

        Args:
            part: of :func:`pack`.
            count: how many frames there must be.

        Raises:
            MergingError: there are not as many, or one does not say how much it holds.
        """
        if part.dtype != torch.uint8 or part.ndim != 1:
            raise malformed("a row of bytes", f"{part.dtype} of shape {list(part.shape)}")
        data = part.contiguous().numpy().data
        self._frames: list[memoryview] = []
        start = 0
        while start < len(data):
            end = start + _LENGTH + int.from_bytes(data[start : start + _LENGTH], "little")
            if end > len(data) or len(self._frames) == count:
                raise malformed(f"{count} frames in {len(data)} bytes", f"one that ends at byte {end}")
            self._frames.append(data[start + _LENGTH : end])
            start = end
        if len(self._frames) != count:
            raise malformed(f"{count} frames", len(self._frames))
        self.sizes = [_size(each) for each in self._frames]

    def unpack(self, number: int, dtype: np.dtype[np.generic], count: int) -> Bits:
        """The numbers of a frame: flat, in memory of their own.

        Args:
            number: of the frame.
            dtype: of a number.
            count: how many there must be.

        Raises:
            MergingError: the frame holds another number of bytes, or is damaged.
        """
        needed = count * dtype.itemsize
        if self.sizes[number] != needed:
            raise malformed(f"{needed} bytes in a frame", self.sizes[number])
        try:
            data = zstandard.ZstdDecompressor().decompress(
                self._frames[number], max_output_size=needed, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise malformed(f"a Zstandard frame of {needed} bytes", error) from None
        if len(data) != needed:
            raise malformed(f"{needed} bytes in a frame", len(data))
        planes = np.frombuffer(data, dtype=np.uint8).reshape(dtype.itemsize, count)
        found: Bits = np.array(planes.T, order="C").view(dtype).reshape(-1)
        return found

    def check(self, needed: Iterable[int]) -> None:
        """Refuse frames that state other sizes than these.

        Raises:
            MergingError: names the first.
        """
        for number, (size, wanted) in enumerate(zip(self.sizes, needed, strict=True)):
            if size != wanted:
                raise malformed(f"{wanted} bytes in frame {number}", size)


def frame_sizes(numel: int, piece: int, itemsize: int) -> Iterator[int]:
    """Bytes of the frames of a tensor whose every element has a number."""
    for start in range(0, numel, piece):
        yield (min(start + piece, numel) - start) * itemsize


def _shuffled(array: Bits) -> bytes:
    planes = np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.dtype.itemsize)
    return planes.T.tobytes()


def _size(frame: memoryview) -> int:
    try:
        size = zstandard.get_frame_parameters(frame).content_size
    except zstandard.ZstdError as error:
        raise malformed("a Zstandard frame", error) from None
    if size >= zstandard.CONTENTSIZE_ERROR:  # not stated
        raise malformed("a frame that states its size", "one that does not")
    return int(size)
