"""One process, one device: the live model stands here and candidates are written into it in turn."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from evaluators.contract import Evaluator, ItemScores, Split
from merging.recipe import MergingError, Recipe
from search.objectives import aggregate, clusters_of, standard_errors
from search.workers.contract import Done, Note, Task
from search.workers.evaluation import CandidateFailed, Evaluation, Items, Worker, check_usable
from search.workers.time_limit import TimeIsUp, grace, time_limit

if TYPE_CHECKING:
    from evaluators.contract import Engine
    from merging import Materializer
    from merging.dataflow import PathMaterializer

HANGS = 75
"""Exit status of a process that ended itself because a candidate hung in compiled code: EX_TEMPFAIL, try again."""

Tell = Callable[[Note], None]


def score_model(
    engine: Engine,
    evaluators: Mapping[str, Evaluator],
    split: Split,
    items: Items | None = None,
    tell: Tell = lambda note: None,
) -> Evaluation:
    """Score the engine's present weights with every evaluator, prepared before.

    Args:
        engine: asks the live model.
        evaluators: by name.
        split: which split.
        items: evaluator -> ids; every item of the split if None.
        tell: hears of batches that did not fit into memory and were made smaller.

    Raises:
        MemoryError: memory does not suffice for a single row.
    """
    start = time.perf_counter()
    values: dict[str, float] = {}
    errors: dict[str, float] = {}
    scores: dict[str, ItemScores] = {}
    for name, evaluator in evaluators.items():
        ids = evaluator.items(split).ids if items is None else items.get(name, ())
        if not ids:
            continue
        scores[name] = _scored_in_memory(engine, name, evaluator, ids, tell)
        values |= aggregate(name, evaluator, scores[name])
        errors |= standard_errors(name, scores[name], clusters_of(evaluator, split))
    return Evaluation(values, errors, scores, {"evaluate": time.perf_counter() - start})


def _scored_in_memory(engine: Engine, name: str, evaluator: Evaluator, ids: Sequence[str], tell: Tell) -> ItemScores:
    """An evaluator's scores, in batches that are halved, and stay so, until they fit."""
    from evaluators.engines.memory import Halvable, is_out_of_memory

    if not isinstance(engine, Halvable):
        return evaluator.score(engine, ids)
    limit = engine.limit
    before = limit.tokens
    while True:
        limit.begin()
        try:
            scores = evaluator.score(engine, ids)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = _first_line(error)
        # Only now: as long as the exception was there, so were the tensors in its frames.
        engine.release()
        if not limit.halve():
            smallest, limit.tokens = limit.tokens, before  # this candidate says nothing of the others
            raise MemoryError(
                f"{name} does not fit into memory, not even one row at a time (batch_tokens {smallest}): {reason}"
            )
    if limit.tokens < before:
        detail = f"{name} did not fit into memory ({reason}): batch_tokens {before} -> {limit.tokens} from here on"
        tell(Note("batch halved", detail, float(limit.tokens)))
    return scores


class InlineWorker:
    """Materialises a recipe into its own live model and scores it."""

    def __init__(
        self, materializer: Materializer | PathMaterializer, engine: Engine, evaluators: Mapping[str, Evaluator]
    ) -> None:
        self._materializer = materializer
        self._engine = engine
        self._evaluators = dict(evaluators)
        self._notes: list[Note] = []

    @property
    def gpus(self) -> float:
        """Devices that evaluating keeps busy: 1 where the live model is on a GPU, else 0."""
        return 1.0 if self._engine.device.type == "cuda" else 0.0

    @property
    def interruptible(self) -> bool:
        """Whether the engine can go on after a time limit has broken an evaluation off."""
        return bool(getattr(self._engine, "interruptible", True))

    @property
    def batch_tokens(self) -> int | None:
        """At most so many tokens a forward pass, None where the engine makes no batches of its own (vLLM). May be set
        to what a "batch halved" said before the run was resumed; without effect where it is None."""
        found: int | None = getattr(self._engine, "batch_tokens", None)
        return found

    @batch_tokens.setter
    def batch_tokens(self, value: float) -> None:
        if self.batch_tokens is not None:
            self._engine.batch_tokens = int(value)  # type: ignore[attr-defined]

    def evaluate(self, recipe: Recipe, split: Split, items: Items | None = None) -> Evaluation:
        """See :class:`search.workers.evaluation.Worker`. A recipe that stands in the live model is not written again.

        Raises:
            CandidateFailed: not mergeable, no finite score, or the model could not be run. Of some items nothing is
                said: a few that failed may be one rung's bad luck, see :func:`search.workers.evaluation.check_usable`.
        """
        seconds: dict[str, float] = {}
        start = time.perf_counter()
        try:
            self._materialize(recipe)
            seconds["materialize"] = time.perf_counter() - start
            start = time.perf_counter()
            evaluation = score_model(self._engine, self._evaluators, split, items, self._notes.append)
            seconds |= evaluation.seconds
        except MergingError as error:
            raise CandidateFailed(str(error), _spent(seconds, start, "materialize")) from error
        except (RuntimeError, ArithmeticError, ValueError, IndexError, MemoryError) as error:
            # a broken merge can break anything downstream of it; none of that may end the search
            failure = CandidateFailed(f"{type(error).__name__}: {error}", _spent(seconds, start, "evaluate"))
        else:
            evaluation = replace(evaluation, seconds=seconds)
            if items is None:
                check_usable(evaluation)
            return evaluation
        self.recover()
        raise failure

    def recover(self) -> None:
        """Owe the next candidate nothing of this one, whose evaluation broke off at any place: every weight is written
        again, and what the engine keeps, its module's hooks and modes among it, is as at the start."""
        self._materializer.forget()
        self._engine.weights_changed()
        put_back = getattr(self._engine, "recover", None)
        if put_back is not None:
            put_back()

    @property
    def device_is_lost(self) -> bool:
        """Whether the GPU refuses all further work of this process, as it does after an index out of bounds in one of
        its kernels: nothing but a new process helps."""
        import torch

        device = self._engine.device
        if device.type != "cuda":
            return False
        try:
            torch.zeros(1, device=device).add_(1.0)
            torch.cuda.synchronize(device)
        except RuntimeError as error:
            return not isinstance(error, torch.OutOfMemoryError)
        return False

    def take_notes(self) -> tuple[Note, ...]:
        """What was mended since this was asked the last time."""
        notes, self._notes = tuple(self._notes), []
        return notes

    def _materialize(self, recipe: Recipe) -> None:
        """Write a recipe; once more where memory was not enough and some could be given back."""
        from evaluators.engines.memory import Halvable, is_out_of_memory

        try:
            self._materializer.apply(recipe)
        except (RuntimeError, MemoryError) as error:
            if not (is_out_of_memory(error) and isinstance(self._engine, Halvable)):
                raise
            written = False
        else:
            written = True
        if not written:
            self._engine.release()  # type: ignore[attr-defined]
            self._materializer.apply(recipe)
        self._engine.weights_changed()


