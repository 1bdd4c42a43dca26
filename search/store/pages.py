"""Rows read straight from the pages of a damaged database (sqlite.org/fileformat2.html, sections 1.6, 2.1).

Neither the file's header, nor its schema, nor the upper pages of its trees are asked: every leaf page is looked at by
itself, in the file and in its write-ahead log. Whether a row is what it looks like is for its digest to say, so nothing
here can bring back a wrong one. A row that is not whole is passed over.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from search.store import schema
from search.store.digests import SIZE, EventRow, ItemRow, set_hash
from search.store.tables import beginning
from search.store.write_ahead import WriteAheadLog, is_page_size

_LEAF = 0x0D
_OTHER_TREE_PAGES = (0x00, 0x02, 0x05, 0x0A)
"""The first byte of pages that are surely no leaf of a table: 0 is that of an overflow page."""
_FIXED = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 7: 8, 8: 0, 9: 0}
"""Serial type -> bytes; larger ones are blobs and texts."""
_EVENT, _ITEMS, _SET = 8, 9, 2
"""Columns of the tables that are read."""

Value = int | float | str | bytes | None


class ItemSet(NamedTuple):
    """A row of the item_sets table.

    Attributes:
        hash: of the ids.
        ids: JSON list.
    """

    hash: str
    ids: str


def carve(path: Path, ahead: Path) -> Iterator[EventRow | ItemRow | ItemSet]:
    """Every row that is as it was written, older images of pages included; the same one may come several times.

    Args:
        path: of the database's file; may be missing or of any content.
        ahead: of its write-ahead log; may be missing.

    Raises:
        OSError: a file is there and cannot be read.
    """
    data = path.read_bytes() if path.exists() else b""
    log = WriteAheadLog(ahead.read_bytes() if ahead.exists() else b"")
    size = int.from_bytes(data[16:18], "big")
    sizes = [log.page_size, 65536 if size == 1 else size, 4096]
    for page_size in dict.fromkeys(each for each in sizes if is_page_size(each)):
        yield from _Pages(data, log, page_size).rows()


class _Pages:
    def __init__(self, data: bytes, log: WriteAheadLog, size: int) -> None:
        self._data, self._size = data, size
        self._frames = log.frames if log.page_size == size else []
        self._newest = {each.page: each.image for each in self._frames}

    def rows(self) -> Iterator[EventRow | ItemRow | ItemSet]:
        images = (self._in_file(page) for page in range(1, len(self._data) // self._size + 2))
        yield from self._leaf(next(images), 100)  # the first page begins with the file's header
        for image in (*images, *(each.image for each in self._frames)):
            yield from self._leaf(image, 0)

    def _in_file(self, page: int) -> bytes:
        return self._data[(page - 1) * self._size : page * self._size]

    def _leaf(self, image: bytes, start: int) -> Iterator[EventRow | ItemRow | ItemSet]:
        if len(image) < start + 8 or image[start] in _OTHER_TREE_PAGES:
            return
        cells = int.from_bytes(image[start + 3 : start + 5], "big")
        if image[start] != _LEAF and not 0 < cells < self._size // 8:
            return
        for place in range(start + 8, min(start + 8 + 2 * cells, len(image) - 1), 2):
            try:
                rowid, values = self._record(image, int.from_bytes(image[place : place + 2], "big"))
                row = _typed(rowid, values)
            except (IndexError, TypeError, ValueError, OverflowError, struct.error):
                continue
            if row is not None:
                yield row

    def _record(self, image: bytes, start: int) -> tuple[int, list[Value]]:
        """Row number and columns of a cell.

        Raises:
            IndexError, ValueError: it is no such cell.
        """
        length, start = _varint(image, start)
        rowid, start = _varint(image, start)
        payload = self._payload(image, start, length)
        end, place = _varint(payload, 0)
        kinds = []
        while place < end:
            kind, place = _varint(payload, place)
            kinds.append(kind)
        if len(kinds) not in (_EVENT, _ITEMS, _SET):
            return rowid, []
        values: list[Value] = []
        for kind in kinds:
            width = _FIXED[kind] if kind in _FIXED else (kind - 12) // 2
            values.append(_value(kind, payload[place : place + width], width))
            place += width
        return rowid, values

    def _payload(self, image: bytes, start: int, length: int) -> bytes:
        """A cell's content, the part that lies on overflow pages too (section 1.6)."""
        if not 0 < length <= len(self._data) + len(self._frames) * self._size:
            raise ValueError("a row as long as that is none")
        local = length
        if length > self._size - 35:
            least = (self._size - 12) * 32 // 255 - 23
            local = least + (length - least) % (self._size - 4)
            local = local if local <= self._size - 35 else least
        parts = [image[start : start + local]]
        rest = length - local
        page = int.from_bytes(image[start + local : start + local + 4], "big")
        while rest > 0:
            overflow = self._newest.get(page) or self._in_file(page)
            if page == 0 or not overflow:
                raise ValueError("its overflow page is not there")
            parts.append(overflow[4 : 4 + rest])
            rest -= self._size - 4
            page = int.from_bytes(overflow[:4], "big")
        return b"".join(parts)


def _typed(rowid: int, values: list[Value]) -> EventRow | ItemRow | ItemSet | None:
    """The row, if its columns are of one of the tables, and its digest says that it is as it was written."""
    match values:
        case [None, int() | float() as at, str(), None | int(), str(), str(), bytes(), bytes(digest)]:
            # a float without a fraction is stored as an integer
            event = EventRow._make([rowid, float(at), *values[2:]])
            return event if len(digest) == SIZE and event.intact else None
        case [int(), str(), str(), str(), str(), bytes(), bytes(), bytes(), bytes()]:
            row = ItemRow._make(values)
            return row if row.intact else None
        case [schema.BEGINNING, str(copy)]:
            return beginning(copy)
        case [str(key), str(ids)]:
            found = ItemSet(key.removeprefix(schema.SET_COPY), ids)
            return found if set_hash(ids) == found.hash else None
        case _:
            return None


def _varint(data: bytes, start: int) -> tuple[int, int]:
    """(value, position behind it) of a variable-length integer: up to nine bytes, of the ninth all bits count."""
    value = 0
    for place in range(start, start + 8):
        byte = data[place]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, place + 1
    value = value << 8 | data[start + 8]
    return value - (1 << 64) if value >> 63 else value, start + 9


def _value(kind: int, data: bytes, width: int) -> Value:
    """A column (section 2.1).

    Raises:
        ValueError: there is none of that type, or not enough of it.
    """
    if len(data) != width or kind in (10, 11) or kind < 0:
        raise ValueError("no such column")
    if kind == 0:
        return None
    if kind == 7:
        return float(struct.unpack(">d", data)[0])
    if kind in (8, 9):
        return kind - 8
    if kind < 7:
        return int.from_bytes(data, "big", signed=True)
    return data.decode() if kind % 2 else data
