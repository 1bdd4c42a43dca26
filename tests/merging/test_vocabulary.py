"""Models with different vocabularies: every row is found by its token, and none is lost in silence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from vocabulary_models import ABC, BIAS, EMBEDDING, HEAD, WIDTH, make, numbered, own_row, write_tokens

from merging.recipe import MergingError
from merging.sources import Sources


@pytest.mark.parametrize("choice", ["base", "union"])
def test_equal_vocabularies_are_left_alone(tmp_path: Path, choice: str) -> None:
    base, expert = make(tmp_path / "base", ABC, 5), make(tmp_path / "e", ABC, 5, seed=1)
    sources = Sources.load(base, {"e": expert}, tokenizer=choice)
    assert sources.tokenizer is None
    assert sources.config == json.loads((base / "config.json").read_text())
    assert not [note for note in sources.notes if "token" in note]
    assert torch.equal(sources.tensor("e", EMBEDDING), sources.checkpoints["e"].read(EMBEDDING))


def test_without_tokenizers_equal_shapes_are_taken_for_equal_vocabularies(tmp_path: Path) -> None:
    sources = Sources.load(make(tmp_path / "base", None, 5), {"e": make(tmp_path / "e", None, 5, seed=1)})
    assert sources.tokenizer is None


def test_an_expert_without_tokenizer_has_the_bases_tokens(tmp_path: Path) -> None:
    base = make(tmp_path / "base", ABC)
    bare, other = make(tmp_path / "bare", None, 3, seed=1), make(tmp_path / "other", numbered("c", "b", "a"), seed=2)
    sources = Sources.load(base, {"bare": bare, "other": other})
    assert sources.tokenizer == "base"
    assert torch.equal(sources.tensor("bare", EMBEDDING), sources.checkpoints["bare"].read(EMBEDDING))
    assert any("bare has no tokenizer files" in note for note in sources.notes)


def test_different_shapes_without_tokenizers_are_refused(tmp_path: Path) -> None:
    base, expert = make(tmp_path / "base", None, 5), make(tmp_path / "e", ABC, 6, seed=1)
    with pytest.raises(
        MergingError, match=r"5 rows in .*base, 6 rows in .*e\), .* expected tokenizer files in .*base,"
    ):
        Sources.load(base, {"e": expert})
    (base / "tokenizer.json").write_text("{")
    with pytest.raises(MergingError, match=r"different vocabularies, and expected .* cannot be read"):
        Sources.load(base, {"e": expert})


def test_different_experts_of_a_base_without_tokenizer_are_refused(tmp_path: Path) -> None:
    base = make(tmp_path / "base", None, 3)
    experts = {"x": make(tmp_path / "x", ABC, seed=1), "y": make(tmp_path / "y", numbered("b", "a", "c"), seed=2)}
    with pytest.raises(MergingError, match=r"expected tokenizer files in .*base, found none"):
        Sources.load(base, experts)
    assert Sources.load(base, {"x": experts["x"]}).tokenizer is None


def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path) -> None:
    base = make(tmp_path / "base", ABC)
    for choice in ("unoin", tmp_path):
        with pytest.raises(MergingError, match=r"expected a tokenizer of 'base', 'union' or a folder"):
            Sources.load(base, {}, tokenizer=choice)


# --- One example of everything, by hand ------------------------------------------------------------------------------


def test_rows_that_stand_elsewhere_are_found_by_their_token(tmp_path: Path) -> None:
    expert = make(tmp_path / "e", numbered("c", "a", "b"), seed=1)
    sources = Sources.load(make(tmp_path / "base", ABC), {"e": expert})
    assert sources.tokenizer == "base" and not [note for note in sources.notes if "token" in note]
    for name in (EMBEDDING, HEAD, BIAS):
        assert torch.equal(sources.tensor("e", name), sources.checkpoints["e"].read(name)[[1, 2, 0]])
        assert torch.equal(sources.tensor("base", name), sources.checkpoints["base"].read(name))
    up = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(sources.tensor("e", up), sources.checkpoints["e"].read(up))


def test_tokens_that_the_base_lacks_are_left_out_and_said_so(tmp_path: Path) -> None:
    base, expert = make(tmp_path / "base", ABC), make(tmp_path / "e", ABC, seed=1, added={"<chat>": 3, "<end>": 4})
    sources = Sources.load(base, {"e": expert})
    assert sources.tokenizer == "base" and sources.config["vocab_size"] == 3
    assert torch.equal(sources.tensor("e", HEAD), sources.checkpoints["e"].read(HEAD)[:3])
    assert any("no place for 2 tokens ('<chat>', '<end>') of" in note and "'union'" in note for note in sources.notes)


def test_the_union_has_all_tokens(tmp_path: Path) -> None:
    base = make(tmp_path / "base", ABC)
    x = make(tmp_path / "x", ABC, seed=1, added={"<x>": 3, "<both>": 4})
    y = make(tmp_path / "y", ABC, seed=2, added={"<both>": 3})
    sources = Sources.load(base, {"x": x, "y": y}, tokenizer="union")
    assert sources.tokenizer == "union" and sources.config["vocab_size"] == 5
    for name in (EMBEDDING, HEAD):
        own_x, own_y = (sources.checkpoints[alias].read(name) for alias in "xy")
        merged_base = sources.tensor("base", name)
        assert sources.tensors[name].shape == (5, WIDTH) == tuple(merged_base.shape)
        assert torch.equal(merged_base[:3], sources.checkpoints["base"].read(name))
        assert torch.equal(merged_base[3], own_x[3])
        torch.testing.assert_close(merged_base[4], (own_x[4] + own_y[3]) / 2, rtol=1e-6, atol=0)
        assert torch.equal(sources.tensor("x", name), own_x)
        assert torch.equal(sources.tensor("y", name), torch.stack([*own_y[:3], own_x[3], own_y[3]]))
    assert any("y lacks 1 token ('<x>'): there it counts as the base" in note for note in sources.notes)
    assert not [note for note in sources.notes if "no place" in note]


def test_new_tokens_take_the_place_of_padding(tmp_path: Path) -> None:
    base = make(tmp_path / "base", ABC, 8)
    expert = make(tmp_path / "e", ABC, 4, seed=1, added={"<chat>": 3})
    sources = Sources.load(base, {"e": expert}, tokenizer="union")
    assert sources.config["vocab_size"] == 8 and sources.tokenizer == "union"
    merged = sources.tensor("base", EMBEDDING)
    assert torch.equal(merged[3], own_row(sources, "e", EMBEDDING, 3))
    assert torch.equal(merged[4:], sources.checkpoints["base"].read(EMBEDDING)[4:])
    assert torch.equal(sources.tensor("e", EMBEDDING)[4:], merged[4:])


def test_padding_differs_but_tokens_do_not(tmp_path: Path) -> None:
    base, expert = make(tmp_path / "base", ABC, 4), make(tmp_path / "e", ABC, 8, seed=1)
    sources = Sources.load(base, {"e": expert})
    assert sources.tokenizer == "base" and sources.config["vocab_size"] == 4
    aligned = sources.tensor("e", EMBEDDING)
    assert torch.equal(aligned[:3], sources.checkpoints["e"].read(EMBEDDING)[:3])
    assert torch.equal(aligned[3], own_row(sources, "base", EMBEDDING, 3))
    assert any("4 rows of padding after the 4 that are kept" in note for note in sources.notes)


def test_a_token_without_a_row_is_a_token_that_is_missing(tmp_path: Path) -> None:
    """Somebody added tokens to the tokenizer and did not resize the model."""
    ids = numbered("a", "b", "c", "d")
    base, expert = make(tmp_path / "base", ids), make(tmp_path / "e", ids, 3, seed=1)
    sources = Sources.load(base, {"e": expert})
    assert torch.equal(sources.tensor("e", EMBEDDING)[3], own_row(sources, "base", EMBEDDING, 3))
    assert any("has no rows for 1 token ('d') of its own" in note for note in sources.notes)
    other = Sources.load(
        expert, {"e": base}, tokenizer="union"
    )  # the base's tokenizer knows it, only the expert has it
    assert other.tokenizer == "union" and other.config["vocab_size"] == 4
    assert torch.equal(other.tensor("base", EMBEDDING)[3], own_row(other, "e", EMBEDDING, 3))
    assert Sources.load(expert, {"e": base}).config["vocab_size"] == 3


def test_a_folder_gives_the_tokens(tmp_path: Path) -> None:
    base = make(tmp_path / "base", numbered("a", "b", "c", "</s>"), config={"eos_token_id": 3, "pad_token_id": 1})
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 0], "suppress_tokens": [1, 2]}))
    expert = make(tmp_path / "e", numbered("a", "x"), seed=1)
    (tmp_path / "tokens").mkdir()
    write_tokens(tmp_path / "tokens", numbered("</s>", "x", "new", "a", "b"))
    sources = Sources.load(base, {"e": expert}, tokenizer=tmp_path / "tokens")
    assert (sources.tokenizer or "").startswith("path:sha256:") and sources.companions == tmp_path / "tokens"
    rows = sources.checkpoints["base"].read(EMBEDDING)
    own = sources.checkpoints["e"].read(EMBEDDING)
    merged = sources.tensor("base", EMBEDDING)
    assert torch.equal(merged[[0, 1, 3, 4]], torch.stack([rows[3], own[1], rows[0], rows[1]]))
    torch.testing.assert_close(merged[2], rows[[0, 1, 3]].mean(0))  # known to nobody
    assert torch.equal(sources.tensor("e", EMBEDDING), torch.stack([rows[3], own[1], merged[2], own[0], rows[1]]))
    assert sources.config["eos_token_id"] == 0 and sources.config["pad_token_id"] == 4
    assert sources.config["vocab_size"] == 5
    assert sources.generation_config == {"eos_token_id": [0, 3], "suppress_tokens": [4]}
    assert any("no model has 1 token ('new')" in note for note in sources.notes)
    assert any("no place for 1 token ('c') of" in note and "base" in note for note in sources.notes)


def test_a_folder_that_only_leaves_the_padding_out_keeps_it(tmp_path: Path) -> None:
    base, expert = make(tmp_path / "base", ABC, 8), make(tmp_path / "e", numbered("c", "a", "b"), seed=1)
    (tmp_path / "tokens").mkdir()
    for tokens, rows in ((numbered(*ABC, "x"), 8), (numbered("a", "b"), 2)):
        write_tokens(tmp_path / "tokens", tokens)
        sources = Sources.load(base, {"e": expert}, tokenizer=tmp_path / "tokens")
        assert sources.config["vocab_size"] == rows == sources.tensors[EMBEDDING].shape[0]
    assert any("has 5 rows of padding after the 2 that are kept" in note for note in sources.notes)


def test_the_hash_of_a_folder_is_that_of_its_tokens(tmp_path: Path) -> None:
    base, expert = make(tmp_path / "base", ABC), make(tmp_path / "e", numbered("b", "a", "c"), seed=1)
    choices = []
    for number, ids in enumerate([numbered("b", "c", "a"), {"a": 2, "b": 0, "c": 1}, numbered("c", "b", "a")]):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_tokens(folder, ids)
        choices.append(Sources.load(base, {"e": expert}, tokenizer=folder).tokenizer)
    assert choices[0] == choices[1] != choices[2]


# --- Every case against a reference that knows tokens only ------------------------------------------------------------

ALPHABET = [f"t{number}" for number in range(9)]


@st.composite
def vocabularies(draw: st.DrawFn) -> tuple[dict[str, int], int, torch.dtype, bool]:
    tokens = draw(st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=8, unique=True))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
    return numbered(*tokens), len(tokens) + draw(st.integers(-1, 3)), dtype, draw(st.booleans())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    models=st.lists(vocabularies(), min_size=2, max_size=4),
    choice=st.sampled_from(["base", "union", "path"]),
    chosen=vocabularies(),
)
def test_every_row_is_where_its_token_is(tmp_path_factory: Any, models: Any, choice: str, chosen: Any) -> None:
    folder = tmp_path_factory.mktemp("models")
    models[0] = (*models[0][:3], False)  # the base has a head of its own
    paths = {
        "base" if not number else f"e{number}": make(
            folder / str(number), ids, max(rows, 1), dtype=dtype, seed=number, tied=tied, bias=False
        )
        for number, (ids, rows, dtype, tied) in enumerate(models)
    }
    write_tokens(_new(folder / "chosen"), chosen[0])
    experts = {alias: path for alias, path in paths.items() if alias != "base"}
    sources = Sources.load(paths["base"], experts, tokenizer=folder / "chosen" if choice == "path" else choice)

    ids = {alias: model[0] for alias, model in zip(paths, models, strict=True)}
    for name in (EMBEDDING, HEAD):
        own = {
            alias: each.read(name if name in each.tensors else EMBEDDING).double()
            for alias, each in sources.checkpoints.items()
        }
        target = _target(choice, ids, chosen[0], {alias: len(each) for alias, each in own.items()})
        aligned = {alias: sources.tensor(alias, name) for alias in own}
        assert len({len(each) for each in aligned.values()}) == 1
        rows = len(aligned["base"])
        assert rows == sources.config["vocab_size"] == sources.tensors[name].shape[0]
        assert choice != "base" or rows == len(own["base"])
        assert choice == "base" or rows > max(target.values())
        touched = sources.tokenizer is not None
        for token, number in target.items():
            if number >= rows:
                continue
            have = {alias: own[alias][ids[alias][token]] for alias in own if _has(ids[alias], own[alias], token)}
            expected = have.get("base")
            if expected is None and have:
                expected = torch.stack(list(have.values())).mean(0).to(aligned["base"].dtype).double()
            if expected is not None:
                assert torch.equal(aligned["base"][number].double(), expected)
            for alias in experts:
                mine = have.get(alias, aligned["base"][number].double())
                assert torch.equal(aligned[alias][number].double(), mine), (token, alias)
        for number in set(range(min(rows, len(own["base"])))) - set(target.values()):
            assert torch.equal(aligned["base"][number].double(), own["base"][number])
            for alias in experts:
                same = ids[alias] == target and len(own[alias]) == rows
                assert not touched or same or torch.equal(aligned[alias][number].double(), own["base"][number])
        for alias, each in aligned.items():
            info = sources.info(alias, name)
            assert (info.dtype, info.shape) == (each.dtype, tuple(each.shape))
            out = torch.empty(info.shape, dtype=info.dtype)
            sources.read_into(alias, name, out)
            assert torch.equal(out, each)


def _has(ids: Mapping[str, int], rows: Tensor, token: str) -> bool:
    return token in ids and ids[token] < len(rows)


def _target(choice: str, ids: Mapping[str, Any], chosen: dict[str, int], rows: Mapping[str, int]) -> dict[str, int]:
    if choice == "path":
        return chosen
    target = dict(ids["base"])
    for alias, own in ids.items() if choice == "union" else ():
        for token in own:
            if own[token] < rows[alias] and token not in target:
                target[token] = len(target)
    if choice == "union":  # what nobody has a row for needs none
        target = {t: n for t, n in target.items() if any(t in o and o[t] < rows[a] for a, o in ids.items())}
    return target


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder


# --- Which tensors have tokens ---------------------------------------------------------------------------------------
