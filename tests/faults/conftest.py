"""One process that starts the runs of all tests here, and one search that they strike."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the harness beside the tests: importlib mode adds no folder

from launching import Launcher
from searches import COMMAND, Searches


@pytest.fixture(scope="session")
def launcher(nano_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts runs quickly."""
    warm = Searches.make(tmp_path_factory.mktemp("warm"), candidates=1)
    with Launcher(COMMAND, warm.folder) as found:
        yield found


@pytest.fixture(scope="session")
def calm(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Searches:
    """The undisturbed run, ``calm``; the others of its folder are struck."""
    searches = Searches.make(tmp_path_factory.mktemp("struck"))
    run = launcher.start(
        *COMMAND, "--name", "calm", folder=searches.folder, environment=searches.environment("calm")
    )  # fmt: skip
    assert run.wait() == 0, run.output
    return searches
