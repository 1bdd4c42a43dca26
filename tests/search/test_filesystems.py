"""On what a folder lies, and which journal keeps a database whole there."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.errors import SearchError
from search.filesystems import LOCAL, file_system_of, journal_for, kind_of


class Row(NamedTuple):
    device: str
    mountpoint: str
    fstype: str
    opts: str


Mount = Callable[..., None]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Row]], None]:
    def fake(rows: list[Row]) -> None:
        monkeypatch.setattr(psutil, "disk_partitions", lambda **asked: rows if asked == {"all": True} else [])

    return fake


@pytest.fixture
def mount(table: Callable[[list[Row]], None], tmp_path: Path) -> Mount:
    """Lets the test's folder look as if it lay on another file system."""

    def fake(kind: str, options: str = "rw,relatime", device: str = "server:/export") -> None:
        table([Row("/dev/sda1", "/", "ext4", "rw"), Row(device, str(tmp_path.resolve()), kind, options)])

    return fake


def test_the_kernel_agrees() -> None:
    """Every mount point that stat(2) can reach has the kind that the kernel gives to its device number."""
    kinds = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kinds[fields.split()[2]] = rest.split()[0]
    places = [Path(each.mountpoint) for each in psutil.disk_partitions(all=True)]
    checked = 0
    for place in places:
        number = place.stat().st_dev if os.access(place, os.X_OK) else 0
        device = f"{os.major(number)}:{os.minor(number)}"
        if device in kinds and not place.is_file():
            assert kind_of(place) == kinds[device], place
            checked += 1
    assert checked > 1
    assert kind_of(Path("/proc/self")) == "proc"


def test_the_longest_mount_point_counts_and_of_equals_the_last(table: Callable[[list[Row]], None]) -> None:
    table(
        [
            Row("/dev/sda1", "/", "ext4", "rw"),
            Row("auto.nfs", "/nfs", "autofs", "rw"),
            Row("server:/nfs", "/nfs", "nfs4", "rw,vers=4.2,hard"),
            Row("/dev/sdb1", "/nfs/me/scratch", "xfs", "rw"),
            Row("tmpfs", "/data", "tmpfs", "rw"),
        ]
    )
    assert kind_of(Path("/")) == "ext4"
    assert kind_of(Path("/nfs")) == "nfs4"
    assert kind_of(Path("/nfs/me/not/there/yet")) == "nfs4"
    assert kind_of(Path("/nfs/me/scratch/run")) == "xfs"
    assert kind_of(Path("/nfs/me/scratchy")) == "nfs4"
    assert kind_of(Path("/nfs/me/scratch/../run")) == "nfs4"
    assert kind_of(Path("/database")) == "ext4"
    found = file_system_of(Path("/nfs/me"))
    assert (found.mounted, found.source, found.local) == (Path("/nfs"), "server:/nfs", False)
    assert "hard" in found.options


def test_links_are_followed_and_relative_paths_are_where_one_stands(
    mount: Mount, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount("nfs4")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "runs").symlink_to(tmp_path)
    assert kind_of(elsewhere) == "ext4"
    assert kind_of(elsewhere / "runs" / "one") == "nfs4"
    monkeypatch.chdir(tmp_path)
    assert kind_of(Path("runs/one")) == "nfs4"


def test_without_a_table_nothing_is_assumed(table: Callable[[list[Row]], None], tmp_path: Path) -> None:
    table([])
    assert kind_of(tmp_path) == "unknown"
    assert not file_system_of(tmp_path).local
    assert journal_for(tmp_path) == "delete"


names = st.sampled_from(["a", "b", "ab"])
paths = st.lists(names, max_size=4).map(lambda parts: "/none-such/" + "/".join(parts))


