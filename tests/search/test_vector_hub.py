"""Vectors to and from a hub on this machine that really receives and gives the bytes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_hub import TOKEN, FakeHub, Repository
from giving_hub import COMMIT, giving
from safetensors.torch import save_file

from merging.checkpoint import Checkpoint
from merging.recipe import MergingError
from merging.vectors.extract import About, Coding, write_vector
from merging.vectors.hub import download, parse
from merging.vectors.store import Store, verify
from search.errors import SearchError
from search.vector_work import exported, imported

# of huggingface_hub's own way to its HTTP library
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with giving(monkeypatch) as server:
        yield server


@pytest.fixture(scope="module")
def vector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    for name, change in (("base", 0.0), ("expert", 0.1)):
        (folder / name).mkdir()
        tensors = {
            f"model.layers.{k}.mlp.up_proj.weight": torch.full((8, 6), float(k)) + change * torch.arange(6.0)
            for k in range(2)
        }
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
        (folder / name / "config.json").write_text('{"model_type": "llama"}')
    made = folder / "legal"
    made.mkdir()
    models = (Checkpoint.open(folder / "base"), Checkpoint.open(folder / "expert"))
    write_vector(made, *models, About("legal-v2"), Coding("bf16"))
    return made


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def there(hub: FakeHub, content: dict[str, bytes], name: str = "me/legal") -> None:
    hub.repositories[name] = Repository(branches={"main": content, "v2": content}, commits={COMMIT: content})


def test_a_vector_goes_to_the_hub_and_comes_back(hub: FakeHub, vector: Path, tmp_path: Path) -> None:
    done = exported(vector, "hf://me/legal", private=True)
    repository = hub.repositories["me/legal"]
    assert repository.branches["main"] == files(vector) and repository.private and done["verified_files"] == 3
    there(hub, repository.branches["main"])
    store = Store(tmp_path / "store")
    name, manifest = imported(store, "hf://me/legal", None, replace=False)
    assert name == "legal-v2" and files(store.folder(name)) == files(vector)
    assert verify(store.folder(name))[0] == manifest
    assert imported(store, "hf://me/legal@v2", "again", replace=False)[0] == "again"
    assert sorted(each.name for each in store.path.iterdir()) == [".lock", "again", "legal-v2"]


def test_only_what_the_manifest_names_is_fetched(hub: FakeHub, vector: Path, tmp_path: Path) -> None:
    there(hub, files(vector) | {"evil.py": b"evil", "pytorch_model.bin": b"evil"})
    _, commit = download("hf://me/legal", tmp_path)
    assert commit == COMMIT and files(tmp_path) == files(vector)
    assert not [path for _, path in hub.requests if "evil" in path or "pytorch_model" in path]


@pytest.mark.parametrize("how", ["a flipped byte", "another size", "a lost shard", "no manifest", "a broken manifest"])
def test_what_is_damaged_there_is_not_taken(hub: FakeHub, vector: Path, tmp_path: Path, how: str) -> None:
    content = files(vector)
    shard = next(name for name in content if name.endswith(".safetensors"))
    if how == "a flipped byte":
        content[shard] = content[shard][:-1] + bytes([content[shard][-1] ^ 1])
    elif how == "another size":
        content[shard] += bytes(10)
    elif how == "a broken manifest":
        content["vector.json"] = content["vector.json"].replace(b"legal-v2", b"legal-v3")
    else:
        del content[shard if how == "a lost shard" else "vector.json"]
    there(hub, content)
    store = Store(tmp_path / "store")
    with pytest.raises(MergingError) as refused:
        imported(store, "hf://me/legal", None, replace=False)
    assert "\n" not in str(refused.value)
    assert store.names() == [] and [each.name for each in store.path.iterdir()] == [".lock"]


@pytest.mark.parametrize("pattern, answer, said", [
    ("GET /api/models/me/legal", 401, "hf auth login"),
    ("GET /api/models/me/legal", 404, "finds no such repository"),
    ("GET /api/models/me/legal", 500, r"answered with an error \(500\)"),
    ("GET /api/models/me/legal", "drop", "could not be reached"),
    ("/resolve/.*safetensors", 403, "may not read it"),
])  # fmt: skip
def test_failures_are_one_paragraph_without_secrets(
    hub: FakeHub, vector: Path, tmp_path: Path, pattern: str, answer: int | str, said: str
) -> None:
    there(hub, files(vector))
    hub.failures[pattern] = answer
    with pytest.raises(MergingError, match=said) as refused:
        imported(Store(tmp_path / "store"), "hf://me/legal", None, replace=False)
    text = str(refused.value)
    assert text.startswith("hf://me/legal: ") and "\n" not in text and TOKEN not in text and "127.0.0.1" not in text


def test_no_hub_at_all(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(MergingError, match="could not be reached"):
            download("hf://me/legal", tmp_path)


def test_offline_is_said_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vector: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MergingError, match="told to stay offline"):
        download("hf://me/legal", tmp_path)
    with pytest.raises(SearchError, match="hf://: this process is told to stay offline"):
        exported(vector, "hf://me/legal")


def test_a_damaged_vector_is_not_pushed(hub: FakeHub, vector: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(vector, tmp_path / "v")
    shard = next((tmp_path / "v").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(MergingError, match="damaged"):
        exported(tmp_path / "v", "hf://me/legal")
    assert hub.requests == []


@pytest.mark.parametrize("text", ["hf://", "hf://me", "hf://me/../x", "hf://me/a/b", "hf://me/a@", "hf://me/a b"])
def test_references_to_the_hub_are_checked(text: str) -> None:
    with pytest.raises(MergingError, match="expected hf://OWNER/NAME"):
        parse(text)
    assert parse("hf://me/legal@v2") == ("me/legal", "v2")
