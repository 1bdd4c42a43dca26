"""Do the diagnostics predict how well models merge? Every two experts of the zoo's families, sizes and seeds.

    python experiments/diagnostics.py --folder runs/diagnostics [--families skills digits] [--tables]
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from experiments.diagnosing.families import FAMILIES  # noqa: E402
from experiments.diagnosing import gaps, predictors  # noqa: E402
from experiments.diagnosing.gaps import Records  # noqa: E402


def main() -> int:
    arguments = _arguments()
    records = Records(arguments.folder)
    for name in arguments.families:
        family = FAMILIES[name]
        for seed in family.seeds:

            @cache
            def bench(name: str = name, seed: int = seed):
                from experiments.diagnosing.bench import Bench

                return Bench(name, FAMILIES[name], seed)

            for part in (gaps, predictors):
                part.measure(records, name, family, seed, bench, lambda line: print(line, flush=True))
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "diagnostics")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), metavar="NAME")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
