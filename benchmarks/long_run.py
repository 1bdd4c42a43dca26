"""Does anything grow with the run? Latencies, memory and database of a long search, then its status and its resume.

    python benchmarks/long_run.py [--candidates 5000] [--genes 200] [--items 1000] [--seconds 2] [--race] [--folder DIR]

The search is the real one, its scores are made up (:mod:`benchmarks.long_runs.simulated`); ``--seconds`` is what an
evaluation claims to have cost, which `auto` chooses by. Prints, for each tenth of the run, CPU milliseconds per
candidate of asking, telling and storing, and resident memory; then the size of the database, and the seconds (CPU and
wall) of ``status`` and of everything that a resume does beside loading models: opening and verifying the database,
replaying the log, proposing the next candidate. Exits with 1 where the last tenth costs twice the first one's telling
and storing, status takes more than 2 s, or a resume more than 5.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder: its search.py would hide the package

import psutil  # noqa: E402

from benchmarks.long_runs.simulated import PlantedWorker, Simulation  # noqa: E402
from search.events import Event  # noqa: E402
from search.optimizers.contract import Genome, Outcome, Trial, remembered  # noqa: E402
from search.results import Results  # noqa: E402
from search.schema import Budget  # noqa: E402
from search.store import Store  # noqa: E402
from search.workers.contract import Done, Task  # noqa: E402

STATUS_SECONDS, RESUME_SECONDS, GROWTH = 2.0, 5.0, 2.0


class Clock:
    """CPU seconds by what they were spent on."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)

    def __call__(self, what: str) -> _Span:
        return _Span(self, what)


class _Span:
    def __init__(self, clock: Clock, what: str) -> None:
        self._clock, self._what = clock, what

    def __enter__(self) -> None:
        self._start = time.process_time()

    def __exit__(self, *_: object) -> None:
        self._clock.spent[self._what] += time.process_time() - self._start


class Timed:
    """An optimizer whose asks and tells are timed."""

    def __init__(self, inner: Any, clock: Clock) -> None:
        self._inner, self._clock = inner, clock

    def ask(self, id: int, pending: Sequence[Trial]) -> Genome:
        with self._clock("ask"):
            return self._inner.ask(id, pending)  # type: ignore[no-any-return]

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        with self._clock("tell"):
            self._inner.tell(trial, outcome)

    def remembered(self, id: int) -> dict[str, Any] | None:
        return remembered(self._inner, id)

    def recall(self, trial: Trial, memo: Any) -> None:
        self._inner.recall(trial, memo)

    def diagnosis(self) -> dict[str, float | str]:
        return getattr(self._inner, "diagnosis", dict)()  # type: ignore[no-any-return]


class MadeUpPool:
    """One slot; results at once. Its own time is counted apart."""

    slots, gpus = 1, 0.0

    def __init__(self, worker: PlantedWorker, seconds: float, clock: Clock) -> None:
        self._worker, self._seconds, self._clock = worker, seconds, clock
        self._tasks: deque[Task] = deque()

    def submit(self, task: Task) -> None:
        self._tasks.append(task)

    def wait(self, timeout: float | None = None) -> list[Done]:
        with self._clock("evaluate"):
            task = self._tasks.popleft()
            return [Done(task, self._worker.evaluate(task.recipe, task.split, task.items, self._seconds))]

    def close(self) -> None:
        pass


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=5000)
    parser.add_argument("--genes", type=int, default=200)
    parser.add_argument("--items", type=int, default=1000, help="of each of the two objectives")
    parser.add_argument("--seconds", type=float, default=2.0, help="what an evaluation claims to cost")
    parser.add_argument("--optimizer", default="auto")
    parser.add_argument("--race", action="store_true", help="with rungs and early stopping")
    parser.add_argument("--folder", type=Path, help="where the run lies; a temporary folder if left out")
    parser.add_argument("--resume-only", action="store_true", help="of a run that --folder holds")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "long"
        faults = [] if arguments.resume_only else _run(_simulation(folder, arguments), arguments)
        faults += _read(folder)
        faults += _resume(_simulation(folder, arguments), arguments)
    for fault in faults:
        print(f"TOO MUCH: {fault}")
    return 1 if faults else 0


