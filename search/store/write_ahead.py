"""SQLite's write-ahead log, read without SQLite (sqlite.org/fileformat2.html, section 4).

SQLite takes the first frame whose checksum is wrong for the end of the log. After a kill that is right; after damage
it is not, and what lies behind would be lost without a word.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

_HEADER = 32
_FRAME = 24
_MAGIC = 0x377F0682
"""Its lowest bit says whether checksums are over big-endian words."""


@dataclass(frozen=True)
class Frame:
    """An image of a page.

    Attributes:
        page: its number, from 1.
        size: of the database in pages, where a transaction ends with this frame; else 0.
        image: the page.
    """

    page: int
    size: int
    image: bytes


class WriteAheadLog:
    """A log file as it lies there, possibly damaged."""

    def __init__(self, data: bytes) -> None:
        """Args:
        data: the file.
        """
        self._data = data
        magic, _, page_size, *_ = struct.unpack(">IIIIIIII", data[:_HEADER]) if len(data) >= _HEADER else [0] * 8
        self._words = np.dtype(">u4" if magic & 1 else "<u4")
        self.page_size = page_size if is_page_size(page_size) else 4096
        self._intact_header = (
            magic & ~1 == _MAGIC
            and page_size == self.page_size
            and _checksum(_array(data[:24], self._words), (0, 0)) == struct.unpack(">II", data[24:_HEADER])
        )

    @cached_property
    def frames(self) -> list[Frame]:
        """Those of the log's present round, up to the last end of a transaction, whatever their checksums say."""
        found = [
            Frame(page, size, self._data[start + _FRAME : start + _FRAME + self.page_size])
            for start, page, size, salts in self._heads()
            if salts == self._salts
        ]
        ends = [place for place, each in enumerate(found) if each.size]
        return found[: ends[-1] + 1] if ends else []

    @property
    def lost(self) -> int:
        """Transactions that lie behind the first wrong checksum: SQLite does not see them."""
        sound = self._sound() if self._intact_header else 0
        return sum(1 for start, _, size, salts in self._heads() if salts == self._salts and size and start >= sound)

    @cached_property
    def _salts(self) -> bytes:
        """Which round the file is in; frames of earlier rounds, already in the database, have others."""
        if self._intact_header:
            return self._data[16:24]
        first = self._data[_HEADER : _HEADER + _FRAME]
        return first[8:16]

    def _heads(self) -> Iterator[tuple[int, int, int, bytes]]:
        """(position, page, size after commit, salts) of every whole frame."""
        step = _FRAME + self.page_size
        for start in range(_HEADER, len(self._data) - step + 1, step):
            page, size = struct.unpack(">II", self._data[start : start + 8])
            yield start, page, size, self._data[start + 8 : start + 16]

    def _sound(self) -> int:
        """Where the first frame begins that SQLite does not take."""
        step = _FRAME + self.page_size
        sums: tuple[int, int] = struct.unpack(">II", self._data[24:_HEADER])
        for start, page, _, salts in self._heads():
            content = self._data[start : start + 8] + self._data[start + _FRAME : start + step]
            sums = _checksum(_array(content, self._words), sums)
            stored = struct.unpack(">II", self._data[start + 16 : start + _FRAME])
            if salts != self._salts or page == 0 or sums != stored:
                return start
        return len(self._data)


def lost_transactions(path: Path) -> int:
    """How many committed transactions of a log SQLite would pass over; 0 where there is no log.

    Args:
        path: of the log; nobody is writing to it.
    """
    try:
        data = path.read_bytes()
    except OSError:  # none, or SQLite will say why
        return 0
    return WriteAheadLog(data).lost if len(data) > _HEADER else 0


def holds_transactions(path: Path) -> bool:
    """Whether there is a log, and something in it."""
    try:
        return bool(WriteAheadLog(path.read_bytes()).frames)
    except OSError:
        return False


def is_page_size(size: int) -> bool:
    """Whether a database's pages can have so many bytes."""
    return 512 <= size <= 65536 and size & (size - 1) == 0


def _array(data: bytes, words: np.dtype[np.uint32]) -> Words:
    return np.frombuffer(data, dtype=words).astype(np.uint32)


def _checksum(words: Words, sums: tuple[int, int]) -> tuple[int, int]:
    """s0 += x0 + s1; s1 += x1 + s0 over all pairs of words (section 4.2), as one matrix product modulo 2^32.

    Args:
        words: [2 n] uint32.
        sums: (s0, s1) so far.
    """
    weights, carry = _weights(len(words) // 2)
    added = (words[:, None] * weights).sum(axis=0, dtype=np.uint32)
    return tuple(int(added[k]) + sums[0] * carry[k][0] + sums[1] * carry[k][1] & 0xFFFFFFFF for k in (0, 1))  # type: ignore[return-value]


@cache
def _weights(pairs: int) -> tuple[Words, tuple[tuple[int, int], tuple[int, int]]]:
    """What every word counts for in either sum ([2 n, 2] uint32), and what the sums before count for.

    One step is s' = A s + B x with A = [[1, 1], [1, 2]] and B = [[1, 0], [1, 1]].
    """
    weights = np.empty((2 * pairs, 2), dtype=np.uint32)
    a, b, c, d = 1, 0, 0, 1  # A to the power of the steps that follow
    for place in range(pairs - 1, -1, -1):
        weights[2 * place] = (a + b) & 0xFFFFFFFF, (c + d) & 0xFFFFFFFF
        weights[2 * place + 1] = b, d
        a, b, c, d = ((a + b) & 0xFFFFFFFF, (a + 2 * b) & 0xFFFFFFFF, (c + d) & 0xFFFFFFFF, (c + 2 * d) & 0xFFFFFFFF)
    return weights, ((a, b), (c, d))
