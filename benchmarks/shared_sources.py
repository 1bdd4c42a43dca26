"""What the sources of several workers on one machine take, each with its own copy and with one for all of them.

    python benchmarks/shared_sources.py --workers 2

Every worker is a process that opens the family of ``materialize.py``, has a live model, and makes candidates by task
arithmetic (eager kernels, one thread). Memory is what the kernel counts once all workers stand still: PSS, where a page
that n processes map counts 1/n in each. So the sum over the workers is what they take together.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder: its search.py would hide the package
sys.path.insert(0, str(Path(__file__).parent / "materializing"))

from family import SHAPES, Family, build  # noqa: E402

_FIELDS = ("Pss", "Pss_Anon", "Pss_Shmem", "Pss_File")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SHAPES), default="full")
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--homes", type=lambda text: text.split(","), default=["host", "shared", "mmap"])
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--workdir", type=Path, default=Path.home() / ".cache" / "paretomerge" / "benchmarks")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    family = build(SHAPES[arguments.size], arguments.experts, arguments.workdir)
    if arguments.worker:
        _work(family, arguments.worker, arguments.candidates)
        return
    print(f"{arguments.workers} workers; each model {family.bytes / 1e6:.0f} MB, {arguments.experts + 1} of them")
    for home in arguments.homes:
        _show(home, _measured(home, arguments))


def _measured(home: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", home]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    workers = [
        subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(arguments.workers)
    ]
    try:
        found = [json.loads(each.stdout.readline()) for each in workers if each.stdout is not None]
        return [{**one, **_memory(worker.pid)} for one, worker in zip(found, workers, strict=True)]
    finally:
        for each in workers:
            each.kill()
            each.communicate()


def _memory(process: int) -> dict[str, float]:
    """Megabytes, as :data:`_FIELDS`."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    values = dict(line.split(":", 1) for line in lines[1:])
    return {field: int(values[field].split()[0]) * 1024 / 1e6 for field in _FIELDS}


def _work(family: Family, home: Any, candidates: int) -> None:
    from merging import Assignment, Materializer, Recipe, Sources, load_model

    begin = time.perf_counter()
    sources = Sources.load(family.base, family.paths)
    names = list(family.paths)
    sources.refs  # noqa: B018, hashed before, as in a search
    model = load_model(family.base)
    opened = time.perf_counter()
    materializer = Materializer(sources, model, compile="never", home=home)
    placed = time.perf_counter()
    spent = []
    for number in range(candidates):
        values = {name: {"coefficient": 0.3 + 0.01 * number} for name in names}
        groups = dict.fromkeys(sources.layout.groups, Assignment.of("task_arithmetic", values))
        before = time.process_time()
        materializer.apply(Recipe(sources.base, sources.refs, groups))
        spent.append(time.process_time() - before)
    print(json.dumps({"opened": opened - begin, "placed": placed - opened, "candidate": min(spent)}), flush=True)
    sys.stdin.read()


def _show(home: str, workers: list[dict[str, Any]]) -> None:
    print(f"\nsources in {home}:")
    for number, each in enumerate(workers):
        memory = ", ".join(f"{field} {each[field]:.0f} MB" for field in _FIELDS)
        times = f"opened in {each['opened']:.1f} s, placed in {each['placed']:.1f} s"
        print(f"  worker {number}: {memory}; {times}, a candidate {1e3 * each['candidate']:.0f} ms of CPU")
    print(f"  together: {sum(each['Pss'] for each in workers):.0f} MB")


if __name__ == "__main__":
    main()
