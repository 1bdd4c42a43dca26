"""What calibration and the matrix methods cost: time, peak memory, and a candidate afterwards.

    python benchmarks/calibrate.py [--quick] [--methods regmean,tsv_m] [--blocks 2] [--json FILE]

On the Llama of benchmarks/materialize.py (341 M random parameters, three experts; made once in --workdir, 2.7 GB), in a
process of its own each:

- what calibrated methods need of a few inputs of each expert: input Gram matrices, the same through merged layers
  (RegMean++), Fisher information; time, bytes on disk, peak memory (VmHWM) against the memory of the loaded models;
- each method's product, which is computed once for a pool of experts: of --blocks blocks of the model, which are all
  alike (0: the whole model, hours for some methods on a processor); then a candidate with another scale, which is one
  pass over memory, against one of task arithmetic on the same tensors;
- the product as a virtual expert: made, and a candidate of the experts and it;
- the same for a block of several widths, from which the costs of a 7 B model are projected, once with the exponent that
  was measured, once with 3, which is the exponent of the matrix decompositions.

Times are CPU seconds of the process (on a GPU: of the host; read the wall time). Peak memory stays below 8 GB. About
25 minutes; --quick, a model of 0.7 M parameters and no 7 B, a minute or two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not this folder: its search.py would hide the package

from benchmarks.calibrating.costs import show  # noqa: E402
from benchmarks.materializing.family import SHAPES, Family, Shape, build  # noqa: E402
from benchmarks.materializing.machine import description  # noqa: E402

_STAGES = ROOT / "benchmarks" / "calibrating" / "stages.py"
METHODS = ("fisher", "regmean", "regmean_plus", "tsv_m", "iso_c", "iso_cts", "wudi")
CALIBRATED = {"fisher": "Fisher", "regmean": "Gram matrices", "regmean_plus": "Gram matrices of merged layers"}
EXPERTS = 3


def main() -> int:
    arguments = _arguments()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    shape = SHAPES[arguments.size]
    blocks = arguments.blocks or None
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": description(arguments.device),
        "threads": arguments.threads,
        "load before": os.getloadavg(),
        "model": {
            "title": shape.title, "hidden": shape.hidden, "layers": shape.layers, "experts": EXPERTS,
            "inputs": arguments.inputs, "length": arguments.length, "sampled": blocks,
        },
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=arguments.workdir, prefix="scratch-") as scratch:
        bench = _Bench(arguments, Path(scratch))
        family = build(shape, EXPERTS, arguments.workdir)
        result["statistics"] = bench.statistics(family)
        result["products"] = bench.products(family, blocks)
        result["virtual"] = bench.virtual(family, blocks)
    result["widths"] = {} if arguments.quick or not arguments.widths else _widths(arguments)
    result["load after"] = os.getloadavg()
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(show(result))
    return 0


class _Bench:
    """Runs stages, each in a process, with one folder for all that they collect."""

    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self._arguments = arguments
        self._scratch = scratch

    def run(
        self, what: str, family: Family, method: str, blocks: int | None, inputs: int | None = None
    ) -> dict[str, Any]:
        """One stage of one method."""
        arguments = self._arguments
        print(f"{time.strftime('%H:%M:%S')} {family.shape.title}, {what}: {method} …", file=sys.stderr, flush=True)
        job = {
            "what": what, "base": str(family.base), "method": method, "blocks": blocks,
            "experts": {alias: str(path) for alias, path in family.paths.items()}, "cache": str(self._scratch),
            "inputs": inputs or arguments.inputs, "length": arguments.length, "vocabulary": family.shape.vocabulary,
            "compile": arguments.compile, "device": arguments.device, "threads": arguments.threads,
        }  # fmt: skip
        told, found = self._scratch / "job.json", self._scratch / "result.json"
        told.write_text(json.dumps(job), encoding="utf-8")
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads), "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, str(_STAGES), str(told), str(found)], check=True, env=environment)
        result: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
        print("  " + ", ".join(f"{name} {value:.4g}" for name, value in result.items()), file=sys.stderr, flush=True)
        return result

    def statistics(self, family: Family) -> dict[str, Any]:
        """What the calibrated methods need, of the whole model."""
        wanted = {method: title for method, title in CALIBRATED.items() if method in self._arguments.methods}
        few = {"regmean_plus": self._arguments.merged_inputs}
        return {title: self.run("collect", family, method, None, few.get(method)) for method, title in wanted.items()}

    def products(self, family: Family, blocks: int | None) -> dict[str, Any]:
        """What each method computes once, of some blocks."""
        few = {"regmean_plus": self._arguments.merged_inputs}
        methods = self._arguments.methods
        return {each: self.run("product", family, each, blocks, few.get(each)) for each in methods}

    def virtual(self, family: Family, blocks: int | None) -> dict[str, Any]:
        """Of one method, a calibrated one if there is one among those measured."""
        methods = self._arguments.methods
        if not methods:
            return {}
        method = "regmean" if "regmean" in methods else methods[0]
        return {"method": method, **self.run("virtual", family, method, blocks)}


def _widths(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of one block, by width, of every statistic and product."""
    seconds: dict[str, list[float]] = {}
    for width in arguments.widths:
        shape = Shape(hidden=width, intermediate=width * 11 // 4, layers=1, vocabulary=1024)
        family = build(shape, EXPERTS, arguments.workdir)
        with tempfile.TemporaryDirectory(dir=arguments.workdir, prefix="scratch-") as scratch:
            bench = _Bench(arguments, Path(scratch))
            for title, found in bench.statistics(family).items():
                seconds.setdefault(title, []).append(found["busy"])
            for method, found in bench.products(family, 1).items():
                seconds.setdefault(f"{method}: product", []).append(max(found["product"], 1e-4))
    return {"widths": arguments.widths, "seconds": seconds, "tokens": arguments.inputs * arguments.length}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, eager kernels, few inputs, no projection")
    parser.add_argument("--size", choices=list(SHAPES), help="full (341 M) by default")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS), metavar="NAME,…")
    parser.add_argument("--blocks", type=int, default=2, help="whose products are computed; 0: the whole model's")
    parser.add_argument("--inputs", type=int, help="of each expert; 16 by default")
    parser.add_argument("--merged-inputs", type=int, help="the same for RegMean++, which runs them for every block; 4")
    parser.add_argument("--length", type=int, help="tokens of an input; 128 by default")
    parser.add_argument("--widths", type=int, nargs="*", default=[256, 512, 1024], help="for the projection")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", choices=("auto", "always", "never"), help="kernels of candidates")
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()) / "paretomerge-benchmark")
    parser.add_argument("--json", type=Path, help="write every figure there, too")
    arguments = parser.parse_args()
    unknown = [each for each in arguments.methods if each not in METHODS]
    if unknown:
        parser.error(f"--methods: expected some of {', '.join(METHODS)}; found {', '.join(unknown)}")
    if len(arguments.widths) == 1 or arguments.widths != sorted(set(arguments.widths)):
        parser.error(f"--widths: expected none, or at least two in ascending order; found {arguments.widths}")
    arguments.size = arguments.size or ("tiny" if arguments.quick else "full")
    arguments.inputs = arguments.inputs or (4 if arguments.quick else 16)
    arguments.merged_inputs = arguments.merged_inputs or 4
    arguments.length = arguments.length or (16 if arguments.quick else 128)
    arguments.compile = arguments.compile or ("never" if arguments.quick else "always")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
