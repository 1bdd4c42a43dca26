"""Do the matrix and calibrated methods help, alone and in a search? On the zoo's families, held out, several seeds.

    python experiments/matrix_methods.py --folder runs/matrix_methods [--families skills digits] [--seeds 0 1 2]

Arms, all on the same items: the base and the experts; the average; one λ for all (grid of 12); TIES and DARE-TIES as
published, and TIES with its best λ; every matrix and calibrated method at its defaults, and with what it has to choose
(λ; of RegMean α, of WUDI μ as well) chosen; and four searches with the same optimizer, the same number of candidates
and the same items: one coefficient each, and the config's own space, which varies by layer; both over the experts
alone, and over the experts and virtual experts. Everything is chosen by the mean of the objectives on search and
selection items; of a search's finalists the one that is best on selection items. Only then is the holdout scored.

Calibration: what an expert's evaluator asks of it in the search split, and its own answers; no labels.

Every outcome is kept in --folder as soon as it is there: the same command goes on where it was. --tables prints what
there is. About 70 CPU-minutes for everything on one thread; families and seeds may run beside each other. The models
must be there (paretomerge zoo build NAME).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from experiments.matrix.arms import METHODS, SearchArm, searches  # noqa: E402
from experiments.matrix.families import FAMILIES  # noqa: E402
from experiments.matrix.records import Outcome, Records  # noqa: E402
from experiments.matrix.tables import across, choices_table, family_table  # noqa: E402
from merging.methods.registry import get  # noqa: E402

if TYPE_CHECKING:
    from experiments.matrix.bench import Bench

_VIRTUAL = ("regmean", "wudi")
"""Two of different kinds: one pass over a few inputs, and nothing but the weights."""

_PEEK = 16
"""Items of the holdout that a run itself scores; they decide nothing."""


def main() -> int:
    arguments = _arguments()
    records = Records(arguments.folder)
    if not arguments.tables:
        limits = {name: dict(family.limits) for name, family in FAMILIES.items()}
        records.settings({"items": arguments.items, "budgets": _budgets(arguments.budget), "limits": limits})
        for family in arguments.families:
            for seed in arguments.seeds:
                _cell(arguments, records, family, seed)
    _print(records.all(FAMILIES, range(100)), arguments.virtual)
    return 0


def _cell(arguments: argparse.Namespace, records: Records, family: str, seed: int) -> None:
    """One family and training seed: what is not known yet."""
    from experiments.matrix.bench import Bench

    known = records.read(family, seed)
    found = FAMILIES[family]
    bench: Bench | None = None

    def keep(outcome: Outcome) -> None:
        records.add(outcome)
        print(_line(outcome), flush=True)

    def ready() -> Bench:
        nonlocal bench
        if bench is None:
            bench = Bench(family, seed, found.load(ROOT, seed), known)
        return bench

    experts = found.load(ROOT, seed).config.models.experts
    for name in ("base", *(f"expert {name}" for name in experts)):
        if name not in known:
            one = ready()
            recipe = one.base() if name == "base" else one.alone(name.removeprefix("expert "))
            keep(one.outcome(name, recipe, {}, 0, 0.0, False))
    for arm in METHODS:
        for variant in (arm,) if not arm.steps or arm.title == "single λ" else (arm.preset, arm):
            if variant.title not in known and _wanted(arguments, variant.title):
                one = ready()
                if one.calibration is None and get(variant.method).needs.calibration:
                    one.calibrate(one.samples(found, arguments.items))
                keep(one.method(variant))
    for search in searches(arguments.virtual):
        if search.title not in known and _wanted(arguments, search.title):
            keep(_searched(arguments, search, family, seed, None if search.virtual else ready()))


def _searched(arguments: argparse.Namespace, arm: SearchArm, family: str, seed: int, bench: Bench | None) -> Outcome:
    """A run, and of its finalists the one with the best mean of the objectives on selection items.

    Args:
        bench: over the experts; None where there are virtual ones too, which a bench of its own has to know.
    """
    from experiments.matrix.bench import Bench
    from search.results import Results
    from search.run import Run

    found = FAMILIES[family]
    changes = list(arm.changes)
    if arguments.budget:
        changes.append(f"search.budget.candidates={arguments.budget}")
    if arm.virtual:
        experts = ", ".join(found.load(ROOT, seed).config.models.experts)
        virtual = ", ".join(f"{name}: {{method: {name}, of: [{experts}]}}" for name in arm.virtual)
        changes += [f"models.virtual={{{virtual}}}", f"calibration={found.calibration(arguments.items)}"]
    folder = arguments.folder / "runs" / re.sub(r"\W+", "-", f"{family}-{seed}-{arm.title}", flags=re.ASCII)
    start = time.process_time()
    # A run scores its baselines on the holdout as well; here the holdout is scored afterwards, all of it.
    Run(found.load(ROOT, seed, changes, holdout=_PEEK), folder).execute()
    spent = time.process_time() - start
    results = Results.load(folder)

    def mean(id: int) -> float:
        return sum(results.objectives.utilities(results.values(id, "selection")))

    best = max(results.finalists, key=mean)
    chosen = {"candidate": best, "of": len(results.candidates), "genes": results.stages[-1].space.box.continuous}
    if bench is None:
        known = Records(arguments.folder).read(family, seed)
        bench = Bench(family, seed, found.load(ROOT, seed, changes), known)
    return bench.outcome(arm.title, results.recipe(best), chosen, results.items, spent, arm.ours)


def _wanted(arguments: argparse.Namespace, title: str) -> bool:
    return not arguments.arms or any(part.lower() in title.lower() for part in arguments.arms)


def _budgets(given: int | None) -> dict[str, int]:
    return {name: given or family.candidates for name, family in FAMILIES.items()}


def _line(outcome: Outcome) -> str:
    held = "  ".join(f"{100 * value:.1f}" for value in outcome.utilities)
    chosen = ", ".join(f"{name} {value}" for name, value in outcome.chosen.items())
    return (
        f"{outcome.family} {outcome.seed}  {outcome.arm:42} mean {outcome.mean:5.1f}  [{held}]  "
        f"{outcome.items} items  {outcome.seconds:.0f} s  {chosen}"
    )


def _print(outcomes: list[Outcome], virtual: list[str]) -> None:
    for family in dict.fromkeys(each.family for each in outcomes):
        mine = [each for each in outcomes if each.family == family]
        print(f"\n### {family}\n\n{family_table(mine)}\n\n{choices_table(mine)}")
    print(f"\n### Over all families and seeds, mean score\n\n{_overall(outcomes, virtual)}")


def _overall(outcomes: list[Outcome], virtual: list[str]) -> str:
    """The searches against each other and against what needs no search."""
    titles = [arm.title for arm in searches(virtual)]
    pairs = [(one, other) for number, one in enumerate(titles) for other in titles[:number]]
    pairs += [(one, arm.title) for one in titles[2:] for arm in METHODS]
    lines = ["| | difference | pairs |", "|---|---|---|"]
    for first, second in pairs:
        found = across(outcomes, first, second)
        if found.count:
            lines.append(f"| {first} − {second} | {found.text('+')} | {found.count} |")
    return "\n".join(lines)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "matrix_methods")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training")
    parser.add_argument("--arms", nargs="+", metavar="PART", help="only arms whose title holds one of these")
    parser.add_argument("--items", type=int, default=256, help="calibration inputs of each expert")
    parser.add_argument("--budget", type=int, help="candidates of a search, instead of the family's own number")
    parser.add_argument("--virtual", nargs="*", default=list(_VIRTUAL), help="methods of the virtual experts")
    parser.add_argument("--tables", action="store_true", help="run nothing, print what there is")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
