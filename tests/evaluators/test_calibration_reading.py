"""Rows of files as inputs: which are drawn, what becomes of them, and what is refused."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from calibration_samples import greedy_after, small_t5, tokens
from evaluator_samples import lines, random_model, word_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from sequence_models import bert, bert_tokenizer, chat_tokenizer, judge, opened, widened, words
from speech_samples import ctc_folder, small_ctc, small_whisper, tones, whisper_folder, write_data
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import evaluators
from evaluators.calibration import InputsOptions, draw_rows, read_inputs, record_inputs
from evaluators.contract import Engine, EvaluatorError
from evaluators.engines.hf import HFEngine


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": str(i), "prompt": f"w{i} w{i * 5 % 36}", "answer": f"w{i * 7 % 36}"} for i in range(count)]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text(lines(records), encoding="utf-8")
    return path


@pytest.fixture
def llama() -> HFEngine:
    return HFEngine(random_model("llama"), word_tokenizer())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either an evaluator, or data"),
        ({"evaluator": "maths", "data": "a.jsonl"}, "either an evaluator, or data"),
        ({"evaluator": "maths", "text": "{a}"}, "text belongs to data"),
        ({"data": "a.jsonl", "image": "picture", "audio": "sound"}, "image and audio: an input is one of"),
        ({"data": "a.jsonl", "text": "no field"}, "names no field"),
        ({"data": "a.jsonl", "text": "{a"}, "not a template"),
        ({"data": "a.jsonl", "pair": "{b}"}, "name the first one with text"),
        ({"data": "a.jsonl", "language": "de"}, "belong to audio"),
        ({"data": ["a.jsonl"]}, "expected a file, or a table"),
        ({"data": "a.jsonl", "labels": "label"}, "Extra inputs"),
    ],
)
def test_options_that_say_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        InputsOptions(**options)


def test_the_guides_example() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "evaluators.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(calibration:\n.*?)^```", guide, re.DOTALL | re.MULTILINE)
    kinds = {
        name: InputsOptions.model_validate(options).kind
        for name, options in yaml.safe_load(block)["calibration"]["inputs"].items()
        if "data" in options
    }
    assert kinds == {"code": "text", "pairs": "text", "chat": "chat", "digits": "image", "speech": "audio"}


def test_options_cost_no_torch() -> None:
    """They are part of the config, and ``--help`` must not wait for torch."""
    code = "import sys, evaluators.calibration as c; c.InputsOptions, c.draw_rows; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), limit=st.integers(1, 12), order=st.randoms(use_true_random=False))
def test_the_draw_depends_on_seed_and_content(
    tmp_path_factory: pytest.TempPathFactory, seed: int, limit: int, order: random.Random
) -> None:
    """Not on the order of the file, nor on rows that occur twice, nor on fields that nobody reads; a smaller draw is
    the beginning of a larger one."""
    folder = tmp_path_factory.mktemp("draw")
    options = InputsOptions(data=write(folder / "a.jsonl", rows(12)), text="{prompt} {answer}")
    first = [row.read for row in draw_rows(options, limit, seed)]
    assert len(set(first)) == limit
    assert first == [row.read for row in draw_rows(options, 12, seed)][:limit]
    shuffled = [{**row, "id": "x"} for row in [*rows(12), *rows(3)]]
    order.shuffle(shuffled)
    again = InputsOptions(data=write(folder / "b.jsonl", shuffled), text="{prompt} {answer}")
    assert [row.read for row in draw_rows(again, limit, seed)] == first


def test_seeds_draw_differently(tmp_path: Path) -> None:
    options = InputsOptions(data=write(tmp_path / "a.jsonl", rows(30)), text="{prompt}")
    draws = {tuple(row.place for row in draw_rows(options, 5, seed)) for seed in range(8)}
    assert len(draws) == 8
    assert len({place for draw in draws for place in draw}) > 15


def test_fewer_than_asked_for_are_all(tmp_path: Path, llama: HFEngine, caplog: pytest.LogCaptureFixture) -> None:
    options = InputsOptions(data=write(tmp_path / "a.jsonl", [*rows(4), *rows(2)]), text="{prompt}")
    assert len(tokens(read_inputs(options, llama, 256))) == 4
    assert "256 inputs are asked for, and there are 4 different ones" in caplog.text


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "folder"])
def test_texts_of_any_table(tmp_path: Path, llama: HFEngine, suffix: str) -> None:
    """A template's text, with the special tokens that a prompt of this model has."""
    records, file = rows(6), tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        write(file, records)
    elif suffix == "json":
        file.write_text(json.dumps(records), encoding="utf-8")
    elif suffix == "folder":
        file.mkdir()
        write(file / "search.jsonl", records)
        for split in ("selection", "holdout"):
            write(file / f"{split}.jsonl", [{"prompt": "w35 w35", "answer": "w35"}])
    else:
        import pyarrow
        from pyarrow import csv, parquet

        table = pyarrow.Table.from_pylist(records)
        csv.write_csv(table, file) if suffix == "csv" else parquet.write_table(table, file)
    found = tokens(read_inputs(InputsOptions(data=file, text="{prompt} w3 {answer}"), llama, 6))
    expected = [llama.encode(f"{row['prompt']} w3 {row['answer']}", special=True) for row in records]
    assert sorted(found) == sorted(expected)
    assert all(text[0] == 2 for text in found)


