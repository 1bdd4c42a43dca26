"""What a candidate costs whose genes are RegMean's coefficients, against one of task arithmetic.

    python benchmarks/regmean_genes.py [--shapes 1024x1024 1024x2816] [--repeats 5] [--json FILE]

One bfloat16 tensor [out, in] at a time, and three with the same inputs (query, key, value), on one core, in CPU
seconds:

- task arithmetic over two experts: one pass over memory;
- RegMean with fixed coefficients: made once, then a candidate with another scale;
- RegMean over two experts with new coefficients, diagonalised together beforehand, and by a Cholesky factor for every
  candidate; over three experts, by the factor;
- what the search remembers for it, in bytes per weight.

"made" is the first candidate, with everything that is prepared for the later ones. A minute or two.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not this folder: its search.py would hide the package

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.materializing.machine import description  # noqa: E402
from merging.calibration.given import GivenCalibration, gram_of  # noqa: E402
from merging.kernel import Task, merge_tensor  # noqa: E402
from merging.methods import canonical, get, regression  # noqa: E402
from merging.methods.contract import Values  # noqa: E402
from merging.pool import Pool  # noqa: E402
from merging.recipe import Assignment  # noqa: E402

DATA = "sha256:random"


class Layers:
    """Tensors [out, in] with the same inputs, of a base and some experts, and a pool that a search uses."""

    def __init__(self, out: int, width: int, experts: int, tensors: int) -> None:
        random = torch.Generator().manual_seed(1)
        names = [f"layer.{number}" for number in range(tensors)]
        aliases = tuple("abc"[:experts])
        base = {name: 0.02 * torch.randn(out, width, generator=random) for name in names}
        weights = {"base": {name: each.bfloat16() for name, each in base.items()}}
        tables = {}
        for alias in aliases:
            moved = {name: each + 0.002 * torch.randn(each.shape, generator=random) for name, each in base.items()}
            weights[alias] = {name: each.bfloat16() for name, each in moved.items()}
            inputs = torch.randn(2 * width, width, generator=random) * torch.rand(width, generator=random)
            tables[alias] = dict.fromkeys(names, gram_of(inputs, "inputs"))
        self.names, self.elements = names, out * width * tensors
        self._live = {name: torch.empty(out, width, dtype=torch.bfloat16) for name in names}
        self.pool = Pool("base", aliases, tuple(names), lambda alias, name: weights[alias][name])
        self.pool.calibration = GivenCalibration(tables, fingerprint=DATA)
        self.pool.searching = True

    def seconds(self, method: str, coefficients: Sequence[float], **shared: float | str) -> float:
        """CPU seconds of one candidate."""
        sources = {alias: {"coefficient": c} for alias, c in zip(self.pool.aliases, coefficients, strict=True)}
        spelled = canonical(Assignment.of(method, sources, **shared))
        task = Task(get(method), Values.of(spelled), self.pool)
        start = time.process_time()
        for name in self.names:
            merge_tensor(name, task, self._live[name])
        return time.process_time() - start

    def remembered(self) -> float:
        """Bytes per weight that the pool holds, its calibration apart."""
        storages = [each.untyped_storage() for each in held((self.pool._memory, self.pool._recent))]
        return sum({each.data_ptr(): each.nbytes() for each in storages}.values()) / self.elements


def held(found: Any) -> Iterator[Tensor]:
    """The tensors in nested containers."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, dict):
        yield from itertools.chain.from_iterable(map(held, found.values()))
    elif isinstance(found, tuple | list):
        yield from itertools.chain.from_iterable(map(held, found))


def measured(out: int, width: int, tensors: int, repeats: int) -> dict[str, Any]:
    """A row of the table."""

    def median(layers: Layers, method: str, over: str, count: int, **shared: float | str) -> tuple[float, float]:
        """(first candidate, median of later ones), with ever new values of a coefficient or of the scale."""
        given = [1.0 + 0.1 * number for number in range(count)]
        times = []
        for repeat in range(repeats + 1):
            new = {"scale": 0.5 + 0.1 * repeat} if over == "scale" else {}
            first = given[0] if over == "scale" else 0.31 + 0.07 * repeat
            others = [1.0] * (count - 1) if over == "scale" else given[1:]
            times.append(layers.seconds(method, [first, *others], **shared, **new))
        return times[0], statistics.median(times[1:])

    row: dict[str, Any] = {"shape": f"{out}x{width}", "tensors": tensors}
    row["task_arithmetic"] = median(Layers(out, width, 2, tensors), "task_arithmetic", "coefficient", 2)[1]
    row["fixed_made"], row["fixed"] = median(Layers(out, width, 2, tensors), "regmean", "scale", 2, calibration=DATA)
    widest = regression.DIAGONALISED
    for what, limit, count in (("pair", width, 2), ("factor", 0, 2), ("factor_of_3", 0, 3)):
        regression.DIAGONALISED = limit
        layers = Layers(out, width, count, tensors)
        row[f"{what}_made"], row[what] = median(layers, "regmean", "coefficient", count, calibration=DATA)
        row[f"{what}_bytes"] = layers.remembered()
    regression.DIAGONALISED = widest
    return row


def show(row: dict[str, Any]) -> str:
    """A line of text."""
    unit = row["task_arithmetic"]
    cells = [f"{row['shape']:>10} x {row['tensors']}   task arithmetic {1e3 * unit:7.1f} ms"]
    for what in ("fixed", "pair", "factor", "factor_of_3"):
        size = f", {row[f'{what}_bytes']:.0f} B/weight" if f"{what}_bytes" in row else ""
        costs = f"made {row[f'{what}_made']:6.2f} s, then {1e3 * row[what]:8.1f} ms ({row[what] / unit:.1f}x{size})"
        cells.append(f"{what:>12}: {costs}")
    return "\n    ".join(cells)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["1024x1024", "1024x2816"], help="out x in")
    parser.add_argument("--repeats", type=int, default=5, help="candidates of which the median is taken")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(description("cpu"))
    rows = []
    for shape in options.shapes:
        out, width = (int(each) for each in shape.split("x"))
        for tensors in (1, 3):
            rows.append(measured(out, width, tensors, options.repeats))
            print(show(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
