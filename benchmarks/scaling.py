"""Candidates a second of two workers with one thread each, against one.

    python benchmarks/scaling.py [--config configs/quickstart.yaml] [--seconds 30] [--rounds 3]

Real workers of Ray on this machine, real candidates: random points of the config's last stage, each on the whole search
split. Rounds alternate between one task under way and two, after every worker has scored a few, so that a machine that
gets busier while this runs slows both down. Printed are both rates of each round, the time that workers say they spent,
and the median ratio. Needs the models of the config: ``paretomerge zoo build …``.
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
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
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
                seen |= _measured(pool, tasks, 2, 5.0)[2]
            ratios = []
            for _ in range(arguments.rounds):
                one, busy_one, _ = _measured(pool, tasks, 1, arguments.seconds)
                two, busy_two, _ = _measured(pool, tasks, 2, arguments.seconds)
                ratios.append(two / one)
                print(
                    f"1 worker {one:.2f} candidates/s (busy {busy_one:.0%}), 2 workers {two:.2f} candidates/s "
                    f"(busy {busy_two:.0%}): {two / one:.2f}x",
                    flush=True,
                )
        finally:
            pool.close()
    ratio = statistics.median(ratios)
    print(f"median {ratio:.2f}x, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    return 0 if ratio >= 1.7 else 1


def _tasks(loaded: LoadedConfig, setup: Setup) -> Iterator[Task]:
    """One candidate after the other, without end."""
    space = stages_of(loaded.config, setup)[-1].space
    for candidate in count():
        chance = generator(0, candidate)
        kinds = chance.integers(0, np.asarray(space.box.categories, dtype=np.int64))
        yield Task(candidate, space.decode(genome(chance.random(space.box.continuous), kinds)), "search")


def _measured(pool: Pool, tasks: Iterator[Task], width: int, seconds: float) -> tuple[float, float, set[str]]:
    """Keep so many tasks under way.

    Returns:
        Candidates a second, from the first task to the last answer; the share of that time that each worker says it
        worked; who did.
    """
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
    return done / wall, busy / wall / width, who


if __name__ == "__main__":
    sys.exit(main())
