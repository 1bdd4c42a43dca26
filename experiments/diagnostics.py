"""Do the diagnostics predict how well models merge? Every two experts of the zoo's families, in all sizes and seeds.

    python experiments/diagnostics.py --folder runs/diagnostics [--families skills digits]
    python experiments/diagnostics.py --tables [--images docs/images]

The gap of a pair: task arithmetic with one λ for both, chosen from 11 on search and selection items by the mean of the
two retentions; 1 − that mean, on the holdout. Retention is (merge − base) / (expert − base) on the expert's own task; a
pair counts where both experts learned at least 0.1. The predictors: everything that a diagnosis of the two says of the
weights alone, probes of 64 unlabelled inputs each, and scores of 64 items each. Correlations are of ranks, within
families and over all pairs; intervals draw whole cells (family and seed), whose pairs share models.

Everything is kept in --folder as soon as it is there: the same command goes on where it was. About 17 CPU-minutes on
one thread. The models must be there: paretomerge zoo build NAME --seed N, for those that the tables name.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from experiments.diagnosing import gaps, predictors  # noqa: E402
from experiments.diagnosing.families import FAMILIES, LEARNED  # noqa: E402
from experiments.diagnosing.gaps import Records  # noqa: E402

if TYPE_CHECKING:
    from experiments.diagnosing.bench import Bench


def main() -> int:
    arguments = _arguments()
    records = Records(arguments.folder)
    for name in () if arguments.tables else arguments.families:
        for seed in FAMILIES[name].seeds:
            _cell(records, name, seed)
    _print(records, arguments.images)
    return 0


def _cell(records: Records, name: str, seed: int) -> None:
    """One family and training seed: what is not known yet."""

    @cache
    def bench() -> Bench:
        from experiments.diagnosing.bench import Bench

        return Bench(name, FAMILIES[name], seed)

    for part in (gaps, predictors):
        part.measure(records, name, FAMILIES[name], seed, bench, lambda line: print(line, flush=True))


def _print(records: Records, images: Path | None) -> None:
    from experiments.diagnosing import picture, tables
    from experiments.diagnosing.correlate import read

    pairs, out = read(records)
    print(f"\n{len(pairs)} pairs count; of {len(out)} an expert learned less than {LEARNED:g}.")
    print(f"\n### What foretells the gap\n\n{tables.predictors_table(pairs)}\n\n{tables.chance_lines(pairs)}")
    print(f"\n### The verdict\n\n{tables.verdicts_table(pairs)}")
    print(f"\n### λ\n\n{tables.lambda_lines(pairs)}")
    print(f"\n### Every pair\n\n{tables.pairs_table(pairs)}")
    if images is not None:
        for path in picture.write(pairs, images):
            print(f"\nwrote {path}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "diagnostics")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), metavar="NAME")
    parser.add_argument("--tables", action="store_true", help="run nothing, print what there is")
    parser.add_argument("--images", type=Path, help="a folder to write the picture to")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