def test_a_data_set_folder(tmp_path: Path, llama: HFEngine) -> None:
    import datasets

    datasets.Dataset.from_list([{"text": f"w{i} w1"} for i in range(3)]).save_to_disk(tmp_path / "set")
    options = InputsOptions.model_validate({"data": {"dataset": str(tmp_path / "set")}})
    assert len(tokens(read_inputs(options, llama, 3))) == 3


def test_texts_are_cut_at_the_models_positions(tmp_path: Path, llama: HFEngine) -> None:
    long = " ".join(f"w{i % 30}" for i in range(200))
    options = InputsOptions(data=write(tmp_path / "a.jsonl", [{"text": long}]))
    (text,) = tokens(read_inputs(options, llama, 1))
    assert text == llama.encode(long, special=True)[:64]


def test_conversations(tmp_path: Path) -> None:
    """One that ends with an answer is read whole, one that ends with a question up to where the answer begins."""
    model = random_model("llama")
    chat_tokenizer().save_pretrained(tmp_path / "model")
    engine = evaluators.open_engine(model, tmp_path / "model")
    question = [{"role": "user", "content": "w1 w2"}]
    talks = [question, [*question, {"role": "assistant", "content": "w3"}]]
    options = InputsOptions(data=write(tmp_path / "a.jsonl", [{"messages": talk} for talk in talks]), chat="messages")
    found = tokens(read_inputs(options, engine, 2))
    whole = engine.encode("<bos> user w1 w2 <eos> <bos> assistant w3 <eos>", special=False)
    assert sorted(found, key=len) == [engine.encode_chat(question), whole]
    bare = HFEngine(model, word_tokenizer())
    with pytest.raises(EvaluatorError, match=r"b\.jsonl:1: .*needs a chat template"):
        read_inputs(options.model_copy(update={"data": write(tmp_path / "b.jsonl", [{"messages": question}])}), bare, 1)


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"prompt": " "}, {"text": "{prompt}"}, r'a\.jsonl:1: the field "prompt" is empty'),
        ({"prompt": 3}, {"text": "{prompt}"}, r"a\.jsonl:1: .* must be a text"),
        ({"prompt": "w1"}, {"text": "{question}"}, r'a\.jsonl:1: the field "question" is missing'),
        ({"prompt": "w1"}, {}, r'a\.jsonl:1: the field "text" is missing'),
        ({"talk": []}, {"chat": "talk"}, r"a\.jsonl:1: .*list of messages.*found an empty list"),
        ({"talk": "w1"}, {"chat": "talk"}, r"a\.jsonl:1: .*list of messages.*found a text"),
        ({"talk": [{"role": "user", "content": ""}]}, {"chat": "talk"}, r"a\.jsonl:1: .*nothing is said"),
        ({"sound": "a.wav"}, {"audio": "sound"}, r"a\.jsonl:1: .* there is none"),
        ({"picture": "a.png"}, {"image": "picture"}, r"a\.jsonl:1: .* there is none"),
    ],
)
def test_rows_that_cannot_be_used(
    tmp_path: Path, llama: HFEngine, record: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    file = write(tmp_path / "a.jsonl", [record])
    with pytest.raises(EvaluatorError, match=message):
        read_inputs(InputsOptions(data=file, **options), llama, 1)


def test_files_that_hold_nothing(tmp_path: Path, llama: HFEngine) -> None:
    (tmp_path / "a.jsonl").write_text("\n", encoding="utf-8")
    with pytest.raises(EvaluatorError, match=r"a\.jsonl: no rows"):
        read_inputs(InputsOptions(data=tmp_path / "a.jsonl"), llama, 1)
    with pytest.raises(EvaluatorError, match=r"expected a file at .*b\.jsonl"):
        read_inputs(InputsOptions(data=tmp_path / "b.jsonl"), llama, 1)
    with pytest.raises(EvaluatorError, match="and 0 are asked for"):
        read_inputs(InputsOptions(data=tmp_path / "a.jsonl"), llama, 0)
    with pytest.raises(EvaluatorError, match='recorded from the evaluator "maths"'):
        read_inputs(InputsOptions(evaluator="maths"), llama, 1)


def test_pairs_and_token_types(tmp_path: Path) -> None:
    engine = opened(bert(), bert_tokenizer(), tmp_path / "model")
    file = write(tmp_path / "a.jsonl", rows(3))
    found = read_inputs(InputsOptions(data=file, text="{prompt}", pair="{answer}"), engine, 3)
    for one in found:
        assert one["token_type_ids"].tolist()[0][-2:] == [1, 1]
        assert one["input_ids"].tolist()[0].count(3) == 2
    with pytest.raises(EvaluatorError, match="goes on with one text, and pair names a second"):
        read_inputs(InputsOptions(data=file, text="{prompt}", pair="{answer}"), text_engine(), 3)


def text_engine() -> HFEngine:
    return HFEngine(random_model("llama"), word_tokenizer())


def test_conversations_of_a_reward_model(tmp_path: Path) -> None:
    engine = opened(judge(), chat_tokenizer(), tmp_path / "model")
    talk = [{"role": "user", "content": words(1, 3)}, {"role": "assistant", "content": words(2, 2)}]
    options = InputsOptions(data=write(tmp_path / "a.jsonl", [{"talk": talk}]), chat="talk")
    (text,) = tokens(read_inputs(options, engine, 1))
    assert engine.decode(text) == f"user {words(1, 3)} assistant {words(2, 2)}"


def small_vit(folder: Path) -> Engine:
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = widened(ViTForImageClassification(ViTConfig(**size, image_size=8, patch_size=4, num_labels=3)))
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder)
    return evaluators.open_engine(model, folder)


