"""The search that the faults strike, and what must be true of its run directory whatever struck.

It is real: models of the zoo, merged, materialised and scored. Only its evaluator is a plug-in, which counts its calls
in a file outside the run.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import counted

from evaluators.contract import SPLITS
from search.events import Chosen, FinalistsNamed, Opened, Resumed, Told
from search.results import Results
from search.store import Store

CONFIG = """
name: faulty
models:
  base: {zoo}/base
  experts: {{string: {zoo}/string, language: {zoo}/language}}
evaluators:
  string: {{type: counted.py:Counted, data: '{zoo}/data/string', limit: {limit}}}
  language: {{type: counted.py:Counted, data: '{zoo}/data/language', limit: {limit}}}
objectives: [string.accuracy, language.accuracy]
space:
  granularity: {{knots: 2}}
  kinds: [[attention, mlp, norm, embedding, head]]
search:
  optimizer: sms_emoa
  seed: 3
  budget: {{candidates: {candidates}}}
  fidelity: {{rungs: [8, 16]}}
  finalists: 3
  reserve: 0.3
engine: {{threads: 1}}
"""

LIMIT = "{search: 24, selection: 12, holdout: 12}"

COMMAND = ("run", "config.yaml", "--display", "none")


@dataclass(frozen=True)
class Searches:
    """A folder with the config, the plug-in, and run directories under ``runs/``.

    Attributes:
        folder: of the config; commands are run in it.
    """

    folder: Path

    @staticmethod
    def make(folder: Path, candidates: int = 24, zoo: str = "zoo://skills-nano") -> Searches:
        """Write config and plug-in.

        Args:
            folder: made if it is not there.
            candidates: the budget.
            zoo: where the family is: a reference, or a folder relative to this one.
        """
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(counted.__file__, folder / "counted.py")
        (folder / "config.yaml").write_text(CONFIG.format(zoo=zoo, candidates=candidates, limit=LIMIT))
        return Searches(folder)

    def run(self, name: str) -> Path:
        """The directory of a run."""
        return self.folder / "runs" / name

    def environment(self, name: str, **more: str) -> dict[str, str]:
        """What a run's process is to find in its environment."""
        return {counted.CALLS: str(self.folder / f"{name}.calls"), **more}

    def evaluations(self, name: str) -> int:
        """How often a run has begun to score, by the evaluator's own count: of the two the one called more often."""
        path = self.folder / f"{name}.calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return max(Counter(line.split()[0] for line in lines).values(), default=0)


Log = list[tuple[int, str, int | None, str]]


@dataclass(frozen=True)
class Snapshot:
    """What a run directory holds at one moment.

    Attributes:
        log: number, kind, candidate and payload of every event.
        concluded: candidate that was told -> state, reason, recipe, aggregates, and all its item scores on the search
            split, as bytes.
        finals: (candidate, split) of the other splits -> the same of its scores.
    """

    log: Log
    concluded: Mapping[int, tuple[Any, ...]]
    finals: Mapping[tuple[int, str], tuple[Any, ...]]

    @staticmethod
    def of_copy(run: Path) -> Snapshot:
        """As :meth:`of`, of a run that nobody writes to: neither a full disk nor a read-only one is in the way."""
        with tempfile.TemporaryDirectory() as folder:
            for name in ("run.db", "run.db-wal", "run.db-journal"):
                if (run / name).exists():
                    shutil.copy(run / name, folder)
            return Snapshot.of(Path(folder))

    @staticmethod
    def of(run: Path) -> Snapshot:
        """Read it past every layer that might mend or hide something, where the store has begun."""
        if not (run / "run.db").exists():
            return Snapshot([], {}, {})
        connection = sqlite3.connect(f"{(run / 'run.db').absolute().as_uri()}?mode=ro", uri=True)
        try:
            if not connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'events'").fetchone()[0]:
                return Snapshot([], {}, {})
            log: Log = connection.execute("SELECT seq, kind, candidate, payload FROM events ORDER BY seq").fetchall()
        finally:
            connection.close()
        store = Store.open(run, read_only=True)
        try:
            candidates = store.candidates()
            scores = {split: store.scores(split) for split in SPLITS}
            items = {
                (each.id, split): {
                    (evaluator, metric): (found.ids, values.tobytes(), found.weights[metric].tobytes(), found.statuses)
                    for evaluator, found in store.item_scores(each.id, split).items()
                    for metric, values in found.values.items()
                }
                for each in candidates
                for split in SPLITS
            }
        finally:
            store.close()
        told = {each.id for each in candidates if each.state != "running"}
        return Snapshot(
            log,
            {
                each.id: (
                    each.stage, each.label, each.genome, each.recipe_hash, each.state, each.reason, each.duplicate_of,
                    scores["search"].get(each.id), items[each.id, "search"],
                )
                for each in candidates
                if each.id in told
            },
            {
                (id, split): (scores[split][id], items[id, split])
                for split in SPLITS[1:]
                for id in scores[split]
            },
        )  # fmt: skip

    def lost(self, after: Snapshot) -> list[str]:
        """What of this is not there any more, or is otherwise, in a later snapshot of the same run."""
        faults = [
            f"event {mine[0]} ({mine[1]}) is not what it was"
            for place, mine in enumerate(self.log)
            if place >= len(after.log) or after.log[place] != mine
        ]
        faults += [f"candidate {id} is not what it was" for id in self.concluded if not _same(self, after, id)]
        faults += [
            f"scores of {key} are not what they were" for key in self.finals if not _same_finals(self, after, key)
        ]
        if len(after.concluded) < len(self.concluded):
            faults.append(f"{len(after.concluded)} candidates where there were {len(self.concluded)}")
        return faults


