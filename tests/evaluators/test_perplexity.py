from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluator_samples import WORDS, lines, random_model, word_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from text_models import Bigram, Scripted, bigram_engine, byte_tokenizer

from evaluators.conformance import EvaluatorConformance, broken_weights
from evaluators.contract import EvaluatorError
from evaluators.documents import first_token, windows
from evaluators.engines.hf import HFEngine
from evaluators.perplexity import Perplexity, PerplexityOptions


def documents(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Documents of 2 to 150 words: several windows of a model with 64 positions."""
    return [
        {"text": " ".join(WORDS[(index * 7 + step * (1 + index % 4)) % 36] for step in range(2 + 37 * index % 149))}
        for index in range(start, start + count)
    ]


def write(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for place, split in enumerate(("search", "selection", "holdout")):
        found = splits.get(split, documents(2, 300 + 4 * place))
        (folder / f"{split}.jsonl").write_text(lines(found), encoding="utf-8")
    return folder


def ready(engine: Any, data: Path, **options: Any) -> Perplexity:
    evaluator = Perplexity(PerplexityOptions(data=data, **options))
    evaluator.prepare(engine)
    return evaluator


class TestPerplexity(EvaluatorConformance):
    @pytest.fixture(autouse=True)
    def place(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def evaluator(self) -> Perplexity:
        return Perplexity(PerplexityOptions(data=write(self.folder / "data", search=documents(6)), window=40))

    def changed_evaluator(self) -> Perplexity:
        data = write(self.folder / "other", search=documents(6), holdout=documents(2, 400))
        return Perplexity(PerplexityOptions(data=data, window=40))

    def engine(self) -> HFEngine:
        return HFEngine(random_model("llama"), word_tokenizer(), batch_tokens=200)


def test_a_uniform_model_needs_log_v_bits_a_token(tmp_path: Path) -> None:
    engine = bigram_engine(None)
    evaluator = ready(engine, write(tmp_path, search=documents(10)))
    ids = evaluator.items("search").ids
    scores = evaluator.score(engine, ids)
    texts = [evaluator._items[name].value for name in ids]
    expected = [math.log2(40) * len(text.split()) / len(text.encode()) for text in texts]
    np.testing.assert_allclose(scores.values["bits_per_byte"], expected, rtol=1e-6)
    assert scores.weights["bits_per_byte"].tolist() == [len(text.encode()) for text in texts]
    total = math.log2(40) * sum(len(text.split()) for text in texts) / sum(len(text.encode()) for text in texts)
    assert evaluator.aggregate(scores) == {"bits_per_byte": pytest.approx(total)}


@pytest.mark.parametrize("window", [2, 3, 17, 2048])
def test_known_probabilities_whatever_the_window(tmp_path: Path, window: int) -> None:
    """A bigram model needs one token of context, so that windows change nothing; the sum is taken from the table."""
    engine = bigram_engine(4)
    evaluator = ready(engine, write(tmp_path, search=documents(4)), window=window)
    ids = evaluator.items("search").ids
    found = evaluator.score(engine, ids).values["bits_per_byte"]
    for value, name in zip(found, ids, strict=True):
        text = evaluator._items[name].value
        tokens = engine.encode(text, special=True)
        nats = -sum(engine.model.logp(a, b) for a, b in itertools.pairwise(tokens))
        assert value == pytest.approx(min(8.0, nats / math.log(2) / len(text.encode())), rel=1e-5)


def test_wide_letters_are_counted_by_their_bytes(tmp_path: Path) -> None:
    """A byte tokenizer and uniform weights: log2 V bits a byte, also of "é" and "語"."""
    size = len(byte_tokenizer())
    table = torch.zeros(size, size)
    table[:, 64:] = -40.0  # all but 64 tokens are impossible, and none of the text is: then 8 is the cap
    engine = HFEngine(Bigram(torch.zeros(size, size)), byte_tokenizer())
    evaluator = ready(engine, write(tmp_path, search=[{"text": "é語"}]))
    ids = evaluator.items("search").ids
    scores = evaluator.score(engine, ids)
    assert scores.weights["bits_per_byte"].tolist() == [5.0]
    assert scores.values["bits_per_byte"].tolist() == [8.0]  # log2 265 = 8.05 is capped
    with torch.no_grad():
        engine.model.table.weight.copy_(table)
        engine.model.table.weight[:, engine.encode("é語", special=False)] = 0.0
    chosen = 64 + len({token for token in engine.encode("é語", special=False) if token >= 64})
    value = evaluator.score(engine, ids).values["bits_per_byte"][0]
    assert value == pytest.approx(math.log2(chosen), rel=1e-6)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(2, 70))
def test_windows_score_every_token_once(tokens: list[int], limit: int) -> None:
    requests = windows(tokens, 0, limit)
    assert [token for request in requests for token in request.continuation] == tokens
    assert all(1 <= len(request.context) + len(request.continuation) <= limit for request in requests)
    document, scored = [0, *tokens], 1
    for request in requests:
        assert request.context == document[scored - len(request.context) : scored]
        scored += len(request.continuation)
    if len(requests) > 1:  # all but the first and the last begin with one token of context; the last is filled up
        assert all(len(request.context) == 1 for request in requests[:-1])
        assert len(requests[-1].context) + len(requests[-1].continuation) == limit


@given(st.integers(1, 200), st.integers(2, 40))
def test_windows_are_those_of_lm_eval(length: int, limit: int) -> None:
    """Written down from its definition (get_rolling_token_windows, context_len 1, made disjoint)."""
    tokens, size = list(range(1, length + 1)), limit - 1
    expected = [([0], tokens[:size])]
    done = min(size, length)
    while done < length:
        count = min(length - done, size)
        end = done + count
        inputs, wanted = tokens[end - size - 1 : end - 1], tokens[end - count : end]
        if end - size - 1 < 0:
            inputs = [0, *tokens[: end - 1]]
        expected.append((inputs[: len(inputs) - (len(wanted) - 1)], wanted))
        done = end
    assert [(list(r.context), list(r.continuation)) for r in windows(tokens, 0, limit)] == expected


def test_more_context_is_more_context(tmp_path: Path) -> None:
    """A real model: windows of 2 tokens know less than whole documents, and both are finite."""
    engine = HFEngine(random_model("gpt2"), word_tokenizer())
    data = write(tmp_path, search=[{"text": " ".join(WORDS[:40])}])
    values = set()
    for window in (2, 20, 64):
        evaluator = ready(engine, data, window=window)
        values.add(float(evaluator.score(engine, evaluator.items("search").ids).values["bits_per_byte"][0]))
    assert len(values) == 3 and all(0 < value < 8 for value in values)


def test_nan_is_failed_at_the_cap(tmp_path: Path) -> None:
    engine = bigram_engine(0)
    evaluator = ready(engine, write(tmp_path))
    with broken_weights(engine):
        scores = evaluator.score(engine, evaluator.items("search").ids)
    assert set(scores.statuses) == {"failed"}
    assert evaluator.aggregate(scores) == {"bits_per_byte": 8.0}


def test_a_confident_wrong_model_is_capped(tmp_path: Path) -> None:
    engine = bigram_engine(None)
    engine.model.table.weight.data[:, 5] = 1e4
    evaluator = ready(engine, write(tmp_path, search=[{"text": "w3 w4 w6"}]))
    scores = evaluator.score(engine, evaluator.items("search").ids)
    assert (scores.values["bits_per_byte"].tolist(), scores.statuses) == ([8.0], ("ok",))


def test_what_stands_before_a_document() -> None:
    engine = Scripted({})
    assert first_token(engine) == 1
    engine.encode = lambda text, special: []  # type: ignore[method-assign]
    assert first_token(engine) == 2
    engine.end_of_text = None  # type: ignore[assignment]
    with pytest.raises(EvaluatorError, match="neither a beginning-of-text nor an end-of-text"):
        first_token(engine)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": " "}, r'search\.jsonl:1: the field "text" is empty'),
        ({"text": 3}, r'search\.jsonl:1: the field "text" must be a text'),
        ({"document": "w1"}, r'search\.jsonl:1: the field "text" is missing; this line has document'),
        ({"text": "w1 zebra"}, r"search\.jsonl:1: the document holds what the tokenizer has no token for"),
    ],
)
def test_bad_documents(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(EvaluatorError, match=message):
        ready(bigram_engine(0), write(tmp_path, search=[record]))


def test_fields_and_fingerprints(tmp_path: Path) -> None:
    data = write(tmp_path / "one")
    renamed = write(tmp_path / "other")
    for file in renamed.iterdir():
        file.write_text(file.read_text(encoding="utf-8").replace('"text"', '"body"'), encoding="utf-8")
    plain = Perplexity(PerplexityOptions(data=data))
    assert Perplexity(PerplexityOptions(data=renamed, text_field="body")).fingerprint == plain.fingerprint
    assert Perplexity(PerplexityOptions(data=data, window=9)).fingerprint != plain.fingerprint
