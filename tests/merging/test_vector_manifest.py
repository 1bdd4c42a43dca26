"""The manifest of a vector: read back equal, and refused in one paragraph where a value is not what it should be."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from families import Family

from merging.checkpoint import Checkpoint
from merging.recipe import MergingError
from merging.vectors.cards import card
from merging.vectors.extract import About, Coding, write_vector
from merging.vectors.manifest import Manifest, Score
from merging.vectors.references import name_of


@pytest.fixture(scope="module")
def written(families: Callable[..., Family], tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, folder = families("llama"), tmp_path_factory.mktemp("manifest")
    about = About("legal-v2", license="apache-2.0", tool="paretomerge 1", command="paretomerge vector extract")
    write_vector(folder, Checkpoint.open(family.base), Checkpoint.open(family.a), about, Coding("onebit"))
    return folder


@pytest.fixture
def data(written: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((written / "vector.json").read_text())
    return found


FILE = Path("vector.json")


def test_it_is_read_back_equal(written: Path, data: dict[str, Any]) -> None:
    manifest = Manifest.read(written)
    assert Manifest.from_data(data, FILE) == manifest
    assert manifest.as_data() == data and json.loads(json.dumps(data, allow_nan=False)) == data
    assert (manifest.name, manifest.license, manifest.base.model_type) == ("legal-v2", "apache-2.0", "llama")
    stored = sum((written / name).stat().st_size for name in manifest.files)
    assert manifest.bytes < stored < manifest.bytes + 20_000


def test_its_id_covers_all_that_it_says(data: dict[str, Any]) -> None:
    def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        if isinstance(value, dict):
            return [found for key, each in value.items() for found in leaves(each, (*path, key))]
        return [path]

    for path in leaves({key: value for key, value in data.items() if key not in ("tensors", "id")}):
        changed = copy.deepcopy(data)
        place = changed
        for key in path[:-1]:
            place = place[key]
        before = place[path[-1]]
        place[path[-1]] = (before[:-1] + "0") if isinstance(before, str) and before else [] if before else 1
        if place[path[-1]] == before:
            place[path[-1]] = before[:-1] + "1"
        with pytest.raises(MergingError):
            Manifest.from_data(changed, FILE)


def _tensor(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = data["tensors"]["model.norm.weight"]
    return found


def _part(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = _tensor(data)["parts"]["signs"]
    return found


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (lambda d: d.update(format="paretomerge-vector/9"), "of format paretomerge-vector/1"),
    "no tensors": (lambda d: d.update(tensors={}), "at least one tensor"),
    "tensors as a list": (lambda d: d.update(tensors=[]), "tensors to be a JSON object"),
    "a hostile name": (lambda d: d.update(name="../../etc"), "name to be letters"),
    "a name that is no text": (lambda d: d.update(name=7), "name to be a text"),
    "a path for a shard": (lambda d: _part(d).update(file="../../shadow"), r"parts.signs.file to be a name such as"),
    "a shard nobody lists": (lambda d: _part(d).update(file="vector-00009-of-00009.safetensors"), "every shard"),
    "a path among the files": (lambda d: d["files"].update({"../x": {"bytes": 1, "sha256": "0" * 64}}), "plain names"),
    "code among the files": (lambda d: d["files"].update({"x.py": {"bytes": 1, "sha256": "0" * 64}}), "plain names"),
    "a pickle among the files": (lambda d: d["files"].update({"x.bin": {"bytes": 1, "sha256": "0" * 64}}), "plain"),
    "the card among the files": (lambda d: d["files"].update({"README.md": {"bytes": 1, "sha256": "0" * 64}}), "card"),
    "a short hash": (lambda d: _part(d).update(sha256="abc"), "64 hexadecimal digits"),
    "a hash of another kind": (lambda d: d.update(content="md5:" + "0" * 64), "sha256: and 64"),
    "a negative shape": (lambda d: _tensor(d).update(shape=[-1]), "the sizes of a tensor"),
    "an endless shape": (lambda d: _tensor(d).update(shape=[2**40, 2**40]), "the sizes of a tensor"),
    "a shape of truth": (lambda d: _tensor(d).update(shape=[True]), "the sizes of a tensor"),
    "an object for a dtype": (lambda d: _tensor(d).update(dtype="Tensor"), "a dtype such as"),
    "an attribute for a dtype": (lambda d: _part(d).update(dtype="load"), "a dtype such as"),
    "an endless error": (lambda d: _tensor(d).update(error=math.inf), "a finite number"),
    "a negative norm": (lambda d: _tensor(d).update(norm=-1.0), "not negative"),
    "a list for a parameter": (lambda d: _tensor(d).update(parameters={"rank": [1]}), "plain values"),
    "a score of somebody": (
        lambda d: d.update(scores=[{"of": "me", "metric": "a", "value": 1, "low": 0, "high": 1, "items": 1,
                                    "split": "search"}]),
        "base, vector or expert",
    ),
    "scores as an object": (lambda d: d.update(scores={}), "scores to be a list"),
    "another module": (lambda d: _tensor(d).update(module="mlp"), "the hash of what the file says"),
    "another size": (lambda d: _tensor(d).update(bytes=2**62), "bytes to be [0-9]+, those of its parts"),
    "a norm beyond all floats": (lambda d: _tensor(d).update(norm=10**400), "a finite number"),
    "a norm without a square": (lambda d: _tensor(d).update(norm=1e200), "at most 1e[+]60"),
    "an error without a square": (lambda d: _tensor(d).update(error=1e200), "at most 1e[+]60"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_paragraph(data: dict[str, Any], case: str) -> None:
    change, expected = WRONG[case]
    change(data)
    with pytest.raises(MergingError, match=expected) as refused:
        Manifest.from_data(data, FILE)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": "paretomerge-vector/1", "format": 1}', "[" * 200_000, "null"]
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "vector.json").write_text(text)
    with pytest.raises(MergingError) as refused:
        Manifest.read(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_name_that_a_terminal_would_obey_is_spelled_out(data: dict[str, Any]) -> None:
    data["name"] = "a\x1b[2J"
    with pytest.raises(MergingError) as refused:
        Manifest.from_data(data, FILE)
    assert "\x1b" not in str(refused.value)


def test_the_card_holds_no_markup_of_a_stranger(written: Path) -> None:
    manifest = Manifest.read(written)
    hostile = "float32\ud800|\n# Free of charge"
    changed = replace(manifest, base=replace(manifest.base, dtype=hostile), tensors={
        name: replace(each, codec=hostile) for name, each in manifest.tensors.items()})  # fmt: skip
    text = card(changed)
    assert text.encode("utf-8") and not any(line.startswith("# Free") for line in text.splitlines())


def test_scores_of_the_same_thing_are_replaced(written: Path) -> None:
    manifest = Manifest.read(written)
    old = Score("vector", "math.accuracy", 0.5, 0.4, 0.6, 100, "search")
    new = Score("vector", "math.accuracy", 0.7, 0.6, 0.8, 100, "search")
    other = Score("base", "math.accuracy", 0.1, 0.0, 0.2, 100, "search")
    scored = manifest.scored((old, other)).scored((new,))
    assert scored.scores == (other, new) and scored.id != manifest.id
    assert Manifest.from_data(scored.as_data(), FILE) == scored


@pytest.mark.parametrize(
    "text", ["vector://", "vector://../x", "vector://a/b", "vector:a", "vector://.hidden", "vector://a b"]
)
def test_references_are_plain_names(text: str) -> None:
    with pytest.raises(MergingError, match="Expected vector://NAME"):
        name_of(text)
    assert name_of("vector://legal-v2.1_a") == "legal-v2.1_a"
