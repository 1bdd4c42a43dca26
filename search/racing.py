"""Early stopping inside a search: which items come next, who is tested against whom, who ends here.

:mod:`search.fidelity` has the mathematics; this module holds the state: the archive of complete candidates, and what
reached each rung. Everything is a function of the log, so that a resumed search decides as the undisturbed one did.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from evaluators.contract import Evaluator, Items, ItemScores
from search import fidelity, pareto
from search.minibatch import drawn
from search.objectives import Objectives, Target
from search.schema import FidelityConfig

Array = npt.NDArray[np.float64]

SEED = 0
"""Of the order of items: the same for every run over the same data, so that runs can be compared item by item."""
KEPT_LINES = 256
"""Members of the archive whose scores are kept lined up, for each objective: some 40 kB of 1000 items."""
Scores = Mapping[str, ItemScores]
"""evaluator -> item scores of one candidate."""


@dataclass(frozen=True)
class Verdict:
    """What was decided at a rung.

    Attributes:
        dropped: the candidate ends here.
        opponent: whom it was tested against, frozen at its first rung; None where there is none.
        evidence: objective -> natural logarithm of the e-value against "no worse than the opponent"; empty without one.
        reason: for people; "" where it goes on.
    """

    dropped: bool = False
    opponent: int | None = None
    evidence: dict[str, float] = field(default_factory=dict)
    reason: str = ""


class Racer:
    """Rungs and decisions of one search.

    Args:
        evaluators: only their items are read.
        objectives: the run's.
        settings: rungs and rule.

    Attributes:
        rungs: per rung, evaluator -> ids that are new in it. One rung: every item at once, or a minibatch, and nothing
            to decide.
    """

    def __init__(self, evaluators: Mapping[str, Evaluator], objectives: Objectives, settings: FidelityConfig) -> None:
        self._settings = settings
        items = {name: each.items("search") for name, each in evaluators.items()}
        orders = {name: fidelity.nested_order(each, SEED) for name, each in items.items()}
        if settings.minibatch is None:
            self.rungs = _rungs(items, orders, settings.rungs)
        else:
            self.rungs = ({name: drawn(each, settings.minibatch, SEED) for name, each in items.items()},)
        self._views = [_View(target, items, orders) for target in objectives.targets]
        self._archive: dict[int, Scores] = {}
        self._promoted: dict[int, list[float]] = {}
        self._frozen: dict[int, tuple[int, Scores]] = {}
        self._reached: list[list[tuple[float, ...]]] = [[] for _ in self.rungs]
        self._entered: dict[int, _Entered] = {}

    def enter(self, id: int) -> None:
        """A candidate was proposed: it will be judged by what is known now, whatever arrives before its own scores."""
        archive = dict(self._archive) if all(view.ready for view in self._views) else {}
        self._entered[id] = _Entered(archive, [len(each) for each in self._reached])

    def admit(self, id: int, scores: Scores) -> None:
        """A complete, feasible candidate joins the archive: those that nobody dominates on the promoting items.

        Args:
            id: the candidate.
            scores: all its item scores on the search split.
        """
        if len(self.rungs) == 1 or self._settings.rule != "race":
            return
        for view in self._views:
            view.learn_cap(scores)
        promoted = [view.promoted(scores) for view in self._views]
        if not np.isfinite(promoted).all():
            return  # without a verdict on any promoting item it promotes nobody
        self._archive[id], self._promoted[id] = scores, promoted
        ids = list(self._archive)
        for id, keep in zip(ids, pareto.nondominated([self._promoted[id] for id in ids]), strict=True):
            if not keep:
                del self._archive[id], self._promoted[id]

    def judge(self, id: int, rung: int, scores: Scores, utilities: Sequence[float]) -> Verdict:
        """Whether a candidate goes on from a rung that is not the last.

        Args:
            id: the candidate.
            rung: that it has just finished.
            scores: its item scores so far.
            utilities: [objectives] on the items so far.
        """
        entered = self._state(id)
        entered.utilities.append(tuple(utilities))
        if self._settings.rule == "halving":
            reached = [*self._reached[rung][: entered.before[rung]], tuple(utilities)]
            stays = fidelity.halve(reached, len(reached) - 1, self._settings.keep)
            return Verdict(dropped=not stays, reason="" if stays else "not among the best of its rung")
        if rung == 0:
            self._freeze(id, scores, entered.archive)
        if id not in self._frozen:
            return Verdict()
        opponent, theirs = self._frozen[id]
        verdict = fidelity.decide(
            opponent, [view.compare(theirs, scores) for view in self._views], self._settings.alpha
        )
        evidence = {view.name: each for view, each in zip(self._views, verdict.log_e, strict=True)}
        reason = f"dominated by candidate {opponent}" if verdict.dropped else ""
        return Verdict(verdict.dropped, opponent, evidence, reason)

    def recall(self, id: int, rung: int, utilities: Sequence[float], opponent: int | None) -> None:
        """A verdict that the log holds: what :meth:`judge` then remembered is remembered again.

        Args:
            id: the candidate.
            rung: at which it was judged.
            utilities: [objectives] that it had.
            opponent: whom the log names; at the first rung a member of the archive when the candidate entered.
        """
        entered = self._state(id)
        entered.utilities.append(tuple(utilities))
        if rung == 0 and opponent in entered.archive:
            self._frozen[id] = (opponent, entered.archive[opponent])

    def release(self, id: int) -> None:
        """A candidate has ended, however it ended, and those that enter from now on know what it reached."""
        self._frozen.pop(id, None)
        entered = self._entered.pop(id, None)
        for rung, utilities in enumerate(entered.utilities if entered is not None else ()):
            self._reached[rung].append(utilities)

    def _state(self, id: int) -> _Entered:
        if id not in self._entered:
            self.enter(id)
        return self._entered[id]

    def _freeze(self, id: int, mine: Scores, archive: Mapping[int, Scores]) -> None:
        """Choose the opponent: on promoting items alone, so that the others may test it."""
        ids = list(archive)
        lines = [view.line(mine) for view in self._views]
        leads = [
            [view.lead(archive[each], line) for view, line in zip(self._views, lines, strict=True)] for each in ids
        ]
        best = fidelity.choose_opponent(np.zeros(len(self._views)), np.reshape(leads, (len(ids), len(self._views))))
        if best is not None:
            self._frozen[id] = (ids[best], archive[ids[best]])


@dataclass(frozen=True)
class _Entered:
    """What was known when a candidate was proposed, and what it reached since.

    Attributes:
        archive: the possible opponents; none before it is known what one item may count for.
        before: [rungs] how many candidates had been judged there.
        utilities: [its rungs so far][objectives].
    """

    archive: dict[int, Scores]
    before: list[int]
    utilities: list[tuple[float, ...]] = field(default_factory=list)


class _View:
    """The items of one objective: which promote, which test, and how two candidates compare on them."""

    def __init__(self, target: Target, items: Mapping[str, Items], orders: Mapping[str, npt.NDArray[np.int64]]) -> None:
        self.name = target.name
        self._evaluator = target.name.partition(".")[0]
        self._metric = target.metric
        self._width = target.high - target.low
        mine = items[self._evaluator]
        promotes = fidelity.roles(mine, orders[self._evaluator])
        self._ids = tuple(mine.ids)
        self._place = {id: place for place, id in enumerate(self._ids)}
        self._promoting = np.asarray(promotes, dtype=bool)
        self._known: OrderedDict[int, tuple[ItemScores, _Line]] = OrderedDict()
        self._testing = tuple(id for id, promoting in zip(mine.ids, promotes, strict=True) if not promoting)
        self._first: ItemScores | None = None
        self._cap: float | None = None
        self.ready = False
        """Whether it is known what one item may count for."""

    def learn_cap(self, scores: Scores) -> None:
        """Where items weigh differently, or have no bounds, one item counts for so much at most: fixed by the first two
        complete candidates, the base and an expert, before anybody is raced."""
        found, metric = scores[self._evaluator], self._metric
        weights = found.weights[metric.name]
        if self.ready:
            return
        if (weights == weights[:1]).all() and np.isfinite(metric.high - metric.low):
            self.ready = True
            return
        if self._first is None:
            self._first = found
            return
        wild = fidelity.compare(self._first, found, metric, found.ids, cap=np.finfo(np.float64).max)
        self._cap = fidelity.suggest_cap(wild.differences)
        self.ready = True

    def promoted(self, scores: Scores) -> float:
        """Weighted mean over the promoting items, more is better; nan without a verdict."""
        mine = self.line(scores)
        return self._mean(mine, self._promoting & mine.verdicts)

    def lead(self, theirs: Scores, other: _Line) -> float:
        """By how much they are ahead on the promoting items that both have; 0 where there are none."""
        one = self._kept(theirs)
        common = self._promoting & one.verdicts & other.verdicts
        return (self._mean(one, common) - self._mean(other, common)) / self._width if common.any() else 0.0

    def compare(self, theirs: Scores, mine: Scores) -> fidelity.Comparison:
        """The testing items that both have."""
        return fidelity.compare(theirs[self._evaluator], mine[self._evaluator], self._metric, self._testing, self._cap)

    def _mean(self, scores: _Line, among: npt.NDArray[np.bool_]) -> float:
        """Weighted mean over some of the items that it has a verdict on, more is better; nan without any weight."""
        weights = scores.weights[among]
        total = float(weights.sum())
        if total <= 0.0:
            return np.nan
        mean = float((weights * scores.values[among]).sum() / total)
        return -mean if self._metric.direction == "minimize" else mean

    def _kept(self, scores: Scores) -> _Line:
        """The line of a member of the archive, which is compared with every newcomer."""
        found = scores[self._evaluator]
        known = self._known.get(id(found))
        if known is None:
            known = self._known[id(found)] = (found, self.line(scores))
            if len(self._known) > KEPT_LINES:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(id(found))
        return known[1]

    def line(self, of: Scores) -> _Line:
        """A candidate's scores along all items."""
        scores, count = of[self._evaluator], len(self._ids)
        places: Any = slice(None) if scores.ids == self._ids else [self._place[id] for id in scores.ids]
        values, weights, verdicts = np.zeros(count), np.zeros(count), np.zeros(count, dtype=np.bool_)
        values[places] = scores.values[self._metric.name]
        weights[places] = scores.weights[self._metric.name]
        some = "unscored" in scores.statuses
        verdicts[places] = [status != "unscored" for status in scores.statuses] if some else True
        return _Line(values, weights, verdicts)


class _Line(NamedTuple):
    """One candidate's scores in the order of all items of an evaluator, [n] each: values and weights, 0 where it was
    not scored, and whether it has a verdict."""

    values: Array
    weights: Array
    verdicts: npt.NDArray[np.bool_]


def _rungs(
    items: Mapping[str, Items], orders: Mapping[str, npt.NDArray[np.int64]], sizes: Sequence[int]
) -> tuple[dict[str, tuple[str, ...]], ...]:
    """Per rung the ids that are new in it; the last one completes every evaluator."""
    longest = max(len(each) for each in items.values())
    rungs = []
    start = 0
    for end in fidelity.rung_sizes(longest, sizes):
        rungs.append(
            {
                name: tuple(items[name].ids[index] for index in order[start:end].tolist())
                for name, order in orders.items()
            }
        )
        start = end
    return tuple(rungs)
