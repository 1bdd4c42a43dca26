"""Does searching pay? The quickstart against what needs less search, on items that no search has seen.

    python experiments/first_light.py [--config configs/quickstart.yaml] [--zoo-seeds 0 1] [--search-seeds 0 1 2]

Arms, at equal evaluations on the same items: the average of the experts; task arithmetic with the best single λ (a grid
of 15, no other search); one coefficient per expert (same optimizer, whole budget); random points of the full space;
mergekit-evolve's algorithm (CMA-ES on a scalar, every item of every candidate); the full search. Every arm follows the
run's own protocol: the front on search items, re-scored on selection items, chosen there by the same rule. Only then
are the front's holdout scores taken, and reported: the hypervolume of the front's holdout utilities, and the chosen
merge's smallest retention and accuracy on the holdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from merging.recipe import Recipe
from search import pareto
from search.config import LoadedConfig, load_config
from search.objectives import Objectives
from search.results import Results
from search.run import Run
from search.setup import Setup, set_up
from search.workers.inline import InlineWorker

ARMS = {
    "per-expert": ["space.granularity=model", "space.methods=[task_arithmetic]"],
    "random": ["search.optimizer=random", "search.per_expert_share=0.0"],
    # mergekit-evolve's algorithm: CMA-ES on one scalar, one method, no stages, every item of every candidate
    "cma": ["search.optimizer={name: cma, sigma0: 0.1666666}", "search.per_expert_share=0.0", "search.fidelity=off"],
    "full": [],
}
GRID = [round(0.1 * k, 1) for k in range(1, 16)]


@dataclass(frozen=True)
class Row:
    arm: str
    zoo_seed: int
    search_seed: int
    hypervolume: float
    min_retention: float
    min_accuracy: float
    values: dict[str, float]
    front: int
    items: int = 0


class Bench:
    """Scores recipes of one zoo seed on any split, each once."""

    def __init__(self, setup: Setup, experts: list[str]) -> None:
        self._worker = InlineWorker(setup.materializer, setup.engine, setup.evaluators)
        self.objectives: Objectives = setup.objectives
        self._experts = experts
        self._known: dict[tuple[str, str], dict[str, float]] = {}
        self.alone: dict[str, Recipe] = {}

    def values(self, recipe: Recipe, split: str) -> dict[str, float]:
        key = (recipe.hash, split)
        if key not in self._known:
            self._known[key] = self._worker.evaluate(recipe, split).values  # type: ignore[arg-type]
        return self._known[key]

    def retention(self, recipe: Recipe, split: str) -> tuple[float, ...]:
        experts = {name: self.values(self.alone[f"expert {name}"], split) for name in self._experts}
        return self.objectives.retention(self.values(recipe, split), self.values(self.alone["base"], split), experts)

    def front(self, recipes: list[Recipe], split: str) -> list[Recipe]:
        points = [self.objectives.utilities(self.values(each, split)) for each in recipes]
        return [each for each, keep in zip(recipes, pareto.nondominated(points), strict=True) if keep]

    def row(self, arm: str, zoo_seed: int, search_seed: int, finalists: list[Recipe]) -> Row:
        front = self.front(finalists, "selection")
        retained = np.array([self.retention(each, "selection") for each in front])
        k = retained.shape[1]
        index = pareto.knee(retained, list(range(len(front))), ideal=[1.0] * k, nadir=[0.0] * k) or 0
        points = [self.objectives.utilities(self.values(each, "holdout")) for each in front]
        chosen = front[index]
        held = self.values(chosen, "holdout")
        return Row(
            arm, zoo_seed, search_seed,
            pareto.hypervolume(points, self.objectives.reference),
            min(self.retention(chosen, "holdout")),
            min(held[name] for name in self.objectives.names),
            held, len(front),
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--zoo-seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--search-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--runs", type=Path, default=Path("runs/first_light"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, help="write every row there, too")
    arguments = parser.parse_args()
    rows: list[Row] = []
    for zoo_seed in arguments.zoo_seeds:
        rows += _zoo_seed(arguments, zoo_seed)
    _table(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    return 0


def _zoo_seed(arguments: argparse.Namespace, zoo_seed: int) -> list[Row]:
    plain = load_config(arguments.config, arguments.set)
    models = plain.config.models
    sets = [f"models.base={_at(models.base, zoo_seed)}"]
    sets += [f"models.experts.{name}={_at(path, zoo_seed)}" for name, path in models.experts.items()]
    bench: Bench | None = None
    rows = []
    for search_seed in arguments.search_seeds:
        for arm, changes in ((arm, ARMS[arm]) for arm in arguments.arms):
            loaded = load_config(arguments.config, [*arguments.set, *sets, f"search.seed={search_seed}", *changes])
            folder = arguments.runs / f"zoo{zoo_seed}-seed{search_seed}-{arm}"
            Run(loaded, folder).execute()
            results = Results.load(folder)
            if bench is None:
                bench = _bench(loaded, results)
                rows += _without_search(bench, results, zoo_seed)
            row = bench.row(arm, zoo_seed, search_seed, [results.recipe(id) for id in results.finalists])
            rows.append(replace(row, items=results.items))
            print(_line(rows[-1]), flush=True)
    return rows


def _bench(loaded: LoadedConfig, results: Results) -> Bench:
    bench = Bench(set_up(loaded), list(loaded.config.models.experts))
    labels = ["base", *(f"expert {name}" for name in loaded.config.models.experts)]
    for label in labels:
        id = results.judge.labelled(label)
        if id is None:
            sys.exit(f"the run has no baseline {label!r}; give it a larger budget")
        bench.alone[label] = results.recipe(id)
    return bench


def _without_search(bench: Bench, results: Results, zoo_seed: int) -> list[Row]:
    space = results.stages[0].space
    experts = results.config.models.experts
    single = [space.decode(space.uniform(dict.fromkeys(experts, value))) for value in GRID if value <= 1.2]
    mean = space.decode(space.uniform(dict.fromkeys(experts, 1.0 / len(experts))))
    rows = [
        bench.row("average", zoo_seed, 0, [mean]),
        bench.row("single λ", zoo_seed, 0, bench.front(single, "search")),
    ]
    for row in rows:
        print(_line(row), flush=True)
    return rows


def _at(reference: str, seed: int) -> str:
    """``zoo://family/member`` with a training seed."""
    head, _, member = reference.removeprefix("zoo://").partition("/")
    return f"zoo://{head.partition('@')[0]}@{seed}/{member}"


