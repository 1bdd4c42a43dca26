"""A vector as one file, and what strangers put into such files."""

from __future__ import annotations

import io
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from families import Family

from merging.checkpoint import Checkpoint
from merging.recipe import MergingError
from merging.vectors import archive
from merging.vectors.archive import read_archive, write_archive
from merging.vectors.extract import About, write_vector
from merging.vectors.store import copy_vector


@pytest.fixture(scope="module")
def vector(families: Callable[..., Family], tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, folder = families("llama"), tmp_path_factory.mktemp("vector")
    write_vector(folder, Checkpoint.open(family.base), Checkpoint.open(family.a), About("v"))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "deep" / "inside" / "out"
    folder.mkdir(parents=True)
    return folder


def files(vector: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in vector.iterdir()}


def zipped(file: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(file, "w", compression) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    return file


def tarred(file: Path, members: dict[str, bytes], *special: tarfile.TarInfo) -> Path:
    with tarfile.open(file, "w") as tar:
        for info in special:
            tar.addfile(info)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def everything(folder: Path) -> dict[str, bytes]:
    return {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()}


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_every_byte_comes_back(vector: Path, tmp_path: Path, out: Path, ending: str) -> None:
    file = tmp_path / f"v.{ending}"
    write_archive(vector, "v", file)
    assert read_archive(file, out).name == "v" and files(out) == files(vector)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_others_have_packed_is_read(vector: Path, tmp_path: Path, out: Path, compression: int) -> None:
    read_archive(zipped(tmp_path / "v.zip", files(vector), compression), out)
    assert files(out) == files(vector)


HOSTILE = [
    "../evil.txt", "/etc/evil", "v/../../evil", "v/x/evil", "..", "v\\..\\evil", "C:\\evil", "evil.py", "vector.json/x",
    "v/\x1b[2Jevil", ".hidden",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("ending, first", [("zip", False), ("tar", True)])
def test_hostile_names_refuse_the_whole_archive(
    vector: Path, tmp_path: Path, out: Path, name: str, ending: str, first: bool
) -> None:
    good = {f"v/{own}": data for own, data in files(vector).items()}
    members = {name: b"evil"} | good if first else good | {name: b"evil"}
    file = (zipped if ending == "zip" else tarred)(tmp_path / f"v.{ending}", members)
    before = everything(tmp_path)
    with pytest.raises(MergingError) as refused:
        read_archive(file, out)
    assert "nothing was taken from it" in str(refused.value)
    assert "\n" not in str(refused.value) and "\x1b" not in str(refused.value)
    new = everything(tmp_path).keys() - before.keys()
    assert all(each.startswith("deep/inside/out/") and "evil" not in each for each in new)


def _link(kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo("v/vector-00001-of-00001.safetensors")
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(vector: Path, tmp_path: Path, out: Path, kind: bytes) -> None:
    file = tarred(tmp_path / "v.tar", {f"v/{k}": d for k, d in files(vector).items()}, _link(kind, "../../../x"))
    with pytest.raises(MergingError, match="a link or a device"):
        read_archive(file, out)


def test_a_link_in_a_zip_is_refused(vector: Path, tmp_path: Path, out: Path) -> None:
    file = tmp_path / "v.zip"
    with zipfile.ZipFile(file, "w") as packed:
        info = zipfile.ZipInfo("v/vector.json")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        packed.writestr(info, "/etc/passwd")
    with pytest.raises(MergingError, match="a link or a device"):
        read_archive(file, out)


def test_a_bomb_is_not_unpacked(vector: Path, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "LARGEST_JSON", 1_000_000)
    monkeypatch.setattr(archive, "_LARGEST_CARD", 1_000_000)
    shard = next(name for name in files(vector) if name.endswith(".safetensors"))
    for members in (
        files(vector) | {shard: bytes(3_000_000)},
        files(vector) | {"README.md": bytes(3_000_000)},
        {"vector.json": bytes(3_000_000)},
    ):
        file = zipped(tmp_path / "v.zip", members, zipfile.ZIP_DEFLATED)
        assert file.stat().st_size < 200_000
        with pytest.raises(MergingError):
            read_archive(file, out)
        assert sum(each.stat().st_size for each in out.iterdir()) < 1_500_000
        for each in out.iterdir():
            each.unlink()


@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_a_folder_is_no_archive(tmp_path: Path, out: Path, ending: str) -> None:
    (tmp_path / f"v.{ending}").mkdir()
    with pytest.raises(MergingError, match=f"archive of a task vector at .*{ending}, found a folder"):
        read_archive(tmp_path / f"v.{ending}", out)


def test_an_archive_of_impossible_places_is_told_from_a_folder_that_cannot_be_written(
    vector: Path, tmp_path: Path, out: Path
) -> None:
    file = zipped(tmp_path / "v.zip", files(vector))
    whole = bytearray(file.read_bytes())
    whole[-6:-2] = (int.from_bytes(whole[-6:-2], "little") + 1000).to_bytes(4, "little")  # where its list begins
    file.write_bytes(whole)
    with pytest.raises(MergingError, match="found one that cannot be read"):
        read_archive(file, out)


@pytest.mark.parametrize("broken", ["cut", "flipped", "lost", "twice", "other", "empty"])
@pytest.mark.parametrize("ending", ["zip", "tar"])
def test_damage_is_one_paragraph(vector: Path, tmp_path: Path, out: Path, broken: str, ending: str) -> None:
    file = tmp_path / f"v.{ending}"
    write_archive(vector, "v", file)
    whole = file.read_bytes()
    shard = next(name for name in files(vector) if name.endswith(".safetensors"))
    if broken == "cut":
        file.write_bytes(whole[: len(whole) // 2])
    elif broken == "flipped":
        place = whole.index((vector / shard).read_bytes()) + (vector / shard).stat().st_size - 5
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    elif broken == "lost":
        (zipped if ending == "zip" else tarred)(file, {k: d for k, d in files(vector).items() if k != shard})
    elif broken == "twice":
        members = {f"v/{k}": d for k, d in files(vector).items()} | {"w/vector.json": b"{}"}
        (zipped if ending == "zip" else tarred)(file, members)
    else:
        file.write_bytes(b"" if broken == "empty" else b"no archive at all" * 100)
    with pytest.raises(MergingError) as refused:
        read_archive(file, out)
    assert "\n" not in str(refused.value)
    assert file.name in str(refused.value) and str(out) not in str(refused.value)


def test_a_damaged_folder_is_named_by_its_own_place(vector: Path, tmp_path: Path, out: Path) -> None:
    shutil.copytree(vector, tmp_path / "source")
    shard = next((tmp_path / "source").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(MergingError, match=f"{shard} as the vector's manifest says") as refused:
        copy_vector(tmp_path / "source", out)
    assert str(out) not in str(refused.value)


def test_a_copied_folder_brings_only_what_its_manifest_names(vector: Path, tmp_path: Path, out: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(vector, source)
    (source / "evil.py").write_text("evil")
    copy_vector(source, out)
    assert files(out) == files(vector)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (source / "README.md").unlink()
    (source / "README.md").symlink_to(secret)
    again = out.parent / "again"
    again.mkdir()
    with pytest.raises(MergingError, match="found a link"):
        copy_vector(source, again)
    assert not (again / "README.md").exists()
