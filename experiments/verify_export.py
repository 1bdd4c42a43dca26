"""Does an exported model hold what was promised? Reload it as anybody would, compare bits and scores.

    python experiments/verify_export.py RUN EXPORT [--candidate ID]

`paretomerge export` itself reads the weights back and compares them with the recipe's. This goes further: it loads
EXPORT through transformers, rebuilds the candidate from its recipe into a live model, compares every tensor bit by bit,
and scores the reloaded model on the splits for which the run has scores: each item's score must be the stored one.
Exits with 1 when anything differs. The same as `paretomerge export RUN --rescore`, of a folder that is there already.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from search.config import load_config
from search.rescoring import rescore
from search.results import Results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("export", type=Path)
    parser.add_argument("--candidate", type=int, help="the knee if left out")
    parser.add_argument("--config", type=Path, help="the run's own config.yaml if left out")
    arguments = parser.parse_args()

    results = Results.load(arguments.run)
    id = results.knee() if arguments.candidate is None else arguments.candidate
    found = rescore(results, id, arguments.export, load_config(arguments.config or arguments.run / "config.yaml"))
    differ = f"{len(found.different)} differ from the export"
    print(f"candidate {id}: {found.tensors} tensors rebuilt from the recipe, {differ}")
    for each in found.scores:
        means = {metric: round(value, 4) for metric, value in each.means.items()}
        print(f"  {each.split:9} {each.evaluator}: {each.items} items, {each.unequal} scores differ, {means}")
    return 0 if found.same else 1


if __name__ == "__main__":
    sys.exit(main())