def _simulation(folder: Path, arguments: argparse.Namespace) -> Simulation:
    return Simulation(
        folder, arguments.genes, arguments.items, arguments.candidates, arguments.optimizer, arguments.race
    )


def _run(simulation: Simulation, arguments: argparse.Namespace) -> list[str]:
    clock = Clock()
    store = simulation.create()

    def emit(*events: Event) -> None:
        with clock("store"):
            store.append(*events)

    pool = MadeUpPool(simulation.worker, arguments.seconds, clock)
    search = simulation.search(pool, emit, lambda optimizer: Timed(optimizer, clock))
    print(
        f"{arguments.optimizer}, {simulation.genes} genes, {arguments.candidates} candidates, 2 x {arguments.items} "
        f"items{', racing' if arguments.race else ''}"
    )
    print("  candidates          ask     tell    store     rest   CPU-ms each   memory MB", flush=True)
    tenths = []
    done = 0
    for tenth in range(1, 11):
        upto = arguments.candidates * tenth // 10
        clock.spent.clear()
        start = time.process_time()
        search.run(Budget(candidates=upto))
        total = time.process_time() - start - clock.spent["evaluate"]
        each = {what: 1000 * clock.spent[what] / (upto - done) for what in ("ask", "tell", "store")}
        each["rest"] = 1000 * total / (upto - done) - sum(each.values())
        tenths.append(each)
        numbers = "".join(f"{value:9.2f}" for value in each.values())
        memory = psutil.Process().memory_info().rss / 1e6
        print(f"  {done:5d}–{upto - 1:<9d} {numbers} {memory:23.0f}", flush=True)
        done = upto
    store.close()
    size = sum(path.stat().st_size for path in simulation.folder.glob("run.db*"))
    print(f"  database {size / 1e6:.1f} MB, {size / arguments.candidates / 1e3:.1f} kB per candidate", flush=True)
    return [
        f"{what}: {tenths[-1][what]:.2f} CPU-ms at the end, {tenths[1][what]:.2f} at the beginning"
        for what in ("tell", "store", "rest")
        if tenths[-1][what] > GROWTH * max(tenths[1][what], 0.2)
    ]


def _read(folder: Path) -> list[str]:
    cpu, wall = time.process_time(), time.perf_counter()
    facts = Results.load(folder).status()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    done = facts["candidates"]["done"]
    print(f"  status: {cpu:.2f} s CPU, {wall:.2f} s wall ({done} scored, front {len(facts['front'])})", flush=True)
    return [f"status takes {cpu:.2f} s"] if cpu > STATUS_SECONDS else []


def _resume(simulation: Simulation, arguments: argparse.Namespace) -> list[str]:
    clock = Clock()
    walls = [time.perf_counter()]
    with clock("open and verify"):
        store = Store.open(simulation.folder)
    walls.append(time.perf_counter())
    pool = MadeUpPool(simulation.worker, arguments.seconds, clock)
    search = simulation.search(pool, store.append)
    with clock("replay"):
        different = search.restore(store.events(), lambda id: store.item_scores(id, "search"))
    walls.append(time.perf_counter())
    with clock("next candidate"):
        search.run(Budget(candidates=arguments.candidates + 1))
    walls.append(time.perf_counter())
    store.close()
    parts = ", ".join(f"{what} {spent:.2f} s" for what, spent in clock.spent.items() if what != "evaluate")
    total = sum(spent for what, spent in clock.spent.items() if what != "evaluate")
    print(f"  resume: {total:.2f} s CPU, {walls[-1] - walls[0]:.2f} s wall ({parts}); {len(different)} different")
    faults = [f"a resume takes {total:.2f} s"] if total > RESUME_SECONDS else []
    return faults + ([f"{len(different)} proposals differ in a replay"] if different else [])


if __name__ == "__main__":
    sys.exit(main())
