"""What the framework itself costs: CPU time per candidate of everything but materialising and evaluating.

    python benchmarks/overhead.py [--candidates 400] [--config configs/quickstart.yaml]

Runs a real search of the config's space, log and optimizer with a worker that returns made-up item scores at once, so
that what remains is ask + decode + hash + store + tell, with as many objectives and items as in a real run. Prints CPU
milliseconds (process time, all threads) per candidate, in tenths of the run, so that growth would be seen.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder: its search.py would hide the package

import numpy as np  # noqa: E402

from evaluators.contract import ItemScores  # noqa: E402
from merging import Sources  # noqa: E402
from merging.recipe import Group  # noqa: E402
from search.config import load_config  # noqa: E402
from search.events import Event, RunStarted  # noqa: E402
from search.loop import Search  # noqa: E402
from search.objectives import Objectives, aggregate, standard_errors  # noqa: E402
from search.racing import Racer  # noqa: E402
from search.schema import Budget  # noqa: E402
from search.setup import build_evaluators, model_paths  # noqa: E402
from search.stages import build_optimizer, build_stages  # noqa: E402
from search.store import Store  # noqa: E402
from search.workers.evaluation import Evaluation, Items  # noqa: E402
from search.workers.inline import InlinePool  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.yaml"))
    parser.add_argument("--candidates", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=0.05, help="what `auto` is told that a candidate costs")
    parser.add_argument("--depths", type=int, help="of a made-up model with three kinds per depth; the config's if not")
    parser.add_argument("--race", action="store_true", help="with rungs and racing")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    loaded = load_config(arguments.config, [f"search.budget.candidates={arguments.candidates}", *arguments.set])
    evaluators = build_evaluators(loaded)
    objectives = Objectives.of(loaded, evaluators)
    base, experts = model_paths(loaded)
    sources = Sources.load(base, experts)
    groups = list(sources.layout.groups)
    if arguments.depths:
        groups = [Group(kind, depth) for depth in range(arguments.depths) for kind in ("attention", "mlp", "norm")]
    stages = build_stages(loaded.config, groups, sources.refs)
    chance = np.random.default_rng(0)
    made = {"seconds": 0.0}

    class Made:
        """Scores that depend on the recipe a little and on chance a lot; its own time is taken out."""

        def evaluate(self, recipe: object, split: str, items: Items | None = None) -> Evaluation:
            start = time.process_time()
            scores, values, errors = {}, {}, {}
            for name, evaluator in evaluators.items():
                ids = evaluator.items("search").ids if items is None else tuple(items[name])
                metric = evaluator.metrics[0].name
                hits = (chance.random(len(ids)) < chance.random()).astype(np.float64)
                scores[name] = ItemScores(ids, {metric: hits}, {metric: np.ones(len(ids))}, ("ok",) * len(ids))
                values |= aggregate(name, evaluator, scores[name])
                errors |= standard_errors(name, scores[name])
            made["seconds"] += time.process_time() - start
            return Evaluation(values, errors, scores, {"materialize": 0.0, "evaluate": 0.0})

    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder))
        refs = {alias: ref.content for alias, ref in sources.refs.items()}
        store.append(RunStarted({}, refs, {}, [], objectives.as_data(), {}, "", 1, [], [], {}))

        def emit(*events: Event) -> None:
            store.append(*events)

        search = Search(
            stages,
            lambda stage, seconds: build_optimizer(
                loaded.config, stage, arguments.candidates, len(objectives.targets), seconds=arguments.seconds
            ),
            InlinePool(Made()),
            objectives,
            emit,
            evaluators=evaluators,
            racer=Racer(evaluators, objectives, loaded.config.search.fidelity) if arguments.race else None,
        )
        genes = max(stage.space.box.continuous for stage in stages)
        optimizer = loaded.config.search.optimizer.name
        print(f"{optimizer}, {genes} genes, {len(objectives.targets)} objectives, {arguments.candidates} candidates")
        done = 0
        for tenth in range(1, 11):
            upto = arguments.candidates * tenth // 10
            start, before = time.process_time(), made["seconds"]
            search.run(Budget(candidates=upto))
            spent = time.process_time() - start - (made["seconds"] - before)
            print(f"  candidates {done:5d}–{upto - 1:<5d} {1000 * spent / max(1, upto - done):7.2f} CPU-ms each")
            done = upto
        store.close()
        size = (Path(folder) / "run.db").stat().st_size
        print(f"  database {size / 1e6:.1f} MB, {size / arguments.candidates / 1e3:.1f} kB per candidate")


if __name__ == "__main__":
    main()
