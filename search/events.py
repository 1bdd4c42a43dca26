"""What happens in a run, as frozen records.

The log of these events is the run's only truth: the tables that people query and the state of every optimizer are
derived from it. Displays and trackers listen to the same records.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from evaluators.contract import ItemScores, Split
from search.optimizers.contract import Genome, Outcome

LOG_VERSION = 2
"""What the events of a log mean: 1 had task-arithmetic baselines only and scored every item at once."""


@dataclass(frozen=True)
class Event:
    """Anything that is logged. Fields are plain data, so that the log is readable JSON and never a pickle."""

    kind: ClassVar[str]

    def payload(self) -> dict[str, Any]:
        """Plain data for the log."""
        return {
            each.name: _plain(getattr(self, each.name))
            for each in dataclasses.fields(self)
            if each.metadata.get("logged", True)
        }


@dataclass(frozen=True)
class RunStarted(Event):
    """First event of a run: everything that a resume must find unchanged.

    Attributes:
        config: the resolved config as plain data.
        sources: alias -> content hash of every model, "base" among them.
        paths: alias -> folder where it was found, absolute.
        groups: the layout's groups, as ``str(Group)``: with the config they determine every space of the run.
        tensors: canonical tensor name -> its group, where genes go down to tensors; else empty.
        objectives: name, direction, low, high, expert, unit, and the metric's own range (None: without end) of each.
        evaluators: name -> fingerprint.
        engine: the engine's fingerprint.
        threads: CPU threads that torch uses, kept on every later start.
        stage_ends: candidate id before which each stage ends; the last stage takes what a grown budget adds.
        reference: [objectives] the hypervolume's reference point, in utilities.
        items: evaluator -> split -> ids of its items, in the order of the stored score arrays.
        clusters: evaluator -> item id -> cluster, for evaluators whose items are not independent; all splits.
        constraints: each as plain data.
        metrics: ``evaluator.metric`` -> direction, low and high of every metric that is reported.
        plugins: optimizer that is a plug-in -> hash of its source.
        holdouts: evaluator -> sha256 over the contents of its holdout items: under which openings are counted.
        folder: of the config file, absolute: what its relative paths are relative to.
        version: of the meaning of this log: 1 had task-arithmetic baselines only and scored every item at once.
        made_by: virtual expert -> its recipe, in YAML.
        calibration: fingerprint of the calibration data, where a method of the space needs any.
        schedule: "strict" or "steady", for good; "" in older logs, which were strict.
        window: of a strict schedule: candidate i + window is proposed when all up to i were told.
        borders: stack -> first depth of each block of layers, where the config left their borders to be placed.
        of_hybrid: this is the first search of a hybrid, wherever its directory is by now. Older logs do not say it: see
            :func:`search.first_config.is_first`.
    """

    kind: ClassVar[str] = "run_started"
    config: dict[str, Any]
    sources: dict[str, str]
    paths: dict[str, str]
    groups: list[str]
    objectives: list[dict[str, Any]]
    evaluators: dict[str, str]
    engine: str
    threads: int
    stage_ends: list[int]
    reference: list[float]
    items: dict[str, dict[str, list[str]]]
    tensors: dict[str, str] = field(default_factory=dict)
    clusters: dict[str, dict[str, str]] = field(default_factory=dict)
    constraints: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    plugins: dict[str, str] = field(default_factory=dict)
    holdouts: dict[str, str] = field(default_factory=dict)
    folder: str = ""
    version: int = 1
    made_by: dict[str, str] = field(default_factory=dict)
    calibration: str = ""
    schedule: str = ""
    window: int = 1
    borders: dict[str, list[int]] = field(default_factory=dict)
    of_hybrid: bool = False

    def payload(self) -> dict[str, Any]:
        """See :meth:`Event.payload`. What a run has nothing of is left out, as in the logs of old."""
        later = ("made_by", "calibration", "schedule", "borders", "of_hybrid")
        return {name: value for name, value in super().payload().items() if value or name not in later}


@dataclass(frozen=True)
class StageBegun(Event):
    """An optimizer is built. What it may depend on beside config and history is measured once, and logged here.

    Attributes:
        stage: its index.
        seconds: wall seconds that evaluating one candidate took so far (the median), or None where nothing was scored.
        heard: the earlier candidates that it hears of first, as points of its own space: (id, runs of equal values,
            runs of equal categories), a run being (value, length). None in logs of old: then they are translated anew.
    """

    kind: ClassVar[str] = "stage_begun"
    stage: int
    seconds: float | None
    heard: list[Any] | None = None

    def payload(self) -> dict[str, Any]:
        """See :meth:`Event.payload`."""
        return {name: value for name, value in super().payload().items() if name != "heard" or value is not None}


@dataclass(frozen=True)
class OptimizerNoted(Event):
    """What an optimizer says of itself: which one `auto` took and why, how well its model predicts.

    Attributes:
        candidate: the last one that it had heard of.
    """

    kind: ClassVar[str] = "optimizer_noted"
    stage: int
    candidate: int
    facts: dict[str, float | str]


@dataclass(frozen=True)
class Resumed(Event):
    """The run goes on after an interruption, or with a grown budget.

    Attributes:
        budget: candidates in all.
        different: ids that today's code would have proposed otherwise.
        let_go: the last process ended by itself (an error, a full disk, Ctrl-C twice): what it was evaluating then is
            not what ended it.
    """

    kind: ClassVar[str] = "resumed"
    budget: int
    different: list[int] = field(default_factory=list)
    let_go: bool = False


@dataclass(frozen=True)
class Asked(Event):
    """A candidate exists, and its evaluation on the search split begins.

    Attributes:
        memo: what else the ask left behind in its optimizer (:class:`search.optimizers.contract.Recalling`); None
            where a replay has to ask again.
    """

    kind: ClassVar[str] = "asked"
    candidate: int
    stage: int
    genome: Genome
    recipe_hash: str
    label: str = ""
    memo: dict[str, Any] | None = None

    def payload(self) -> dict[str, Any]:
        """See :meth:`Event.payload`."""
        return {name: value for name, value in super().payload().items() if name != "memo" or value is not None}


@dataclass(frozen=True)
class EvaluationStarted(Event):
    """An evaluation begins that no :class:`Asked` stands for: a repeated one after a crash, or another split's."""

    kind: ClassVar[str] = "evaluation_started"
    candidate: int
    split: Split


