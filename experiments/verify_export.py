"""Does an exported model hold what was promised? Reload it as anybody would, compare bits and scores.

    python experiments/verify_export.py RUN EXPORT [--candidate ID]

Loads EXPORT through ``AutoModelForCausalLM.from_pretrained``, rebuilds the candidate from its recipe into a live model,
compares every tensor bit by bit, and scores the reloaded model on the splits for which the run has scores: each item's
score must be the stored one. Exits with 1 when anything differs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from evaluators.contract import SPLITS
from search.config import load_config
from search.results import Results
from search.setup import set_up
from search.store import Store


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("export", type=Path)
    parser.add_argument("--candidate", type=int, help="the knee if left out")
    parser.add_argument("--config", type=Path, help="the run's own config.yaml if left out")
    arguments = parser.parse_args()

    from transformers import AutoModelForCausalLM

    results = Results.load(arguments.run)
    id = results.knee() if arguments.candidate is None else arguments.candidate
    loaded = load_config(arguments.config or arguments.run / "config.yaml")
    setup = set_up(loaded, results.started.threads)
    setup.materializer.apply(results.recipe(id))
    rebuilt = {name: value.clone() for name, value in setup.engine.model.state_dict().items()}
    reloaded = AutoModelForCausalLM.from_pretrained(arguments.export, dtype=setup.engine.model.dtype).eval()
    state = reloaded.state_dict()
    different = sorted(set(rebuilt) ^ set(state))
    different += [name for name in sorted(set(rebuilt) & set(state)) if not same_bits(rebuilt[name], state[name])]
    print(f"candidate {id}: {len(rebuilt)} tensors rebuilt from the recipe, {len(different)} differ from the export")

    setup.engine.model.load_state_dict(state)
    setup.engine.weights_changed()
    store = Store.open(arguments.run, read_only=True)
    wrong = 0
    for split in SPLITS:
        for name, stored in store.item_scores(id, split).items():
            again = setup.evaluators[name].score(setup.engine, stored.ids)
            unequal = sum(int((again.values[metric] != values).sum()) for metric, values in stored.values.items())
            mean = {metric: round(float(np.mean(values)), 4) for metric, values in again.values.items()}
            print(f"  {split:9} {name}: {len(stored)} items, {unequal} scores differ, {mean}")
            wrong += unequal
    store.close()
    return 1 if different or wrong else 0


def same_bits(left: object, right: object) -> bool:
    """Equal shape, dtype and bytes: unlike ``==``, this tells 0.0 from -0.0."""
    import torch

    assert isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor)
    if left.shape != right.shape or left.dtype != right.dtype:
        return False
    return (
        left.contiguous().view(torch.uint8).equal(right.contiguous().view(torch.uint8))
        if left.dim()
        else bool(left == right)
    )


if __name__ == "__main__":
    sys.exit(main())
