"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Nothing is ever loaded from a model hub; without this a missing folder is asked for over the network first.
os.environ["HF_HUB_OFFLINE"] = "1"
# Models of tests are tiny: a second thread only waits, all the more on a busy machine. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def nano_zoo() -> Path:
    """The folder of the family ``skills-nano``, seed 0, in the user's cache: built once a machine, then reused."""
    import zoo

    return zoo.build("skills-nano")
