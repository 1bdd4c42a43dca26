from __future__ import annotations

from pathlib import Path

import pytest
from evaluator_samples import random_model, word_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from evaluators.contract import EvaluatorError
from evaluators.engines.hf import HFEngine
from evaluators.engines.tokenizer import has_one_spelling, load_tokenizer, tokenizer_hash


def test_load(tmp_path: Path) -> None:
    word_tokenizer().save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode("w1 w2") == [2, 5, 6]
    assert has_one_spelling(loaded)
    assert tokenizer_hash(loaded) == tokenizer_hash(load_tokenizer(str(tmp_path)))


def test_load_refuses(tmp_path: Path) -> None:
    with pytest.raises(EvaluatorError, match=r"there is no such folder"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(EvaluatorError, match=r"holds no tokenizer \(none of tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(EvaluatorError, match="cannot be read") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def wrap(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>")


def words(vocabulary: list[str], splitter: object | None) -> Tokenizer:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    if splitter is not None:
        backend.pre_tokenizer = splitter
    return backend


def test_one_spelling_is_claimed_only_where_it_is_proved() -> None:
    split = pre_tokenizers.WhitespaceSplit()
    assert has_one_spelling(wrap(words(["<unk>", "<eos>", "a", "b"], split)))
    assert not has_one_spelling(wrap(words(["<unk>", "<eos>", "a", "a b"], split)))
    assert not has_one_spelling(wrap(words(["<unk>", "<eos>", "a"], None)))
    joined = words(["<unk>", "<eos>", "a", "b", "ab"], split)
    joined.decoder = decoders.Fuse()
    assert not has_one_spelling(wrap(joined))
    assert not has_one_spelling(wrap(Tokenizer(models.BPE({"<unk>": 0, "<eos>": 1, "a": 2}, [], unk_token="<unk>"))))


def test_hash_ignores_what_the_last_call_set() -> None:
    tokenizer = word_tokenizer()
    before = tokenizer_hash(tokenizer)
    tokenizer(["w1", "w1 w2"], padding=True, truncation=True, max_length=2)
    assert tokenizer_hash(tokenizer) == before
    tokenizer.add_tokens(["new"])
    assert tokenizer_hash(tokenizer) != before


def test_a_prompt_does_not_end_before_it_is_answered() -> None:
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 3)]
    )
    engine = HFEngine(random_model("llama"), tokenizer)
    assert engine.encode("w1 w2", special=True) == [2, 5, 6]
    assert engine.encode("w1 <eos>", special=True) == [2, 5, 3]
    assert engine.encode("w1 w2", special=False) == [5, 6]


def test_unknown_that_is_also_the_end_is_no_unknown() -> None:
    tokenizer = word_tokenizer()
    assert HFEngine(random_model("llama"), tokenizer).unknown == 1
    tokenizer.unk_token = "<eos>"
    assert HFEngine(random_model("llama"), tokenizer).unknown is None
