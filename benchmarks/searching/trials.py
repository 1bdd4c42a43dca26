"""One contender on one landscape and seed; many of them over processes, every result kept as soon as it is there."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from benchmarks.searching import contenders
from benchmarks.searching.landscapes import Landscape, landscape, share
from search.optimizers.contract import Genome, OptimizerError

Array = npt.NDArray[np.float64]


T = TypeVar("T")
R = TypeVar("R")

STOPPED = "from"
"""How `left_out` begins where a contender was too slow."""


class Task(NamedTuple):
    """One run: which contender, where, on which luck, how long, scored when."""

    landscape: str
    contender: str
    seed: int
    budget: int
    checkpoints: tuple[int, ...]
    cpu_limit: float

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Results of one key replace each other."""
        return (self.landscape, self.contender, self.seed, self.budget)


@dataclass
class Result:
    """What came of a task.

    Attributes:
        shares: checkpoint -> hypervolume share (:func:`benchmarks.searching.landscapes.share`).
        cpu_ms: checkpoint -> CPU milliseconds of ask and tell per evaluation so far.
        left_out: why later checkpoints are missing; "" when none is.
        diagnosis: what the optimizer said of itself at the end.
    """

    landscape: str
    contender: str
    seed: int
    budget: int
    shares: dict[str, float] = field(default_factory=dict)
    cpu_ms: dict[str, float] = field(default_factory=dict)
    left_out: str = ""
    diagnosis: dict[str, float | str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, int]:
        return (self.landscape, self.contender, self.seed, self.budget)


# Contenders of one seed come one after another, and share the work on its front.
_landscape = lru_cache(maxsize=4)(landscape)


def run(task: Task) -> Result:
    """Run a task in this process, on one thread."""
    result = Result(task.landscape, task.contender, task.seed, task.budget)
    problem = _landscape(task.landscape, task.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental features of the libraries compared
            contender = contenders.build(task.contender, problem, task.budget, task.seed)
            _search(contender, problem, task, result)
            result.diagnosis = getattr(contender, "diagnosis", {})
    except (ImportError, OptimizerError) as error:
        result.left_out = f"{type(error).__name__}: {error}"
    return result


def _search(contender: contenders.Contender, problem: Landscape, task: Task, result: Result) -> None:
    genomes: list[Genome] = []
    observed: list[Array] = []
    first_with: dict[Hashable, int] = {}
    spent = 0.0
    for number in range(task.budget):
        if spent > task.cpu_limit:
            result.left_out = f"{STOPPED} {number} evaluations on: beyond {task.cpu_limit:g} CPU-seconds"
            return
        begin = time.process_time()
        genome = contender.ask(number)
        spent += time.process_time() - begin
        repeats = first_with.setdefault(genome, number)
        genomes.append(genome)
        # the same merge has the same score: its items are the same
        observed.append(observed[repeats] if repeats != number else problem.observe(number, genome))
        begin = time.process_time()
        contender.tell(number, genome, observed[-1], None if repeats == number else repeats)
        spent += time.process_time() - begin
        if number + 1 in task.checkpoints:
            result.shares[str(number + 1)] = share(problem, genomes, observed)
            result.cpu_ms[str(number + 1)] = 1000.0 * spent / (number + 1)


def run_all(
    tasks: Sequence[Task], path: Path, jobs: int, say: Callable[[str], None] = print, redo: bool = False
) -> None:
    """Run what the file does not hold yet, or everything; every result is appended as it comes.

    What could not be built is tried again.
    """
    known = {result.key for result in read(path) if not redo and (result.shares or result.left_out.startswith(STOPPED))}
    todo = [task for task in tasks if task.key not in known]
    say(f"{len(tasks) - len(todo)} of {len(tasks)} runs are in {path.name}; {len(todo)} to do")
    for done, result in enumerate(over_processes(run, todo, jobs), 1):
        append(path, asdict(result))
        figures = " ".join(f"{at}: {value:.3f}" for at, value in result.shares.items())
        name = f"{result.landscape} {result.contender} seed {result.seed} of {result.budget}"
        say(f"[{done}/{len(todo)}] {name}: {figures} {result.left_out}")


def append(path: Path, data: Mapping[str, Any]) -> None:
    """One JSON line more; begins a new line where a kill has torn the last one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(data).encode() + b"\n")


def over_processes(function: Callable[[T], R], todo: Sequence[T], jobs: int) -> Iterator[R]:
    """Results as they come, in no order where there are several processes."""
    if jobs == 1:
        yield from map(function, todo)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs, initializer=one_thread) as pool:
        yield from pool.imap_unordered(function, todo)


def one_thread() -> None:
    """CPU seconds are compared: no contender gets a second core."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)


def read(path: Path) -> list[Result]:
    """Results of a file, of each key the last; a torn last line is left out."""
    if not path.exists():
        return []
    found: dict[tuple[str, str, int, int], Result] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            data: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            continue
        result = Result(**data)
        found[result.key] = result
    return list(found.values())