@dataclass(frozen=True)
class RungReached(Event):
    """A candidate has its scores on the items of a rung, and whether it goes on is decided.

    Attributes:
        rung: from 0.
        items: scored so far, over all evaluators.
        values: ``evaluator.metric`` -> aggregate over the items so far.
        seconds: spent so far on this candidate.
        opponent: the candidate that it is tested against, frozen at its first rung; None where there is none.
        evidence: objective -> natural logarithm of the e-value against "it is no worse than the opponent".
        dropped: it ends here.
        scores: evaluator -> item scores so far.
    """

    kind: ClassVar[str] = "rung_reached"
    candidate: int
    rung: int
    items: int
    values: dict[str, float]
    seconds: dict[str, float]
    opponent: int | None = None
    evidence: dict[str, float] = field(default_factory=dict)
    dropped: bool = False
    scores: dict[str, ItemScores] = field(default_factory=dict, metadata={"logged": False})


@dataclass(frozen=True)
class Scored(Event):
    """A candidate has its scores on a split. The item scores go into their own table, in the same transaction.

    Attributes:
        values: ``evaluator.metric`` -> aggregate.
        errors: ``evaluator.metric`` -> standard error of the aggregate.
        seconds: stage of the work ("materialize", "evaluate") -> wall seconds.
        weights: sha256 of the live model's tensors when it was scored; "" where it was not asked for.
        violations: one number per constraint, > 0 where it is broken on this split.
        scores: evaluator -> item scores.
    """

    kind: ClassVar[str] = "scored"
    candidate: int
    split: Split
    values: dict[str, float]
    errors: dict[str, float]
    seconds: dict[str, float]
    weights: str = ""
    violations: list[float] = field(default_factory=list)
    scores: dict[str, ItemScores] = field(default_factory=dict, metadata={"logged": False})