def events(run: Path, kind: str = "%") -> int:
    """How many events are in the log now, of a run that may be running."""
    try:
        connection = sqlite3.connect(f"{(run / 'run.db').absolute().as_uri()}?mode=ro", uri=True)
        try:
            found: int = connection.execute("SELECT count(*) FROM events WHERE kind LIKE ?", (kind,)).fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error:
        return 0  # it is being made at this very moment
    return found


def differences(calm: Path, struck: Path) -> list[str]:
    """Where a strict run that was struck differs from the undisturbed one: it may not."""
    one, other = Snapshot.of(calm), Snapshot.of(struck)
    faults = [f"candidate {id} differs" for id in one.concluded if not _same(one, other, id)]
    faults += [f"scores of {key} differ" for key in one.finals if not _same_finals(one, other, key)]
    if len(one.concluded) != len(other.concluded) or set(one.finals) != set(other.finals):
        faults.append("other candidates were scored")
    left, right = Results.load(calm), Results.load(struck)
    for what in ("front", "chosen", "finalists", "state", "items", "hypervolume"):
        if getattr(left, what) != getattr(right, what):
            faults.append(f"{what}: {getattr(right, what)} instead of {getattr(left, what)}")
    for kind in (Told, FinalistsNamed, Chosen, Opened):
        if _decisions(one, kind.kind) != _decisions(other, kind.kind):
            faults.append(f"the log's {kind.kind} differ")
    return faults


def inconsistencies(run: Path) -> list[str]:
    """What is wrong with a run by itself, whatever its schedule: also where no other run is like it."""
    faults: list[str] = []
    found = Snapshot.of(run)
    results = Results.load(run)
    kinds = Counter((kind, candidate) for _, kind, candidate, _ in found.log)
    faults += [
        f"candidate {id} was asked {kinds['asked', id]} and told {kinds['told', id]} times"
        for id in range(len(results.candidates))
        if kinds["asked", id] != 1 or kinds["told", id] > 1 or kinds["settled", id] > 1
    ]
    if results.state == "finished" and len(found.concluded) != len(results.candidates):
        faults.append("the run is finished, and candidates are not told")
    merges = [results.candidate(id).recipe_hash for id in results.front]
    if len(set(merges)) < len(merges):
        faults.append("a merge stands twice in the front")
    if [seq for seq, *_ in found.log] != list(range(1, len(found.log) + 1)):
        faults.append("the log has a gap")
    for _, kind, _, payload in found.log:
        if kind == Resumed.kind and json.loads(payload)["different"]:
            faults.append(f"a resume would have proposed {json.loads(payload)['different']} otherwise")
    return faults


def _decisions(snapshot: Snapshot, kind: str) -> list[dict[str, Any]]:
    """Payloads of a kind, without what a clock has measured."""
    clocks = ("seconds", "elapsed", "busy", "gpus")
    payloads = [json.loads(payload) for _, each, _, payload in snapshot.log if each == kind]
    return [{key: value for key, value in each.items() if key not in clocks} for each in payloads]


def _same(one: Snapshot, other: Snapshot, id: int) -> bool:
    return repr(one.concluded[id]) == repr(other.concluded.get(id))


def _same_finals(one: Snapshot, other: Snapshot, key: tuple[int, str]) -> bool:
    return repr(one.finals[key]) == repr(other.finals.get(key))
