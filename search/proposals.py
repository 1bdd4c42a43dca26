"""Who proposes: the optimizers of the stages, what each of them has heard, and how a log brings them back.

A stage's optimizer first hears everything complete that earlier stages found, and goes on hearing what of theirs comes
late. All of that has a place in the log, so that a replay tells each of them the same in the same order.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from search.errors import SearchError
from search.events import Event, StageBegun
from search.optimizers.contract import Asked, Box, Genome, Optimizer, Outcome, Told, Trial, remembered, replay
from search.stages import Stage, translate


class Known(NamedTuple):
    """A candidate with a place in its stage's space."""

    id: int
    stage: int
    genome: Genome


MakeOptimizer = Callable[[Stage, float | None], Optimizer]


class Proposals:
    """The optimizers of one search.

    Args:
        stages: in order.
        make_optimizer: a fresh optimizer for a stage, given what evaluating a candidate costs in seconds.
        emit: logs that a stage has begun.
    """

    def __init__(self, stages: Sequence[Stage], make_optimizer: MakeOptimizer, emit: Callable[[Event], None]) -> None:
        self._stages = list(stages)
        self._make_optimizer = make_optimizer
        self._emit = emit
        self._optimizers: dict[int, Optimizer] = {}
        self._begun: dict[int, float | None] = {}
        self._concluded: list[tuple[Known, Outcome]] = []
        self._histories: dict[int, list[Asked | Told]] = {}
        self._costs: list[float] = []

    # -- live ---------------------------------------------------------------------------------------------------------

    def ask(self, id: int, stage: Stage, pending: Sequence[Known]) -> Genome:
        """The genome of a new candidate.

        Args:
            id: that it will have.
            stage: one with an optimizer.
            pending: asked and not told yet, of this stage or an earlier one, oldest first.
        """
        return self._optimizer(stage).ask(id, self._trials(pending, stage))

    def remembered(self, id: int, stage: Stage) -> dict[str, Any] | None:
        """What is to be logged beside the genome that was just asked for."""
        return remembered(self._optimizer(stage), id)

    def tell(self, known: Known, outcome: Outcome) -> None:
        """What became of a candidate: to its own stage's optimizer, and to later ones that have begun."""
        self._concluded.append((known, outcome))
        for index, optimizer in self._optimizers.items():
            trial = self._heard(known, outcome, self._stages[index])
            if trial is not None:
                optimizer.tell(trial, outcome)

    def note_cost(self, seconds: float) -> None:
        """What the evaluation of one candidate took."""
        self._costs.append(seconds)

    def diagnosis(self, stage: Stage) -> dict[str, float | str]:
        """What the stage's optimizer says of itself; nothing where it does not say anything, or has not begun."""
        diagnose = getattr(self._optimizers.get(stage.index), "diagnosis", None)
        return dict(diagnose()) if diagnose is not None else {}

    # -- from the log -------------------------------------------------------------------------------------------------

    def recall_begun(self, stage: int, seconds: float | None, heard: Sequence[Any] | None = None) -> None:
        """A logged beginning of a stage, and what was heard then."""
        if stage in self._begun:
            return
        self._begun[stage] = seconds
        if heard is None:
            self._histories[stage] = list(self._beginning(self._stages[stage]))
            return
        outcomes = {known.id: outcome for known, outcome in self._concluded}
        trials = [_unpacked(each, self._stages[stage].space.box) for each in heard]
        # whose tell a salvage could not read is evaluated and heard again
        self._histories[stage] = [Told(each, outcomes[each.id]) for each in trials if each.id in outcomes]

    def recall_asked(self, known: Known, pending: Sequence[Known], memo: Mapping[str, Any] | None = None) -> None:
        """A logged proposal, and what was logged beside it."""
        stage = self._stages[known.stage]
        if stage.fixed:
            return
        self.recall_begun(stage.index, None)  # logs of old did not say
        self._histories[stage.index].append(Asked(Trial(known.id, known.genome), self._trials(pending, stage), memo))

    def recall_told(self, known: Known, outcome: Outcome) -> None:
        """A logged tell."""
        self._concluded.append((known, outcome))
        for index, history in self._histories.items():
            trial = self._heard(known, outcome, self._stages[index])
            if trial is not None:
                history.append(Told(trial, outcome))

    def replay(self) -> list[int]:
        """Rebuild the optimizer of the last stage that had begun.

        Returns:
            Ids that today's code would have proposed differently: empty unless the code or a library has changed.
        """
        if not self._histories:
            return []
        last = max(self._histories)
        optimizer = self._make_optimizer(self._stages[last], self._begun[last])
        different = replay(optimizer, self._histories[last])
        self._optimizers[last] = optimizer
        self._histories.clear()
        return different

    # -----------------------------------------------------------------------------------------------------------------

    def _optimizer(self, stage: Stage) -> Optimizer:
        if stage.index not in self._optimizers:
            if stage.index not in self._begun:
                seconds = statistics.median(self._costs) if self._costs else None
                beginning = self._beginning(stage)
                self._emit(StageBegun(stage.index, seconds, [_packed(told.trial) for told in beginning]))
                self._begun[stage.index] = seconds
            else:
                beginning = self._beginning(stage)
            optimizer = self._make_optimizer(stage, self._begun[stage.index])
            for told in beginning:
                optimizer.tell(told.trial, told.outcome)
            self._optimizers[stage.index] = optimizer
        return self._optimizers[stage.index]

    def _beginning(self, stage: Stage) -> list[Told]:
        """What an optimizer hears before its first proposal."""
        heard = sorted(self._concluded, key=lambda each: each[0].id)
        trials = [
            (self._heard(known, outcome, stage), outcome) for known, outcome in heard if known.stage < stage.index
        ]
        return [Told(trial, outcome) for trial, outcome in trials if trial is not None]

    def _heard(self, known: Known, outcome: Outcome, stage: Stage) -> Trial | None:
        """As what a stage's optimizer hears of a candidate; None where it does not."""
        if known.stage == stage.index:
            return Trial(known.id, known.genome)
        if known.stage > stage.index or outcome.state != "complete":
            return None
        return self._translated(known, stage)

    def _trials(self, pending: Sequence[Known], stage: Stage) -> tuple[Trial, ...]:
        trials = [self._translated(each, stage) for each in pending if each.stage <= stage.index]
        return tuple(trial for trial in trials if trial is not None)

    def _translated(self, known: Known, stage: Stage) -> Trial | None:
        if known.stage == stage.index:
            return Trial(known.id, known.genome)
        genome = translate(known.genome, self._stages[known.stage].space, stage.space)
        return None if genome is None else Trial(known.id, genome)