@dataclass(frozen=True)
class Failed(Event):
    """No model, or no score, came of a candidate."""

    kind: ClassVar[str] = "failed"
    candidate: int
    split: Split
    reason: str
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Told(Event):
    """The stage's optimizer heard what became of a candidate. Its place in the log is its place in the replay.

    Attributes:
        seconds: what the framework itself spent on this candidate: "optimize", "store".
        elapsed: wall seconds of searching since the last one was told, or since this start of the run; a clock that is
            set meanwhile does not count.
        busy: seconds that workers spent on it.
        gpus: that such a worker keeps busy.
    """

    kind: ClassVar[str] = "told"
    candidate: int
    stage: int
    outcome: Outcome
    seconds: dict[str, float] = field(default_factory=dict)
    elapsed: float = 0.0
    busy: float = 0.0
    gpus: float = 0.0


@dataclass(frozen=True)
class Settled(Event):
    """What became of a candidate is known, but under a strict schedule it is not its turn to be told yet."""

    kind: ClassVar[str] = "settled"
    candidate: int
    outcome: Outcome


@dataclass(frozen=True)
class Incident(Event):
    """Something went wrong and was mended: a worker died and its task was issued again, a batch did not fit.

    Attributes:
        candidate: which was being evaluated.
        what: one of :data:`search.workers.contract.Trouble`.
        detail: for people.
        value: of "batch halved": ``batch_tokens`` from then on.
    """

    kind: ClassVar[str] = "incident"
    candidate: int
    what: str
    detail: str
    value: float | None = None


@dataclass(frozen=True)
class BudgetSpent(Event):
    """The search ends here, and the finals begin.

    Attributes:
        limit: "candidates", "items", "hours", "gpu_hours" or "plateau".
        detail: for people: how much of what.
        budget: as it then was: under this one the search has ended for good.
    """

    kind: ClassVar[str] = "budget_spent"
    limit: str
    detail: str
    budget: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Salvaged(Event):
    """The database was damaged, and this log is what could be read of the one before; what is lost is done again.

    Attributes:
        events_lost: events that could not be read, or that made no sense without those.
        candidates_lost: candidates of which nothing is left, or whose scores have to be made again.
        detail: for people: what was lost, and where the damaged file is.
    """

    kind: ClassVar[str] = "salvaged"
    events_lost: int
    candidates_lost: int
    detail: str


@dataclass(frozen=True)
class FinalistsNamed(Event):
    """These candidates go to the selection split; the baselines beside them."""

    kind: ClassVar[str] = "finalists_named"
    finalists: list[int]
    baselines: list[int]


@dataclass(frozen=True)
class Chosen(Event):
    """The run's recommendation, taken on selection scores. Only after it is the holdout opened."""

    kind: ClassVar[str] = "chosen"
    candidate: int
    rule: str


@dataclass(frozen=True)
class Picked(Event):
    """Somebody asked for another mix: a candidate by that rule, on selection scores. The recommendation stays.

    Attributes:
        rule: the mix, the bounds, the objective: as the user gave them.
    """

    kind: ClassVar[str] = "picked"
    candidate: int
    rule: str


@dataclass(frozen=True)
class Opened(Event):
    """A holdout was looked at.

    Attributes:
        data: sha256 over the holdout items of every evaluator.
    """

    kind: ClassVar[str] = "opened"
    candidates: list[int]
    data: str


@dataclass(frozen=True)
class Interrupted(Event):
    """The user stopped the run, tidily."""

    kind: ClassVar[str] = "interrupted"
    reason: str


@dataclass(frozen=True)
class Finished(Event):
    """The budget is spent, finalists are re-scored, the chosen candidate's holdout is open."""

    kind: ClassVar[str] = "finished"
    budget: int
    hypervolume: float


EVENTS: dict[str, type[Event]] = {
    each.kind: each
    for each in (
        RunStarted, StageBegun, OptimizerNoted, Resumed, Asked, EvaluationStarted, RungReached, Scored, Failed, Told,
        FinalistsNamed, Chosen, Picked, Opened, Interrupted, Finished, Settled, Incident, BudgetSpent, Salvaged,
    )
}  # fmt: skip


class Listener(Protocol):
    """Hears every event after it is stored. A listener that fails never stops a search."""

    def on(self, event: Event) -> None:
        """Called in order, in the driver's process."""
        ...


@runtime_checkable
class Turning(Protocol):
    """A listener that is told when the events are of another run from now on: of a run's control, or of the first of
    two searches, and of the second one after it."""

    def turn_to(self, folder: Path) -> None:
        """What comes next is of the run in this folder, which may have begun before."""
        ...


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return value
