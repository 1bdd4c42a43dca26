"""Calls of the module, recorded: every row as it is alone, and nothing that tells an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_samples import greedy_after, recorded, small_t5, tokens, untouched, write_splits
from evaluator_samples import random_model, word_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sequence_models import SIZE, bert, bert_tokenizer, chat_tokenizer, encoder, judge, opened, widened, words
from speech_samples import (
    ctc_folder,
    overfitted_whisper,
    sentence,
    small_ctc,
    small_whisper,
    whisper_folder,
    write_data,
)
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

import evaluators
from evaluators.calibration import record_inputs
from evaluators.calibration.inputs import without_padding
from evaluators.contract import Engine, EvaluatorError
from evaluators.engines.hf import HFEngine
from evaluators.sequences import TextReader


def splits(row: Any, search: int = 12) -> dict[str, list[dict[str, Any]]]:
    """``row`` of an index, for each split."""
    return {
        "search": [row(index) for index in range(search)],
        "selection": [row(index) for index in range(100, 106)],
        "holdout": [row(index) for index in range(200, 206)],
    }


@given(
    length=st.integers(1, 8),
    mask=st.lists(st.booleans(), min_size=1, max_size=8),
    side=st.sampled_from(["", "decoder_"]),
)
def test_padding_is_cut_off_wherever_it_stands(length: int, mask: list[bool], side: str) -> None:
    """Of the masked side all that is as long as the mask, and nothing of the other side."""
    ids = torch.arange(len(mask))[None]
    other = "" if side else "decoder_"
    one = {
        f"{side}input_ids": ids,
        f"{side}attention_mask": torch.tensor([mask]).long(),
        f"{other}input_ids": torch.arange(length)[None],
        "pixel_values": torch.ones(1, len(mask), 4, 4),
    }
    if not side:
        one["token_type_ids"] = ids + 7
    found = without_padding(one)
    kept = [place for place, here in enumerate(mask) if here]
    if not kept:  # nothing would be left: the model is told as the evaluator told it
        assert f"{side}attention_mask" in found
        return
    assert f"{side}attention_mask" not in found
    assert found[f"{side}input_ids"].tolist() == [kept]
    assert side or found["token_type_ids"].tolist() == [[place + 7 for place in kept]]
    assert found[f"{other}input_ids"].tolist() == [list(range(length))]
    assert found["pixel_values"].shape == (1, len(mask), 4, 4)


def test_features_of_a_fixed_length_keep_their_mask() -> None:
    """Whisper's have their length in the last dimension, and cannot do with less."""
    one = {"input_features": torch.ones(1, 4, 6), "attention_mask": torch.tensor([[1, 1, 1, 0, 0, 0]])}
    found = without_padding(one)
    assert found["input_features"].shape == (1, 4, 6)
    assert found["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize("pair", [None, "other"])
def test_texts_of_a_classifier(tmp_path: Path, pair: str | None) -> None:
    """Padded and batched for the model, recorded as the tokenizer writes them; labels in none."""
    items = splits(lambda i: {"text": words(i, 2 + i % 9), "other": words(i + 4, 1 + i % 5), "label": i % 3})
    engine = opened(bert(), bert_tokenizer(), tmp_path / "model")
    evaluator = evaluators.build("classification", {"data": write_splits(tmp_path / "data", items), "pair_field": pair})
    ids = evaluator.items("search").ids
    with untouched(engine.model):
        found = record_inputs(evaluator, engine, ids)
    reader = TextReader(engine)
    expected = [reader.texts([row["text"], *([row["other"]] if pair else [])], "") for row in items["search"]]
    assert sorted((one["input_ids"][0].tolist(), one["token_type_ids"][0].tolist()) for one in found) == sorted(
        (list(each.ids), list(each.types)) for each in expected
    )
    assert all(set(one) == {"input_ids", "token_type_ids"} for one in found)


def test_both_answers_of_a_pair(tmp_path: Path) -> None:
    items = splits(lambda i: {"prompt": words(i, 3), "chosen": words(i + 1, 2 + i % 3), "rejected": words(i + 2, 4)})
    engine = opened(judge(), chat_tokenizer(), tmp_path / "model")
    evaluator = evaluators.build("reward_pairs", {"data": write_splits(tmp_path / "data", items)})
    found = tokens(record_inputs(evaluator, engine, evaluator.items("search").ids))
    reader = TextReader(engine)
    expected = []
    for row in items["search"]:
        for answer in (row["chosen"], row["rejected"]):
            talk = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": answer}]
            expected.append(list(reader.conversation(talk, "").ids))
    assert sorted(found) == sorted(expected)


def test_images(tmp_path: Path) -> None:
    """As the evaluator's answers say: run alone, the recorded pixels get the label of the batch."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = widened(ViTForImageClassification(ViTConfig(**size, image_size=8, patch_size=4, num_labels=3)))
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    generator = torch.Generator().manual_seed(1)

    def row(index: int) -> dict[str, Any]:
        pixels = torch.randint(0, 256, (8, 8, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "data" / f"{index}.png")
        return {"id": str(index), "picture": f"{index}.png", "label": index % 3}

    engine = evaluators.open_engine(model, tmp_path / "model")
    data = write_splits(tmp_path / "data", splits(row))
    evaluator = evaluators.build("classification", {"data": data, "image_field": "picture"})
    ids = evaluator.items("search").ids
    found = record_inputs(evaluator, engine, ids)
    evaluator.prepare(engine)
    right = evaluator.score(engine, ids).values["accuracy"].tolist()
    assert 0 < sum(right) < len(ids)
    with torch.no_grad():
        labels = [int(model(**one).logits.argmax()) for one in found]
    assert [float(label == int(name) % 3) for label, name in zip(labels, ids, strict=True)] == right


def pairs(folder: Path) -> Path:
    row = lambda i: {"sentence1": words(i, 1 + i % 9), "sentence2": words(i + 3, 1 + i % 6), "score": i % 5}  # noqa: E731
    return write_splits(folder, splits(row))


@pytest.mark.parametrize("kind", ["whole", "without its head"])
def test_encoders(tmp_path: Path, kind: str) -> None:
    """Of a model with a head only the part below it is called; as an input it is the model's. A whole split is read."""
    model = encoder() if kind == "whole" else widened(BertForMaskedLM(BertConfig(**SIZE, pad_token_id=0)))
    engine = opened(model, bert_tokenizer(), tmp_path / "model")
    evaluator = evaluators.build("similarity", {"data": pairs(tmp_path / "data")})
    found = record_inputs(evaluator, engine, evaluator.items("search").ids[:1])
    reader = TextReader(engine)
    texts = {text for i in range(12) for text in (words(i, 1 + i % 9), words(i + 3, 1 + i % 6))}
    assert sorted(one["input_ids"][0].tolist() for one in found) == sorted(
        list(reader.texts([text], "").ids) for text in texts
    )
    assert len({str(model(**one)[0].shape) for one in found}) > 1


def test_an_encoder_that_is_asked_alone(tmp_path: Path) -> None:
    """Its decoder, which nobody asks, reads what every text begins with."""
    engine = opened(small_t5(), word_tokenizer(), tmp_path / "model")
    evaluator = evaluators.build("similarity", {"data": pairs(tmp_path / "data")})
    found = record_inputs(evaluator, engine, evaluator.items("search").ids)
    assert all(one["decoder_input_ids"].tolist() == [[0]] for one in found)


def test_what_a_decoder_is_told_is_not_recorded(tmp_path: Path) -> None:
    """It is the reference wherever a text is scored; the model's own answer stands in its place."""
    model = small_t5()
    engine = opened(model, word_tokenizer(), tmp_path / "model")
    asked = torch.tensor([[2, 7, 8, 9, 3], [2, 11, 12, 3, 0]])
    mask = (asked != 0).long()
    reference = torch.tensor([[0, 21, 22, 23, 24, 25], [0, 31, 32, 33, 34, 35]])

    def ask(given: Engine, _: Engine) -> None:
        with given.forward() as module:
            module(input_ids=asked, attention_mask=mask, decoder_input_ids=reference)
            module(input_ids=asked, attention_mask=mask, labels=reference)

    found = recorded(ask, engine)
    assert [one["input_ids"][0].tolist() for one in found] == [[2, 7, 8, 9, 3], [2, 11, 12, 3]]
    for one in found:
        assert set(one) == {"input_ids", "decoder_input_ids"}
        assert one["decoder_input_ids"].shape[1] > 1
        assert greedy_after(model, one, 1)


@pytest.mark.parametrize("languages", [(), ("en", "de")])
def test_recognizers_that_write(tmp_path: Path, languages: tuple[str, ...]) -> None:
    """Features, and what the decoder read while it wrote: the tokens that it begins with, and its own transcript."""
    model = (
        widened(small_whisper(3, languages)) if languages else overfitted_whisper(list(map(sentence, range(10))), 30)
    )
    engine = evaluators.open_engine(model, whisper_folder(tmp_path / "model"))
    evaluator = evaluators.build("wer", {"data": write_data(tmp_path / "data", 10), "batch_size": 7})
    ids = evaluator.items("search").ids
    with untouched(model):
        found = record_inputs(evaluator, engine, ids)
    begun = 3 if languages else 1  # start, the language that it detects, no time stamps
    assert len(found) == len(ids)
    for one in found:
        assert set(one) == {"input_features", "decoder_input_ids"}
        assert one["input_features"].shape == (1, 16, 50)
        assert one["decoder_input_ids"].shape[1] <= 10
        assert 3 not in one["decoder_input_ids"][0, begun:]
        assert greedy_after(model, one, begun)
    said = {engine.decode(one["decoder_input_ids"][0, begun:].tolist()) for one in found}
    assert all(said) and (languages or len(said) > 2)


@pytest.mark.parametrize("mask", [True, False])
def test_recognizers_of_frames(tmp_path: Path, mask: bool) -> None:
    """Recordings of several lengths share a batch where the model can mask; each is recorded at its own length."""
    model = small_ctc()
    engine = evaluators.open_engine(model, ctc_folder(tmp_path / "model", mask=mask))
    evaluator = evaluators.build("wer", {"data": write_data(tmp_path / "data")})
    ids = evaluator.items("search").ids
    found = record_inputs(evaluator, engine, ids)
    evaluator.prepare(engine)
    expected = [evaluator._prepared[name].features for name in ids]  # type: ignore[attr-defined]
    assert len({len(each) for each in expected}) > 1
    assert all(set(one) == {"input_values"} for one in found)
    key = lambda each: each.tolist()  # noqa: E731
    for one, wanted in zip(
        sorted((o["input_values"][0] for o in found), key=key), sorted(expected, key=key), strict=True
    ):
        assert_close(one, wanted, rtol=0, atol=0)


@pytest.fixture
def llama() -> HFEngine:
    return HFEngine(random_model("llama", 1), word_tokenizer())


def test_labels_and_steps_from_a_cache_are_no_inputs(llama: HFEngine) -> None:
    """Positional arguments count as named ones; outside calls of the whole model, parts of it are not asked."""

    def ask(given: Engine, _: Engine) -> None:
        with given.forward() as module:
            output = module(torch.tensor([[2, 5, 6]]), labels=torch.tensor([[2, 5, 6]]), use_cache=True)
            module(input_ids=torch.tensor([[7]]), past_key_values=output.past_key_values)

    assert tokens(recorded(ask, llama)) == [[2, 5, 6]]


@pytest.mark.parametrize("cache", [True, False])
def test_a_module_that_writes_by_itself(llama: HFEngine, cache: bool) -> None:
    """``generate`` on prompts that are padded on the left: each prompt, and what followed it."""
    prompts = torch.tensor([[0, 0, 2, 9], [2, 8, 7, 6]])
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "use_cache": cache}

    def ask(given: Engine, _: Engine) -> None:
        with given.forward() as module:
            module.generate(input_ids=prompts, attention_mask=(prompts != 0).long(), **settings)  # type: ignore[operator]

    found = tokens(recorded(ask, llama))
    for text, prompt in zip(found, ([2, 9], [2, 8, 7, 6]), strict=True):
        own = llama.generate([prompt], max_new_tokens=5)[0].tokens
        assert text == [*prompt, *own]