def _packed(trial: Trial) -> list[Any]:
    """A trial as plain data. A point of an earlier stage has few different values, each of them many times."""
    values = [[run[0], len(run)] for run in _runs(trial.genome.values, float.hex)]
    return [trial.id, values, [[run[0], len(run)] for run in _runs(trial.genome.categories, str)]]


def _unpacked(data: Sequence[Any], box: Box) -> Trial:
    """The inverse of :func:`_packed`.

    Raises:
        SearchError: it is not a point of the box.
    """
    try:
        id, values, categories = data
        # before anything is made of them: lengths may be anything in a stranger's log
        lengths = [[max(1, int(run[1])) for run in runs] for runs in (values, categories)]
        if [sum(each) for each in lengths] == [box.continuous, len(box.categories)]:
            genome = Genome(
                tuple(float(value) for value, count in values for _ in range(int(count))),
                tuple(int(value) for value, count in categories for _ in range(int(count))),
            )
            if genome in box:
                return Trial(int(id), genome)
    except (TypeError, ValueError, IndexError, OverflowError) as error:
        raise SearchError(f"the log of a stage's beginning cannot be read: {error}") from error
    raise SearchError(f"the log says that candidate {id} was heard as another point than its stage has")


def _runs(values: Sequence[Any], key: Callable[[Any], str]) -> list[list[Any]]:
    """Neighbours that are equal to the bit."""
    return [list(run) for _, run in itertools.groupby(values, key)]
