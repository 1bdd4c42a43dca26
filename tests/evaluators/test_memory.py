"""Batches that do not fit into memory get smaller, stay so, and no score is another for it."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from evaluator_samples import lines, random_model, word_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from sequence_models import bert, bert_tokenizer, opened, words
from speech_samples import ctc_folder, small_ctc, small_whisper, whisper_folder, write_data
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification, ViTImageProcessor

import evaluators
from evaluators.contract import EvaluatorError, Request
from evaluators.engines import logits, prefix
from evaluators.engines.hf import HFEngine
from evaluators.engines.memory import BatchLimit, fitting, is_out_of_memory, passing
from evaluators.engines.opening import open_engine
from search.workers.contract import Note
from search.workers.inline import _scored_in_memory

OUT = (
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    lambda: MemoryError(),
)


@pytest.fixture(scope="module", autouse=True)
def little_garbage() -> Iterator[None]:
    """Collecting it takes long beside all that the libraries hold."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@contextmanager
def memory_for(
    model: torch.nn.Module, cells: int, error: Callable[[], Exception] = OUT[0]
) -> Iterator[list[tuple[int, int]]]:
    """A model that can read so many cells at once, what its cache holds among them. Yields the (rows, width) read."""
    read: list[tuple[int, int]] = []

    def check(module: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs = next(
            value for name in ("input_ids", "pixel_values", "input_values", "input_features", "decoder_input_ids")
            if (value := named.get(name)) is not None
        )  # fmt: skip
        rows, width = len(inputs), inputs[0].numel()
        cache = named.get("past_key_values")
        held = cache.get_seq_length() if hasattr(cache, "get_seq_length") else 0
        if rows * (width + held) > cells:
            raise error()
        read.append((rows, width + held))

    hook = model.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield read
    finally:
        hook.remove()


def scored(engine: Any, score: Callable[[Any], Any], notes: list[Note] | None = None) -> Any:
    evaluator = SimpleNamespace(score=lambda engine, ids: score(engine))
    return _scored_in_memory(engine, "texts", evaluator, (), ([] if notes is None else notes).append)  # type: ignore[arg-type]


# -- what is out of memory


def test_the_allocators_themselves() -> None:
    for allocate in (lambda: torch.empty(2**50, dtype=torch.uint8), lambda: np.empty(2**50, dtype=np.uint8)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            allocate()
        assert is_out_of_memory(caught.value)
    assert all(is_out_of_memory(each()) for each in OUT)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        ValueError("out of memory"),
        IndexError("index out of range in self"),
    ],
)
def test_other_errors_are_none(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        scored(HFEngine(random_model("llama"), word_tokenizer()), lambda engine: raised(error))


def raised(error: Exception) -> None:
    raise error


@given(st.integers(1, 10**6), st.lists(st.tuples(st.integers(2, 512), st.floats(0.0, 2.0)), max_size=40))
def test_a_limit_only_falls_and_ends_at_one(tokens: int, passes: list[tuple[int, float]]) -> None:
    limit = BatchLimit(tokens)
    for rows, used in passes:
        before = limit.tokens
        limit.passing(rows, used)
        assert limit.halve() is (before > 1)
        assert 1 <= limit.tokens <= max(1, before // 2)
        assert limit.tokens <= max(1, used * tokens / 2)
        assert limit.part(tokens) == limit.tokens
        assert limit.part(1) == 1
    limit.begin()
    for _ in range(tokens.bit_length()):
        limit.halve()
    assert limit.tokens == 1 and not limit.halve()
    limit.tokens = tokens
    limit.passing(1, 1.0)
    assert not limit.halve() and limit.tokens == tokens


def test_a_limit_below_one_is_refused() -> None:
    engine = HFEngine(random_model("llama"), word_tokenizer())
    with pytest.raises(EvaluatorError, match="batch_tokens must be at least 1"):
        engine.batch_tokens = 0


def test_engines_without_a_limit_are_asked_for_all_at_once() -> None:
    assert fitting(SimpleNamespace(), 32) == 32
    passing(SimpleNamespace(), 8, 8, 32)
    with pytest.raises(MemoryError):
        scored(SimpleNamespace(), lambda engine: raised(MemoryError()))


# -- text

LONG = [2, *range(5, 29)]
PROMPTS = [[2, *range(5, 5 + 2 * length)] for length in (1, 2, 3, 5, 6, 7, 8, 9, 10, 12)]
REQUESTS = [Request(prompt, [(7 * place + step) % 36 + 4 for step in range(1 + place % 4)]) for place, prompt in
            enumerate(PROMPTS)]  # fmt: skip
CHOICES = [Request(prompt, [4 + choice, 30, choice + 6]) for prompt in PROMPTS[3:] for choice in range(6)]
FEW_SHOT = [Request([*LONG, 4 + place, 30 - place], [7 + step, 9]) for place in range(8) for step in range(3)]


def generations(prompts: Sequence[Sequence[int]]) -> Callable[[Any], Any]:
    return lambda engine: engine.generate(prompts, max_new_tokens=6)


def likelihoods(requests: Sequence[Request]) -> Callable[[Any], Any]:
    return lambda engine: engine.loglikelihood(requests)


PATHS = {
    "generate": (generations(PROMPTS), 60),
    "generate after one beginning": (generations([request.context for request in FEW_SHOT]), 170),
    "loglikelihood": (likelihoods(REQUESTS), 40),
    "trees": (likelihoods(CHOICES), 60),
    "trees after one beginning": (likelihoods(FEW_SHOT), 150),
}


def same(found: Sequence[Any], expected: Sequence[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        if hasattr(other, "total"):
            assert one.total == pytest.approx(other.total, rel=1e-5, abs=1e-5)
            assert one.is_greedy == other.is_greedy
        else:
            assert one == other


@pytest.mark.parametrize("family", ["llama", pytest.param("mamba", marks=pytest.mark.slow)])
@pytest.mark.parametrize("path", PATHS)
def test_texts_are_scored_the_same_in_less_memory(path: str, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "_SHORTEST", 4)
    monkeypatch.setattr(prefix, "_COST", 8)
    score, cells = PATHS[path]
    model = random_model(family)
    expected = scored(HFEngine(model, word_tokenizer()), score)

    engine = HFEngine(model, word_tokenizer())
    asked_for, fingerprint = engine.batch_tokens, engine.fingerprint
    notes: list[Note] = []
    with memory_for(model, cells) as read:
        same(scored(engine, score, notes), expected)
        assert 1 <= engine.batch_tokens <= asked_for // 2
        assert [(note.what, note.value) for note in notes] == [("batch halved", engine.batch_tokens)]
        assert f"{asked_for} -> {engine.batch_tokens}" in notes[0].detail
        assert max(rows for rows, _ in read) > 1, "halved further than needed"
        # a smaller batch stays, and is enough from then on
        smaller = engine.batch_tokens
        same(scored(engine, score, notes), expected)
        assert (engine.batch_tokens, len(notes)) == (smaller, 1)
    assert engine.fingerprint == fingerprint

    resumed = HFEngine(model, word_tokenizer())
    resumed.batch_tokens = smaller
    with memory_for(model, cells, lambda: AssertionError("the first batch was as large as if nothing had happened")):
        same(scored(resumed, score), expected)


def test_want_of_memory_proves_nothing_of_a_model() -> None:
    """A model whose first tree did not fit, where plain rows did, is still one that takes trees."""
    model = random_model("llama")
    engine = HFEngine(model, word_tokenizer())
    for error in OUT:

        def trees_are_too_large(
            module: Any, arguments: Any, named: dict[str, Any], error: Callable[[], Exception] = error
        ) -> None:
            mask = named.get("attention_mask")
            if mask is not None and mask.ndim == 4:
                raise error()

        hook = model.register_forward_pre_hook(trees_are_too_large, with_kwargs=True)
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            engine.loglikelihood(CHOICES)
        assert is_out_of_memory(caught.value)
        assert engine._scorer.tree.proven == {}
        hook.remove()
    engine.loglikelihood(CHOICES)
    assert set(engine._scorer.tree.proven.values()) == {True}


def test_a_way_is_proved_on_a_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof needs the logits of every position, which could be the most that is ever held."""
    ids = torch.tensor(np.random.default_rng(1).integers(4, 40, (9, 6)))
    index = torch.tensor([5, 11, 12, 17, 29, 35, 41, 47, 50, 53])
    for model, is_right in ((random_model("llama"), True), (random_model("gemma2"), True), (LastRowOff(), False)):
        plain = model(input_ids=ids).logits.flatten(0, 1)[index]
        for rows in (2, 3, 9):
            monkeypatch.setattr(logits, "_COMPARED", rows * 6 * 40)
            found = logits.ScoredLogits(model, torch.device("cpu"))
            with torch.inference_mode(), memory_for(model, 10**9) as read:
                answers = found.at(ids, [6] * 9, index)
            assert found.fast is is_right
            torch.testing.assert_close(answers, plain)
            assert read == [(9, 6), (rows, 6)] + [(9, 6)] * (not is_right)


class LastRowOff(torch.nn.Module):
    """A causal model whose output head does not explain the last row."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = random_model("llama")

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.inner.lm_head

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None) -> Any:
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        if output.logits.shape[:2] == input_ids.shape:
            output.logits = torch.cat([output.logits[:-1], -output.logits[-1:]])
        return output


@pytest.mark.parametrize("error", OUT)
def test_a_candidate_that_never_fits_fails_alone(error: Callable[[], Exception]) -> None:
    """One row is the smallest batch. What comes next is asked in batches as large as before."""
    model = random_model("llama")
    engine = HFEngine(model, word_tokenizer())
    before, notes = engine.batch_tokens, []
    with memory_for(model, 12, error) as read, pytest.raises(MemoryError, match=r"texts does not fit .* one row at a"):
        scored(engine, likelihoods(REQUESTS), notes)
    assert read[-1][0] == 1
    assert (engine.batch_tokens, notes) == (before, [])
    scored(engine, likelihoods(REQUESTS), notes)
    assert (engine.batch_tokens, notes) == (before, [])


def test_what_did_not_fit_is_gone_before_the_next_attempt() -> None:
    """Frames of a caught exception keep their tensors: another attempt beside them would not fit either."""
    engine = HFEngine(random_model("llama"), word_tokenizer())
    alive: list[weakref.ref[torch.Tensor]] = []

    def score(engine: HFEngine) -> int:
        assert all(each() is None for each in alive)
        activations = torch.zeros(1000)
        alive.append(weakref.ref(activations))
        if len(alive) < 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return len(alive)

    assert scored(engine, score) == 4
    assert engine.batch_tokens == 1024 // 8  # of passes nothing is known: each time half


# -- models that evaluators run themselves


def data(folder: Path, records: Callable[[int], dict[str, Any]]) -> Path:
    folder.mkdir()
    for place, split in enumerate(("search", "selection", "holdout")):
        (folder / f"{split}.jsonl").write_text(lines([records(100 * place + index) for index in range(20)]))
    return folder


def vit() -> torch.nn.Module:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=8, patch_size=4,
        num_labels=3, num_channels=1, initializer_range=0.3,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


def classified_texts(folder: Path) -> tuple[Any, Any, int]:
    engine = opened(bert(), bert_tokenizer(), folder / "model")
    found = data(folder / "data", lambda index: {"text": words(index, 2 + index % 9), "label": index % 3})
    return engine, evaluators.build("classification", {"data": str(found)}), 40


def classified_images(folder: Path) -> tuple[Any, Any, int]:
    (folder / "model").mkdir()
    ViTImageProcessor(do_resize=False, image_mean=[0.4], image_std=[0.5]).save_pretrained(folder / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (300, 64))
    found = data(folder / "data", lambda index: {"image": pixels[index].reshape(8, 8).tolist(), "label": index % 3})
    engine = open_engine(vit(), folder / "model")
    return engine, evaluators.build("classification", {"data": str(found), "image_field": "image"}), 5 * 64


def heard_by_whisper(folder: Path) -> tuple[Any, Any, int]:
    engine = open_engine(small_whisper(), whisper_folder(folder / "model"))
    return engine, evaluators.build("wer", {"data": str(write_data(folder / "data")), "max_new_tokens": 6}), 40


def heard_by_ctc(folder: Path) -> tuple[Any, Any, int]:
    engine = open_engine(small_ctc(), ctc_folder(folder / "model"))
    return engine, evaluators.build("wer", {"data": str(write_data(folder / "data")), "max_new_tokens": 6}), 50_000


def drifted(folder: Path) -> tuple[Any, Any, int]:
    random_model("llama").save_pretrained(folder / "reference")
    word_tokenizer().save_pretrained(folder / "reference")
    found = data(folder / "data", lambda index: {"text": words(index, 3 + index % 9)})
    options = {"data": str(found), "reference": str(folder / "reference")}
    return HFEngine(random_model("llama", 1), word_tokenizer()), evaluators.build("drift", options), 40


@pytest.mark.parametrize("made", [classified_texts, classified_images, heard_by_whisper, heard_by_ctc, drifted])
def test_evaluators_that_run_the_model_themselves(made: Callable[[Path], tuple[Any, Any, int]], tmp_path: Path) -> None:
    engine, evaluator, cells = made(tmp_path)
    evaluator.prepare(engine)
    ids = evaluator.items("search").ids
    notes: list[Note] = []
    expected = _scored_in_memory(engine, "task", evaluator, ids, notes.append)
    before = engine.batch_tokens
    with memory_for(engine.model, cells) as read:
        found = _scored_in_memory(engine, "task", evaluator, ids, notes.append)
        again = _scored_in_memory(engine, "task", evaluator, ids, notes.append)
    assert found.statuses == expected.statuses
    for metric, values in expected.values.items():
        np.testing.assert_allclose(found.values[metric], values, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(again.values[metric], found.values[metric])
    assert [note.value for note in notes] == [engine.batch_tokens]
    assert engine.batch_tokens < before
    assert max(rows for rows, _ in read) > 1, "halved further than needed"


# -- real want of memory


def _in_little_memory(room: int, answers: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40, hidden_size=64, intermediate_size=8192, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    drawn = np.random.default_rng(0).integers(4, 40, (120, 32)).tolist()
    requests = [Request([2, *tokens[: 1 + index % 30]], tokens[-2:]) for index, tokens in enumerate(drawn)]
    expected = HFEngine(model, word_tokenizer(), batch_tokens=64).loglikelihood(requests)
    engine = HFEngine(model, word_tokenizer(), batch_tokens=65536)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + room, resource.RLIM_INFINITY))
    notes: list[Note] = []
    found = scored(engine, likelihoods(requests), notes)
    equal = np.allclose([each.total for each in found], [each.total for each in expected], rtol=1e-4)
    answers.put((equal, [note.detail for note in notes], engine.batch_tokens))


def test_a_process_whose_memory_is_really_limited() -> None:
    """The limit is the operating system's, and what is caught is the allocator's own error."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_in_little_memory, args=(40 * 2**20, answers))
    child.start()
    equal, notes, tokens = answers.get(timeout=120)
    child.join()
    assert equal and len(notes) == 1 and "can't allocate memory" in notes[0]
    assert 64 < tokens < 65536
