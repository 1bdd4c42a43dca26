"""What a candidate costs, against the machine's copy bandwidth and against mergekit 0.1.5.

    python benchmarks/materialize.py [--small] [--device cuda] [--json FILE]

Makes a family of Llama models once (341 M parameters in bfloat16 and up to 8 fine-tunes, 6 GB, in --workdir), and then,
with 2, 4 and 8 experts, in a process of its own each, on one thread:

- time per candidate of every method, with every coefficient and density changed from candidate to candidate, methods in
  turn; as a fraction of the bandwidth of Tensor.copy_, measured before and after every candidate: the bytes of all
  sources, of the base where it is read and of the result, over the time;
- a candidate that changes one block, against a full one; what is paid once; peak memory;
- the same merges by mergekit, from disk to disk and in memory, in an environment of its own (made in --workdir with pip
  from materializing/mergekit.txt, or --mergekit VENV), and by ``paretomerge merge``.

Times are CPU seconds of the process where nothing else is said (GPU: between events). All of it takes about an hour;
--small a minute: 30 M parameters, two experts, few methods, eager kernels, no mergekit unless an environment is given.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder: its search.py would hide the package
sys.path.insert(0, str(Path(__file__).parent / "materializing"))

import torch  # noqa: E402
from cases import CASES, FEW  # noqa: E402
from disk import MERGEKIT, compare, environment  # noqa: E402
from family import SHAPES, Family, build  # noqa: E402
from machine import description  # noqa: E402
from measure import Job  # noqa: E402
from tables import show  # noqa: E402

_MEASURE = Path(__file__).parent / "materializing" / "measure.py"
_IN_MEMORY = ("task_arithmetic", "ties")  # what peak memory is measured with


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    family = build(SHAPES[arguments.size], max(arguments.experts), arguments.workdir)
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": description(arguments.device),
        "load before": os.getloadavg(),
        "device": arguments.device,
        "family": asdict(family.shape) | {"title": family.shape.title, "bytes": family.bytes},
        "compile": arguments.compile,
    }
    with tempfile.TemporaryDirectory(dir=arguments.workdir, prefix="scratch-") as scratch:
        result |= _in_place(family, arguments, Path(scratch))
        python = None if arguments.no_mergekit else environment(arguments.mergekit)
        few, many = family.of(min(arguments.experts)), family.of(max(arguments.experts))
        sizes = [few] if few == many else [few, many]
        result["disk"] = compare(sizes, python, arguments.disk_rounds, Path(scratch))
    result["load after"] = os.getloadavg()
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    show(result)


def _in_place(family: Family, arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All that is measured of live models. Kernels are built into an empty folder, so that cold is cold."""
    caches = {name: str(scratch / name.lower()) for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    common = {"device": arguments.device, "cases": arguments.methods, "seed": arguments.seed}
    result: dict[str, Any] = {"compiling": {}, "candidates": {}, "memory": {}}
    if arguments.compile != "never":
        small = build(SHAPES["small"], 2, arguments.workdir)
        for state in ("cold", "warm"):
            print(f"kernels, {state} …", file=sys.stderr)
            result["compiling"][state] = _run(Job("compiling", **_paths(small), **common), caches, scratch)["seconds"]
    for count in arguments.experts:
        part = _paths(family.of(count))
        print(f"{count} experts …", file=sys.stderr)
        job = Job(
            "candidates",
            **part,
            **common,
            compile=arguments.compile,
            rounds=arguments.rounds,
            budget=arguments.budget,
            copy_megabytes=arguments.copy_megabytes,
        )
        result["candidates"][str(count)] = _run(job, caches, scratch)
        common_memory = common | {"cases": [each for each in _IN_MEMORY if each in arguments.methods]}
        job = Job("memory", **part, **common_memory, compile=arguments.compile)
        result["memory"][str(count)] = _run(job, caches, scratch)
    return result


def _paths(family: Family) -> dict[str, Any]:
    return {"base": str(family.base), "experts": {alias: str(path) for alias, path in family.paths.items()}}


def _run(job: Job, caches: dict[str, str], scratch: Path) -> dict[str, Any]:
    told, found = scratch / "job.json", scratch / "result.json"
    told.write_text(json.dumps(asdict(job)), encoding="utf-8")
    environment = os.environ | caches | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, str(_MEASURE), str(told), str(found)], check=True, env=environment)
    result: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    return result


def _arguments() -> argparse.Namespace:
    every = [case.title for case in CASES]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", dest="size", action="store_const", const="small", help="the same as --size small")
    parser.add_argument("--size", choices=list(SHAPES))
    parser.add_argument("--experts", type=lambda text: [int(each) for each in text.split(",")], metavar="2,4,8")
    parser.add_argument("--methods", type=lambda text: text.split(","), help=f"of: {', '.join(every)}")
    parser.add_argument("--rounds", type=int, help="candidates of each method")
    parser.add_argument("--budget", type=float, default=90.0, help="seconds for all candidates of a method")
    parser.add_argument("--disk-rounds", type=int, help="runs of each merge from disk to disk")
    parser.add_argument("--compile", choices=("auto", "always", "never"), help="of kernels")
    parser.add_argument("--device", default="cpu", help="of the live model: cpu, cuda")
    parser.add_argument("--mergekit", type=Path, metavar="VENV", help="an environment that has it")
    parser.add_argument("--no-mergekit", action="store_true")
    parser.add_argument("--workdir", type=Path, default=Path.home() / ".cache" / "paretomerge" / "benchmarks")
    parser.add_argument("--seed", type=int, default=0, help="of the candidates")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.set_defaults(size="full")
    found = parser.parse_args()
    full = found.size == "full"
    found.experts = found.experts or ([2, 4, 8] if full else [2])
    found.methods = found.methods or (every if full else list(FEW))
    unknown = [each for each in found.methods if each not in every]
    if unknown:
        parser.error(f"expected --methods of {', '.join(every)}; found {', '.join(unknown)}")
    found.rounds = found.rounds or (9 if full else 2)
    found.disk_rounds = found.disk_rounds or (2 if full else 1)
    found.compile = found.compile or ("always" if full else "never")
    found.copy_megabytes = (1024 if found.device.startswith("cuda") else 256) if full else 32
    found.no_mergekit |= not full and found.mergekit is None
    found.mergekit = found.mergekit or found.workdir / f"mergekit-{MERGEKIT}"
    return found


if __name__ == "__main__":
    main()
