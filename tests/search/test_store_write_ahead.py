"""The write-ahead log is understood as SQLite understands it, and what SQLite would pass over is counted."""

from __future__ import annotations

import shutil
import sqlite3
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.store.write_ahead import WriteAheadLog, _checksum, lost_transactions

FRAME = 24 + 4096


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of 12 transactions as a kill leaves it: eight in an earlier round of its log, four in the present."""
    folder = tmp_path_factory.mktemp("log")
    connection = sqlite3.connect(folder / "live.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE t (n INTEGER, filler BLOB)")
    for n in range(12):
        if n == 8:
            connection.execute("PRAGMA wal_checkpoint(RESTART)")
        connection.execute("INSERT INTO t VALUES (?, randomblob(9000))", (n,))
    for end in ("", "-wal"):
        shutil.copy(folder / f"live.db{end}", folder / f"x.db{end}")
    connection.close()
    return folder


def copy_of(killed: Path, folder: Path) -> Path:
    for end in ("", "-wal"):
        shutil.copy(killed / f"x.db{end}", folder / f"x.db{end}")
    return folder / "x.db"


def rows(database: Path) -> list[int]:
    """What SQLite makes of it."""
    connection = sqlite3.connect(database)
    try:
        return [n for (n,) in connection.execute("SELECT n FROM t ORDER BY n")]
    finally:
        connection.close()


def test_what_a_kill_leaves_is_whole(killed: Path, tmp_path: Path) -> None:
    log = WriteAheadLog((killed / "x.db-wal").read_bytes())
    assert (log.page_size, log.lost) == (4096, 0)
    assert sum(1 for each in log.frames if each.size) == 4  # those of the earlier round lie behind, and are not taken
    assert len(log.frames) * FRAME + 32 < (killed / "x.db-wal").stat().st_size
    assert rows(copy_of(killed, tmp_path)) == list(range(12))


def test_the_pages_are_those_that_sqlite_reads(killed: Path, tmp_path: Path) -> None:
    database = copy_of(killed, tmp_path)
    log = WriteAheadLog(Path(f"{database}-wal").read_bytes())
    pages = {each.page: each.image for each in log.frames}
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data = database.read_bytes()
    assert all(data[4096 * (page - 1) : 4096 * page] == image for page, image in pages.items() if page != 1)


def test_transactions_behind_a_changed_byte_are_counted(killed: Path, tmp_path: Path) -> None:
    data = (killed / "x.db-wal").read_bytes()
    frames = WriteAheadLog(data).frames
    chance = np.random.default_rng(0)
    for frame in range(len(frames)):
        changed = bytearray(data)
        changed[32 + frame * FRAME + int(chance.integers(24, FRAME))] ^= 1 << int(chance.integers(8))
        database = copy_of(killed, tmp_path)
        Path(f"{database}-wal").write_bytes(changed)
        lost = sum(1 for each in frames[frame:] if each.size)
        assert lost_transactions(Path(f"{database}-wal")) == lost
        assert rows(database) == list(range(12 - lost))


@pytest.mark.parametrize("place", [0, 3, 8, 17, 20, 25, 31])
def test_a_damaged_header_hides_everything(killed: Path, tmp_path: Path, place: int) -> None:
    database = copy_of(killed, tmp_path)
    data = bytearray((killed / "x.db-wal").read_bytes())
    data[place] ^= 0x10
    Path(f"{database}-wal").write_bytes(data)
    assert lost_transactions(Path(f"{database}-wal")) == 4
    assert rows(database) == list(range(8))


@pytest.mark.parametrize("data", [b"", b"x" * 20, b"\0" * 32, b"\xff" * 9000])
def test_what_is_no_log_holds_nothing(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "wal").write_bytes(data)
    log = WriteAheadLog(data)
    assert lost_transactions(tmp_path / "wal") <= 2
    assert [each for each in log.frames if len(each.image) != log.page_size] == []
    assert lost_transactions(tmp_path / "none") == 0


@settings(max_examples=40)
@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=15))
def test_the_checksum_is_the_formats(half: list[int]) -> None:
    words = [*half, *reversed(half)]
    s0, s1 = 7, 2**31
    for x0, x1 in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + x0 + s1) % 2**32
        s1 = (s1 + x1 + s0) % 2**32
    assert _checksum(np.array(words, dtype=np.uint32), (7, 2**31)) == (s0, s1)


def test_the_header_is_checked_as_sqlite_writes_it(killed: Path) -> None:
    data = (killed / "x.db-wal").read_bytes()
    order = "<" if struct.unpack(">I", data[:4])[0] == 0x377F0682 else ">"
    words = np.frombuffer(data[:24], dtype=f"{order}u4").astype(np.uint32)
    assert _checksum(words, (0, 0)) == struct.unpack(">II", data[24:32])
