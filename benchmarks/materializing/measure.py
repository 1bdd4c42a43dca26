"""What one process measures of the materialiser: ``python measure.py JOB.json RESULT.json``.

A process of its own for every job, so that peak memory is the job's, and a cold compiler is cold.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import CASES, LAYERED, Case
from machine import Copy, Spent, measured, memory
from torch import nn

from merging.arena import hold
from merging.materialize import Materializer, load_model
from merging.methods.contract import Values
from merging.methods.registry import canonical, get
from merging.recipe import Assignment, Group, Recipe
from merging.sources import Sources


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        what: ``candidates``, ``compiling`` or ``memory``.
        base: folder of the base.
        experts: alias -> folder.
        cases: titles of :data:`cases.CASES`.
        device: of the live model.
        compile: mode of the materialiser.
        rounds: how often every method is measured, in turn.
        budget: seconds (wall) of all rounds of one method; the first is always run.
        copy_megabytes: size of the buffer whose copying is measured.
        seed: of the candidates.
    """

    what: str
    base: str
    experts: dict[str, str]
    cases: list[str]
    device: str = "cpu"
    compile: str = "always"
    rounds: int = 7
    budget: float = 120.0
    copy_megabytes: int = 256
    seed: int = 0


class Bench:
    """The models of a job, loaded, and candidates for them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.device = torch.device(job.device)
        self.once: dict[str, Spent] = {}
        self._chance = np.random.default_rng(job.seed)
        paths: dict[str, Path | str] = {alias: Path(path) for alias, path in job.experts.items()}
        self.sources = self._timed("open and scan", lambda: Sources.load(Path(job.base), paths))
        self._timed("content hashes", lambda: self.sources.refs)
        self.model: nn.Module = self._timed("load the live model", lambda: load_model(job.base, device=job.device))
        self._timed("read into arenas", lambda: hold(self.sources, self.device))
        mode: Any = job.compile
        self.materializer: Materializer = self._timed(
            "map the live model", lambda: Materializer(self.sources, self.model, compile=mode)
        )
        self.aliases = list(job.experts)
        self.parameters = sum(info.numel for info in self.sources.tensors.values())
        self.base = dict.fromkeys(self.sources.layout.groups, Assignment.of("task_arithmetic", {}))
        self.groups = self.base

    def apply(self, groups: dict[Group, Assignment]) -> Spent:
        """Bring the model to these groups' assignments."""
        recipe = Recipe("base", self.sources.refs, groups)
        spent = measured(lambda: self.materializer.apply(recipe), self.device)
        self.groups = groups
        return spent

    def renewed(self, case: Case) -> Spent:
        """Bring the whole model to a candidate in which every tensor is another than before."""
        if not case.genes and not case.shared_genes:
            self.apply(self.base)
        return self.apply(self.candidate(case))

    def candidate(self, case: Case, groups: Iterable[Group] | None = None) -> dict[Group, Assignment]:
        """A random one, or some groups of it: every group has its own numbers."""
        return {group: case.assignment(self.aliases, self._chance) for group in groups or self.groups}

    @property
    def largest(self) -> Group:
        """The group within the blocks that holds the most elements."""
        sizes: Counter[Group] = Counter()
        for name, info in self.sources.tensors.items():
            sizes[self.sources.layout.group(name)] += info.numel
        return max((group for group in sizes if group.depth is not None), key=lambda group: sizes[group])

    def bytes(self, case: Case) -> int:
        """What a candidate has to move at the least: every source, the base where it is read, and the result."""
        assignment = canonical(case.assignment(self.aliases, self._chance))
        reads_base = get(assignment.method).reads_base(Values.of(assignment))
        return 2 * self.parameters * (len(assignment.sources) + reads_base + 1)

    def depths(self) -> list[list[Group]]:
        """The groups of every block."""
        blocks: dict[int, list[Group]] = {}
        for group in self.groups:
            if group.depth is not None:
                blocks.setdefault(group.depth, []).append(group)
        return [blocks[depth] for depth in sorted(blocks)]

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        made: list[Any] = []
        self.once[name] = measured(lambda: made.append(work()), self.device)
        return made[0]


