"""How many inputs does RegMean need, and must they be the expert's own? On the zoo's families, held out.

    python experiments/calibration_size.py --folder runs/calibration_size [--families skills digits] [--seeds 0 1 2]

RegMean at its defaults, nothing chosen, for 10, 30, 100, 300 and 1000 inputs of each expert, several draws each. Those
of skills are made for this, from prompts that no split asks about; those of digits are the search items, 326 of them.
Kinds of inputs, each with 100 an expert: its own; another expert's (each one takes the next one's); a mixture of all
experts' kinds; a kind that no expert was trained for (requests, plain digits). Scores are means of the objectives on
the holdout. --tables prints what there is; the same command goes on where it was stopped. About ten CPU-minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before torch is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from experiments.matrix.arms import METHODS  # noqa: E402
from experiments.matrix.families import FAMILIES, GENERIC, Family  # noqa: E402
from experiments.matrix.records import Records  # noqa: E402
from experiments.matrix.sizes import COUNTS, Case, cases, divided, table  # noqa: E402

if TYPE_CHECKING:
    from experiments.matrix.bench import Bench
    from merging.calibration import Samples

_MEAN, _REGMEAN = (next(arm for arm in METHODS if arm.title == title) for title in ("average", "RegMean"))


def samples(bench: Bench, family: Family, case: Case) -> dict[str, Samples]:
    """Expert -> inputs of a case."""
    from merging.calibration import Samples

    experts = bench.experts
    found = {}
    for place, expert in enumerate(experts):
        own, following = family.asked(expert), family.asked(experts[(place + 1) % len(experts)])
        asked = {"own": [own], "another expert's": [following], "generic": [GENERIC]}.get(
            case.kind, [family.asked(each) for each in experts]
        )
        shares = divided(case.count, len(asked))
        parts = [
            bench.inputs(family, expert, name, share, case.draw) for name, share in zip(asked, shares, strict=True)
        ]
        found[expert] = Samples.of([one for part in parts for one in part])
    return found


def with_inputs(name: str, folder: Path) -> Family:
    """A family of which experts are asked enough items; those of skills are written to a folder."""
    family = FAMILIES[name]
    if name != "skills":
        return replace(family, limits={"holdout": family.limits["holdout"]})
    import zoo
    from zoo.family import SKILLS
    from zoo.splits import evaluation_items

    extra = dict(family.extra)
    for skill in ("string", "language", "math"):
        home = folder / "inputs" / skill
        home.mkdir(parents=True, exist_ok=True)
        items = evaluation_items(skill, SKILLS.difficulty, "train", max(COUNTS[name]))
        (home / "search.jsonl").write_text("".join(json.dumps(each) + "\n" for each in items), encoding="utf-8")
        for split in ("selection", "holdout"):
            shutil.copy(zoo.resolve(f"zoo://skills/data/{skill}") / f"{split}.jsonl", home)
        extra[f"{skill} inputs"] = {"type": "exact_match", "data": str(home.resolve())}
    asked = {skill: f"{skill} inputs" for skill in ("string", "language", "math")}
    return replace(family, inputs=asked, extra=extra)


def main() -> int:
    arguments = _arguments()
    records = Records(arguments.folder)
    if not arguments.tables:
        records.settings({"draws": arguments.draws})
        for family in arguments.families:
            for seed in arguments.seeds:
                _cell(arguments, records, family, seed)
    outcomes = records.all(FAMILIES, range(100))
    for family in dict.fromkeys(each.family for each in outcomes):
        print(f"\n### {family}\n\n{table([each for each in outcomes if each.family == family])}")
    return 0


def _cell(arguments: argparse.Namespace, records: Records, name: str, seed: int) -> None:
    known = records.read(name, seed)
    wanted = [case for case in cases(name, arguments.draws) if case.title not in known]
    if not wanted and _MEAN.title in known:
        return
    from experiments.matrix.bench import Bench

    family = with_inputs(name, arguments.folder)
    bench = Bench(name, seed, family.load(ROOT, seed))
    if _MEAN.title not in known:
        records.add(bench.method(_MEAN))
    for case in wanted:
        bench.calibrate(samples(bench, family, case), arguments.folder / "cache")
        chosen = {"kind": case.kind, "count": case.count, "draw": case.draw}
        recipe = bench.recipe(_REGMEAN.assignment(bench.experts, {}))
        outcome = bench.outcome(case.title, recipe, chosen, 0, 0.0, True)
        records.add(outcome)
        print(f"{name} {seed}  {case.title:34} mean {outcome.mean:.1f}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "calibration_size")
    parser.add_argument("--families", nargs="+", default=["skills", "digits"], choices=["skills", "digits"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of training")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--tables", action="store_true", help="run nothing, print what there is")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