class InlinePool:
    """One worker, in this process. See :class:`search.workers.contract.Pool`."""

    slots = 1

    def __init__(self, worker: Worker, *, on_hang: Callable[[int, str], None] | None = None) -> None:
        """Take the worker over.

        Args:
            worker: evaluates recipes.
            on_hang: called with candidate and reason when nothing in this process can go on, so that it must end it: by
                another thread when an evaluation has run out of its time and does not come back to Python to be told
                so; by this one when an evaluation has left the GPU in a state in which it refuses all further work, or
                an engine like vLLM was interrupted.
                If None, one paragraph is printed, and the process ends with :data:`HANGS`.
        """
        self.gpus: float = getattr(worker, "gpus", 0.0)
        self._worker = worker
        self._on_hang = on_hang or _end_process
        self._task: Task | None = None

    def submit(self, task: Task) -> None:
        """Take a task. It is done in :meth:`wait`."""
        if self._task is not None:
            raise RuntimeError(f"one task at a time: candidate {self._task.candidate} is under way")
        self._task = task

    def wait(self, timeout: float | None = None) -> list[Done]:
        """Do the task that was submitted; nothing where there is none. How long it takes is the task's own limit, not
        ``timeout``."""
        task, self._task = self._task, None
        if task is None:
            return []
        result = self._result(task)
        notes: Callable[[], tuple[Note, ...]] = getattr(self._worker, "take_notes", tuple)
        return [Done(task, result, notes())]

    def close(self) -> None:
        """Nothing to end."""
        self._task = None

    def _result(self, task: Task) -> Evaluation | CandidateFailed:
        start = time.perf_counter()
        try:
            with time_limit(task.timeout, lambda: self._hung(task)):
                return self._worker.evaluate(task.recipe, task.split, task.items)
        except CandidateFailed as failure:
            # a copy without a traceback: the frames there would keep tensors alive
            result = CandidateFailed(failure.reason, failure.seconds)
            if getattr(self._worker, "device_is_lost", False):
                self._on_hang(task.candidate, f"{failure.reason}; the GPU refuses all further work of this process")
            return result
        except TimeIsUp:
            result = CandidateFailed(_no_result(task.timeout), {"evaluate": time.perf_counter() - start})
        if not getattr(self._worker, "interruptible", True):
            self._on_hang(task.candidate, f"{result.reason}; the engine cannot go on after it was interrupted")
        recover: Callable[[], None] = getattr(self._worker, "recover", lambda: None)
        recover()
        return result

    def _hung(self, task: Task) -> None:
        late = f"{grace(task.timeout or 0.0):g} s later it was still in a call that cannot be interrupted"
        detail = f"{_no_result(task.timeout)}; {late}"
        try:
            self._on_hang(task.candidate, detail)
        except Exception as error:  # in this thread it would end in silence, and the process hang for ever
            _end_process(task.candidate, f"{detail}; noting that failed: {type(error).__name__}: {error}")


def _no_result(limit: float | None) -> str:
    return f"no result after {limit:g} s (workers.timeout)"


def _end_process(candidate: int, detail: str) -> None:
    print(
        f"Candidate {candidate}: {detail}. This process ends here, since nothing else in it can go on. Everything "
        "before this candidate is stored: run the same command again.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(HANGS)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _spent(seconds: dict[str, float], start: float, what: str) -> dict[str, float]:
    return {**seconds, what: seconds.get(what, 0.0) + time.perf_counter() - start}
