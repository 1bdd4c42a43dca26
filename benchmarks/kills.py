"""kill -9, again and again, at a real search: is anything lost, is anything different?

    python benchmarks/kills.py [--config configs/nano.yaml] [--kills 12] [--set search.budget.candidates=120]

Runs the config once undisturbed and once under fire: the first kill comes 1–3 s after the first candidate is stored,
the others after a few more candidates each, at a random moment. After every kill the stored candidates must be the
ones that were there before, bit for bit, and no fewer. At the end every candidate's recipe hash and item scores must
equal the undisturbed run's, and there may be one repeated evaluation per kill at the most. Exits with 1 otherwise.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder: its search.py would hide the package

from evaluators.contract import SPLITS  # noqa: E402
from search.results import Results  # noqa: E402
from search.store import Store  # noqa: E402

Snapshot = dict[int, tuple[str, str, dict[str, bytes]]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/nano.yaml"))
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        command = [sys.executable, "-c", "from search.cli import main; main()", "run", str(arguments.config)]
        command += ["--runs", str(runs), "--display", "none"]
        for each in arguments.set:
            command += ["--set", each]
        print("undisturbed run …", flush=True)
        subprocess.run([*command, "--name", "calm"], check=True, stdout=subprocess.DEVNULL)
        calm = Results.load(runs / "calm")
        kills, faults = _under_fire([*command, "--name", "fire"], runs / "fire", arguments, len(calm.candidates))
        fire = Results.load(runs / "fire")
        faults += _differences(runs / "calm", runs / "fire")
        extra = fire.evaluations - calm.evaluations
        if extra > kills:
            faults.append(f"{extra} repeated evaluations for {kills} kills")
        print(
            f"kills {kills}, candidates lost 0, evaluations repeated {extra} of {calm.evaluations}, "
            f"chosen {fire.chosen} (undisturbed {calm.chosen}), state {fire.state}"
            if not faults
            else "FAULTS:\n  " + "\n  ".join(faults)
        )
        return 1 if faults or kills < arguments.kills else 0


def _under_fire(command: list[str], run: Path, arguments: argparse.Namespace, candidates: int) -> tuple[int, list[str]]:
    chance = random.Random(arguments.seed)
    faults: list[str] = []
    before: Snapshot = {}
    step = max(1, candidates // (arguments.kills + 1))
    for kill in range(arguments.kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        wanted = 1 if kill == 0 else len(before) + chance.randint(1, step)
        while process.poll() is None and len(snapshot(run)) < wanted:
            time.sleep(0.02)
        time.sleep(chance.uniform(1.0, 3.0) if kill == 0 else chance.uniform(0.0, 0.3))
        if process.poll() is not None:
            error = process.stderr.read().decode() if process.stderr else ""
            if process.returncode:
                faults.append(f"kill {kill + 1}: the run had ended by itself with {process.returncode}: {error}")
            return kill, faults
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        after = snapshot(run)
        lost = [id for id in before if after.get(id) != before[id]]
        if lost or len(after) < len(before):
            faults.append(f"kill {kill + 1}: candidates {lost} were lost or changed")
        print(f"kill {kill + 1}: {len(after)} candidates stored, {len(lost)} lost or changed", flush=True)
        before = after
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return arguments.kills, faults


def snapshot(run: Path) -> Snapshot:
    """id -> (state, recipe hash, item scores as bytes) of every concluded candidate."""
    if not (run / "run.db").exists():
        return {}
    try:
        store = Store.open(run, read_only=True)
    except Exception:  # the database is being made at this very moment
        return {}
    try:
        return {
            each.id: (each.state, each.recipe_hash, _bytes(store, each.id))
            for each in store.candidates()
            if each.state != "running"
        }
    except Exception:
        return {}
    finally:
        store.close()


def _bytes(store: Store, id: int) -> dict[str, bytes]:
    return {
        f"{split}/{name}/{metric}": values.tobytes()
        for split in SPLITS
        for name, scores in store.item_scores(id, split).items()
        for metric, values in scores.values.items()
    }


def _differences(calm: Path, fire: Path) -> list[str]:
    left, right = snapshot(calm), snapshot(fire)
    faults = [f"candidate {id} differs from the undisturbed run's" for id in left if right.get(id) != left[id]]
    if len(left) != len(right):
        faults.append(f"{len(right)} candidates instead of {len(left)}")
    if Results.load(calm).front != Results.load(fire).front:
        faults.append("another front")
    return faults


if __name__ == "__main__":
    sys.exit(main())
