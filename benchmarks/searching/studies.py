"""Simulated searches in numbers: what items buy (``items``), and whether reported figures are honest (``honesty``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.searching.items import Interference, ItemLandscape, Kind, RecordedItems, SyntheticItems
from benchmarks.searching.landscapes import TABLES
from benchmarks.searching.simulation import Simulated, config, simulate
from benchmarks.searching.table import Table, TableError
from benchmarks.searching.trials import append, over_processes
from evaluators.contract import Split
from merging.recipe import Group

Array = npt.NDArray[np.float64]

FIDELITIES: dict[str, Any] = {"full": "off", "race": {"rule": "race"}, "halving": {"rule": "halving"}}
SIZES: dict[Split, int] = {"search": 500, "selection": 500, "holdout": 4000}
BOUNDS = (0.0, 1.5)
METHODS = {"ties": 0.05, "dare_ties": 0.1}
DEPTHS = 8
SKILLS = ("a", "b", "c")


class Study(NamedTuple):
    """One simulated search.

    Attributes:
        landscape: synthetic-2 (two skills), synthetic-3 or a recorded table.
        kind: of a synthetic one, see :class:`benchmarks.searching.items.SyntheticItems`.
        fidelity: one of :data:`FIDELITIES`.
        reserve: whether finalists are re-scored (with the default share of the items) and one is chosen.
        candidates: the search's budget.
        optimizer: its name.
        seed: of landscape and search.
    """

    landscape: str
    kind: Kind
    fidelity: str
    reserve: bool
    candidates: int
    optimizer: str
    seed: int


@dataclass
class Outcome:
    """What came of a study.

    Attributes:
        study: which.
        share: true hypervolume of the reported front over the best possible.
        items: scored on search and selection.
        censored: candidates that were stopped early.
        optimism: "search" (the winner by search scores), "selection", "holdout" (the chosen one) -> mean over the
            skills of reported minus true accuracy.
        covered: split -> [how many of the chosen one's intervals hold the truth, how many there are]; "baselines": of
            the baselines' on holdout.
        win: whether a win over the best baseline is claimed.
        nulls: candidates that met an opponent which is not truly better in every objective; none of them should be
            dropped.
        false_drops: how many of those were dropped.
        equals: nulls that are exactly as good as their opponent in every objective, the hardest case.
        equals_dropped: how many of those were dropped.
    """

    study: Study
    share: float
    items: int
    censored: int
    optimism: dict[str, float] = field(default_factory=dict)
    covered: dict[str, list[int]] = field(default_factory=dict)
    win: bool | None = None
    nulls: int = 0
    false_drops: int = 0
    equals: int = 0
    equals_dropped: int = 0


def build_landscape(name: str, kind: Kind, seed: int) -> ItemLandscape:
    """A landscape by name.

    Raises:
        TableError: no such landscape, or its table is not recorded.
    """
    if name in TABLES:
        return RecordedItems(Table.load(TABLES[name]), seed)
    counts = {f"synthetic-{count}": count for count in range(2, len(SKILLS) + 1)}
    if name not in counts:
        raise TableError(f"expected a landscape of {', '.join((*counts, *TABLES))}, found {name!r}")
    groups = tuple(Group(kind, depth) for depth in range(DEPTHS) for kind in ("attention", "mlp"))
    skills = SKILLS[: counts[name]]
    return SyntheticItems(Interference(len(skills), groups, seed, METHODS), skills, groups, SIZES, seed, BOUNDS, kind)


def run_study(study: Study) -> Outcome:
    """Simulate one search and compare what it says with the truth."""
    landscape = build_landscape(study.landscape, study.kind, study.seed)
    search = {
        "optimizer": study.optimizer,
        "budget": {"candidates": study.candidates},
        "fidelity": FIDELITIES[study.fidelity],
    }
    granularity: Any = "layer" if study.landscape in TABLES else {"knots": 4}
    space = {"coefficient": list(BOUNDS), "granularity": granularity, "kinds": [["attention"], ["mlp"]]}
    done = simulate(landscape, config(landscape, study.seed, search, space), finals=study.reserve)
    front = done.results.front if study.reserve else done.search_front
    outcome = Outcome(
        study,
        share=done.share(front),
        items=done.items["search"] + done.items["selection"],
        censored=sum(each.state == "censored" for each in done.results.candidates),
    )
    winner = done.search_winner
    outcome.optimism["search"] = _optimism(done, winner, "search")
    _count_drops(done, outcome)
    if done.reported is not None:
        _judge_report(done, outcome)
    return outcome


def _judge_report(done: Simulated, outcome: Outcome) -> None:
    reported = done.reported
    if reported is None:
        return
    outcome.win = reported.wins
    splits: tuple[Split, ...] = ("selection", "holdout")
    for split in splits:
        outcome.optimism[split] = _optimism(done, reported.chosen, split)
    for (id, split), intervals in reported.intervals.items():
        name = split if id == reported.chosen else "baselines"
        tally = outcome.covered.setdefault(name, [0, 0])
        for interval, truth in zip(intervals, done.truths[id].tolist(), strict=True):
            tally[0] += interval.low <= truth <= interval.high
            tally[1] += 1


def _optimism(done: Simulated, id: int, split: Split) -> float:
    return float((done.scores(id, split) - done.truths[id]).mean())


def _count_drops(done: Simulated, outcome: Outcome) -> None:
    dropped: dict[int, bool] = {}
    opponents: dict[int, int] = {}
    for each in done.decisions:
        if each.opponent is not None:
            opponents[each.candidate] = each.opponent
            dropped[each.candidate] = dropped.get(each.candidate, False) or each.dropped
    for id, opponent in opponents.items():
        mine, theirs = done.truths[id], done.truths[opponent]
        if (theirs > mine).all():
            continue
        outcome.nulls += 1
        outcome.false_drops += dropped[id]
        if np.array_equal(mine, theirs):
            outcome.equals += 1
            outcome.equals_dropped += dropped[id]


def read(path: Path) -> list[Outcome]:
    """Outcomes of a file, of each study the last; a torn last line is left out."""
    found: dict[Study, Outcome] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            data = json.loads(line)
        except json.JSONDecodeError:
            continue
        study = Study(**data.pop("study"))
        found[study] = Outcome(study, **data)
    return list(found.values())


def run_studies(
    studies: Iterable[Study], path: Path, jobs: int, say: Callable[[str], None], redo: bool = False
) -> list[Outcome]:
    """Run what the file does not hold; returns the outcomes of exactly these studies."""
    wanted = list(studies)
    known = {} if redo else {each.study: each for each in read(path)}
    todo = [study for study in wanted if study not in known]
    say(f"{len(wanted) - len(todo)} of {len(wanted)} searches are in {path.name}; {len(todo)} to do")
    for done, outcome in enumerate(over_processes(run_study, todo, jobs), 1):
        append(path, asdict(outcome) | {"study": outcome.study._asdict()})
        known[outcome.study] = outcome
        say(f"[{done}/{len(todo)}] {' '.join(map(str, outcome.study))}: {outcome.share:.3f} of {outcome.items} items")
    return [known[study] for study in wanted]


def items_studies(
    landscapes: Sequence[str], candidates: Sequence[int], seeds: Sequence[int], optimizer: str
) -> list[Study]:
    """Every fidelity, with and without finalists, at every number of candidates."""
    return [
        Study(landscape, "normal", fidelity, reserve, count, optimizer, seed)
        for landscape in landscapes
        for count in candidates
        for seed in seeds
        for fidelity in FIDELITIES
        for reserve in (True, False)
    ]


def honesty_studies(landscape: str, candidates: int, seeds: Sequence[int], optimizer: str) -> list[Study]:
    """Searches with finals, with and without rungs, on landscapes with and without anything to find."""
    kinds: tuple[Kind, ...] = ("normal", "plateau", "shuffled", "constant")
    return [
        Study(landscape, kind, fidelity, True, candidates, optimizer, seed)
        for kind in kinds
        for seed in seeds
        for fidelity in ("full", "race")
    ]