def candidates(job: Job) -> dict[str, Any]:
    """Time per candidate of every case, with the copy bandwidth around each; in turn, so that load hits all alike."""
    bench, copy = Bench(job), Copy(job.copy_megabytes, torch.device(job.device))
    chosen = [case for case in CASES if case.title in job.cases]
    rows: dict[str, dict[str, Any]] = {}
    bench.apply(bench.groups)
    for case in chosen:
        first = bench.apply(bench.groups | bench.candidate(case, [bench.largest]))
        whole = bench.renewed(case)
        rows[case.title] = {
            "bytes": bench.bytes(case),
            "one group": first._asdict(),
            "whole": whole._asdict(),
            "times": [],
            "layers": [],
        }
        _progress(f"{case.title}: statistics and kernels {first.wall + whole.wall:.1f} s")
    spent = dict.fromkeys(rows, 0.0)
    bandwidth = copy.bandwidth()
    for round_ in range(job.rounds):
        for case in chosen:
            if round_ and spent[case.title] * (round_ + 1) / round_ > job.budget:
                continue
            before, found = bandwidth, bench.renewed(case)
            bandwidth = copy.bandwidth()
            spent[case.title] += found.wall
            rows[case.title]["times"].append([found.busy, found.wall, (before + bandwidth) / 2])
            if case.title in LAYERED:
                blocks = bench.depths()
                block = blocks[(round_ * 7) % len(blocks)]
                rows[case.title]["layers"].append(bench.apply(bench.groups | bench.candidate(case, block)).busy)
                bandwidth = copy.bandwidth()
        _progress(f"round {round_ + 1} of {job.rounds}")
    for row in rows.values():
        row |= _summary(row)
    return {
        "parameters": bench.parameters,
        "tensors": len(bench.sources.tensors),
        "blocks": len(bench.depths()),
        "once": {name: each._asdict() for name, each in bench.once.items()},
        "cases": rows,
    }


def compiling(job: Job) -> dict[str, Any]:
    """Seconds by the clock until a case's kernels are built, or found on disk: its first candidate of one group.

    The same models are merged eagerly before, so that statistics are there and only kernels are missing.
    """
    bench = Bench(replace(job, compile="never"))
    base, chosen = bench.base, [case for case in CASES if case.title in job.cases]
    bench.apply(base)
    for case in chosen:
        bench.apply(base | bench.candidate(case, [bench.largest]))
    bench.apply(base)
    bench.materializer = Materializer(bench.sources, bench.model, compile="always")
    bench.apply(base)
    found = {}
    for case in chosen:
        first, second = (bench.apply(base | bench.candidate(case, [bench.largest])) for _ in range(2))
        found[case.title] = max(0.0, first.wall - second.wall)
    return {"seconds": found}


def peak(job: Job) -> dict[str, Any]:
    """Peak memory of opening the models and making a few candidates, as a search does."""
    imported = memory()
    reset = _reset_peak()
    bench = Bench(job)
    loaded = memory()
    for case in (each for each in CASES if each.title in job.cases):
        for _ in range(3):
            bench.apply(bench.candidate(case))
    result: dict[str, Any] = {
        "models": 2 * bench.parameters * (len(bench.aliases) + 2),
        "imported": imported["VmRSS"],
        "loaded": loaded["VmHWM"],
        "peak": memory()["VmHWM"],
        "anonymous": memory()["RssAnon"],
        "reset": reset,
    }
    if bench.device.type == "cuda":
        result["device"] = torch.cuda.max_memory_allocated(bench.device)
    return result


def _summary(row: dict[str, Any]) -> dict[str, Any]:
    times = [busy for busy, _, _ in row["times"]]
    fractions = [row["bytes"] / busy / bandwidth for busy, _, bandwidth in row["times"]]
    best = min(times)
    once = row["one group"]["busy"] + max(0.0, row["whole"]["busy"] - best)
    return {
        "best": best,
        "median": statistics.median(times),
        "wall": statistics.median(wall for _, wall, _ in row["times"]),
        "bandwidth": statistics.median(bandwidth for _, _, bandwidth in row["times"]),
        "fraction": fractions[times.index(best)],
        "median fraction": statistics.median(fractions),
        "first": once,
        "layer": min(row["layers"]) / best if row["layers"] else None,
    }


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _progress(line: str) -> None:
    print(f"  {time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main() -> None:
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    torch.set_num_threads(1)
    work = {"candidates": candidates, "compiling": compiling, "memory": peak}[job.what]
    Path(sys.argv[2]).write_text(json.dumps(work(job)), encoding="utf-8")


if __name__ == "__main__":
    main()
