"""Candidates that break off half-way or run out of memory: recorded with a reason, and the next is as fresh."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from live_bench import Bench, make_sources, raised

import merging.materialize as materialize
from merging import Sources
from search.workers.evaluation import CandidateFailed, Evaluation


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return make_sources(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module", autouse=True)
def little_garbage() -> Iterator[None]:
    """Collecting it takes long beside all that the libraries hold."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def bench(sources: Sources) -> Bench:
    return Bench(sources)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("sizes do not match"), "RuntimeError: sizes do not match"),
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (IndexError("index out of range in self"), "IndexError: index out of range in self"),
    ],
)
def test_an_evaluation_that_breaks_off_leaves_nothing_behind(bench: Bench, error: Exception, reason: str) -> None:
    """Hooks that were not removed, a mode that was not put back, weights that were written to."""

    def trouble(engine: Any) -> None:
        with engine.forward() as model, torch.no_grad():
            model.lm_head.register_forward_hook(lambda module, arguments, output: output * 0.0)
            model.train()
            next(model.parameters()).add_(1.0)
        raise error

    recipe = bench.recipe(0.5, 0.2)
    bench.evaluator.trouble = trouble
    done = bench.score(recipe)
    assert isinstance(done.result, CandidateFailed) and done.result.reason == reason
    bench.evaluator.trouble = lambda engine: None
    bench.is_fresh(recipe)


def test_a_batch_that_no_longer_fits_is_halved_and_recorded(bench: Bench) -> None:
    """Before it counts as a failure, and for the rest of the run."""
    left = [2]

    def trouble(engine: Any) -> None:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    recipe, before = bench.recipe(0.5, 0.2), bench.worker.batch_tokens
    expected = bench.score(recipe).result
    bench.evaluator.trouble = trouble
    done = bench.score(recipe)
    assert before is not None and bench.worker.batch_tokens == before // 4
    assert [(note.what, note.value) for note in done.notes] == [("batch halved", before // 4)]
    assert "CUDA out of memory. Tried to allocate 2.00 GiB." in done.notes[0].detail
    assert isinstance(expected, Evaluation) and isinstance(done.result, Evaluation)
    assert done.result.values == expected.values
    assert bench.score(recipe).notes == ()
    bench.worker.batch_tokens = 8.0  # as it is restored from a log
    assert bench.engine.batch_tokens == 8


def test_a_candidate_without_enough_memory_for_a_row_has_failed(bench: Bench) -> None:
    bench.evaluator.trouble = lambda engine: raised(MemoryError("no memory"))
    before = bench.worker.batch_tokens
    done = bench.score(bench.recipe(0.5, 0.2))
    assert isinstance(done.result, CandidateFailed) and done.notes == ()
    assert done.result.reason == (
        "MemoryError: text does not fit into memory, not even one row at a time (batch_tokens 1): no memory"
    )
    assert bench.worker.batch_tokens == before
    bench.evaluator.trouble = lambda engine: None
    bench.is_fresh(bench.recipe(0.5, 0.2))


def test_a_merge_without_enough_memory_is_tried_once_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    merge, left = materialize.merge_tensors, [1]

    def scarce(pieces: Iterator[Any]) -> Any:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return merge(pieces)

    monkeypatch.setattr(materialize, "merge_tensors", scarce)
    assert isinstance(bench.score(bench.recipe(0.5, 0.2)).result, Evaluation)
    left[0] = 2
    done = bench.score(bench.recipe(0.2, 0.5))
    assert isinstance(done.result, CandidateFailed) and "out of memory" in done.result.reason
    monkeypatch.undo()
    bench.is_fresh(bench.recipe(0.2, 0.5))


def test_weights_that_are_not_finite_are_told_apart(bench: Bench) -> None:
    done = bench.score(bench.recipe(3e38, 3e38))
    assert isinstance(done.result, CandidateFailed) and "finite" in done.result.reason
    bench.is_fresh(bench.recipe(0.5, 0.2))