@given(st.lists(paths, max_size=6), paths)
def test_the_mount_found_is_the_nearest_above(mounts: list[str], path: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        rows = [Row("", "/", "ext4", "")] + [Row("", each, f"kind{at}", "") for at, each in enumerate(mounts)]
        patch.setattr(psutil, "disk_partitions", lambda **_: rows)
        above = [Path(path), *Path(path).parents]
        nearest = next(each for each in above if any(Path(row.mountpoint) == each for row in rows))
        assert kind_of(Path(path)) == [row.fstype for row in rows if Path(row.mountpoint) == nearest][-1]


@pytest.mark.parametrize("kind", sorted(LOCAL))
def test_local_file_systems_share_memory(kind: str, mount: Mount, tmp_path: Path) -> None:
    mount(kind, device="/dev/sdb1")
    assert journal_for(tmp_path) == "wal"


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("nfs", "rw,vers=3,hard,local_lock=none"),
        ("nfs4", "rw,vers=4.2,local_lock=none"),
        ("nfs", "rw,vers=3,local_lock=flock"),
        ("cifs", "rw,vers=3.1.1,cache=strict"),
        ("smb3", "rw"),
        ("lustre", "rw,flock,lazystatfs"),
        ("gpfs", "rw"),
        ("beegfs", "rw"),
        ("ceph", "rw"),
        ("fuse.ceph-fuse", "rw"),
        ("fuse.glusterfs", "rw"),
        ("fuse.juicefs", "rw"),
        ("9p", "rw,trans=virtio"),
        ("virtiofs", "rw"),
        ("gfs2", "rw"),
        ("a-kind-of-the-future", "rw"),
    ],
)
def test_shared_file_systems_get_a_rollback_journal(kind: str, options: str, mount: Mount, tmp_path: Path) -> None:
    mount(kind, options)
    assert journal_for(tmp_path) == "delete"
    assert list(tmp_path.iterdir()) == [], "the trial leaves nothing behind"


@pytest.mark.parametrize(
    ("kind", "device"),
    [
        ("fuse.gcsfuse", "bucket"),
        ("fuse.s3fs", "s3fs"),
        ("fuse.goofys", "bucket"),
        ("fuse.rclone", "remote:"),
        ("fuse.blobfuse2", "blobfuse2"),
        ("fuse.drive", "drive"),
        ("fuse", "mountpoint-s3"),
        ("fuse", "gcsfuse"),
        ("davfs", "https://server/dav"),
    ],
)
def test_object_stores_are_refused(kind: str, device: str, mount: Mount, tmp_path: Path) -> None:
    mount(kind, device=device)
    with pytest.raises(SearchError, match=rf"found {kind} .*whole objects.*on a local disk") as refused:
        journal_for(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("fuse.sshfs", "rw", "one machine only"),
        ("afs", "rw", "one machine only"),
        ("nfs", "rw,vers=3,nolock,local_lock=all", "mounted with local_lock=all, nolock"),
        ("nfs", "rw,vers=3,local_lock=posix", "mounted with local_lock=posix"),
        ("lustre", "rw,localflock", "mounted with localflock"),
        ("cifs", "rw,nobrl", "mounted with nobrl"),
    ],
)
def test_locks_that_one_machine_keeps_to_itself_are_refused(
    kind: str, options: str, reason: str, mount: Mount, tmp_path: Path
) -> None:
    mount(kind, options)
    with pytest.raises(SearchError, match=reason):
        journal_for(tmp_path)


def test_a_lock_that_stops_nobody_is_found_out(mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount("9p")
    monkeypatch.setattr(fcntl, "lockf", lambda *arguments: None)  # as on a server that says yes to everybody
    with pytest.raises(SearchError, match="two processes were given the same byte-range lock"):
        journal_for(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_found_out(
    mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    mount("pvfs2")
    monkeypatch.setattr(fcntl, "lockf", none)
    with pytest.raises(SearchError, match="could not be taken"):
        journal_for(tmp_path)


def test_a_lock_that_is_never_freed_is_found_out(mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.lockf

    def sticky(file: int, operation: int, *rest: int) -> None:
        if operation != fcntl.LOCK_UN:
            real(file, operation, *rest)

    mount("9p")
    monkeypatch.setattr(fcntl, "lockf", sticky)
    with pytest.raises(SearchError, match="after it was freed: refused"):
        journal_for(tmp_path)


def test_a_folder_that_is_gone_is_a_users_error(mount: Mount, tmp_path: Path) -> None:
    mount("nfs4")
    with pytest.raises(SearchError, match="can be written"):
        journal_for(tmp_path / "gone")
