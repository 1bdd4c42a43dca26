"""What all tests share: no network, no deadlines, and the small zoo family, built once per machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"

# a busy machine is slow, not wrong; and the same examples everywhere, so that a failure can be repeated
settings.register_profile("paretomerge", deadline=None, derandomize=True)
settings.load_profile("paretomerge")


@pytest.fixture(scope="session")
def nano_zoo() -> Path:
    """The folder of ``skills-nano``, training seed 0, in the user's cache; trained on the first use."""
    import zoo

    return zoo.build("skills-nano")
