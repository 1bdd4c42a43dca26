"""Candidates that hang: ended by an alarm or a watchdog, recorded with a reason, and the next is as fresh."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from live_bench import Bench, make_sources, raised

import merging.materialize as materialize
from evaluators.engines.hf import HFEngine
from merging import Sources
from search.workers import inline
from search.workers import time_limit as limits
from search.workers.contract import Task
from search.workers.evaluation import CandidateFailed, Evaluation
from search.workers.inline import HANGS, InlinePool, InlineWorker
from search.workers.time_limit import TimeIsUp, time_limit


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return make_sources(tmp_path_factory.mktemp("models"))


@pytest.fixture
def bench(sources: Sources) -> Bench:
    return Bench(sources)


# -- hanging


def sleeping(engine: Any) -> None:
    time.sleep(60.0)


def spinning(engine: Any) -> None:
    end = time.monotonic() + 60.0
    while time.monotonic() < end:
        pass


def swallowing(engine: Any) -> None:
    """As a stranger's evaluator may: every exception is a wrong answer."""
    end = time.monotonic() + 60.0
    while time.monotonic() < end:
        with suppress(Exception):
            time.sleep(0.01)


@pytest.mark.parametrize("hangs", [sleeping, spinning, swallowing])
def test_a_candidate_that_hangs_has_failed(bench: Bench, hangs: Callable[[Any], None]) -> None:
    bench.evaluator.trouble = hangs
    done = bench.score(bench.recipe(0.5, 0.2), timeout=0.2)
    assert isinstance(done.result, CandidateFailed)
    assert done.result.reason == "no result after 0.2 s (workers.timeout)"
    assert 0.2 <= done.result.seconds["evaluate"] < 30.0
    assert done.result.__traceback__ is None and done.result.__context__ is None  # whose frames would hold tensors
    bench.evaluator.trouble = lambda engine: None
    bench.is_fresh(bench.recipe(0.5, 0.2))


def test_whoever_is_in_time_is_left_alone(bench: Bench) -> None:
    done = bench.score(bench.recipe(0.5, 0.2), timeout=60.0)
    assert isinstance(done.result, Evaluation) and done.notes == () and done.worker == ""
    assert bench.pool.wait() == []


def test_a_write_that_is_broken_off_is_made_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the tensors hold the new recipe, and nobody knows which."""
    first = bench.recipe(1.0, 0.0)
    bench.score(first)
    before, merge = bench.materializer.digest(), materialize.merge_tensors

    def half(pieces: Iterator[Any]) -> Any:
        merge(list(pieces)[:5])
        time.sleep(60.0)

    monkeypatch.setattr(materialize, "merge_tensors", half)
    done = bench.score(bench.recipe(0.3, 0.9), timeout=0.3)
    assert isinstance(done.result, CandidateFailed) and "workers.timeout" in done.result.reason
    assert bench.materializer.digest() != before
    monkeypatch.undo()
    bench.is_fresh(first)


@pytest.mark.slow
def test_alarms_at_any_moment_leave_nothing_behind(bench: Bench) -> None:
    """Whatever instruction the alarm meets, the next candidate is scored as in a fresh process."""
    recipes = [bench.recipe(0.1 * step, 1.0 - 0.1 * step) for step in range(4)]
    right = [bench.score(recipe).result for recipe in recipes]
    start = time.perf_counter()
    for _ in range(4):
        bench.score(recipes[0])
        bench.score(recipes[1])
    whole = (time.perf_counter() - start) / 8
    moments = np.random.default_rng(0)
    failed = 0
    for step in range(25):
        result = bench.score(recipes[step % 4], timeout=float(moments.uniform(1e-4, 1.2 * whole))).result
        failed += isinstance(result, CandidateFailed)
        again = bench.score(recipes[step % 4]).result
        for each in (result, again):
            if isinstance(each, Evaluation):
                expected = right[step % 4]
                assert isinstance(expected, Evaluation)
                np.testing.assert_array_equal(
                    each.scores["text"].values["total"], expected.scores["text"].values["total"]
                )
        assert isinstance(again, Evaluation)
    assert failed > 4
    bench.is_fresh(recipes[2])


# -- what no alarm reaches


class _Deadlock:
    """A call into compiled code that waits for a lock, and no signal makes it return."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._mutex = ctypes.create_string_buffer(64)
        self._library.pthread_mutex_init(self._mutex, None)
        self._library.pthread_mutex_lock(self._mutex)

    def wait(self, engine: Any) -> None:
        self._library.pthread_mutex_lock(self._mutex)

    def release(self) -> None:
        self._library.pthread_mutex_unlock(self._mutex)


