"""What scores candidates, as the loop sees it: a pool of workers that takes tasks and gives results back.

The loop submits no more tasks than there are slots, and takes results in whatever order they come. A pool knows nothing
of optimizers, rungs or the log; a task that a dying worker took down is issued again by the pool itself, and what
happened is told as incidents, which the loop logs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from evaluators.contract import Split
from merging.recipe import Recipe
from search.workers.evaluation import CandidateFailed, Evaluation, Items

Trouble = Literal["worker lost", "worker restarted", "batch halved"]


@dataclass(frozen=True)
class Task:
    """One piece of work: a recipe on some items of a split.

    Attributes:
        candidate: whose recipe it is: its number within the run.
        recipe: what to materialise.
        split: that the items are of.
        items: evaluator -> which of its items; every item of every evaluator if None.
        timeout: seconds after which it has failed; None for no limit.
    """

    candidate: int
    recipe: Recipe
    split: Split
    items: Items | None = None
    timeout: float | None = None


@dataclass(frozen=True)
class Note:
    """Something that went wrong and was mended: the task was not lost by it.

    Attributes:
        what: which kind.
        detail: for people: which worker, why, what was done.
        value: of "batch halved": ``batch_tokens`` as they are now.
    """

    what: Trouble
    detail: str
    value: float | None = None


@dataclass(frozen=True)
class Done:
    """What became of a task.

    Attributes:
        task: as it was submitted.
        result: scores, or why there are none.
        notes: what went wrong on the way, oldest first.
        worker: who did it, for people; "" where there is only one.
    """

    task: Task
    result: Evaluation | CandidateFailed
    notes: tuple[Note, ...] = field(default=())
    worker: str = ""


class Pool(Protocol):
    """Workers that score tasks. Used from one thread.

    Attributes:
        slots: tasks that may be under way at a time.
        gpus: that one slot keeps busy: 0 on CPUs, 0.5 where two workers share a device.
    """

    slots: int
    gpus: float

    def submit(self, task: Task) -> None:
        """Take a task; at most :attr:`slots` of them are under way. A worker that holds the candidate's weights is
        preferred. Returns at once, except in a pool without processes of its own."""
        ...

    def wait(self, timeout: float | None = None) -> list[Done]:
        """Results, at least one unless the time is over, in order of arrival.

        Args:
            timeout: seconds to wait for the first one, at most; without end if None.

        Raises:
            SearchError, MergingError, EvaluatorError: the set-up is wrong rather than a candidate: the search ends.
        """
        ...

    def close(self) -> None:
        """End every worker. What is under way is lost. May be called twice."""
        ...
