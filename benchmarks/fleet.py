"""Does one driver keep 64 workers busy? A steady search over simulated workers with log-normal evaluation times.

    python benchmarks/fleet.py [--workers 64] [--median 20] [--sigma 0.7] [--candidates 1500] [--genes 24] [--sleep]

The driver is the real one: optimizer, loop and store; scores and times are made up. By default time is virtual: the
driver's own CPU seconds are added to a clock on which workers finish, so that the result is that of a machine that has
nothing else to do, and takes seconds. ``--sleep`` measures instead: workers are threads that sleep. Prints the share of
worker time that was spent evaluating (between the first task and the last that was handed out, as a search's end has
to wait for its stragglers), and the driver's CPU time as a share of the wall time. Exits with 1 below 95 % or
above 5 %.
"""

from __future__ import annotations

import argparse
import heapq
import queue
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder: its search.py would hide the package

import numpy as np  # noqa: E402

from benchmarks.long_runs.simulated import PlantedWorker, Simulation, emitter  # noqa: E402
from search.schema import Budget  # noqa: E402
from search.workers.contract import Done, Task  # noqa: E402

BUSY, DRIVER = 0.95, 0.05


class Span(NamedTuple):
    """When a worker was busy, in seconds."""

    start: float
    end: float


class Times:
    """Seconds that evaluations take, one stream for each candidate."""

    def __init__(self, median: float, sigma: float) -> None:
        self._median, self._sigma = median, sigma

    def of(self, task: Task) -> float:
        chance = np.random.default_rng([task.candidate, 1])
        return self._median * float(np.exp(self._sigma * chance.standard_normal()))


class VirtualPool:
    """Workers on a clock of their own, which the driver's CPU time moves too."""

    gpus = 0.0

    def __init__(self, worker: PlantedWorker, times: Times, workers: int) -> None:
        self.slots = workers
        self.spans: list[Span] = []
        self.driver = 0.0
        self._worker, self._times = worker, times
        self._now = 0.0
        self._under_way: list[tuple[float, int, Task, float]] = []
        self._cpu = time.process_time()

    @property
    def now(self) -> float:
        self._advance()
        return self._now

    def submit(self, task: Task) -> None:
        self._advance()
        seconds = self._times.of(task)
        heapq.heappush(self._under_way, (self._now + seconds, task.candidate, task, seconds))
        self.spans.append(Span(self._now, self._now + seconds))

    def wait(self, timeout: float | None = None) -> list[Done]:
        self._advance()
        end, _, task, seconds = heapq.heappop(self._under_way)
        self._now = max(self._now, end)
        found = Done(task, self._worker.evaluate(task.recipe, task.split, task.items, seconds))
        self._cpu = time.process_time()  # what the made-up scores cost is no driver's work
        return [found]

    def close(self) -> None:
        pass

    def _advance(self) -> None:
        spent = time.process_time() - self._cpu
        self._now += spent
        self.driver += spent
        self._cpu = time.process_time()


class SleepingPool:
    """Threads that sleep, on the wall's clock."""

    gpus = 0.0

    def __init__(self, worker: PlantedWorker, times: Times, workers: int) -> None:
        self.slots = workers
        self.spans: list[Span] = []
        self._worker, self._times = worker, times
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[Task, float]] = queue.SimpleQueue()
        self._start, self._cpu, self._made_up = time.perf_counter(), time.process_time(), 0.0
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(workers)]
        for each in self._threads:
            each.start()

    @property
    def now(self) -> float:
        return time.perf_counter() - self._start

    @property
    def driver(self) -> float:
        return time.process_time() - self._cpu - self._made_up

    def submit(self, task: Task) -> None:
        self._tasks.put(task)

    def wait(self, timeout: float | None = None) -> list[Done]:
        task, seconds = self._done.get()
        start = time.process_time()
        found = Done(task, self._worker.evaluate(task.recipe, task.split, task.items, seconds))
        self._made_up += time.process_time() - start
        return [found]

    def close(self) -> None:
        for _ in self._threads:
            self._tasks.put(None)
        for each in self._threads:
            each.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            start, seconds = self.now, self._times.of(task)
            time.sleep(seconds)
            self.spans.append(Span(start, self.now))
            self._done.put((task, seconds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--median", type=float, default=20.0, help="seconds of an evaluation")
    parser.add_argument(
        "--sigma", type=float, default=0.7, help="of the times' logarithm: 1 in 40 takes 4 times as long"
    )
    parser.add_argument("--candidates", type=int, default=1500)
    parser.add_argument("--genes", type=int, default=24)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--optimizer", default="auto")
    parser.add_argument("--sleep", action="store_true", help="threads that sleep, instead of virtual time")
    arguments = parser.parse_args()
    times = Times(arguments.median, arguments.sigma)
    with tempfile.TemporaryDirectory() as folder:
        simulation = Simulation(
            Path(folder) / "fleet", arguments.genes, arguments.items, arguments.candidates, arguments.optimizer, False,
            arguments.workers,
        )  # fmt: skip
        store = simulation.create()
        kind = SleepingPool if arguments.sleep else VirtualPool
        pool = kind(simulation.worker, times, arguments.workers)
        simulation.search(pool, emitter(store)).run(Budget(candidates=arguments.candidates))
        wall, driver = pool.now, pool.driver
        pool.close()
        store.close()
    last = sorted(span.start for span in pool.spans)[-1]
    busy = sum(min(span.end, last) - min(span.start, last) for span in pool.spans) / (arguments.workers * last)
    print(
        f"{arguments.optimizer}, {simulation.genes} genes, {arguments.workers} workers, evaluations of "
        f"{arguments.median:g} s (median; sigma {arguments.sigma:g}), {arguments.candidates} candidates in "
        f"{wall:.0f} s {'measured' if arguments.sleep else 'virtual'}: workers {busy:.1%} busy, "
        f"driver's CPU {driver / wall:.1%}, "
        f"{1000 * driver / arguments.candidates:.1f} CPU-ms a candidate"
    )
    return 0 if busy >= BUSY and driver / wall <= DRIVER else 1


if __name__ == "__main__":
    sys.exit(main())