def test_images_are_what_the_evaluator_sees(tmp_path: Path) -> None:
    engine = small_vit(tmp_path / "model")
    data = tmp_path / "data"
    data.mkdir()
    for split, start in (("search", 0), ("selection", 50), ("holdout", 90)):
        for index in range(start, start + 4):
            Image.new("RGB", (8, 8), (index, 2 * index, 255 - index)).save(data / f"{index}.png")
        items = [{"picture": f"{index}.png", "label": index % 3} for index in range(start, start + 4)]
        write(data / f"{split}.jsonl", items)
    evaluator = evaluators.build("classification", {"data": data, "image_field": "picture"})
    recorded = record_inputs(evaluator, engine, evaluator.items("search").ids)
    read = read_inputs(InputsOptions(data=data, image="picture"), engine, 4)
    key = lambda one: one["pixel_values"].tolist()  # noqa: E731
    assert sorted(map(key, read)) == sorted(map(key, recorded))


def test_recordings_are_what_the_evaluator_hears(tmp_path: Path) -> None:
    """Features, and for a model that writes what it writes about them."""
    data = write_data(tmp_path / "data", 6)
    model = widened(small_whisper(3))
    for engine in (
        evaluators.open_engine(model, whisper_folder(tmp_path / "whisper")),
        evaluators.open_engine(small_ctc(), ctc_folder(tmp_path / "ctc")),
    ):
        evaluator = evaluators.build("wer", {"data": data})
        recorded = record_inputs(evaluator, engine, evaluator.items("search").ids)
        read = read_inputs(InputsOptions(data=data, audio="audio"), engine, 6)
        key = lambda one: [value.tolist() for value in one.values()]  # noqa: E731
        assert [set(one) for one in read] == [set(one) for one in recorded]
        assert sorted(map(key, read)) == sorted(map(key, recorded))