def test_beams(tmp_path: Path) -> None:
    """The best of each row, as ``generate`` returns it, with what the decoder begins with."""
    model = small_t5()
    engine = opened(model, word_tokenizer(), tmp_path / "model")
    asked = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]])
    settings: dict[str, Any] = {"num_beams": 3, "max_new_tokens": 4, "do_sample": False}
    given = {"input_ids": asked, "attention_mask": (asked != 0).long()}
    written: list[torch.Tensor] = []

    def ask(given_engine: Engine, _: Engine) -> None:
        with given_engine.forward() as module:
            written.append(module.generate(**given, **settings, num_return_sequences=2))  # type: ignore[operator]

    found = recorded(ask, engine)
    assert len(written[0]) == 4
    assert [one["decoder_input_ids"][0].tolist() for one in found] == [
        [token for place, token in enumerate(row.tolist()) if place == 0 or token != 3] for row in written[0][::2]
    ]


def test_rows_that_cannot_be_told_apart(llama: HFEngine) -> None:
    def ask(given: Engine, _: Engine) -> None:
        with given.forward() as module:
            module(input_ids=torch.tensor([[2, 3], [4, 5]]), attention_mask=torch.ones(1, 2, dtype=torch.long))

    with pytest.raises(EvaluatorError, match=r"with 2 inputs at once and attention_mask of shape \[1, 2\]"):
        recorded(ask, llama)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "expert", "kind", "options"),
    [
        ("digits", "rotated", "classification", {"image_field": "image"}),
        ("reward", "style", "reward_pairs", {}),
        ("speech-nano", "general_syn", "wer", {}),
    ],
)
def test_real_families(family: str, expert: str, kind: str, options: dict[str, Any]) -> None:
    """The zoo's experts on their own tasks: everything recorded runs, alone, and says what it said in company."""
    import transformers

    import zoo

    root = zoo.build(family)
    name = json.loads((root / expert / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model = getattr(transformers, name).from_pretrained(root / expert)
    engine = evaluators.open_engine(model, root / expert)
    evaluator = evaluators.build(kind, {"data": root / "data" / expert, **options})
    ids = evaluator.items("search").ids[:40]
    found = record_inputs(evaluator, engine, ids)
    assert len(found) == len(ids) * (2 if kind == "reward_pairs" else 1)
    with torch.no_grad():
        logits = [model(**one).logits for one in found]
    assert all(bool(each.isfinite().all()) for each in logits)
    if kind == "wer":
        assert all(one["decoder_input_ids"].shape[1] > 2 for one in found)
