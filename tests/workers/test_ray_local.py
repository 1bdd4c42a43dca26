"""A Ray that is started for one pool, and that leaves nothing behind."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from search.config import load_config
from search.errors import SearchError
from search.schema import WorkersConfig
from search.setup import set_up
from search.workers.identity import Identity
from search.workers.ray import open_ray_pool
from search.workers.ray_home import RayHome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.filterwarnings("default")]


def opened(folder: Path, **settings: Any) -> Any:
    loaded = load_config(folder / "config.yaml")
    expected = Identity.of(loaded, set_up(loaded, 1, live=False))
    return loaded, WorkersConfig(kind="ray", **settings), expected


def test_a_worker_with_a_changed_plug_in_is_refused(trapped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, workers, expected = opened(trapped, count=1)
    homes: list[Path] = []
    make = RayHome.__init__

    def remembered(self: RayHome, base: Path | None = None) -> None:
        make(self, base)
        homes.append(self.path)

    monkeypatch.setattr(RayHome, "__init__", remembered)
    (trapped / "traps.py").write_text((trapped / "traps.py").read_text() + "# changed\n")
    (trapped / "run").mkdir()
    # another package of this name, where the driver stands: a worker must not take it for ours
    (trapped / "search").mkdir()
    (trapped / "search/__init__.py").write_text("raise ImportError('not ours')")
    monkeypatch.chdir(trapped)
    before = Path.cwd(), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SearchError, match="evaluator 'string' has other data, options or code"):
        open_ray_pool(loaded, workers, trapped / "run", 1, expected, lambda line: None)
    assert (Path.cwd(), signal.getsignal(signal.SIGTERM)) == before
    assert homes and not homes[0].exists()


def test_a_worker_that_finds_another_package_of_our_name_is_refused(
    trapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, workers, expected = opened(trapped, count=1)
    (trapped / "shadow/search").mkdir(parents=True)
    (trapped / "shadow/search/__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(trapped / "shadow"))
    with pytest.raises(SearchError, match=r"cannot run what the driver runs \(.*No module named 'search"):
        open_ray_pool(loaded, workers, trapped, 1, expected, lambda line: None)
