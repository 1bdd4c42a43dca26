"""Folders on a network file system, a clock for the lease, and child processes that end with their test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the helpers beside the tests: importlib mode adds no folder

from lock_holders import FakeTime

from search import lock
from search.filesystems import FileSystem


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder seems to lie on a network file system."""
    monkeypatch.setattr(lock, "file_system_of", lambda path: FileSystem("nfs4", path))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(lock, "time", fake)
    return fake
