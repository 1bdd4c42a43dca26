"""The EvoLLM-style experiments in small: every ``configs/*_mini.yaml`` over training seeds and search seeds.

    python experiments/evollm.py --runs runs/evollm [--configs evollm_jp_ps evollm_jp_dfs] [--search-seeds 0 1 2]

Each config is run as ``paretomerge run`` does, with the models of another training seed and another seed of the search.
The tables are of the holdout, which no choice has seen: mean ± standard deviation over training seeds (search seeds
averaged first), and the spread that search seeds alone make.

Runs that are finished are not repeated: the same command goes on where it was, and prints the tables alone once all are
there. The models must be there: paretomerge zoo build crosslingual --seed N, and skills, for N of 0, 1, 2.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SUFFIX = "_mini.yaml"


def main() -> int:
    found = sorted(path.name.removesuffix(SUFFIX) for path in (ROOT / "configs").glob(f"*{SUFFIX}"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "evollm")
    parser.add_argument("--configs", nargs="+", default=found, choices=found, metavar="NAME")
    parser.add_argument("--training-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--search-seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of paretomerge run")
    arguments = parser.parse_args()

    from experiments.evolving.rows import measure
    from experiments.evolving.tables import paired, summary

    for name in arguments.configs:
        rows = []
        for training in arguments.training_seeds:
            for seed in arguments.search_seeds:
                folder = arguments.runs / f"{name}-t{training}-s{seed}"
                row = measure(ROOT / "configs" / f"{name}{SUFFIX}", folder, training, seed, arguments.set)
                rows.append(row)
                print(row.line, file=sys.stderr, flush=True)
        print(f"\n### {name}\n\n{summary(rows)}\n\n{paired(rows)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
