"""kill -9, a hundred times, at real searches: is anything lost, is anything different?

    python benchmarks/soak.py [--kills 100] [--seed 0] [--schedule strict|steady|both] [--candidates 40]

A search of the zoo family skills-nano, whose evaluators count their calls in a file outside the run, is run once
undisturbed and then again and again under fire, until there were so many kills: at random moments of a start, set-up
and finals among them, and at chosen ones: while a candidate is materialised, while it is scored, between two statements
of a transaction and in the midst of a COMMIT, in the report, in an export. After every kill the log must begin with
what it was before, and every stored candidate and score must be the same to the bit.

strict: at the end of each run every recipe hash, item score and decision must be the undisturbed run's, and there may
be one repeated evaluation per kill at the most. steady: four tasks are under way at a time and their results come in an
unforeseeable order, so no two runs are alike; no candidate may be lost or told twice, no merge may stand twice in the
front, and every resume must replay the whole log to the same proposals. Exits with 1 where anything is wrong. About 3
seconds a kill on one core (tests/faults/ has the harness, and the shorter tests of it).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(ROOT), str(ROOT / "tests" / "faults")]  # not this folder: its search.py would hide the package

from launching import Fault, Launcher  # noqa: E402
from searches import COMMAND, Searches, events  # noqa: E402
from striking import Struck, of_the_search, of_the_start  # noqa: E402

import zoo  # noqa: E402

SLOTS = 4
KILLS_PER_RUN = 20
# Blows are dealt out here without regard to the candidate, and five that strike the same one would count against it.
OPTIONS = ("--set", "workers.attempts=1000")


@dataclass
class Tally:
    """What came of it."""

    tried: int = 0
    survived: int = 0
    lost: int = 0
    evaluations: int = 0
    repeated: int = 0
    faults: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--schedule", choices=("strict", "steady", "both"), default="both")
    parser.add_argument("--candidates", type=int, default=40)
    arguments = parser.parse_args()
    zoo.build("skills-nano")
    schedules = ("strict", "steady") if arguments.schedule == "both" else (arguments.schedule,)
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        warm = Searches.make(Path(folder) / "warm", candidates=1)
        with Launcher(COMMAND, warm.folder) as launcher:
            for schedule in schedules:
                searches = Searches.make(Path(folder) / schedule, arguments.candidates)
                tally = _soak(launcher, searches, schedule, arguments.kills // len(schedules), arguments.seed)
                wrong += len(tally.faults)
                _print(schedule, tally)
    return 1 if wrong else 0


def _soak(launcher: Launcher, searches: Searches, schedule: str, kills: int, seed: int) -> Tally:
    chance = random.Random(f"{schedule} {seed}")
    tally = Tally()
    faults: list[Fault] = [("scatter_results", {"slots": SLOTS})] if schedule == "steady" else []
    options = (*OPTIONS, "--set", f"workers.schedule={schedule}")
    calm = Struck(launcher, searches, "calm", options, faults)
    start = time.monotonic()
    calm.finish()
    seconds = time.monotonic() - start
    tally.faults += calm.faults
    weights = calm.strike_export() if schedule == "strict" else b""
    print(f"{schedule}: the undisturbed run took {seconds:.1f} s", flush=True)
    for number in count(1):
        struck = Struck(launcher, searches, f"struck-{number}", options, faults)
        done = len(struck.faults)
        for fault in _blows(chance):
            if tally.tried + struck.kills >= kills or struck.finished:
                break
            if fault is None:
                early = chance.random() < 0.25  # most of a start is its set-up, and most kills are to come after it
                share = 2 * events(calm.folder) // KILLS_PER_RUN
                struck.strike(
                    moment=of_the_start(chance, seconds) if early else of_the_search(chance, share, struck.folder)
                )
            else:
                struck.strike(fault)
            said = struck.faults[done:] or ["nothing lost"]
            print(f"  run {number}, kill {struck.kills}: {struck.concluded} candidates, {'; '.join(said)}", flush=True)
            done = len(struck.faults)
        if not struck.finished:
            struck.finish()
        struck.strike_report()
        exported = struck.strike_export()
        if schedule == "strict":
            tally.repeated += struck.compare("calm")
            if exported != weights:
                struck.faults.append("the export has other weights than the undisturbed run's")
        tally.evaluations += searches.evaluations(struck.name)
        tally.tried += struck.kills
        tally.survived += struck.kills if not struck.faults else 0
        tally.lost += sum("is not what it was" in each and "candidate" in each for each in struck.faults)
        tally.faults += [f"{struck.name}: {each}" for each in struck.faults]
        if tally.tried >= kills:
            break
    return tally


def _blows(chance: random.Random) -> Iterator[Fault | None]:
    """What to strike with next, without end; None for a random moment."""
    while True:
        number = chance.randint(1, 30)
        after = chance.random() < 0.5
        yield from chance.sample(
            [
                None,
                None,
                None,
                ("kill_at_statement", {"number": number}),
                ("kill_during_commit", {"number": 1 + number // 3, "seconds": chance.uniform(0.0, 0.004)}),
                ("kill_at_call", {"target": "merging.materialize:check_finite_result", "number": number // 3 + 1}),
                _at("merging.materialize:Materializer.apply", number // 3 + 1, after),
                _at("evaluators.exact_match:ExactMatch.score_items", number // 2 + 1, after),
                _at("search.setup:prepare_evaluators", 1, after),
            ],
            9,
        )


def _at(target: str, number: int, after: bool) -> Fault:
    return ("kill_at_call", {"target": target, "number": number, "after": after})


def _print(schedule: str, tally: Tally) -> None:
    same = "to the undisturbed run" if schedule == "strict" else "in the replay of the log"
    print(
        f"{schedule}: kills survived {tally.survived} of {tally.tried} tried, candidates lost {tally.lost}, "
        f"evaluations repeated {tally.repeated if schedule == 'strict' else 'not comparable'} of {tally.evaluations}, "
        f"differences {same} {len(tally.faults)}"
    )
    for each in tally.faults:
        print(f"  {each}")


if __name__ == "__main__":
    sys.exit(main())
