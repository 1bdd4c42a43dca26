"""The store: whole or not there, whatever happens while it is written, and nothing outside of it."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from families import Family

from merging.checkpoint import Checkpoint
from merging.durable import hold
from merging.recipe import MergingError
from merging.vectors import extract
from merging.vectors import store as store_module
from merging.vectors.extract import About, write_vector
from merging.vectors.manifest import Manifest, Score
from merging.vectors.places import default_store
from merging.vectors.references import resolve
from merging.vectors.store import Store, copy_vector, verify

Fork = Callable[[Callable[[], object]], int]


@pytest.fixture(scope="module")
def vector(families: Callable[..., Family], tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, folder = families("llama"), tmp_path_factory.mktemp("vector")
    write_vector(folder, Checkpoint.open(family.base), Checkpoint.open(family.a), About("v"))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def copied(vector: Path) -> Callable[[Path], Manifest]:
    return lambda place: copy_vector(vector, place)


def test_a_vector_is_added_listed_and_removed(store: Store, vector: Path) -> None:
    assert store.names() == [] and not store.path.exists()
    place = store.add("legal-v2", copied(vector))
    assert place == store.path / "legal-v2" and content(place) == content(vector)
    assert store.names() == ["legal-v2"] and store.manifest("legal-v2") == Manifest.read(vector)
    assert verify(place)[1] == []
    with pytest.raises(MergingError, match="found legal-v2 in the store"):
        store.add("legal-v2", copied(vector))
    store.add("legal-v2", copied(vector), replace=True)
    store.remove("legal-v2")
    assert store.names() == [] and [each.name for each in store.path.iterdir()] == [".lock"]
    with pytest.raises(MergingError, match=r"there is no vector 'legal-v2' in the store .* it is empty"):
        store.remove("legal-v2")


@pytest.mark.parametrize(
    "name", ["", "..", ".", "../x", "a/b", "a\\b", "/etc", ".hidden", "a b", "é", "con", "a.", "x" * 101]
)
def test_names_are_plain(store: Store, vector: Path, name: str) -> None:
    with pytest.raises(MergingError, match="expected the name of a vector"):
        store.add(name, copied(vector))
    with pytest.raises(MergingError):
        store.folder(name)
    assert not store.path.exists()


def test_links_are_not_followed(store: Store, vector: Path, tmp_path: Path) -> None:
    store.add("real", copied(vector))
    (store.path / "link").symlink_to(vector)
    assert store.names() == ["real"]
    with pytest.raises(MergingError, match="a link, which a store does not follow"):
        store.folder("link")
    with pytest.raises(MergingError, match="found link in the store"):
        store.add("link", copied(vector))
    before = content(vector)
    store.add("link", copied(vector), replace=True)  # the link goes, not what it points to
    assert content(vector) == before and not (store.path / "link").is_symlink()


def test_two_processes_that_add_at_once_lose_nothing(store: Store, vector: Path, forked: Fork) -> None:
    def adds(first: int) -> Callable[[], object]:
        def add() -> None:
            for at in range(first, first + 4):
                store.add(f"v{at}", copied(vector))

        return add

    children = [forked(adds(first)) for first in (0, 4, 8)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert store.names() == sorted(f"v{at}" for at in range(12))
    assert all(content(store.folder(name)) == content(vector) for name in store.names())
    assert not list(store.path.glob(".*partial*"))


def test_of_two_that_want_one_name_one_gets_it(store: Store, vector: Path, forked: Fork) -> None:
    def add() -> None:
        try:
            store.add("v", copied(vector))
        except MergingError:
            os._exit(7)

    children = [forked(add) for _ in range(3)]
    ends = sorted(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert ends == [0, 7, 7] and content(store.folder("v")) == content(vector)


def test_a_full_disk_leaves_nothing(
    store: Store, families: Callable[..., Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = families("llama")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(extract, "save_file", full)
    with pytest.raises(MergingError, match="the disk became full"):
        store.add(
            "v",
            lambda folder: write_vector(folder, Checkpoint.open(family.base), Checkpoint.open(family.a), About("v")),
        )
    assert [each.name for each in store.path.iterdir()] == [".lock"]


def test_what_is_to_be_replaced_stays_until_the_new_one_has_its_place(
    store: Store, vector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = store.add("v", copied(vector))
    (place / "README.md").write_text("the old one")
    before, rename = content(place), Path.replace

    def fails(self: Path, target: Path) -> Path:
        if Path(target) == place and (self / "README.md").read_bytes() != before["README.md"]:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", fails)
        with pytest.raises(MergingError, match="could not be written"):
            store.add("v", copied(vector), replace=True)
    assert content(place) == before and {each.name for each in store.path.iterdir()} == {".lock", "v"}

    seen: list[dict[str, bytes]] = []
    monkeypatch.setattr(store_module, "_delete", lambda gone: seen.append(content(place)))
    store.add("v", copied(vector), replace=True)
    assert seen == [content(vector)]  # when the old one is deleted, the new one is there: no kill loses both


def test_scores_on_a_full_disk_leave_the_vector_as_it_was(
    store: Store, vector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(store.add("v", copied(vector)))

    def full(path: Path, text: str) -> None:
        path.write_text(text[:100])
        if path.name.startswith(".vector.json"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(extract, "write_text", full)
    with pytest.raises(MergingError, match="the disk became full"):
        store.scored("v", (Score("vector", "m.x", 0.1, 0.0, 0.2, 3, "search"),))
    assert content(store.path / "v") == before


def test_what_a_kill_left_is_cleared_away_and_what_is_being_written_is_not(
    store: Store, vector: Path, forked: Fork
) -> None:
    def killed() -> None:
        def write(folder: Path) -> Manifest:
            (folder / "half").write_text("half")
            os._exit(9)

        store.add("killed", write)

    os.waitpid(forked(killed), 0)
    left = list(store.path.glob(".killed.partial-*"))
    assert len(left) == 1 and store.names() == []
    busy = store.path / ".busy.partial-1234"
    busy.mkdir()
    descriptor = hold(busy)
    try:
        store.add("v", copied(vector))
        assert busy.is_dir() and not left[0].exists()
    finally:
        os.close(descriptor)


@pytest.mark.slow
def test_a_removed_vector_is_never_seen_half(store: Store, vector: Path, forked: Fork) -> None:
    store.add("v", copied(vector))

    def look() -> None:
        for _ in range(200):
            try:
                Manifest.read(store.folder("v"))
            except MergingError as error:
                assert "no vector" in str(error) or "no vector.json" in str(error) or "found nothing" in str(error), (
                    error
                )
            time.sleep(0.001)

    child = forked(look)
    for _ in range(20):
        store.add("v", copied(vector), replace=True)
    assert os.waitpid(child, 0)[1] == 0


def test_scores_are_kept_in_manifest_and_card(store: Store, vector: Path) -> None:
    place = store.add("v", copied(vector))
    score = Score("vector", "math.accuracy", 0.75, 0.7, 0.8, 200, "selection")
    assert store.scored("v", (score,)).scores == (score,) == Manifest.read(place).scores
    card = (place / "README.md").read_text()
    assert "| `math.accuracy` | vector | 0.75 | 0.7 to 0.8 | 200 | `selection` |" in card
    assert verify(place)[1] == []
    assert content(place).keys() == content(vector).keys()


def test_verification_tells_what_does_not_belong(store: Store, vector: Path) -> None:
    place = store.add("v", copied(vector))
    (place / "notes.txt").write_text("mine")
    assert verify(place)[1] == ["notes.txt is no part of the vector"]
    (place / "README.md").write_text("its owner's to edit")
    verify(place)
    store.add("w", lambda folder: copy_vector(place, folder))
    assert not (store.path / "w" / "notes.txt").exists()


def test_verification_with_another_base_says_so(store: Store, vector: Path, families: Callable[..., Family]) -> None:
    place = store.add("v", copied(vector))
    assert verify(place, Checkpoint.open(families("llama").base))[1] == []
    notes = verify(place, Checkpoint.open(families("llama").b))[1]
    assert len(notes) == 1 and "is not the base of this vector" in notes[0]


def test_the_default_store_is_the_users_unless_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vector: Path
) -> None:
    monkeypatch.delenv("PARETOMERGE_VECTORS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_store().is_relative_to(tmp_path / "data") or os.name == "nt"
    monkeypatch.setenv("PARETOMERGE_VECTORS", str(tmp_path / "mine"))
    Store().add("v", copied(vector))
    assert resolve("vector://v") == tmp_path / "mine" / "v"
    with pytest.raises(MergingError, match=r"there is no vector 'w' in the store .* it has v"):
        resolve("vector://w")


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MergingError, match="expected a folder for the vector store"):
        Store(tmp_path / "file")
