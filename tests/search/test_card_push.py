"""``export --push`` against a hub on this machine that really receives the bytes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub, Repository

from search.errors import SearchError
from search.push import Push

NAME = "me/merge"

# of huggingface_hub's own way to its HTTP library
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # whose server is another one
    monkeypatch.setattr(_http.time, "sleep", lambda _: None)  # between its five attempts
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with FakeHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An export, as far as an upload cares."""
    out = tmp_path / "merged"
    out.mkdir()
    (out / "model.safetensors").write_bytes(bytes(range(256)) * 4000)
    (out / "front.png").write_bytes(b"\x89PNG" + bytes(3000))
    (out / "config.json").write_text("{}\n")
    (out / "recipe.yaml").write_text("a: 1\n")
    (out / "README.md").write_text("---\nbase_model: [org/base]\nbase_model_relation: merge\n---\n\n# merge\n")
    (out / ".cache").mkdir()
    (out / ".cache" / "upload").write_text("of the library")
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def test_every_byte_arrives_in_one_commit(hub: FakeHub, folder: Path) -> None:
    pushed = Push(NAME).send(folder, "a merge")
    repository = hub.repositories[NAME]
    assert repository.branches["main"] == content(folder) and not repository.private
    assert list(repository.commits) == [pushed.commit] and pushed.files == 5
    assert pushed.url == f"{hub.address}/{NAME}" and pushed.revision == "main"
    assert ("POST", "/api/validate-yaml") in hub.requests  # huggingface_hub had the hub check the card


def test_a_private_repository_and_a_branch(hub: FakeHub, folder: Path) -> None:
    Push(NAME, private=True, revision="v2").send(folder, "a merge")
    repository = hub.repositories[NAME]
    assert repository.private
    assert repository.branches == {"main": {}, "v2": content(folder)}


def test_what_an_earlier_export_left_is_no_part_of_this_one(hub: FakeHub, folder: Path) -> None:
    old = {"model-00001-of-00002.safetensors": b"x", "model.safetensors.index.json": b"{}", "mergekit.yaml": b"a"}
    hub.repositories[NAME] = Repository(branches={"main": {**old, "notes.md": b"mine", "config.json": b"old"}})
    Push(NAME).send(folder, "a merge")
    assert hub.repositories[NAME].branches["main"] == content(folder) | {"notes.md": b"mine"}


def test_nothing_is_uploaded_twice(hub: FakeHub, folder: Path) -> None:
    Push(NAME).send(folder, "a merge")
    sent = [path for method, path in hub.requests if method == "PUT"]
    (folder / "config.json").write_text('{"a": 1}\n')
    Push(NAME).send(folder, "again")
    assert [path for method, path in hub.requests if method == "PUT"] == sent and len(sent) == 2
    assert hub.repositories[NAME].branches["main"] == content(folder)


def test_a_public_repository_is_no_private_one(hub: FakeHub, folder: Path) -> None:
    hub.repositories[NAME] = Repository()
    with pytest.raises(SearchError, match=r"there already, and is public\. Nothing was uploaded"):
        Push(NAME, private=True).send(folder, "a merge")
    assert hub.repositories[NAME].branches == {"main": {}} and not hub.blobs


@pytest.mark.parametrize(
    ("failure", "answer", "says"),
    [
        ("create", 401, "does not accept the token (401)"),
        ("create", 403, "the token may not write to me (403)"),
        ("create", 500, "the Hub answered with an error (500)"),
        ("preupload", 404, "finds no such repository, branch or owner (404)"),
        ("batch", 413, "too large (413)"),
        ("PUT /lfs/", 403, "may not write to me (403)"),
        ("commit", 409, "somebody else is changing the repository"),
        ("commit", 412, "was changed meanwhile (412)"),
        ("PUT /lfs/", "drop", "could not be reached, or the connection broke off"),
        ("commit", "drop", "could not be reached, or the connection broke off"),
    ],
)
def test_a_failure_is_a_paragraph_and_leaves_both_sides_as_they_were(
    failure: str, answer: int | str, says: str, hub: FakeHub, folder: Path
) -> None:
    before = content(folder)
    hub.failures[failure] = answer
    with pytest.raises(SearchError) as caught:
        Push(NAME).send(folder, "a merge")
    text = str(caught.value)
    assert says in text and text.startswith(f"--push {NAME}: ") and "\n" not in text
    assert f"The export stays in {folder}; the same command pushes it again" in text
    assert TOKEN not in text and "signature" not in text and "http://" not in text
    assert content(folder) == before
    assert hub.repositories.get(NAME, Repository()).branches == {"main": {}}
    hub.failures.clear()
    Push(NAME).send(folder, "a merge")  # and the same again goes through
    assert hub.repositories[NAME].branches["main"] == before


def test_what_arrives_is_compared_with_what_is_here(hub: FakeHub, folder: Path) -> None:
    class Damaging(dict):  # type: ignore[type-arg]
        def __setitem__(self, key: str, files: dict[str, bytes]) -> None:
            super().__setitem__(key, files | {"model.safetensors": b"\0" * len(files["model.safetensors"])})

    hub.repositories[NAME] = Repository(commits=Damaging())
    with pytest.raises(SearchError, match=r"1 files are not there as they are here, first model\.safetensors"):
        Push(NAME).send(folder, "a merge")


def test_a_hub_that_is_not_there(folder: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(SearchError, match=rf"127\.0\.0\.1:{port} could not be reached.*The export stays in"):
        Push(NAME).send(folder, "a merge")


def test_what_can_be_known_is_said_before_anything_is_merged(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    for wrong in ("merge", "a/b/c", "../x", "me/", "/abs/path"):
        with pytest.raises(SearchError, match=r"expected OWNER/NAME"):
            Push(wrong)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(SearchError, match=r"expected a token that may write, found none; run `hf auth login`"):
        Push(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SearchError, match="told to stay offline"):
        Push(NAME)
    assert hub.requests == []
