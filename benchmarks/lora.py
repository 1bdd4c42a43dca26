"""What adapters cost as sources of a merge, beside the models that they are folded into.

    python benchmarks/lora.py [--size small] [--adapters 4] [--rank 16] [--json FILE]

Makes a Llama (341 M parameters in bfloat16, that of ``materialize.py``), adapters of all its linear weights, and the
models that they are folded into, in float32, once (in --workdir; 6 GB). Then, in a process of its own each, one thread:

- opening and checking the sources; memory that they and a live model take;
- inner products of the task vectors of all tensors (what model_stock, slerp on task vectors and diagnose ask for);
- the directions of matrix methods, for the first --blocks blocks;
- a full candidate of each method, every statistic known (of matrix methods on those blocks alone).

Times are CPU seconds of the process. Merged weights are compared: bit for bit where methods see single elements, by the
norm of the merged task vectors elsewhere. Half an hour for the full size, nearly all of it the decompositions of the
folded models; a minute for --size small.
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

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder: its search.py would hide the package
sys.path.insert(0, str(Path(__file__).parent / "materializing"))

import torch  # noqa: E402
from family import SHAPES, build  # noqa: E402
from lora_family import KINDS, adapters  # noqa: E402
from machine import description, measured, memory  # noqa: E402

STATISTICS = "inner products, all tensors"
MATRIX = ("tsv_m", "iso_c", "iso_cts", "wudi", "knots_ties", "core_ties")
ELEMENT = ("task_arithmetic", "ties")
_CPU = torch.device("cpu")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SHAPES), default="full")
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=1, help="whose matrices are decomposed")
    parser.add_argument("--rounds", type=int, default=3, help="candidates of each method; the fastest counts")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=[*ELEMENT, *MATRIX])
    parser.add_argument("--workdir", type=Path, default=Path.home() / ".cache" / "paretomerge" / "benchmarks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.worker:
        _work(arguments)
        return
    shape = SHAPES[arguments.size]
    base = build(shape, 0, arguments.workdir).base
    folders = adapters(base, arguments.adapters, arguments.rank)
    size = {kind: sum(each.stat().st_size for path in paths.values() for each in path.iterdir())
            for kind, paths in folders.items()}  # fmt: skip
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": description("cpu"),
        "load before": os.getloadavg(),
        "parameters": shape.parameters,
        "on disk": size,
    }
    with tempfile.TemporaryDirectory(dir=arguments.workdir, prefix="scratch-") as scratch:
        result |= {kind: _measured(kind, Path(scratch)) for kind in KINDS}
        result["apart"] = _apart(Path(scratch), arguments.methods)
    result["load after"] = os.getloadavg()
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    _show(result, arguments)


def _measured(kind: str, scratch: Path) -> dict[str, Any]:
    print(f"{kind} …", file=sys.stderr)
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", kind, "--scratch", str(scratch)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _work(arguments: argparse.Namespace) -> None:
    """One kind of sources: prints what was measured, and leaves merged weights for the comparison."""
    from merging import Assignment, Materializer, Recipe, Sources, load_model
    from merging.methods import canonical, get
    from merging.methods.contract import Values
    from merging.statistics import gram

    base = build(SHAPES[arguments.size], 0, arguments.workdir).base
    paths = adapters(base, arguments.adapters, arguments.rank)[arguments.worker]
    loaded: list[Sources] = []
    found: dict[str, Any] = {"opening": measured(lambda: loaded.append(Sources.load(base, paths)), _CPU).busy}
    sources = loaded[0]
    sources.refs  # noqa: B018, hashed before, as in a search
    model = load_model(base)
    before = memory()["RssAnon"]
    materializer = Materializer(sources, model, compile="never", home="host")
    found["memory"] = memory()["RssAnon"] - before
    pool = sources.pool(tuple(sorted(paths)))
    seconds = found["seconds"] = {
        STATISTICS: measured(lambda: [gram(pool, name, "task_vectors") for name in sources.tensors], _CPU).busy
    }
    inside = [
        name for name in sources.tensors
        if (depth := sources.layout.group(name).depth) is not None and depth < arguments.blocks
        and len(sources.tensors[name].shape) == 2
    ]  # fmt: skip
    for method in arguments.methods:
        own: dict[str, Any] = {"coefficient": 0.4, "density": 0.3} if "ties" in method else {"coefficient": 0.4}
        assignment = Assignment.of(method, dict.fromkeys(paths, {} if method in _PLAIN else own))
        spelled = canonical(assignment)
        if method in MATRIX:
            begin = time.process_time()
            kept = {name: get(method).prepare(pool, name, Values.of(spelled)).fields[0] for name in inside}
            seconds[f"{method}, first"] = time.process_time() - begin
        elsewhere = Assignment.of("task_arithmetic", {})
        spent = []
        for number in range(arguments.rounds):
            changed = Assignment(assignment.method, assignment.sources, (("scale", 1.0 + 0.01 * number),))
            only = {name: changed if name in inside else elsewhere for name in sources.tensors}
            groups = dict.fromkeys(sources.layout.groups, changed if method in ELEMENT else elsewhere)
            recipe = Recipe("base", sources.refs, groups, {} if method in ELEMENT else only)
            begin = time.process_time()
            materializer.apply(recipe)
            spent.append(time.process_time() - begin)
        seconds[f"{method}, candidate"] = min(spent)
        if method in ELEMENT:
            kept = {name: materializer.tensors[name] - sources.tensor("base", name) for name in inside}
        torch.save(kept, arguments.scratch / f"{arguments.worker}-{method}.pt")
    found["peak"] = memory()["VmHWM"]
    print(json.dumps(found), flush=True)


_PLAIN = frozenset({"tsv_m", "iso_c", "iso_cts", "wudi"})  # no parameters of their sources


def _apart(scratch: Path, methods: list[str]) -> dict[str, float]:
    """Method -> ‖Δ of adapters − Δ of folded models‖ / ‖Δ‖ over the blocks, in float32; of methods that see single
    elements as the live model's bfloat16 has them."""
    found = {}
    for method in methods:
        one, other = (torch.load(scratch / f"{kind}-{method}.pt") for kind in KINDS)
        gap = sum(float((one[name].double() - other[name].double()).square().sum()) for name in one)
        found[method] = (gap / sum(float(each.double().square().sum()) for each in other.values())) ** 0.5
    return found


def _show(result: dict[str, Any], arguments: argparse.Namespace) -> None:
    thin, dense = (result[kind] for kind in KINDS)
    print(f"{result['parameters'] / 1e6:.0f} M parameters, {arguments.adapters} adapters of rank {arguments.rank}")
    print(f"{'':34}{'adapters':>12}{'folded':>12}{'ratio':>9}")
    rows = [("on disk, MB", *(result["on disk"][kind] / 1e6 for kind in KINDS))]
    memories = {"base, sources and live model": "memory", "peak of the process": "peak"}
    rows += [(f"{what}, MB", thin[key] / 1e6, dense[key] / 1e6) for what, key in memories.items()]
    rows.append(("opening, s", thin["opening"], dense["opening"]))
    rows += [(f"{what}, s", thin["seconds"][what], dense["seconds"][what]) for what in thin["seconds"]]
    for what, one, other in rows:
        print(f"{what:34}{one:12.3f}{other:12.3f}{other / max(one, 1e-9):8.1f}×")
    for method, gap in result["apart"].items():
        print(f"{method:34}{'the same bits' if gap == 0 else f'{gap:.1e} apart':>24}")


if __name__ == "__main__":
    main()
