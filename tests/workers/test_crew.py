"""The pool over workers that may die: decided in virtual time, so that every night takes a moment."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.recipe import Assignment, Group, MergingError, Recipe, SourceRef
from search.errors import SearchError
from search.workers.contract import Done, Note, Task
from search.workers.crew import HOPELESS, Answer, CrewPool, WorkerLost
from search.workers.evaluation import CandidateFailed, Evaluation
from search.workers.identity import CodeIdentity, Identity

CODE = CodeIdentity({"search": "1"}, {"torch": "2"})
IDENTITY = Identity(CODE, {"base": "b"}, {"a": "f"}, "hf/float32")


def task(candidate: int, weight: float | None = None, timeout: float | None = None) -> Task:
    value = float(candidate) if weight is None else weight
    groups = {Group("all"): Assignment.of("linear", {"a": {"coefficient": value}})}
    recipe = Recipe("base", {"base": SourceRef("", "b"), "a": SourceRef("", "a")}, groups)
    return Task(candidate, recipe, "search", timeout=timeout)


@dataclass(eq=False)
class Ref:
    at: float
    answer: Any
    worker: Worker


@dataclass(eq=False)
class Worker:
    number: int
    begun: float
    dead: bool = False
    killed: bool = False


@dataclass
class FakeCrew:
    """Workers in virtual time. What they do is given by three functions."""

    evaluating: Callable[[Worker, Task, int], tuple[float, Any]] = lambda worker, task, times: (1.0, scores(task))
    joining: Callable[[Worker], tuple[float, Any]] = lambda worker: (0.5, ("host", CODE))
    loading: Callable[[Worker], tuple[float, Any]] = lambda worker: (0.5, IDENTITY)
    time: float = 100.0
    workers: list[Worker] = field(default_factory=list)
    asked: list[tuple[int, int, float]] = field(default_factory=list)
    busy: dict[int, Ref] = field(default_factory=dict)
    closed: int = 0

    def start(self) -> Worker:
        self.workers.append(Worker(len(self.workers), self.time))
        return self.workers[-1]

    def identify(self, worker: Worker) -> Ref:
        return self._ref(worker, *self.joining(worker))

    def set_up(self, worker: Worker) -> Ref:
        return self._ref(worker, *self.loading(worker))

    def evaluate(self, worker: Worker, task: Task) -> Ref:
        assert worker.number not in self.busy or self.busy[worker.number].at <= self.time, "one task at a time"
        times = sum(candidate == task.candidate for _, candidate, _ in self.asked)
        self.asked.append((worker.number, task.candidate, self.time))
        self.busy[worker.number] = self._ref(worker, *self.evaluating(worker, task, times))
        return self.busy[worker.number]

    def wait(self, refs: Sequence[Ref], seconds: float) -> list[Ref]:
        first = min(ref.at for ref in refs)
        self.time = max(self.time, min(first, self.time + seconds))
        return [ref for ref in refs if ref.at <= self.time]

    def answer(self, ref: Ref) -> Any:
        assert ref.at <= self.time
        if isinstance(ref.answer, Exception):
            ref.worker.dead = True
            raise ref.answer
        return ref.answer

    def kill(self, worker: Worker) -> None:
        worker.killed = True

    def close(self) -> None:
        self.closed += 1

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def _ref(self, worker: Worker, seconds: float, answer: Any) -> Ref:
        assert not worker.killed and not worker.dead, "a dead worker was asked"
        return Ref(self.time + seconds, answer, worker)


def scores(task: Task) -> Answer:
    return Answer(Evaluation({"a.accuracy": float(task.candidate)}, {}, {}, {"evaluate": 1.0}))


def opened(crew: FakeCrew, slots: int = 2, **options: Any) -> CrewPool:
    pool = CrewPool(crew, slots, IDENTITY, now=lambda: crew.time, sleep=crew.sleep, **options)
    pool.open()
    return pool


def run(pool: CrewPool, tasks: Sequence[Task]) -> list[Done]:
    """All tasks, as many at a time as there are slots."""
    left, found = list(tasks), []
    under_way = 0
    while left or under_way:
        while left and under_way < pool.slots:
            pool.submit(left.pop(0))
            under_way += 1
        done = pool.wait(7200.0)
        assert done, "nothing came for two hours"
        under_way -= len(done)
        found += done
    return found


def troubles(done: Sequence[Done]) -> list[str]:
    return [note.what for each in done for note in each.notes]


def test_every_task_is_done_once() -> None:
    crew = FakeCrew()
    done = run(opened(crew, 3), [task(k) for k in range(10)])
    assert sorted(each.task.candidate for each in done) == list(range(10))
    assert all(each.result.values["a.accuracy"] == each.task.candidate for each in done)
    assert len(crew.workers) == 3 and not troubles(done)


def test_a_worker_that_holds_the_weights_is_preferred() -> None:
    crew = FakeCrew()
    pool = opened(crew)
    run(pool, [task(0), task(1)])
    first = {candidate: worker for worker, candidate, _ in crew.asked}
    # in the other order, so that whoever comes first to the first one has the wrong weights
    pool.submit(task(7, weight=1.0))
    pool.submit(task(8, weight=0.0))
    pool.wait()
    again = {candidate: worker for worker, candidate, _ in crew.asked}
    assert again[7] == first[1] and again[8] == first[0]


def test_a_worker_that_dies_costs_nothing_but_time() -> None:
    def once(worker: Worker, task: Task, times: int) -> tuple[float, Any]:
        if task.candidate == 1 and times == 0:
            return 0.2, WorkerLost("killed")
        return 1.0, scores(task)

    crew = FakeCrew(once)
    done = run(opened(crew), [task(k) for k in range(6)])
    assert sorted(each.task.candidate for each in done) == list(range(6))
    assert not any(isinstance(each.result, CandidateFailed) for each in done)
    (lost,) = [each for each in done if "worker lost" in troubles([each])]
    assert lost.task.candidate == 1 and "killed" in lost.notes[0].detail
    assert troubles(done).count("worker restarted") == 1
    assert len(crew.workers) == 3 and crew.workers[1].killed


def test_its_task_goes_first_and_to_whoever_is_idle() -> None:
    def once(worker: Worker, task: Task, times: int) -> tuple[float, Any]:
        return (0.5, WorkerLost("gone")) if task.candidate == 0 and times == 0 else (1.0, scores(task))

    crew = FakeCrew(once)
    run(opened(crew), [task(k) for k in range(5)])
    order = [candidate for _, candidate, _ in crew.asked]
    assert order[:3] == [0, 1, 0]
    assert crew.asked[2][0] == crew.asked[1][0]  # the other worker, while the first one rests


def test_the_rest_doubles_up_to_a_minute_and_ends_with_a_result() -> None:
    falls = 8

    def dies(worker: Worker) -> tuple[float, Any]:
        return (0.0, WorkerLost("no memory")) if worker.number in range(1, 1 + falls) else (0.0, IDENTITY)

    def first_time(worker: Worker, task: Task, times: int) -> tuple[float, Any]:
        return (0.0, WorkerLost("gone")) if worker.number in (0, falls + 2) else (0.0, scores(task))

    crew = FakeCrew(first_time, lambda worker: (0.0, ("host", CODE)), dies)
    pool = opened(crew, 1)
    (done,) = run(pool, [task(0)])
    assert troubles([done]).count("worker lost") >= 1
    starts = [each.begun for each in crew.workers]
    rests = [b - a for a, b in itertools.pairwise(starts)]
    assert rests[: falls + 1] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    crew.evaluating = lambda worker, task, times: (0.0, WorkerLost("gone")) if times == 0 else (0.0, scores(task))
    run(pool, [task(1)])
    assert crew.workers[-1].begun - crew.time == pytest.approx(0.0)
    assert crew.workers[-1].begun - crew.asked[-2][2] == pytest.approx(1.0)


def test_a_candidate_that_ends_every_worker_has_failed() -> None:
    crew = FakeCrew(lambda worker, task, times: (0.1, WorkerLost("signal 11") if task.candidate == 2 else scores(task)))
    done = run(opened(crew, attempts=3), [task(k) for k in range(6)])
    failed = {each.task.candidate: each.result for each in done if isinstance(each.result, CandidateFailed)}
    assert set(failed) == {2}
    assert failed[2].reason == "its evaluation ended its worker 3 times: signal 11"
    assert [candidate for _, candidate, _ in crew.asked].count(2) == 3
    assert sorted(each.task.candidate for each in done) == list(range(6))


def test_nodes_that_die_are_no_sign_against_a_candidate() -> None:
    def node(worker: Worker, task: Task, times: int) -> tuple[float, Any]:
        return (0.1, WorkerLost("its node has died", innocent=True)) if times < 9 else (0.1, scores(task))

    (done,) = run(opened(FakeCrew(node), attempts=2), [task(0)])
    assert isinstance(done.result, Evaluation) and troubles([done]).count("worker lost") == 9


def test_deaths_are_counted_by_candidate_and_forgiven_by_a_result() -> None:
    def second_time(worker: Worker, task: Task, times: int) -> tuple[float, Any]:
        return (0.1, WorkerLost("gone")) if times % 2 == 0 else (0.1, scores(task))

    crew = FakeCrew(second_time)
    pool = opened(crew, attempts=2)
    for _ in range(3):  # three rungs of one candidate
        (done,) = run(pool, [task(5)])
        assert isinstance(done.result, Evaluation)


def test_a_candidate_that_takes_too_long_is_ended_and_holds_nobody_up() -> None:
    crew = FakeCrew(lambda worker, task, times: (1e9 if task.candidate == 0 else 1.0, scores(task)))
    pool = opened(crew)
    done = run(pool, [task(k, timeout=60.0) for k in range(50)])
    by_candidate = {each.task.candidate: each.result for each in done}
    slow = by_candidate.pop(0)
    assert isinstance(slow, CandidateFailed) and slow.reason == "no result after 60 s (workers.timeout)"
    assert slow.seconds["evaluate"] >= 60.0
    assert all(isinstance(each, Evaluation) for each in by_candidate.values()) and len(by_candidate) == 49
    assert crew.workers[0].killed
    straggler = next(at for index, each in enumerate(done) for at in [index] if each.task.candidate == 0)
    assert straggler > 40, "the other worker went on meanwhile"


def test_a_node_that_never_comes_holds_nobody_up() -> None:
    crew = FakeCrew(joining=lambda worker: (1e9 if worker.number else 0.5, ("host", CODE)))
    done = run(opened(crew, 4), [task(k) for k in range(20)])
    assert len(done) == 20 and {worker for worker, _, _ in crew.asked} == {0}


@pytest.mark.parametrize(
    ("code", "identity", "word"),
    [
        (CodeIdentity({"search": "2"}, {"torch": "2"}), IDENTITY, "'search' is other code"),
        (CodeIdentity({"search": "1"}, {"torch": "3"}), IDENTITY, "torch is 3, the driver's 2"),
        (CODE, Identity(CODE, {"base": "c"}, {"a": "f"}, "hf/float32"), "model 'base' has other weights"),
        (CODE, Identity(CODE, {"base": "b"}, {"a": "g"}, "hf/float32"), "evaluator 'a' has other data"),
        (CODE, Identity(CODE, {"base": "b"}, {"a": "f"}, "hf/bfloat16"), "engine is hf/bfloat16"),
    ],
)
def test_a_worker_that_differs_is_refused(code: CodeIdentity, identity: Identity, word: str) -> None:
    crew = FakeCrew(joining=lambda worker: (0.0, ("far", code)), loading=lambda worker: (0.0, identity))
    with pytest.raises(SearchError, match=word) as caught:
        opened(crew)
    assert "worker on far" in str(caught.value)
    assert not crew.asked


def test_one_worker_that_differs_is_refused_even_if_another_is_ready() -> None:
    other = CodeIdentity({"search": "2"}, {"torch": "2"})
    crew = FakeCrew(joining=lambda worker: (0.1, ("a", CODE)) if worker.number == 0 else (3.0, ("b", other)))
    with pytest.raises(SearchError, match="worker on b"):
        run(opened(crew), [task(k) for k in range(20)])


def test_a_worker_that_comes_back_wrong_stays_away_while_others_work() -> None:
    def joining(worker: Worker) -> tuple[float, Any]:
        return 0.1, ("host", CODE if worker.number < 2 else CodeIdentity({"search": "2"}, {"torch": "2"}))

    def dies(worker: Worker, task: Task, times: int) -> tuple[float, Any]:
        return (0.1, WorkerLost("gone")) if worker.number == 1 else (1.0, scores(task))

    crew = FakeCrew(dies, joining)
    pool = opened(crew)
    assert len(run(pool, [task(k) for k in range(200)])) == 200
    assert 4 <= len(crew.workers) <= 10, "it was tried again, with longer and longer rests"
    crew.evaluating = lambda worker, task, times: (0.1, WorkerLost("gone"))
    with pytest.raises(SearchError, match="other code"):  # now nobody is left
        run(pool, [task(300)])


def test_a_users_mistake_comes_out_as_itself() -> None:
    crew = FakeCrew(loading=lambda worker: (0.0, MergingError("no such folder")))
    with pytest.raises(MergingError, match="no such folder"):
        opened(crew)
    crew = FakeCrew(lambda worker, task, times: (0.0, SearchError("the data are gone")))
    with pytest.raises(SearchError, match="the data are gone"):
        run(opened(crew), [task(0)])


def test_nobody_can_be_had() -> None:
    crew = FakeCrew(joining=lambda worker: (1e9, None))
    with pytest.raises(SearchError, match="no worker could be had for 10 minutes"):
        opened(crew)
    assert HOPELESS <= crew.time - 100.0 < HOPELESS + 10.0


def test_workers_that_die_while_they_load_end_the_search_in_the_end() -> None:
    crew = FakeCrew(loading=lambda worker: (30.0, WorkerLost("out of memory")))
    with pytest.raises(SearchError, match="out of memory"):
        opened(crew)
    assert HOPELESS <= crew.time - 100.0 < 2 * HOPELESS


def test_loading_a_large_model_takes_its_time() -> None:
    crew = FakeCrew(loading=lambda worker: (3 * HOPELESS, IDENTITY))
    assert len(run(opened(crew), [task(0)])) == 1


def test_wait_keeps_its_time() -> None:
    crew = FakeCrew(lambda worker, task, times: (50.0, scores(task)))
    pool = opened(crew)
    assert pool.wait(10.0) == []  # nothing is under way
    pool.submit(task(0))
    before = crew.time
    assert pool.wait(10.0) == []
    assert crew.time - before == pytest.approx(10.0)
    assert len(pool.wait()) == 1


def test_close_ends_every_worker_and_may_be_called_twice() -> None:
    crew = FakeCrew()
    pool = opened(crew, 3)
    pool.close()
    pool.close()
    assert all(each.killed for each in crew.workers) and crew.closed == 1


def test_notes_of_the_worker_come_along() -> None:
    halved = Note("batch halved", "512 tokens", 512.0)
    crew = FakeCrew(lambda worker, task, times: (1.0, Answer(None, "no memory", {"evaluate": 2.0}, (halved,))))
    (done,) = run(opened(crew), [task(0)])
    assert isinstance(done.result, CandidateFailed) and done.result.seconds == {"evaluate": 2.0}
    assert done.notes == (halved,)


def test_a_worker_that_cannot_go_on_is_replaced_and_its_answer_counts() -> None:
    def lost_device(worker: Worker, task: Task, times: int) -> tuple[float, Any]:
        answer = Answer(None, "device-side assert", {"evaluate": 1.0}, (), task.candidate == 1)
        return 1.0, answer if task.candidate == 1 else scores(task)

    crew = FakeCrew(lost_device)
    done = run(opened(crew), [task(k) for k in range(6)])
    assert [each.task.candidate for each in done if isinstance(each.result, CandidateFailed)] == [1]
    assert crew.workers[1].killed and len(crew.workers) == 3
    assert [candidate for _, candidate, _ in crew.asked].count(1) == 1


def test_the_first_worker_says_which_engine_where_the_driver_cannot() -> None:
    def loading(worker: Worker) -> tuple[float, Any]:
        return 1.0 + worker.number, Identity(CODE, {"base": "b"}, {"a": "f"}, f"vllm-{worker.number}")

    unknown = Identity(CODE, {"base": "b"}, {"a": "f"}, "")
    crew = FakeCrew(loading=loading)
    pool = CrewPool(crew, 2, unknown, now=lambda: crew.time, sleep=crew.sleep)
    pool.open()
    assert pool.engine == "vllm-0"
    with pytest.raises(SearchError, match="engine is vllm-1"):
        run(pool, [task(k) for k in range(9)])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), slots=st.integers(1, 6), count=st.integers(1, 20), deaths=st.floats(0.0, 0.6))
def test_whatever_dies_every_task_is_told_once(seed: int, slots: int, count: int, deaths: float) -> None:
    chance = random.Random(seed)

    def may_die(value: Any, share: float = 0.1) -> tuple[float, Any]:
        seconds = chance.lognormvariate(0.0, 1.5)
        return seconds, WorkerLost("chance") if chance.random() < share else value

    crew = FakeCrew(
        lambda worker, task, times: may_die(scores(task), deaths),
        lambda worker: may_die(("host", CODE)),
        lambda worker: may_die(IDENTITY),
    )
    done = run(opened(crew, slots, attempts=4), [task(k, timeout=5.0) for k in range(count)])
    assert sorted(each.task.candidate for each in done) == list(range(count))
    for each in done:
        times = [candidate for _, candidate, _ in crew.asked].count(each.task.candidate)
        if isinstance(each.result, Evaluation):
            assert each.result.values["a.accuracy"] == each.task.candidate
            assert times <= 4
        else:
            assert times == 4 or "workers.timeout" in each.result.reason
