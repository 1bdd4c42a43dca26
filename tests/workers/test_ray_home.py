"""Where a Ray that was started here keeps its files, and what is left of dead drivers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from search.workers import ray_home
from search.workers.ray_home import RayHome


def test_a_home_is_made_and_removed(tmp_path: Path) -> None:
    home = RayHome(tmp_path)
    assert home.path.is_dir() and home.path.stat().st_mode & 0o077 == 0
    (home.path / "session").mkdir()
    home.close()
    home.close()
    assert not list(tmp_path.iterdir())


def test_the_living_keep_theirs_and_the_dead_do_not(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from search.workers.ray_home import RayHome; "
        f"home = RayHome(Path({str(tmp_path)!r})); (home.path / 'log').touch(); print(home.path, flush=True); "
        "time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        mine = RayHome(tmp_path)
        assert theirs.is_dir() and mine.path != theirs
        other.send_signal(signal.SIGKILL)
        other.wait()
    third = RayHome(tmp_path)
    assert not theirs.exists() and mine.path.is_dir()
    mine.close()
    third.close()


def test_a_folder_that_another_driver_is_about_to_lock_stays(tmp_path: Path) -> None:
    young, old = tmp_path / "young", tmp_path / "old"
    young.mkdir()
    old.mkdir()
    os.utime(old, (0, 0))
    RayHome(tmp_path).close()
    assert young.is_dir() and not old.exists()


def test_a_strangers_folder_in_its_place_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_home.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(ray_home, "_LONGEST", 1000)
    stranger = tmp_path / "stranger"
    stranger.mkdir(mode=0o755)
    (tmp_path / f"pmray-{os.getuid()}").symlink_to(stranger)
    home = RayHome()
    assert stranger not in home.path.parents and not list(stranger.iterdir())
    home.close()


def test_sockets_have_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a socket has 107 bytes; Ray puts its session's name and the socket's own below the folder."""
    deep = tmp_path / ("a" * 100)
    deep.mkdir()
    monkeypatch.setattr(ray_home.tempfile, "gettempdir", lambda: str(deep))
    home = RayHome()
    session = "session_2026-11-22_16-41-59_240715_4194304/sockets/plasma_store.1"
    assert len(str(home.path / session)) <= 107
    home.close()
