"""Operations on task vectors, on the zoo: addition, subtraction, analogy, and forgetting avoided, over training seeds.

    python experiments/operations.py --folder runs/operations [--operations addition harm]

Every merge is an expression in a short merge config, read as `paretomerge merge` reads it. Numbers in expressions are
chosen on search or selection items; the tables are of the holdout, mean ± standard deviation over three training seeds.

Scores and fine-tunes are kept in --folder as soon as they are there: the same command goes on where it was, and
prints the tables alone once all is known. About 15 CPU-minutes on one thread. The models must be there:
paretomerge zoo build skills --seed N, paretomerge zoo build speech --seed N, for N of 0, 1, 2.
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

OPERATIONS = ("addition", "subtraction", "per_layer", "harm", "analogy", "forgetting")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "operations")
    parser.add_argument("--operations", nargs="+", default=list(OPERATIONS), choices=OPERATIONS, metavar="NAME")
    arguments = parser.parse_args()

    from experiments.diagnosing.gaps import Records
    from experiments.operating import per_layer, skills, speech

    measure = {
        "addition": skills.addition, "subtraction": skills.subtraction, "per_layer": per_layer.per_layer,
        "harm": skills.harm, "analogy": speech.analogy, "forgetting": skills.forgetting,
    }  # fmt: skip
    records = Records(arguments.folder)
    for name in arguments.operations:
        print(f"\n### {name}\n\n{measure[name](records)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
