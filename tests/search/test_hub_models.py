"""Models that are named by their place on the Hub, from a hub on this machine that really gives the bytes."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_hub import FakeHub, Repository
from giving_hub import COMMIT, giving
from safetensors.torch import save

from merging import hub_models
from merging.checkpoint import Checkpoint
from merging.hub_models import NotHereError, ask, cached, downloading, parse, resolve
from merging.recipe import MergingError
from merging.vectors.hub import parse as parse_vector
from search import references

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")

TEXT = f"hub://me/fine-tune@{COMMIT}"
WEIGHTS = {f"model.layers.{at}.mlp.up_proj.weight": torch.full((8, 6), float(at)) for at in range(2)}


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The Hub's cache of this machine, empty."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with giving(monkeypatch) as server:
        yield server


@pytest.fixture
def quiet() -> Iterator[list[str]]:
    """Downloads are allowed; what is said of them."""
    said: list[str] = []
    with downloading(said.append):
        yield said


def content(**more: bytes) -> dict[str, bytes]:
    """A repository as they are: shards with an index, a tokenizer, a card, and much that no merge needs."""
    shards = {f"model-0000{at + 1}-of-00002.safetensors": {name: WEIGHTS[name]} for at, name in enumerate(WEIGHTS)}
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    return {
        "config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "tokenizer_config.json": b"{}",
        "README.md": b"---\nlicense: mit\n---\n", "model.safetensors.index.json": json.dumps(index).encode(),
        **{name: save(held) for name, held in shards.items()},
        "pytorch_model.bin": b"pickled" * 100, "consolidated.safetensors": b"twice" * 100,
        "modeling_custom.py": b"raise SystemExit", "training_args.bin": b"x", **more,
    }  # fmt: skip


def there(hub: FakeHub, files: dict[str, bytes], name: str = "me/fine-tune") -> None:
    hub.repositories[name] = Repository(branches={"main": files}, commits={COMMIT: files})


def gets(hub: FakeHub) -> list[str]:
    return sorted({path.rpartition("/")[2] for method, path in hub.requests if method == "GET" and "/resolve/" in path})


NEEDED = ["README.md", "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
NEEDED += ["model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("text", [TEXT, "hub://me/fine-tune", "hub://me/fine-tune@main"])
def test_what_is_needed_comes_once_and_nothing_else(hub: FakeHub, quiet: list[str], text: str, cache: Path) -> None:
    there(hub, content())
    folder = resolve(text)
    assert folder.is_relative_to(cache) and folder.name == COMMIT
    assert sorted(file.name for file in folder.iterdir()) == NEEDED == gets(hub)
    assert sorted(Checkpoint.open(folder).tensors) == sorted(WEIGHTS)
    [said] = quiet
    size = sum(len(each) for name, each in content().items() if name in NEEDED)
    assert said == f"downloading {text}: 7 files, {size} bytes"
    hub.requests.clear()
    assert resolve(text) == folder == references.resolve(text) and len(quiet) == 1
    assert hub.requests == []  # the Hub is not asked for what is here


def test_nothing_is_fetched_unasked(hub: FakeHub) -> None:
    there(hub, content())
    with pytest.raises(
        NotHereError, match=rf"`paretomerge run` downloads it.*hf download me/fine-tune --revision {COMMIT}"
    ):
        references.resolve(TEXT)
    assert hub.requests == []


def test_what_would_come_is_told(hub: FakeHub) -> None:
    there(hub, content())
    wanted = ask(TEXT)
    assert sorted([*wanted.small, *wanted.weights]) == NEEDED and wanted.commit == COMMIT
    assert wanted.bytes == sum(len(each) for name, each in content().items() if name in NEEDED)
    assert gets(hub) == ["model.safetensors.index.json"]


def test_a_download_that_broke_off_is_no_model(hub: FakeHub, quiet: list[str]) -> None:
    there(hub, content())
    hub.failures["00002-of-00002"] = 500
    with pytest.raises(MergingError, match=r"hub://me/fine-tune.*\(500\)"):
        resolve(TEXT)
    assert cached(parse(TEXT)) is None
    del hub.failures["00002-of-00002"]
    assert sorted(Checkpoint.open(resolve(TEXT)).tensors) == sorted(WEIGHTS)


def test_one_file_and_adapters(hub: FakeHub, quiet: list[str]) -> None:
    one = {"config.json": b"{}", "model.safetensors": save(WEIGHTS), "model.safetensors.index.json": b"{}"}
    there(hub, one, "me/one")
    assert {file.name for file in resolve("hub://me/one").iterdir()} >= {"model.safetensors", "config.json"}
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": save(WEIGHTS), "optimizer.pt": b"x"}
    there(hub, adapter, "me/adapter")
    assert {file.name for file in resolve("hub://me/adapter").iterdir()} == {*adapter} - {"optimizer.pt"}


def test_pickles_are_not_fetched_and_the_way_out_is_told(hub: FakeHub, quiet: list[str]) -> None:
    there(hub, {"config.json": b"{}", "pytorch_model.bin": b"x" * 5000, "tokenizer.json": b"{}"})
    fetched = rf"hf download me/fine-tune --revision {COMMIT} --local-dir fine-tune"
    converted = "paretomerge convert fine-tune fine-tune-safetensors --allow-pickle"
    with pytest.raises(MergingError, match=rf"only as pickles \(pytorch_model.bin; 5 kB\).*{fetched}; {converted}"):
        resolve(TEXT)
    assert gets(hub) == []


@pytest.mark.parametrize(("files", "said"), [
    ({"config.json": b"{}"}, "no file of weights"),
    ({"model.safetensors": save(WEIGHTS)}, "found no config.json"),
    ({"config.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"a": "gone.safetensors"}}'}, "names no"),
    ({"config.json": b"{}", "pytorch_model.bin": b"pickled",
      "model.safetensors.index.json": b'{"weight_map": {"a": "pytorch_model.bin"}}'}, "names no safetensors"),
])  # fmt: skip
def test_repositories_that_are_no_models(
    hub: FakeHub,
    quiet: list[str],
    files: dict[str, bytes],
    said: str,
) -> None:
    there(hub, files)
    with pytest.raises(MergingError, match=said):
        resolve(TEXT)


def test_repositories_that_are_not_there(hub: FakeHub, quiet: list[str]) -> None:
    with pytest.raises(MergingError, match=r"the Hub finds no such repository or revision \(404\)"):
        resolve("hub://me/nothing")
    with pytest.raises(
        MergingError, match=r"964859c looks like a part of a commit's name; the Hub wants all 40 digits"
    ):
        resolve("hub://me/nothing@964859c")


def test_without_a_network(hub: FakeHub, quiet: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    there(hub, content())
    folder = resolve(TEXT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert resolve(TEXT) == folder
    with pytest.raises(
        NotHereError, match=r"could not be reached.*hf download me/other --exclude \"\*\.bin\"\)"
    ) as told:
        resolve("hub://me/other")
    assert "\n" not in str(told.value)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve(TEXT) == folder
    with pytest.raises(NotHereError, match=r"HF_HUB_OFFLINE is set.*hf download me/other"):
        resolve("hub://me/other")


@pytest.mark.parametrize("text", ["hub://", "hub://me", "hub://me/a/b", "hub://me/a@", "hub://../a", "hub://me/a@../b"])
def test_malformed_references(text: str) -> None:
    assert hub_models.is_reference(text) and references.is_reference(text)
    with pytest.raises(MergingError, match=r"expected hub://OWNER/NAME"):
        references.resolve(text)


@pytest.mark.parametrize("name", ["a/b--c", "a/b-", "a/b.git", "a-/b"])
def test_names_that_the_hub_gives_to_no_repository(name: str) -> None:
    with pytest.raises(MergingError, match=r"names as the Hub gives them.*(?i:repo)"):
        references.resolve(f"hub://{name}")
    with pytest.raises(MergingError, match=r"names as the Hub gives them.*(?i:repo)"):
        parse_vector(f"hf://{name}@main")
