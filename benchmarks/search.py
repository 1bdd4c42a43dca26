"""The search engine, measured: optimizers, items and honesty.

    python benchmarks/search.py                     a quick look, a minute
    python benchmarks/search.py record              the recorded table, from the zoo
    python benchmarks/search.py landscapes          optimizers against each other and against other libraries
    python benchmarks/search.py table               the same on the recorded tables alone
    python benchmarks/search.py report              Markdown tables of what landscapes and table have found so far
    python benchmarks/search.py items               hypervolume against item evaluations, by fidelity
    python benchmarks/search.py honesty             optimism, coverage, false wins and false drops

`python benchmarks/search.py COMMAND --help` says more. Results are appended to JSON-lines files in --out as they come:
a stopped command goes on where it was.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # not this folder: a file named search.py here would hide the package `search`
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # CPU seconds are compared; before numpy is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from benchmarks.searching.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
