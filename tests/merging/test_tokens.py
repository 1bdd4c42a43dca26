"""Tokens out of every kind of file, and united tokenizers that other programs load."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from merging.export import export
from merging.recipe import Assignment, MergingError, Recipe
from merging.sources import Sources
from merging.tokens import copy_tokenizer, read_vocabulary, unite, write_united

COMMON = ["the cat sat on the mat", "a cat and a mat", "the hat of the cat"]
MORE = [*COMMON, "zebra zoo zigzag", "zebra zebra zoo zoo zigzag"]

Kind = str


def train(kind: Kind, texts: list[str], size: int) -> Tokenizer:
    if kind == "BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(vocab_size=size, show_progress=False)
    elif kind == "WordLevel":
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(vocab_size=size, special_tokens=["<unk>"], show_progress=False)
    elif kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=["[UNK]"], show_progress=False)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=size, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
        )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, *added: AddedToken) -> Path:
    tokenizer.add_tokens([each for each in added if not each.special])
    tokenizer.add_special_tokens([each for each in added if each.special])
    folder.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


CHAT = AddedToken("<|chat|>", special=True, normalized=False)
NAME = AddedToken("<name>", special=False, normalized=False, rstrip=True)


@pytest.mark.parametrize("kind", ["BPE", "WordLevel", "WordPiece", "Unigram"])
def test_pieces_and_added_tokens_of_another_model_are_united(kind: Kind, tmp_path: Path) -> None:
    pad = AddedToken("<pad>", special=True, normalized=False)
    first = save(train(kind, COMMON, 40), tmp_path / "first", pad)
    other = save(train(kind, MORE, 80), tmp_path / "other", CHAT, NAME)
    one, two = read_vocabulary(first), read_vocabulary(other)
    assert one is not None and two is not None
    united = unite(one, [two])
    assert united.ids.keys() == one.ids.keys() | two.ids.keys() and united.unreachable == ()
    assert sorted(united.ids.values()) == list(range(len(united.ids)))
    assert all(united.ids[token] == number for token, number in one.ids.items())
    (tmp_path / "out").mkdir()
    write_united(united, first, tmp_path / "out")
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (first, tmp_path / "out"))
    assert after.get_vocab() == dict(united.ids)
    for text in COMMON:
        assert after(text)["input_ids"] == before(text)["input_ids"] or kind == "Unigram"
    theirs = AutoTokenizer.from_pretrained(other)
    text = "zebra zoo" if kind != "BPE" else "zebra"
    assert after.convert_ids_to_tokens(after(text)["input_ids"]) == theirs.convert_ids_to_tokens(
        theirs(text)["input_ids"]
    )
    assert united.ids["<|chat|>"] in after("the cat<|chat|>the mat")["input_ids"]
    assert "<|chat|>" not in after.decode(after("cat<|chat|>")["input_ids"], skip_special_tokens=True)
    entries = {entry["content"]: entry for entry in united.definition["added_tokens"]}
    assert entries["<name>"]["rstrip"] and not entries["<name>"]["special"] and entries["<|chat|>"]["special"]
    read = read_vocabulary(tmp_path / "out")
    assert read is not None and read.ids == united.ids


def test_only_added_tokens_leave_the_rest_of_the_file_as_it_is(tmp_path: Path) -> None:
    first = save(train("BPE", COMMON, 40), tmp_path / "first", AddedToken("<pad>", special=True))
    other = save(train("BPE", COMMON, 40), tmp_path / "other", CHAT)
    vocabularies = [read_vocabulary(folder) for folder in (first, other)]
    united = unite(vocabularies[0], [vocabularies[1]])  # type: ignore[arg-type, list-item]
    before = json.loads((first / "tokenizer.json").read_text())
    assert united.definition["model"] == before["model"]
    assert united.definition["added_tokens"][:-1] == before["added_tokens"]


def test_pieces_that_no_rule_leads_to_are_named(tmp_path: Path) -> None:
    first = save(train("BPE", COMMON, 40), tmp_path / "first")
    other = save(train("WordLevel", ["zebra the"], 10), tmp_path / "other")
    vocabularies = [read_vocabulary(folder) for folder in (first, other)]
    united = unite(vocabularies[0], [vocabularies[1]])  # type: ignore[arg-type, list-item]
    assert set(united.unreachable) == {"zebra"} | ({"the"} - vocabularies[0].ids.keys())  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "LlamaTokenizer"])
def test_classes_that_build_themselves_from_the_file_load_the_union(name: str, tmp_path: Path) -> None:
    """They do not keep tokenizer.json as it is, but take tokens, rules and added tokens out of it."""
    first = save(train("BPE", COMMON, 300), tmp_path / "first", AddedToken("<|endoftext|>", special=True))
    other = save(train("BPE", MORE, 340), tmp_path / "other", CHAT)
    config = json.loads((first / "tokenizer_config.json").read_text())
    number = Tokenizer.from_file(str(first / "tokenizer.json")).token_to_id("<|endoftext|>")
    listed = {str(number): {"content": "<|endoftext|>", "special": True}}
    old = {"added_tokens_decoder": listed} if name == "LlamaTokenizer" else {}
    tokenizer_class = {"tokenizer_class": name} | {f"{each}_token": "<|endoftext|>" for each in ("bos", "eos", "unk")}
    (first / "tokenizer_config.json").write_text(json.dumps(config | tokenizer_class | old))
    one, two = read_vocabulary(first), read_vocabulary(other)
    assert one is not None and two is not None
    united = unite(one, [two])
    (tmp_path / "out").mkdir()
    write_united(united, first, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    contents = {entry["content"] for entry in written.get("added_tokens_decoder", {}).values()}
    assert contents == ({"<|endoftext|>", "<|chat|>"} if old else set())
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert {token: loaded.get_vocab().get(token) for token in united.ids} == dict(united.ids)


def test_tokens_are_read_out_of_all_kinds_of_files(tmp_path: Path) -> None:
    assert read_vocabulary(tmp_path) is None
    (tmp_path / "chat_template.jinja").write_text("x")
    assert read_vocabulary(tmp_path) is None
    (tmp_path / "vocab.txt").write_text("[UNK]\nthe\n\u2028\n", encoding="utf-8")
    assert _ids(tmp_path) == {"[UNK]": 0, "the": 1, "\u2028": 2}
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<x>": 2}))
    decoder = {"3": {"content": "<y>"}, "0": {"content": "a"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    assert _ids(tmp_path) == {"a": 0, "b": 1, "<x>": 2, "<y>": 3}
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "Unigram", "vocab": [["p", 0.0], ["q", -1.0]]}, "added_tokens": []})
    )
    assert _ids(tmp_path) == {"p": 0, "q": 1, "<x>": 2, "<y>": 3, "a": 0}


def test_other_files_are_left_to_transformers(tmp_path: Path) -> None:
    """A tokenizer of bytes has no list of tokens in any file."""
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0}))
    assert len(_ids(tmp_path)) >= 256
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "NoSuchTokenizer"}))
    with pytest.raises(MergingError, match="found some that cannot be read"):
        read_vocabulary(tmp_path)


def test_a_copy_has_the_tokenizer_and_no_code(tmp_path: Path) -> None:
    source = save(train("WordLevel", COMMON, 20), tmp_path / "source")
    (source / "tokenizer_code.py").write_text("1/0")
    (source / "config.json").write_text("{}")
    (tmp_path / "out").mkdir()
    copy_tokenizer(source, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_a_merge_over_a_union_is_a_model_with_its_tokenizer(tmp_path: Path) -> None:
    """From folders to a folder: a chat model that added tokens, merged with its base, still knows them."""
    torch.manual_seed(0)
    folders = {}
    for alias, added in (("base", ()), ("chat", (CHAT, NAME))):
        tokenizer = train("WordLevel", COMMON, 30)
        folders[alias] = save(tokenizer, tmp_path / alias, *added)
        config = LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folders[alias])
    sources = Sources.load(folders["base"], {"chat": folders["chat"]}, tokenizer="union")
    take = Assignment.of("task_arithmetic", {"chat": {"coefficient": 1.0}})
    recipe = Recipe("base", sources.refs, dict.fromkeys(sources.layout.groups, take), tokenizer=sources.tokenizer)
    out = export(recipe, sources, tmp_path / "out")
    sources.write_tokenizer(out)
    merged, tokenizer = LlamaForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    chat, own = LlamaForCausalLM.from_pretrained(folders["chat"]), AutoTokenizer.from_pretrained(folders["chat"])
    text = "the cat <|chat|> the mat <name> a hat"
    inputs, expected = (each(text, return_tensors="pt")["input_ids"] for each in (tokenizer, own))
    with torch.no_grad():
        logits, reference = merged(inputs).logits, chat(expected).logits
    order = [own.get_vocab()[token] for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    torch.testing.assert_close(logits, reference[..., order], rtol=1e-4, atol=1e-5)


def _ids(folder: Path) -> dict[str, int]:
    found = read_vocabulary(folder)
    assert found is not None
    return dict(found.ids)