def test_a_watchdog_tells_of_calls_that_never_return(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GRACE", 0.2)
    deadlock = _Deadlock()
    told: list[tuple[int, str, str]] = []

    def on_hang(candidate: int, detail: str) -> None:
        told.append((candidate, detail, threading.current_thread().name))
        deadlock.release()  # a real one ends the process

    bench.pool = InlinePool(bench.worker, on_hang=on_hang)
    bench.evaluator.trouble = deadlock.wait
    done = bench.score(bench.recipe(0.5, 0.2), timeout=0.2, candidate=17)
    assert isinstance(done.result, CandidateFailed)
    assert told == [
        (17, "no result after 0.2 s (workers.timeout); 0.2 s later it was still in a call that cannot be interrupted",
         "time-limit")
    ]  # fmt: skip


def test_a_watchdog_that_fails_ends_the_process_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "GRACE", 0.1)
    deadlock, ended = _Deadlock(), []
    monkeypatch.setattr(inline.os, "_exit", lambda status: (ended.append(status), deadlock.release()))
    bench.pool = InlinePool(bench.worker, on_hang=lambda candidate, detail: raised(OSError("disk full")))
    bench.evaluator.trouble = deadlock.wait
    bench.score(bench.recipe(0.5, 0.2), timeout=0.1)
    assert ended == [HANGS]
    assert "noting that failed: OSError: disk full" in capsys.readouterr().err


def test_a_process_that_cannot_go_on_says_so_and_ends() -> None:
    code = """
import ctypes, search.workers.time_limit as limits
from search.workers.contract import Task
from search.workers.inline import InlinePool
limits.GRACE = 0.1
class Worker:
    def evaluate(self, recipe, split, items=None):
        library, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        for _ in range(2):
            library.pthread_mutex_lock(mutex)
pool = InlinePool(Worker())
pool.submit(Task(41, None, "search", timeout=0.1))
pool.wait()
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == HANGS
    assert ended.stderr.startswith("Candidate 41: no result after 0.1 s (workers.timeout); 0.1 s later")
    assert "run the same command again" in ended.stderr and "Traceback" not in ended.stderr


def test_engines_that_cannot_be_interrupted_end_the_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(HFEngine, "interruptible", False)
    bench.pool = InlinePool(bench.worker, on_hang=lambda candidate, detail: told.append(detail))
    bench.evaluator.trouble = sleeping
    bench.score(bench.recipe(0.5, 0.2), timeout=0.1)
    assert told == ["no result after 0.1 s (workers.timeout); the engine cannot go on after it was interrupted"]


def test_a_lost_device_ends_the_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its next candidates would all fail for what this one did."""
    told: list[str] = []
    bench.pool = InlinePool(bench.worker, on_hang=lambda candidate, detail: told.append(detail))
    bench.evaluator.trouble = lambda engine: raised(RuntimeError("CUDA error: device-side assert triggered"))
    bench.score(bench.recipe(0.5, 0.2))
    assert told == []  # on a CPU nothing is lost
    monkeypatch.setattr(InlineWorker, "device_is_lost", True)
    bench.score(bench.recipe(0.5, 0.2))
    assert told == [
        "RuntimeError: CUDA error: device-side assert triggered; the GPU refuses all further work of this process"
    ]


# -- limits


def test_there_is_no_alarm_outside_the_main_thread() -> None:
    found: list[bool] = []

    def work() -> None:
        with time_limit(0.05):
            time.sleep(0.2)
        found.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]


def test_an_earlier_alarm_of_somebody_else_comes_first_and_a_later_one_is_put_back() -> None:
    rung: list[float] = []
    handler = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(time.monotonic()))
    others = signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with time_limit(60.0):
            time.sleep(0.3)
        assert len(rung) == 1
        start = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(TimeIsUp), time_limit(0.1):
            time.sleep(60.0)
        time.sleep(max(0.0, start + 0.8 - time.monotonic()))
        assert len(rung) == 2 and rung[1] - start >= 0.45
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *others)


@pytest.mark.parametrize("seconds", [None, float("inf")])
def test_no_limit_sets_no_alarm(seconds: float | None) -> None:
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(seconds, lambda: raised(AssertionError())):
        assert signal.getsignal(signal.SIGALRM) is before


def test_contexts_are_left_properly() -> None:
    """An alarm that comes while one is left waits for that: what it holds is given back."""
    left: list[str] = []

    class Slow:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            time.sleep(0.2)
            left.append("given back")

    with pytest.raises(TimeIsUp), time_limit(0.1):
        with Slow():
            pass
        time.sleep(60.0)
    assert left == ["given back"]


def test_one_task_at_a_time(bench: Bench) -> None:
    task = Task(1, bench.recipe(0.5, 0.2), "search")
    bench.pool.submit(task)
    with pytest.raises(RuntimeError, match="one task at a time: candidate 1"):
        bench.pool.submit(task)
    bench.pool.close()
    bench.pool.close()
    assert bench.pool.wait() == []
