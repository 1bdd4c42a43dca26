"""What a path through the layers of models costs as a candidate: in memory, against exporting and loading it.

    python benchmarks/path.py [--size small] [--hops 24] [--repeated 3] [--json FILE]

Makes the family of ``materialize.py`` (Llama in bfloat16: a base and two fine-tunes, in --workdir), and then, in one
process on one thread, for random paths with scales through the layers of both fine-tunes:

- applying each to the live model: the first time, when hops are made, and again, after others; and without its scales,
  which make the only weights that are computed;
- exporting the same recipe and loading the export, as a search without a live model would have to; files stay in the
  page cache. Weights and logits of both are compared;
- memory of the layers of a path, each of which occurs up to --repeated times: once each, as they are held; what scales
  multiply, which hops have for themselves beside that; and with a copy for every hop. What the process holds (RssAnon)
  is read before and after the copies are really made.

Times are CPU seconds of the process; ratios are of the medians of one run. Half a minute for --size small.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder: its search.py would hide the package
sys.path.insert(0, str(Path(__file__).parent / "materializing"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from family import SHAPES, build  # noqa: E402
from machine import description, measured, memory  # noqa: E402

_CPU = torch.device("cpu")
_TOKENS = 64  # of the text whose logits are compared
_SCALES = (0.8, 1.25)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=list(SHAPES), default="small")
    parser.add_argument("--hops", type=int, help="of every path; three times a model's layers if left out")
    parser.add_argument("--repeated", type=int, default=3, help="a layer occurs at most so often in a path")
    parser.add_argument("--candidates", type=int, default=40, help="applied in memory")
    parser.add_argument("--exports", type=int, default=3, help="of these, exported and loaded")
    parser.add_argument("--workdir", type=Path, default=Path.home() / ".cache" / "paretomerge" / "benchmarks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.size]
    hops = arguments.hops or 3 * shape.layers
    most = 2 * arguments.repeated * shape.layers
    if not 1 <= hops <= most or not 1 <= arguments.exports <= arguments.candidates:
        parser.error(f"expected 1 to {most} hops, and 1 to {arguments.candidates} exports")
    torch.set_num_threads(1)
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    family = build(shape, 2, arguments.workdir)
    result: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "machine": description("cpu"),
        "load before": os.getloadavg(),
        "parameters": shape.parameters,
        "layers": shape.layers,
        "hops": hops,
    }
    with tempfile.TemporaryDirectory(dir=arguments.workdir, prefix="scratch-") as scratch:
        result |= _figures(family, hops, arguments, Path(scratch))
    result["load after"] = os.getloadavg()
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    _show(result)


def _figures(family: Any, hops: int, arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    from merging import Sources, load_model
    from merging.dataflow import PathMaterializer, residual_writers

    sources = Sources.load(family.base, family.paths)
    sources.refs  # noqa: B018, hashed before, as in a search
    paths = PathMaterializer(sources, load_model(family.base), home="host")
    writers = measured(lambda: residual_writers(sources), _CPU).busy  # found once a search
    random = np.random.default_rng(0)
    recipes = [_recipe(sources, random, hops, arguments.repeated) for _ in range(arguments.candidates)]
    first = [measured(lambda each=recipe: paths.apply(each), _CPU).busy for recipe in recipes]
    again = [measured(lambda each=recipe: paths.apply(each), _CPU).busy for recipe in recipes]
    unscaled = [replace(recipe, scales=None) for recipe in recipes]
    plain = [measured(lambda each=recipe: paths.apply(each), _CPU).busy for recipe in unscaled]
    held = _memory(paths)  # now: what is freed later on is not given back to the system at once
    disk, apart, unequal = [], [], 0
    for recipe in recipes[: arguments.exports]:
        paths.apply(recipe)
        seconds, found = _by_disk(recipe, sources, scratch)
        disk.append(seconds)
        apart.append(_apart(paths.model, found))
        unequal += _unequal(paths.model, found)
    return {
        "seconds": {
            "first of all": first[0],
            "apply, first time": statistics.median(first),
            "apply, again": statistics.median(again),
            "apply without scales": statistics.median(plain),
            **{what: statistics.median(each[what] for each in disk) for what in disk[0]},
        },
        "writers": writers,
        "apart": max(apart),
        "unequal": unequal,
        "memory": held,
    }


def _recipe(sources: Any, random: np.random.Generator, hops: int, repeated: int) -> Any:
    """A path of layers of the fine-tunes, none more often than allowed, with scales."""
    from merging import Assignment, Group, Recipe
    from merging.methods import canonical

    experts = [alias for alias in sources.checkpoints if alias != sources.base]
    slots = [(alias, layer) for alias in experts for layer in range(sources.layout.depth())] * repeated
    path = [slots[place] for place in random.permutation(len(slots))[:hops]]
    take = {alias: canonical(Assignment.of("passthrough", {alias: {}})) for alias in experts}
    groups = {group: take[experts[0]] for group in sources.layout.groups if group.depth is None}
    kinds = {group.kind for group in sources.layout.groups if group.depth is not None}
    groups |= {Group(kind, number): take[alias] for number, (alias, _) in enumerate(path) for kind in kinds}
    scales = tuple(float(each) for each in random.uniform(*_SCALES, hops))
    layers = tuple({alias: layer} for alias, layer in path)
    return Recipe(sources.base, sources.refs, groups, layers=layers, scales=scales)


def _by_disk(recipe: Any, sources: Any, scratch: Path) -> tuple[dict[str, float], Any]:
    """(seconds of each step, the loaded export)."""
    from merging import load_model
    from merging.export import export

    out = scratch / "export"
    loaded: list[Any] = []
    exporting = measured(lambda: export(recipe, sources, out, compile="never"), _CPU).busy
    loading = measured(lambda: loaded.append(load_model(out)), _CPU).busy
    for each in loaded[0].parameters():
        each.data = each.data.clone()  # the files are removed
    shutil.rmtree(out)
    return {"export": exporting, "load": loading, "export and load": exporting + loading}, loaded[0]


@torch.no_grad()
def _apart(one: Any, other: Any) -> float:
    """The largest difference of logits, over their standard deviation."""
    ids = torch.arange(1, _TOKENS + 1)[None]
    found, expected = one(ids).logits.float(), other(ids).logits.float()
    return float((found - expected).abs().max() / expected.std())


def _unequal(one: Any, other: Any) -> int:
    """How many weights are not the same bits, those that only one has among them."""
    found, expected = one.state_dict(), other.state_dict()
    both = found.keys() & expected.keys()
    return len(found.keys() ^ expected.keys()) + sum(not torch.equal(found[name], expected[name]) for name in both)


def _memory(paths: Any) -> dict[str, float]:
    blocks = [dict(block.named_parameters()) for block in paths.model.get_submodule("model.layers")]
    every = [each for block in blocks for each in block.values()]
    unique = {each.data_ptr(): each for each in every}
    before = memory()["RssAnon"]
    copies = [each.detach().clone() for each in every]
    after = memory()["RssAnon"]
    return {
        "different layers": len({next(iter(block.values())).data_ptr() for block in blocks}),
        "once each": sum(each.nbytes for each in unique.values()),
        "scaled": paths.scaled_bytes,
        "a copy for every hop": sum(each.nbytes for each in copies),
        "RssAnon before": before,
        "RssAnon after": after,
        "copies beside the sources": paths.bytes[1],
    }


def _show(result: dict[str, Any]) -> None:
    seconds, held = result["seconds"], result["memory"]
    print(f"\n{result['parameters'] / 1e6:.0f} M parameters, {result['layers']} layers a model; {result['machine']}")
    print(f"load average before {result['load before'][0]:.2f}, after {result['load after'][0]:.2f}\n")
    print(f"| a candidate of {result['hops']} hops | CPU ms |\n|---|---:|")
    for what, each in seconds.items():
        print(f"| {what} | {1000 * each:.3g} |")
    print(f"\nFinding the residual writers, once a search: {result['writers']:.2f} s.")
    for what in ("apply, first time", "apply, again"):
        print(f"Export and load over {what}: {seconds['export and load'] / seconds[what]:,.0f} times.")
    print(
        f"{result['unequal']} weights of live paths and their exports are not the same bits; logits differ by "
        f"{result['apart']:.2g} standard deviations at most."
    )
    print(f"\nA path of {result['hops']} hops over {held['different layers']} different layers:")
    print("| layers | MB |\n|---|---:|")
    for what in ("once each", "scaled", "a copy for every hop"):
        print(f"| {what} | {held[what] / 1e6:.1f} |")
    grown = (held["RssAnon after"] - held["RssAnon before"]) / 1e6
    print(f"\nMaking a copy for every hop took {grown:.1f} MB.")
    print(f"Weights that the live model holds beside the sources: {held['copies beside the sources'] / 1e6:.1f} MB.")


if __name__ == "__main__":
    main()
