"""Candidates a second of two workers with one thread each, against one.

    python benchmarks/scaling.py [--config configs/quickstart.yaml] [--seconds 10] [--rounds 10]

Real workers of Ray on this machine, real candidates: random points of the config's last stage, each on the whole search
split. Rounds alternate between one task under way and two, after every worker has scored a few, so that a machine that
gets busier while this runs slows both down: give it many short rounds there. Printed are both rates of each round, the
share of the time in which workers say that they worked, and the ratio of all that was done. Needs the models of the
config: ``paretomerge zoo build …``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder: its search.py would hide the package
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402

from search.config import LoadedConfig, load_config  # noqa: E402
from search.optimizers.outcomes import generator, genome  # noqa: E402
from search.schema import WorkersConfig  # noqa: E402
from search.setup import Setup, set_up, stages_of  # noqa: E402
from search.workers.contract import Pool, Task  # noqa: E402
from search.workers.evaluation import CandidateFailed  # noqa: E402
from search.workers.identity import Identity  # noqa: E402
from search.workers.ray import open_ray_pool  # noqa: E402


def main() -> int:
    """Command line. Exits with 1 where two workers are not 1.7 times as fast as one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    loaded = load_config(arguments.config)
    setup = set_up(loaded, 1, live=False)
    tasks = _tasks(loaded, setup)
    settings = WorkersConfig(kind="ray", count=2)
    with tempfile.TemporaryDirectory() as folder:
        pool = open_ray_pool(loaded, settings, Path(folder), 1, Identity.of(loaded, setup), print)
        try:
            seen: set[str] = set()
            while len(seen) < 2:  # both have joined, and have compiled and cached what they will
                seen |= _measured(pool, tasks, 2, 5.0).who
            ones, twos = [], []
            for _ in range(arguments.rounds):
                ones.append(_measured(pool, tasks, 1, arguments.seconds))
                twos.append(_measured(pool, tasks, 2, arguments.seconds))
                print(f"1 worker {_shown(ones[-1])}, 2 workers {_shown(twos[-1])}", flush=True)
        finally:
            pool.close()
    one, two = (sum(each.done for each in measured) / sum(each.wall for each in measured) for measured in (ones, twos))
    spread = statistics.quantiles([b.done / b.wall / (a.done / a.wall) for a, b in zip(ones, twos, strict=True)], n=4)
    print(
        f"1 worker {one:.2f} candidates/s, 2 workers {two:.2f} candidates/s: {two / one:.2f}x "
        f"(quartiles of the rounds {spread[0]:.2f} to {spread[2]:.2f}); load {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores"
    )
    return 0 if two / one >= 1.7 else 1


class Measured(NamedTuple):
    """One measurement.

    Attributes:
        done: candidates.
        wall: seconds from the first task to the last answer.
        busy: share of it in which each worker says it worked.
        who: did them.
    """

    done: int
    wall: float
    busy: float
    who: set[str]


def _shown(measured: Measured) -> str:
    return f"{measured.done / measured.wall:.2f} candidates/s (busy {measured.busy:.0%})"


def _tasks(loaded: LoadedConfig, setup: Setup) -> Iterator[Task]:
    """One candidate after the other, without end."""
    space = stages_of(loaded.config, setup)[-1].space
    for candidate in count():
        chance = generator(0, candidate)
        kinds = chance.integers(0, np.asarray(space.box.categories, dtype=np.int64))
        yield Task(candidate, space.decode(genome(chance.random(space.box.continuous), kinds)), "search")


def _measured(pool: Pool, tasks: Iterator[Task], width: int, seconds: float) -> Measured:
    """Keep so many tasks under way for so long."""
    start = time.perf_counter()
    under_way, done, busy, who = 0, 0, 0.0, set()
    while True:
        while under_way < width and time.perf_counter() - start < seconds:
            pool.submit(next(tasks))
            under_way += 1
        if not under_way:
            break
        for each in pool.wait():
            if isinstance(each.result, CandidateFailed):
                raise SystemExit(f"candidate {each.task.candidate} failed: {each.result.reason}")
            under_way, done = under_way - 1, done + 1
            busy += sum(each.result.seconds.values())
            who.add(each.worker)
    wall = time.perf_counter() - start
    return Measured(done, wall, busy / wall / width, who)


if __name__ == "__main__":
    sys.exit(main())
