"""Item by item: where a merge is better and worse than its parents and the baselines, and whether chance would do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from evaluators.contract import ItemScores, Split
from search.errors import SearchError
from search.report.facts import Facts
from search.statistics import Paired, Table, holm, tabulate
from search.statistics.paired import paired_rows
from search.store import Store

Array = npt.NDArray[np.float64]
Items = Mapping[str, ItemScores]

LISTED = 10
"""Items that are named on either side of a comparison."""
MERGES = 40
"""Merges that are compared at most."""
DUELS = 1500
"""Comparisons of one split that a report has room for."""
EFFORT = 4000
"""What all tests of one split may cost, in milliseconds or so: one of 0/1 scores costs 1, one of others
:data:`GRADED`."""
GRADED = 100
BEST_EXPERT = "best expert on each item"
"""An oracle: what choosing the right expert for every single item would give."""


@dataclass(frozen=True)
class Measure:
    """A metric that merges are compared by.

    Attributes:
        name: ``evaluator.metric``.
        low, high: its own range.
        larger: whether more of it is better.
        why: "objective" or "constraint".
    """

    name: str
    low: float
    high: float
    larger: bool
    why: str

    @property
    def evaluator(self) -> str:
        """Whose items they are."""
        return self.name.partition(".")[0]

    @property
    def metric(self) -> str:
        """Without the evaluator."""
        return self.name.partition(".")[2]


@dataclass(frozen=True)
class Listed:
    """An item on which two differ.

    Attributes:
        id: the item's.
        merge, other: their scores.
    """

    id: str
    merge: float
    other: float


@dataclass(frozen=True)
class Duel:
    """A merge against another one, by one measure, on the items of one split.

    Attributes:
        merge: candidate number.
        against: what the other one is called.
        other: candidate number; None for :data:`BEST_EXPERT`.
        measure: by which.
        test: difference merge − other in the metric's own direction, its interval and p-value.
        p: two-sided, adjusted; nan where nothing is tested.
        won, lost, same: items on which the merge is better, worse, or neither.
        both, neither: of 0/1 scores, the items that both have right, or neither; None for other scores.
        best, worst: the items with the largest difference, the merge's gains and its losses.
    """

    merge: int
    against: str
    other: int | None
    measure: Measure
    test: Paired
    p: float
    won: int
    lost: int
    same: int
    both: int | None
    neither: int | None
    best: tuple[Listed, ...]
    worst: tuple[Listed, ...]


@dataclass(frozen=True)
class Duels:
    """All comparisons on one split.

    Attributes:
        split: whose items.
        merges: candidate numbers, the pick first.
        measures: in the order of the config.
        duels: candidate -> its comparisons.
        left_out: candidates with item scores on this split that are not compared, to keep the report quick.
    """

    split: Split
    merges: tuple[int, ...]
    measures: tuple[Measure, ...]
    duels: dict[int, tuple[Duel, ...]]
    left_out: int


def measures_of(facts: Facts) -> tuple[Measure, ...]:
    """The objectives, then the metrics of constraints that are none."""
    found = [
        Measure(each.name, each.metric.low, each.metric.high, each.metric.direction == "maximize", "objective")
        for each in facts.targets
    ]
    names = {each.name for each in found}
    for each in facts.results.constraints.all:
        if each.name not in names:
            names.add(each.name)
            found.append(Measure(each.name, each.low, each.high, each.side == "at_least", "constraint"))
    return tuple(found)


def splits_of(facts: Facts) -> tuple[Split, ...]:
    """The splits to compare on: what the pick was not selected on, where there is any yet."""
    scores = facts.results.scores
    later: tuple[Split, ...] = ("holdout", "selection")
    found = tuple(each for each in later if facts.pick in scores[each])
    return found or (("search",) if facts.pick in scores["search"] else ())


def duels_on(facts: Facts, split: Split, effort: int = EFFORT) -> Duels:
    """Every merge of interest against base, experts, mean and baselines.

    p-values are adjusted (Holm) over all that is compared on the split; those of the chosen merge on holdout are the
    ones that the run's claims are made by.

    Raises:
        SearchError: item scores are damaged.
    """
    parents = [each for each in facts.baselines if each.id in facts.results.scores[split]]
    merges = _merges(facts, split)
    measures = measures_of(facts)
    items = _read(facts, split, [*merges, *(each.id for each in parents)])
    names = {each.id: each.name for each in parents}
    per_merge = max(1, len(parents)) * sum(1 if _binary(items, each) else GRADED for each in measures)
    room = DUELS // max(1, (len(parents) + 1) * len(measures))
    most = facts.kept.setdefault(f"duels on {split}", min(len(merges), MERGES, room, effort // max(1, per_merge)))
    compared = merges[: max(1, round(facts.room * most))]
    arena = _Arena(facts, items, measures)
    found = {merge: tuple(arena.duels(merge, names)) for merge in compared}
    return Duels(split, tuple(compared), measures, _adjusted(facts, split, found), len(merges) - len(compared))


def _merges(facts: Facts, split: Split) -> list[int]:
    """Who is compared, the pick first: the front and the finalists on selection, the opened ones on holdout."""
    results = facts.results
    asked = [id for id, _ in results.picks]
    wanted = [*([facts.pick] if facts.pick is not None else []), *asked, *results.front, *results.finalists]
    return [id for id in dict.fromkeys(wanted) if id in results.scores[split]]


def _read(facts: Facts, split: Split, ids: Sequence[int]) -> dict[int, Items]:
    store = Store.open(facts.results.folder, read_only=True)
    try:
        found: dict[int, Items] = {id: store.item_scores(id, split) for id in dict.fromkeys(ids)}
    finally:
        store.close()
    missing = [id for id, each in found.items() if not each]
    if missing:
        raise SearchError(f"the item scores of candidate {missing[0]} on the {split} split are not in the database")
    return found


def _binary(items: Mapping[int, Items], measure: Measure) -> bool:
    scores = [
        each[measure.evaluator].values.get(measure.metric) for each in items.values() if measure.evaluator in each
    ]
    return all(each is not None and bool(((each == 0.0) | (each == 1.0)).all()) for each in scores)


class _Arena:
    """The item scores of everybody who is compared.

    Args:
        facts: of the run.
        items: candidate -> item scores.
        measures: to compare by.
    """

    def __init__(self, facts: Facts, items: Mapping[int, Items], measures: Sequence[Measure]) -> None:
        self._facts, self._items, self._measures = facts, items, measures
        self._shared = facts.results.config.search.fidelity.minibatch is None
        self._experts = [each.id for each in facts.baselines if each.name.startswith("expert ") and each.id in items]

    def duels(self, merge: int, names: Mapping[int, str]) -> list[Duel]:
        """Of one merge with everybody by every measure."""
        found = []
        for measure in self._measures:
            if measure.evaluator not in self._items[merge]:
                continue
            others = [id for id in names if id != merge and self._covers(id, merge, measure.evaluator)]
            if not others:
                continue
            table = self._table(measure, [merge, *others])
            if not table.values.shape[1]:
                continue
            signed = table.values if measure.larger else -table.values
            for row, id in enumerate(others, start=1):
                test = self._test(table, row, measure)
                found.append(self._duel(merge, names[id], id, measure, table, signed, signed[row], test))
            experts = [row for row, id in enumerate(others, start=1) if id in self._experts]
            if len(experts) > 1:
                oracle = signed[experts].max(axis=0)
                test = _untested(signed[0], oracle, measure, table.weights[0])
                found.append(self._duel(merge, BEST_EXPERT, None, measure, table, signed, oracle, test))
        return found

    def _covers(self, id: int, merge: int, evaluator: str) -> bool:
        """Whether somebody was scored on what the merge was scored on: of minibatches, not everybody was, and whoever
        was not would leave the others few items in common."""
        if evaluator not in self._items[id]:
            return False
        return self._shared or set(self._items[merge][evaluator].ids) <= set(self._items[id][evaluator].ids)

    def _table(self, measure: Measure, ids: Sequence[int]) -> Table:
        """The items that say something of the measure: harmless prompts, say, have no weight in a refusal rate."""
        clusters = self._facts.results.started.clusters.get(measure.evaluator)
        scores = [self._items[id][measure.evaluator] for id in ids]
        table = tabulate(scores, measure.metric, evaluator=measure.evaluator, clusters=clusters)
        places = np.flatnonzero((table.weights > 0.0).all(axis=0))
        return Table(
            table.values[:, places],
            table.weights[:, places],
            tuple(table.ids[each] for each in places),
            table.evaluator,
            None if table.clusters is None else tuple(table.clusters[each] for each in places),
        )

    def _test(self, table: Table, row: int, measure: Measure) -> Paired:
        finite = math.isfinite(measure.low) and math.isfinite(measure.high)
        return paired_rows(table, 0, row, bounds=(measure.low, measure.high) if finite else None)

    def _duel(
        self,
        merge: int,
        name: str,
        id: int | None,
        measure: Measure,
        table: Table,
        signed: Array,
        other: Array,
        test: Paired,
    ) -> Duel:
        gained = signed[0] - other
        won, lost = int((gained > 0).sum()), int((gained < 0).sum())
        right = 1.0 if measure.larger else 0.0
        binary = bool(((table.values == 0.0) | (table.values == 1.0)).all())
        shown = other if measure.larger else -other
        mine, theirs = table.values[0] == right, shown == right
        return Duel(
            merge, name, id, measure, test, math.nan, won, lost, len(gained) - won - lost,
            int((mine & theirs).sum()) if binary else None,
            int((~mine & ~theirs).sum()) if binary else None,
            _largest(gained, signed, table, shown), _largest(-gained, -signed, table, shown),
        )  # fmt: skip


def _largest(gained: Array, signed: Array, table: Table, other: Array) -> tuple[Listed, ...]:
    """The items with the largest gain; of equal ones first those that fewest of the others get right."""
    places = np.flatnonzero(gained > 0)
    rest = signed[1:].mean(axis=0)[places]
    order = places[np.lexsort((places, rest, -gained[places]))][:LISTED]
    return tuple(Listed(table.ids[each], float(table.values[0, each]), float(other[each])) for each in order)


def _untested(mine: Array, oracle: Array, measure: Measure, weights: Array) -> Paired:
    """The difference alone: an oracle that looks at the scores is no system that a test could be about."""
    sign = 1.0 if measure.larger else -1.0
    total = float(weights.sum())
    difference = sign * float(((mine - oracle) * weights).sum()) / total if total > 0.0 else math.nan
    won, lost = int((mine > oracle).sum()), int((mine < oracle).sum())
    return Paired(
        difference, math.nan, math.nan, 0.95, math.nan, math.nan, math.nan, len(mine), won + lost, won, lost, "none"
    )


def _adjusted(facts: Facts, split: Split, found: dict[int, tuple[Duel, ...]]) -> dict[int, tuple[Duel, ...]]:
    flat = [each for own in found.values() for each in own]
    p = dict(zip(map(id, flat), holm([each.test.p for each in flat]).tolist(), strict=True))
    claimed = _claimed(facts) if split == "holdout" else {}
    return {
        merge: tuple(replace(each, p=claimed.get((merge, each.other, each.measure.name), p[id(each)])) for each in own)
        for merge, own in found.items()
    }


def _claimed(facts: Facts) -> dict[tuple[int, int | None, str], float]:
    """(chosen, baseline, objective) -> the adjusted p-value of the run's claims."""
    claims = facts.results.claims
    if claims is None:
        return {}
    return {
        (claims.chosen, each.baseline.candidate, name): p for each in claims.comparisons for name, p in each.p.items()
    }
