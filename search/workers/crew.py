"""A pool of workers that live elsewhere and may die: tasks are issued, issued again, and given up when they kill.

What is done here is only deciding: who gets which task, when a worker that died is started again, when an evaluation
has taken too long. Starting, asking and killing is the :class:`Crew`'s, which :mod:`search.workers.ray` is one of.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

from search.errors import SearchError
from search.workers.contract import Done, Note, Task
from search.workers.evaluation import CandidateFailed, Evaluation
from search.workers.identity import Identity, refuse
from search.workers.time_limit import grace

LONGEST_REST = 60.0
"""Seconds before a worker that keeps dying is started again, at most; the first rest is one second, then doubled."""

HOPELESS = 600.0
"""Seconds without one worker that is ready, or on its way to be, after which the search ends."""

_SLICE = 5.0  # seconds between two looks at the clock, at most

Ref = Any
"""Stands for an answer that comes later."""


class WorkerLost(Exception):
    """A worker died, or cannot be reached any more. What it was asked has no answer.

    Attributes:
        innocent: it was not of what it did (its machine is gone): that is no sign against the candidate.
    """

    def __init__(self, why: str, *, innocent: bool = False) -> None:
        super().__init__(why)
        self.innocent = innocent


class Answer(NamedTuple):
    """What a worker says of a task, as plain data: an exception of ours need not survive the way.

    Attributes:
        evaluation: the scores, or None.
        reason, seconds: of a candidate that failed.
        notes: what went wrong on the way.
        leaving: the worker can do nothing more (its GPU refuses to work), and another has to take its place.
    """

    evaluation: Evaluation | None
    reason: str = ""
    seconds: dict[str, float] | None = None
    notes: tuple[Note, ...] = ()
    leaving: bool = False


class Crew(Protocol):
    """How workers are had. Every call returns at once but :meth:`wait`."""

    def start(self) -> Any:
        """A new worker, on its way."""
        ...

    def identify(self, worker: Any) -> Ref:
        """Ask where it is and which code it runs: ``(place, CodeIdentity)``."""
        ...

    def set_up(self, worker: Any) -> Ref:
        """Ask it to load what it needs: :class:`search.workers.identity.Identity`."""
        ...

    def evaluate(self, worker: Any, task: Task) -> Ref:
        """Ask for scores: :class:`Answer`."""
        ...

    def wait(self, refs: Sequence[Ref], seconds: float) -> list[Ref]:
        """Those that have an answer, as soon as one has; none when the time is over.

        Raises:
            SearchError: there is nobody any more who could answer.
        """
        ...

    def answer(self, ref: Ref) -> Any:
        """The answer of one that has it.

        Raises:
            WorkerLost: there will be none.
            SearchError, MergingError, EvaluatorError, ZooError: the worker says that the user made a mistake.
        """
        ...

    def kill(self, worker: Any) -> None:
        """End a worker, whatever it does. One that is dead already is no error."""
        ...

    def close(self) -> None:
        """End everything."""
        ...


State = Literal["down", "joining", "loading", "idle", "busy"]


@dataclass
class _Slot:
    """The place of a worker, of which there are several over time."""

    number: int
    state: State = "down"
    worker: Any = None
    ref: Ref = None
    place: str = ""
    again: float = 0.0  # when it is started, where it is down
    falls: int = 0  # since it last gave a result
    was_ready: bool = False
    holds: str = ""  # hash of the recipe whose weights stand there
    task: Task | None = None
    begun: float = 0.0

    @property
    def deadline(self) -> float:
        """When it is ended with its task: after the worker itself had the time to break the task off."""
        if self.task is None or self.task.timeout is None:
            return math.inf
        return self.begun + self.task.timeout + grace(self.task.timeout)

    @property
    def name(self) -> str:
        return f"worker {self.number}" + (f" on {self.place}" if self.place else "")


@dataclass
class _History:
    """What has happened to a task so far."""

    deaths: int = 0
    notes: list[Note] = field(default_factory=list)


class CrewPool:
    """A :class:`search.workers.contract.Pool` over a crew.

    Attributes:
        slots: tasks that may be under way at a time.
        gpus: that one slot keeps busy.
        engine: fingerprint of the workers' engine; all of them have the same.
    """

    def __init__(
        self,
        crew: Crew,
        slots: int,
        expected: Identity,
        *,
        gpus: float = 0.0,
        attempts: int = 5,
        say: Callable[[str], None] = lambda line: None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nothing is started before :meth:`open`.

        Args:
            crew: how workers are had.
            slots: how many.
            expected: what every worker must be like.
            gpus: that each keeps busy.
            attempts: a candidate whose evaluation ended its worker so many times has failed.
            say: told one line for what takes long.
            now, sleep: a clock that is never set back.
        """
        self.slots = slots
        self.gpus = gpus
        self.engine = expected.engine
        self._crew = crew
        self._expected = expected
        self._attempts = attempts
        self._say = say
        self._now = now
        self._sleep = sleep
        self._slots = [_Slot(number) for number in range(1, slots + 1)]
        self._queue: deque[Task] = deque()
        self._histories: dict[int, _History] = {}
        self._notes: list[Note] = []  # that belong to no task; the next result takes them along
        self._done: list[Done] = []
        self._last_hope = now()
        self._last_fall = "none of them was ever started: are there as many CPUs and GPUs as they ask for?"
        self._closed = False

    def open(self) -> None:
        """Start the workers, and wait for the first one. The others join when they are ready.

        Raises:
            SearchError, MergingError, EvaluatorError, ZooError: a worker is not what it must be, or none can be had.
        """
        self._last_hope = self._now()
        while not any(slot.state == "idle" for slot in self._slots):
            self._step(_SLICE)

    def submit(self, task: Task) -> None:
        """See :class:`search.workers.contract.Pool`."""
        self._queue.append(task)
        self._issue()

    def wait(self, timeout: float | None = None) -> list[Done]:
        """See :class:`search.workers.contract.Pool`. Empty at once where nothing is under way."""
        end = None if timeout is None else self._now() + timeout
        while not self._done and (self._queue or any(slot.state == "busy" for slot in self._slots)):
            self._step(_SLICE if end is None else min(_SLICE, max(0.0, end - self._now())))
            if end is not None and self._now() >= end:
                break
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """End every worker. What is under way is lost."""
        if self._closed:
            return
        self._closed = True
        try:
            for slot in self._slots:
                if slot.worker is not None:
                    self._crew.kill(slot.worker)
        finally:
            self._crew.close()

    def _step(self, seconds: float) -> None:
        """Do what is due, then listen for so many seconds at most."""
        self._start_due()
        self._expire()
        self._issue()
        self._check_hope()
        if self._done:
            return
        refs = {id(slot.ref): slot for slot in self._slots if slot.ref is not None}
        seconds = max(0.0, min(seconds, self._next_due() - self._now()))
        if not refs:
            self._sleep(seconds)
            return
        for ref in self._crew.wait([slot.ref for slot in refs.values()], seconds):
            self._hear(refs[id(ref)])
        self._issue()

    def _next_due(self) -> float:
        dues = [slot.again for slot in self._slots if slot.state == "down"]
        return min([*dues, *(slot.deadline for slot in self._slots)], default=math.inf)

    def _start_due(self) -> None:
        for slot in self._slots:
            if slot.state == "down" and self._now() >= slot.again:
                slot.worker = self._crew.start()
                slot.state, slot.ref, slot.place = "joining", self._crew.identify(slot.worker), ""

    def _issue(self) -> None:
        """Give waiting tasks to idle workers: to one that holds the candidate's weights, where there is one."""
        idle = [slot for slot in self._slots if slot.state == "idle"]
        while idle and self._queue:
            held = [(slot, task) for slot in idle for task in self._queue if slot.holds == task.recipe.hash]
            slot, task = held[0] if held else (min(idle, key=lambda each: bool(each.holds)), self._queue[0])
            idle.remove(slot)
            self._queue.remove(task)
            slot.state, slot.task, slot.begun, slot.holds = "busy", task, self._now(), task.recipe.hash
            slot.ref = self._crew.evaluate(slot.worker, task)

    def _hear(self, slot: _Slot) -> None:
        try:
            answer = self._crew.answer(slot.ref)
        except WorkerLost as error:
            self._lost(slot, str(error), error.innocent)
            return
        except Exception as error:
            if slot.state == "busy" or not self._can_wait(slot):
                raise
            self._fall(slot, f"it could not be set up again ({error})")
            return
        if slot.state == "joining":
            slot.place, code = answer
            self._joined(slot, self._expected.code.differences(code))
        elif slot.state == "loading":
            self._loaded(slot, answer)
        else:
            self._answered(slot, answer)

    def _joined(self, slot: _Slot, differences: list[str]) -> None:
        if self._admit(slot, differences):
            slot.state, slot.ref = "loading", self._crew.set_up(slot.worker)

    def _loaded(self, slot: _Slot, identity: Identity) -> None:
        if not self._admit(slot, self._expected.differences(identity)):
            return
        if not self._expected.engine:  # the first one says what the others must be like
            self._expected = replace(self._expected, engine=identity.engine)
            self.engine = identity.engine
        if slot.was_ready:
            self._notes.append(Note("worker restarted", f"{slot.name} is there again"))
        else:
            self._say(f"{slot.name} is ready")
        slot.state, slot.ref, slot.was_ready, slot.holds = "idle", None, True, ""
        self._last_hope = self._now()

    def _admit(self, slot: _Slot, differences: list[str]) -> bool:
        if not differences:
            return True
        error = refuse(slot.place or slot.name, differences)
        if not self._can_wait(slot):
            raise error
        self._fall(slot, str(error))
        return False

    def _can_wait(self, slot: _Slot) -> bool:
        """Whether a worker that came back wrong may stay away for a while: one node must not end a night's search."""
        return slot.was_ready and any(each.state in ("idle", "busy") for each in self._slots if each is not slot)

    def _answered(self, slot: _Slot, answer: Answer) -> None:
        task = slot.task
        slot.state, slot.ref, slot.task, slot.falls = "idle", None, None, 0
        self._last_hope = self._now()
        if task is None:
            raise RuntimeError(f"{slot.name} answered a task that it was not given")
        result: Evaluation | CandidateFailed | None = answer.evaluation
        if result is None:
            result = CandidateFailed(answer.reason, answer.seconds or {})
        self._finish(slot, task, result, answer.notes)
        if answer.leaving:
            self._fall(slot, f"it could not go on after candidate {task.candidate}")

    def _lost(self, slot: _Slot, why: str, innocent: bool) -> None:
        """A worker is gone; its task is issued again, unless it has ended too many workers."""
        task, name = slot.task, slot.name
        self._fall(slot, why)
        if task is None:
            if slot.was_ready:
                self._notes.append(Note("worker lost", f"{name}: {why}"))
            return
        history = self._histories.setdefault(task.candidate, _History())
        history.deaths += not innocent
        if history.deaths >= self._attempts:
            times = "once" if history.deaths == 1 else f"{history.deaths} times"
            seconds = {"evaluate": self._now() - slot.begun}
            self._finish(slot, task, CandidateFailed(f"its evaluation ended its worker {times}: {why}", seconds), ())
            return
        detail = f"{name}, at candidate {task.candidate}: {why}; it is evaluated again"
        history.notes.append(Note("worker lost", detail))
        self._queue.appendleft(task)

    def _expire(self) -> None:
        for slot in self._slots:
            task = slot.task
            if task is None or self._now() < slot.deadline:
                continue
            seconds = {"evaluate": self._now() - slot.begun}
            self._fall(slot, f"candidate {task.candidate} took too long")
            slot.falls = 0  # it was the candidate's fault
            self._finish(
                slot, task, CandidateFailed(f"no result after {task.timeout:g} s (workers.timeout)", seconds), ()
            )

    def _finish(self, slot: _Slot, task: Task, result: Evaluation | CandidateFailed, notes: tuple[Note, ...]) -> None:
        history = self._histories.pop(task.candidate, _History())
        taken, self._notes = self._notes, []
        self._done.append(Done(task, result, (*taken, *history.notes, *notes), slot.name))

    def _fall(self, slot: _Slot, why: str) -> None:
        """Take a worker down, and say when it is started again."""
        self._crew.kill(slot.worker)
        rest = min(LONGEST_REST, 2.0**slot.falls)
        slot.falls += 1
        slot.state, slot.worker, slot.ref, slot.task, slot.holds = "down", None, None, None, ""
        slot.again = self._now() + rest
        self._last_fall = f"{slot.name}: {why}"

    def _check_hope(self) -> None:
        """End a search that nobody can work for."""
        if any(slot.state in ("idle", "busy") for slot in self._slots):
            self._last_hope = self._now()
        waited = self._now() - self._last_hope
        # large models take long to load: whoever does so for the first time is given that time
        if waited < HOPELESS or any(slot.state == "loading" and slot.falls == 0 for slot in self._slots):
            return
        raise SearchError(
            f"no worker could be had for {waited / 60:.0f} minutes; the last thing that was heard: {self._last_fall}. "
            "What is stored is safe; the same command goes on once there are workers again."
        )
