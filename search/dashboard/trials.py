"""Candidates as trials of Optuna, from the events of a run's log.

Complete candidates are complete trials, with the search scores as values; those that were stopped early are pruned
trials, failed ones failed; what is being evaluated is running. What else is known of a candidate is in its attributes:
scores on the selection split, and on the holdout only where that was opened for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from evaluators.contract import Split
from search.constraints import Constraints
from search.dashboard.genes import Parameters
from search.events import Asked, Event, Failed, RungReached, Scored, Told
from search.objectives import Objectives
from search.optimizers.contract import Genome, Outcome

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

CONSTRAINTS = "constraints"
"""Where Optuna keeps a trial's violations; > 0 is broken."""


@dataclass
class Known:
    """What the log says of a candidate so far.

    Attributes:
        values: split -> ``evaluator.metric`` -> aggregate.
        seconds: stage of the work -> wall seconds, on the search split.
        rung: the last one that it reached; -1 before the first.
    """

    id: int
    stage: int = 0
    label: str = ""
    genome: Genome | None = None
    recipe_hash: str = ""
    asked: float = 0.0
    told: float | None = None
    outcome: Outcome | None = None
    values: dict[Split, dict[str, float]] = field(default_factory=dict)
    partial: dict[str, float] = field(default_factory=dict)
    violations: Sequence[float] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    rung: int = -1
    reason: str = ""


class Candidates:
    """All candidates of a run, kept up with its log."""

    def __init__(self) -> None:
        self.known: dict[int, Known] = {}

    def take(self, at: float, event: Event) -> int | None:
        """One event more.

        Args:
            at: unix time at which it was written.
            event: any.

        Returns:
            The candidate of which more is known now, if any.
        """
        if not isinstance(event, Asked | RungReached | Scored | Failed | Told):
            return None
        known = self.known.setdefault(event.candidate, Known(event.candidate, asked=at))
        match event:
            case Asked():
                known.stage, known.label, known.genome = event.stage, event.label, event.genome
                known.recipe_hash, known.asked = event.recipe_hash, at
            case RungReached():
                known.rung, known.partial = event.rung, dict(event.values)
                known.seconds |= event.seconds
            case Scored():
                known.values[event.split] = dict(event.values)
                if event.split == "search":
                    known.violations = tuple(event.violations)
                    known.seconds |= event.seconds
            case Failed(split="search"):
                known.seconds |= event.seconds
            case Failed():
                known.reason = f"{event.split}: {event.reason}"
            case Told():
                known.outcome, known.told = event.outcome, at
                known.seconds |= event.seconds
        return event.candidate


class Trials:
    """Makes trials of candidates.

    Args:
        parameters: what is shown of genomes.
        objectives: the run's; values are in their own units, as they are reported.
        constraints: the run's.
        stage_names: by index.
    """

    def __init__(
        self, parameters: Parameters, objectives: Objectives, constraints: Constraints, stage_names: Sequence[str]
    ) -> None:
        self._parameters = parameters
        self._objectives = objectives
        self._constraints = constraints
        self._stage_names = list(stage_names)

    def of(self, known: Known, others: Mapping[int, Known]) -> FrozenTrial:
        """The trial of a candidate.

        Args:
            known: the candidate.
            others: all of them: a repetition has the scores of the one that it repeats.
        """
        from optuna.trial import FrozenTrial, TrialState

        outcome = known.outcome
        scored = known
        if outcome is not None and outcome.state == "duplicate":
            scored = others.get(-1 if outcome.of is None else outcome.of, known)
        values = [scored.values.get("search", {}).get(name, math.nan) for name in self._objectives.names]
        states = {"censored": TrialState.PRUNED, "failed": TrialState.FAIL}
        state = TrialState.RUNNING if outcome is None else states.get(outcome.state, TrialState.COMPLETE)
        if state == TrialState.COMPLETE and any(math.isnan(each) for each in values):
            state = TrialState.FAIL
        params = self._parameters.of(known.stage, known.genome) if known.genome is not None else {}
        violations = [each if math.isfinite(each) else 1e9 for each in scored.violations]
        return FrozenTrial(
            number=known.id,
            trial_id=known.id,
            state=state,
            value=None,
            values=values if state == TrialState.COMPLETE else None,
            datetime_start=_time(known.asked),
            datetime_complete=None if state == TrialState.RUNNING or known.told is None else _time(known.told),
            params=params,
            distributions={name: self._parameters.distributions[name] for name in params},
            user_attrs=self._attributes(known, scored),
            system_attrs={CONSTRAINTS: violations} if violations else {},
            intermediate_values={},
        )

    def lost(self, id: int) -> FrozenTrial:
        """In the place of a candidate of which a salvaged log has nothing."""
        return self.of(Known(id, outcome=Outcome("failed", reason="lost from the log")), {})

    def _attributes(self, known: Known, scored: Known) -> dict[str, Any]:
        outcome = known.outcome
        found: dict[str, Any] = {"stage": _at(self._stage_names, known.stage)}
        if known.label:
            found["label"] = known.label
        if outcome is None:
            found["rung"] = known.rung + 1
        elif outcome.state == "duplicate":
            found["repeats candidate"] = outcome.of
        if outcome is not None and (outcome.reason or known.reason):
            found["reason"] = outcome.reason or known.reason
        if outcome is not None and outcome.state == "censored":
            found |= {f"partial {name}": value for name, value in _finite(known.partial.items())}
        for split in ("selection", "holdout"):
            values = scored.values.get(split, {})
            found |= {f"{split} {name}": value for name, value in _finite(values.items())}
        others = ((name, each) for name, each in scored.values.get("search", {}).items())
        found |= {name: value for name, value in _finite(others) if name not in self._objectives.names}
        named = zip(self._constraints.names, scored.violations, strict=False)
        found |= {f"breaks {name}": value for name, value in _finite(named) if value > 0.0}
        found |= {f"seconds {what}": round(value, 4) for what, value in _finite(known.seconds.items())}
        if outcome is not None and outcome.items:
            found["items"] = outcome.items
        if known.recipe_hash:
            found["recipe"] = known.recipe_hash[:12]
        return found


def _time(at: float) -> datetime:
    """A clock may say anything."""
    try:
        return datetime.fromtimestamp(at)
    except (OverflowError, OSError, ValueError):
        return datetime.fromtimestamp(0)


def _at(names: Sequence[str], index: int) -> str:
    return names[index] if 0 <= index < len(names) else f"stage {index}"


def _finite(values: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    return [(name, value) for name, value in values if math.isfinite(value)]
