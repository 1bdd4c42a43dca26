"""The commands of ``benchmarks/search.py``."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.searching import contenders, studies, summaries, tables
from benchmarks.searching.landscapes import DATA, SYNTHETIC, TABLES
from benchmarks.searching.landscapes import names as landscape_names
from benchmarks.searching.recording import PLANS, record
from benchmarks.searching.table import TableError
from benchmarks.searching.trials import Task, one_thread, read, run_all
from evaluators.contract import EvaluatorError
from merging.recipe import MergingError
from search.errors import SearchError
from search.optimizers.contract import OptimizerError
from zoo import ZooError

OUT = Path("runs/benchmarks")
CHECKPOINTS = (100, 200, 500, 1000)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and run one command; exit code 2 and one paragraph for a user's mistake."""
    given = _parser().parse_args(arguments)
    one_thread()
    try:
        given.run(given)
    except (TableError, EvaluatorError, MergingError, OptimizerError, SearchError, ZooError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="search.py", description="Measure the search engine.")
    parser.set_defaults(run=_quick)
    commands = parser.add_subparsers(metavar="COMMAND")

    recorder = commands.add_parser("record", help="record a table of real merges from the zoo")
    recorder.add_argument("plan", nargs="?", choices=sorted(PLANS), default="two")
    recorder.add_argument("--out", type=Path, help="the .npz; benchmarks/data/skills_<plan>.npz by default")
    recorder.add_argument("--threads", type=int, default=1)
    recorder.set_defaults(run=_record)

    for name, cells, about in (
        ("landscapes", (*SYNTHETIC, *TABLES), "optimizers on synthetic landscapes and recorded tables"),
        ("table", tuple(TABLES), "optimizers on recorded tables"),
    ):
        command = commands.add_parser(name, help=about)
        command.add_argument("--cells", nargs="+", default=list(cells), metavar="LANDSCAPE", help=", ".join(cells))
        command.add_argument(
            "--only", nargs="+", default=[*contenders.OURS, *contenders.OUTSIDE], metavar="CONTENDER",
            help=", ".join((*contenders.OURS, *contenders.OUTSIDE)),
        )  # fmt: skip
        command.add_argument("--seeds", type=int, default=20)
        command.add_argument("--first-seed", type=int, default=0)
        command.add_argument("--evaluations", type=int, nargs="+", default=list(CHECKPOINTS))
        command.add_argument(
            "--cpu-limit", type=float, default=60.0, help="CPU-seconds of ask and tell that one run may take"
        )
        command.add_argument("--redo", action="store_true", help="run again what the file holds: the code has changed")
        command.add_argument("--jobs", type=int, default=1, help="processes")
        command.add_argument("--out", type=Path, default=OUT / "landscapes.jsonl")
        command.set_defaults(run=_landscapes)

    for name, about, candidates in (
        ("items", "true hypervolume against item evaluations", [100, 200, 400, 800]),
        ("honesty", "optimism, coverage, claimed wins, false drops", [200]),
    ):
        command = commands.add_parser(name, help=about)
        command.add_argument("--cells", nargs="+", default=["synthetic-2"], metavar="LANDSCAPE",
                             help="synthetic-2, synthetic-3, table-two, table-three")  # fmt: skip
        command.add_argument("--candidates", type=int, nargs="+", default=candidates)
        command.add_argument("--seeds", type=int, default=20)
        command.add_argument("--first-seed", type=int, default=0)
        command.add_argument("--optimizer", default="auto")
        command.add_argument("--redo", action="store_true", help="run again what the file holds: the code has changed")
        command.add_argument("--jobs", type=int, default=1, help="processes")
        command.add_argument("--out", type=Path, default=OUT / f"{name}.jsonl")
        command.set_defaults(run=_items if name == "items" else _honesty)

    report = commands.add_parser("report", help="Markdown of what is there")
    report.add_argument("--out", type=Path, default=OUT / "landscapes.jsonl")
    report.add_argument("--cells", nargs="+", metavar="LANDSCAPE")
    report.add_argument("--favourite", default=tables.FAVOURITE, metavar="CONTENDER", help="whom differences are to")
    report.set_defaults(run=_report)
    return parser


def _record(given: argparse.Namespace) -> None:
    out = given.out or DATA / f"skills_{given.plan}.npz"
    table = record(PLANS[given.plan], out, given.threads)
    print(f"{out.name}: {len(table.lattice)} merges, {out.stat().st_size / 1e3:.0f} kB")


def _landscapes(given: argparse.Namespace) -> None:
    for name in given.only:
        if name not in (*contenders.OURS, *contenders.OUTSIDE):
            raise TableError(f"expected contenders out of {contenders.OURS + contenders.OUTSIDE}, found {name!r}")
    cells = [name for name in given.cells if name not in TABLES or TABLES[name].exists()]
    for absent in sorted(set(given.cells) - set(cells)):
        _say(f"{absent} is left out: its table is not recorded")
    tasks = [
        Task(cell, name, seed, budget, tuple(checkpoints), given.cpu_limit)
        for cell in cells
        for seed in _seeds(given)
        for name in given.only
        for budget, checkpoints in contenders.budgets(name, given.evaluations)
    ]
    run_all(tasks, given.out, given.jobs, _say, given.redo)


def _items(given: argparse.Namespace) -> None:
    wanted = studies.items_studies(given.cells, given.candidates, _seeds(given), given.optimizer)
    print(summaries.items_markdown(studies.run_studies(wanted, given.out, given.jobs, _say, given.redo)))


def _honesty(given: argparse.Namespace) -> None:
    wanted = [
        study
        for cell in given.cells
        for count in given.candidates
        for study in studies.honesty_studies(cell, count, _seeds(given), given.optimizer)
    ]
    print(summaries.honesty_markdown(studies.run_studies(wanted, given.out, given.jobs, _say, given.redo)))


def _seeds(given: argparse.Namespace) -> range:
    return range(given.first_seed, given.first_seed + given.seeds)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _report(given: argparse.Namespace) -> None:
    results = read(given.out)
    if not results:
        raise TableError(f"expected results in {given.out}, found none; `landscapes` and `table` write them")
    wanted = [each for each in results if given.cells is None or each.landscape in given.cells]
    print(tables.markdown(wanted, given.favourite))


def _quick(given: argparse.Namespace) -> None:
    cells = [name for name in landscape_names() if name in ("smooth-10d-2o", "table-two")]
    only = ["auto@0.06", "sms_emoa", "random", "optuna/nsga2", "pymoo/nsga2"]
    tasks = [Task(cell, name, seed, 100, (100,), 20.0) for cell in cells for seed in range(3) for name in only]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "quick.jsonl"
        run_all(tasks, out, 1, lambda line: None)
        print(tables.markdown(read(out), "auto@0.06"))
