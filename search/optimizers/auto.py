"""Picks an optimizer from what is known before the first proposal: objectives, genes, categories, budget, seconds.

THE RULE
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from search.optimizers import registry
from search.optimizers.contract import Genome, Optimizer, Outcome, Settings, Trial

FEW_GENES = 24
GP_TRIALS = 200
DEAR = 1.0
MANY_OBJECTIVES = 4
UNKNOWN_SECONDS = 10.0


@dataclass(frozen=True)
class Choice:
    """An optimizer and why.

    Attributes:
        name: as registered.
        options: that are not its defaults.
        reason: for people, one line.
        until: told trials after which :attr:`then` takes over, having heard all of them; None: never.
        then: what comes after.
    """

    name: str
    reason: str
    options: dict[str, float | int | str | bool] = field(default_factory=dict)
    until: int | None = None
    then: Choice | None = None


class AutoOptions(BaseModel):
    """Auto has no options: who wants another choice names it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def choose(settings: Settings) -> Choice:
    """What :class:`Auto` will run; pure.

    Args:
        settings: of the stage.
    """
    genes = settings.box.continuous + sum(count > 1 for count in settings.box.categories)
    seconds = UNKNOWN_SECONDS if settings.seconds is None else settings.seconds
    later = _evolution(settings, seconds)
    if genes > FEW_GENES or genes == 0:
        return later
    if seconds < DEAR:
        return replace(later, reason=f"{later.reason}; a candidate costs {seconds:.2g} s, less than a gp's proposal")
    reason = f"{genes} genes of at most {FEW_GENES}, {seconds:.3g} s a candidate"
    return Choice("gp", reason, {}, GP_TRIALS, later)


def _evolution(settings: Settings, seconds: float) -> Choice:
    """Without a Gaussian process over the whole box."""
    objectives = settings.objectives
    if objectives == 1:
        if any(count > 1 for count in settings.box.categories):
            return Choice("catcma", "one objective, with categories")
        return Choice("cma", "one objective, no categories")
    if objectives > MANY_OBJECTIVES:
        return Choice("nsga3", f"{objectives} objectives, too many for hypervolumes")
    if seconds < DEAR:
        return Choice("sms_emoa", f"{objectives} objectives")
    return Choice("sms_emoa", f"{objectives} objectives", {"prescreen": "gp"})


class Auto:
    """See the module docstring."""

    Options: ClassVar[type[BaseModel]] = AutoOptions

    def __init__(self, settings: Settings, choice: Choice | None = None) -> None:
        """Choose, and build the first optimizer.

        Args:
            settings: as for any optimizer.
            choice: instead of :func:`choose`'s.
        """
        AutoOptions.model_validate(settings.options)
        self._settings = settings
        self._choice = choice or choose(settings)
        self._optimizer = self._build()
        self._told: list[tuple[Trial, Outcome]] = []

    @property
    def choice(self) -> Choice:
        """What is at work now."""
        return self._choice

    def ask(self, id: int, pending: Sequence[Trial]) -> Genome:
        """See :class:`search.optimizers.contract.Optimizer`."""
        until, then = self._choice.until, self._choice.then
        if until is not None and then is not None and len(self._told) >= until:
            self._choice = then
            self._optimizer = self._build()
            for trial, outcome in self._told:
                self._optimizer.tell(trial, outcome)
            self._told = []
        return self._optimizer.ask(id, pending)

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """See :class:`search.optimizers.contract.Optimizer`."""
        if self._choice.then is not None:
            self._told.append((trial, outcome))
        self._optimizer.tell(trial, outcome)

    def diagnosis(self) -> dict[str, float | str]:
        """Which optimizer is at work and why, and what it says of itself."""
        inner: Any = getattr(self._optimizer, "diagnosis", dict)
        return {"optimizer": self._choice.name, "reason": self._choice.reason, **inner()}

    def _build(self) -> Optimizer:
        return registry.build(self._choice.name, replace(self._settings, options=dict(self._choice.options)))