def _line(row: Row) -> str:
    held = "  ".join(f"{name} {value:.3f}" for name, value in row.values.items())
    return (
        f"zoo {row.zoo_seed} seed {row.search_seed} {row.arm:10}  hypervolume {row.hypervolume:.4f}  min retention "
        f"{row.min_retention:.3f}  min accuracy {row.min_accuracy:.3f}  [{held}]  front {row.front}  items {row.items}"
    )


def _table(rows: list[Row]) -> None:
    print("\narm         n   holdout hypervolume      chosen: min retention    chosen: min accuracy")
    for arm in ("average", "single λ", *ARMS):
        mine = [row for row in rows if row.arm == arm]
        cells = [
            _mean([getattr(row, what) for row in mine]) for what in ("hypervolume", "min_retention", "min_accuracy")
        ]
        print(f"{arm:10} {len(mine):2}   {cells[0]:24} {cells[1]:24} {cells[2]}")
    for rival in ("single λ", *(arm for arm in ARMS if arm != "full")):
        for what in ("hypervolume", "min_retention"):
            pairs = [
                getattr(full, what) - getattr(other, what)
                for full in rows
                for other in rows
                if (full.arm, other.arm) == ("full", rival) and full.zoo_seed == other.zoo_seed
                and (full.search_seed == other.search_seed or rival == "single λ")
            ]  # fmt: skip
            if pairs:
                print(f"full − {rival}, {what}, paired: {_mean(pairs)}; each: {[round(each, 3) for each in pairs]}")


def _mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f} sd" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}" if values else "-"


if __name__ == "__main__":
    sys.exit(main())