def test_recordings_at_another_rate(tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "a.wav", tones("ada bel"), 8000)
    engine = evaluators.open_engine(small_ctc(), ctc_folder(tmp_path / "ctc"))
    file = write(tmp_path / "a.jsonl", [{"audio": "a.wav"}])
    with pytest.raises(EvaluatorError, match=r"a\.jsonl:1: .*8000 samples a second"):
        read_inputs(InputsOptions(data=file, audio="audio"), engine, 1)
    (one,) = read_inputs(InputsOptions(data=file, audio="audio", resample=True), engine, 1)
    assert one["input_values"].shape == (1, 2 * len(tones("ada bel")))


def test_inputs_of_another_kind_of_model(tmp_path: Path, llama: HFEngine) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    pictures = InputsOptions(data=write(tmp_path / "a.jsonl", [{"image": "a.png", "text": "w1"}]), image="image")
    with pytest.raises(EvaluatorError, match=r"a\.jsonl:1: .*images, and LlamaForCausalLM takes texts; .*text"):
        read_inputs(pictures, llama, 1)
    texts = pictures.model_copy(update={"image": None})
    with pytest.raises(EvaluatorError, match=r"texts, and ViTForImageClassification takes images; .*image"):
        read_inputs(texts, small_vit(tmp_path / "vit"), 1)
    engine = evaluators.open_engine(small_ctc(), ctc_folder(tmp_path / "ctc"))
    with pytest.raises(EvaluatorError, match=r"texts, and Wav2Vec2ForCTC takes recordings; .*audio"):
        read_inputs(texts, engine, 1)


def test_a_model_that_cannot_be_run_on_them(tmp_path: Path) -> None:
    """A tokenizer of another model, for instance: its ids have no embeddings."""
    engine = opened(bert(), bert_tokenizer(), tmp_path / "model")
    assert engine.model is not None
    engine.model.bert.embeddings.word_embeddings = torch.nn.Embedding(5, 32)  # type: ignore[union-attr]
    with pytest.raises(EvaluatorError, match="BertForSequenceClassification cannot be run on input_ids"):
        read_inputs(InputsOptions(data=write(tmp_path / "a.jsonl", [{"text": words(3, 5)}])), engine, 1)


def test_a_model_with_encoder_and_decoder_answers_itself(tmp_path: Path) -> None:
    engine = opened(small_t5(), word_tokenizer(), tmp_path / "model")
    found = read_inputs(InputsOptions(data=write(tmp_path / "a.jsonl", rows(3)), text="{prompt}"), engine, 3)
    assert engine.model is not None
    assert all(set(one) == {"input_ids", "decoder_input_ids"} for one in found)
    assert all(greedy_after(engine.model, one, 1) and one["decoder_input_ids"].shape[1] > 1 for one in found)
