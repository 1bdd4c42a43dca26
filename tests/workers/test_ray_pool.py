"""Real workers of Ray, on a cluster of two nodes that are processes of this machine, and what they die of."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merging.recipe import Recipe
from search.config import LoadedConfig, load_config
from search.schema import WorkersConfig
from search.setup import Setup, set_up, stages_of
from search.workers.contract import Done, Task
from search.workers.crew import CrewPool
from search.workers.evaluation import CandidateFailed, Evaluation
from search.workers.identity import Identity
from search.workers.inline import InlineWorker
from search.workers.ray import open_ray_pool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes with one CPU each."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        cluster.wait_for_nodes()
        yield cluster
        cluster.shutdown()
    signal.signal(signal.SIGTERM, before)


class Bench:
    """A driver without a model, and a pool."""

    def __init__(self, folder: Path, address: str, **settings: Any) -> None:
        self.folder = folder
        self.loaded: LoadedConfig = load_config(folder / "config.yaml")
        self.setup: Setup = set_up(self.loaded, 1, live=False)
        self.said: list[str] = []
        run = folder / "run"
        run.mkdir()
        workers = WorkersConfig(kind="ray", count=2, address=address, **settings)
        self.before = Path.cwd(), signal.getsignal(signal.SIGTERM)
        expected = Identity.of(self.loaded, self.setup)
        self.pool: CrewPool = open_ray_pool(self.loaded, workers, run, 1, expected, self.said.append)

    @property
    def recipes(self) -> list[Recipe]:
        (stage, *_) = stages_of(self.loaded.config, self.setup)
        return [stage.space.decode(genome) for _, genome in stage.fixed]

    def tasks(self, timeout: float | None = None) -> list[Task]:
        return [Task(k, recipe, "search", timeout=timeout) for k, recipe in enumerate(self.recipes)]

    def run(self, tasks: list[Task], meanwhile: Any = None) -> dict[int, Done]:
        """All of them, two at a time; ``meanwhile`` is called once after the first result."""
        left, found, under_way = list(tasks), {}, 0
        while left or under_way:
            while left and under_way < self.pool.slots:
                self.pool.submit(left.pop(0))
                under_way += 1
            done = self.pool.wait(600.0)
            assert done, "nothing came for ten minutes"
            under_way -= len(done)
            assert not {each.task.candidate for each in done} & set(found), "a candidate was told twice"
            found |= {each.task.candidate: each for each in done}
            if meanwhile is not None:
                meanwhile()
                meanwhile = None
        return found

    def both_ready(self) -> None:
        """Until both workers have joined: they take their time, and do so while somebody waits."""
        deadline = time.monotonic() + 300.0
        while sum(slot.state == "idle" for slot in self.pool._slots) < 2:
            assert time.monotonic() < deadline, "a worker has not joined for five minutes"
            self.pool._step(1.0)

    def calls(self) -> list[tuple[int, int]]:
        """(process, items) of every call of the trapped evaluator."""
        lines = (self.folder / "traps/calls").read_text().splitlines()
        return [(int(pid), int(items)) for pid, items in (line.split() for line in lines)]


@pytest.fixture(scope="module")
def bench(trapped_once: Path, cluster: Any) -> Iterator[Bench]:
    made = Bench(trapped_once, cluster.address, attempts=2)
    made.both_ready()
    yield made
    made.pool.close()


def same_scores(one: Evaluation, other: Evaluation) -> bool:
    return one.values == other.values and all(
        mine.ids == theirs.ids
        and mine.statuses == theirs.statuses
        and all(np.array_equal(mine.values[name], theirs.values[name]) for name in mine.values)
        for mine, theirs in ((one.scores[name], other.scores[name]) for name in one.scores)
    )


def test_workers_score_as_this_process_does(bench: Bench) -> None:
    done = bench.run(bench.tasks())
    assert {each.worker.split(" on ")[0] for each in done.values()} == {"worker 1", "worker 2"}
    here = set_up(bench.loaded, 1)
    inline = InlineWorker(here.materializer, here.engine, here.evaluators)
    for candidate, recipe in enumerate(bench.recipes):
        result = done[candidate].result
        assert isinstance(result, Evaluation) and not done[candidate].notes
        assert same_scores(result, inline.evaluate(recipe, "search"))
        assert result.scores["string"].values["accuracy"].flags.writeable, "not Ray's memory"
    ids = {name: each.items("search").ids[3:17] for name, each in here.evaluators.items()}
    (some,) = bench.run([Task(0, bench.recipes[4], "search", ids)]).values()
    assert isinstance(some.result, Evaluation)
    assert same_scores(some.result, inline.evaluate(bench.recipes[4], "search", ids))
    assert (Path.cwd(), signal.getsignal(signal.SIGTERM)) == bench.before, "the driver is as it was"


def test_a_killed_worker_loses_nothing(bench: Bench) -> None:
    undisturbed = bench.run(bench.tasks())
    before = len(bench.calls())
    (bench.folder / "traps/die-1.once").touch()
    done = bench.run(bench.tasks())
    for candidate, each in done.items():
        first = undisturbed[candidate].result
        assert isinstance(each.result, Evaluation) and isinstance(first, Evaluation)
        assert same_scores(each.result, first)
    notes = [note.what for each in done.values() for note in each.notes]
    assert notes.count("worker lost") == 1
    assert len(bench.calls()) - before == len(undisturbed) + 1, "what the worker died of is all that is repeated"


def test_a_candidate_that_crashes_its_worker_is_recorded(bench: Bench) -> None:
    (bench.folder / "traps/always").touch()
    (first,) = bench.run(bench.tasks()[:1]).values()
    assert isinstance(first.result, CandidateFailed)
    assert "its evaluation ended its worker 2 times" in first.result.reason
    (bench.folder / "traps/always").unlink()
    (second,) = bench.run(bench.tasks()[1:2]).values()
    assert isinstance(second.result, Evaluation)


def test_a_candidate_that_hangs_is_ended(bench: Bench) -> None:
    bench.both_ready()  # the test before has ended one of them
    bench.run(bench.tasks())
    pids = {pid for pid, _ in bench.calls()}
    (bench.folder / "traps/sleep-1.once").touch()
    done = bench.run(bench.tasks(timeout=15.0))
    failed = {k: each.result for k, each in done.items() if isinstance(each.result, CandidateFailed)}
    assert [each.reason for each in failed.values()] == ["no result after 15 s (workers.timeout)"]
    assert {pid for pid, _ in bench.calls()} == pids, "the worker broke off by itself, and went on"
    # a call that nothing interrupts: the driver ends the worker
    (bench.folder / "traps/hang-1.once").touch()
    done = bench.run(bench.tasks(timeout=5.0))
    failed = {k: each.result for k, each in done.items() if isinstance(each.result, CandidateFailed)}
    assert [each.reason for each in failed.values()] == ["no result after 5 s (workers.timeout)"]
    assert len(done) == len(bench.recipes)


def test_last_a_node_that_dies_loses_nothing(bench: Bench, cluster: Any) -> None:
    undisturbed = bench.run(bench.tasks())
    (bench.folder / "traps/slow").write_text("2.0")
    done = bench.run(
        bench.tasks(), lambda: cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    )
    assert len(done) == len(undisturbed)
    for candidate, each in done.items():
        first = undisturbed[candidate].result
        assert isinstance(each.result, Evaluation) and isinstance(first, Evaluation)
        assert same_scores(each.result, first)
    assert [note.what for each in done.values() for note in each.notes].count("worker lost") == 1
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    bench.both_ready()  # a new node takes its place
