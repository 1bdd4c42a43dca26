"""What a killed writer has left is cleared away; what is being written, and what belongs to others, is not."""

from __future__ import annotations

import os
from pathlib import Path

from merging.durable import clear_abandoned, hold


def test_only_what_nobody_holds_is_removed(tmp_path: Path) -> None:
    abandoned, held, other = (tmp_path / name for name in (".out.partial-1", ".out.partial-2", "out"))
    for folder in (abandoned, held, other):
        (folder / "deep").mkdir(parents=True)
    (tmp_path / ".out.partial-3").write_text("a file")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / ".out.partial-4").symlink_to(elsewhere)
    # whoever writes may be another process
    ready, release = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        hold(held)
        os.write(ready[1], b".")
        os.read(release[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    try:
        clear_abandoned(tmp_path, ".out.partial-*")
        assert sorted(each.name for each in tmp_path.iterdir()) == [
            ".out.partial-2", ".out.partial-4", "elsewhere", "out",
        ]  # fmt: skip
        assert (held / "deep").is_dir()
    finally:
        os.write(release[1], b".")
        os.waitpid(pid, 0)
        for end in (*ready, *release):
            os.close(end)
    # its holder has ended
    clear_abandoned(tmp_path, ".out.partial-*")
    assert not held.exists()


def test_what_is_closed_is_not_held_any_more(tmp_path: Path) -> None:
    place = tmp_path / ".report.partial-1"
    place.write_text("half")
    descriptor = hold(place)
    clear_abandoned(tmp_path, ".report.partial-*")
    assert place.exists()
    os.close(descriptor)
    clear_abandoned(tmp_path, ".report.partial-*")
    assert not place.exists()
