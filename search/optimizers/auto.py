"""Picks an optimizer from what is known before the first proposal: objectives, genes, what a candidate costs.

1. At most 24 genes (coefficients, and categories with a choice) and 5 s or more a candidate: ``gp`` for the first 200
   trials, then what follows without it. Cost unknown counts as dear.
2. Up to 4 objectives and 0.1 s or more a candidate: ``sms_emoa`` pre-screened by Gaussian processes. With one objective
   that is for the first 300 trials; then ``catcma``, or ``cma`` where there are no categories.
3. Cheaper candidates: ``catcma`` or ``cma`` for one objective, ``sms_emoa`` for 2 to 4.
4. More objectives: ``nsga3``; hypervolumes are slow there.

Where most choices of the start are to be kept (paths through layers, hundreds of choices), 2 and 3 are ``sms_emoa``
alone, for one objective too.

An optimizer that takes over has heard every trial. The budget is no part of the rule: it may grow, and a choice cannot
be taken back.

Why, on the landscapes of ``benchmarks/search.py``: share of the best hypervolume or, with one objective, true utility
of the best observed; n coefficients beside 8 categories, k objectives; 3 or 4 seeds, the same for all, so the order
counts and not the digits:

=============== ====== ======== ============ ====== ====
n, k            trials sms_emoa  prescreened catcma cma
=============== ====== ======== ============ ====== ====
smooth 10, 2       100      .71          .85      -    -
smooth 10, 2       300      .80          .89      -    -
rough 10, 3        300      .35          .50      -    -
smooth 64, 2       200      .56          .62    .52    -
rough 64, 3        300      .24          .24      -    -
smooth 200, 2      300      .47          .49      -    -
smooth 10, 1       300        -          .92    .90    -
smooth 64, 1       300      .64          .73    .71  .62
smooth 200, 1      300        -          .69    .64    -
=============== ====== ======== ============ ====== ====

CPU per trial: sms_emoa 1 to 2 ms, prescreened 20 to 70, catcma and cma 0.5 to 2.5, gp 500 to 1200. ``gp`` leads beyond
a hundred trials in few genes (.92 against .89 prescreened after 100, smooth 10, 2, one seed; in an earlier comparison
.91 after 150 trials against .74 for the best without a model), so it has to be cheap beside an evaluation: a fifth of
it at most. The quadratic pre-screening gained nothing at 64 coefficients. On the zoo's merges (24 genes, 100 candidates
of 0.4 to 1 s) the Gaussian processes predict with R² .95 to .99, and the held-out hypervolume is .78 to .84 with them,
.75 and .79 in the two searches that had none (``docs/first_light.md``): a tenth of a second is dear enough.

Of paths, how much of a planted one is found (``tests/search/planted_paths.py``, noise .02, one objective; model A alone
has .67 to .70), seeds apart:

================================== ================= ===== ============
slots                              trials  sms_emoa  catcma  cma, real
================================== ================= ===== ============
72 (12 layers, 2 models, 3 times)    1500  .97, .99  .79, .96  .93, .82
192 (32 layers, 2 models, 3 times)   3000       .91       .79       .70
================================== ================= ===== ============

Gaussian processes do not help there: after 300 trials over 72 slots .82 and .72 pre-screened, .91 and .84 alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from search.optimizers import registry
from search.optimizers.contract import Genome, Optimizer, Outcome, Recalling, Settings, Trial, remembered

FEW_GENES = 24
GP_TRIALS, GP_SECONDS = 200, 5.0
SCREENED_TRIALS, SCREENED_SECONDS = 300, 0.1
MOST_FOR_HYPERVOLUME = 4


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
    seconds = math.inf if settings.seconds is None else settings.seconds
    price = "a cost unknown yet" if settings.seconds is None else f"{seconds:.3g} s a candidate"
    later = _without_gp(settings, seconds, f"{_counted(settings.objectives)}, {_genes(genes)}, {price}")
    if not 0 < genes <= FEW_GENES or seconds < GP_SECONDS:
        return later
    reason = f"{_genes(genes)} of at most {FEW_GENES}, {price}"
    last = later.then or later
    return Choice("gp", reason, {}, GP_TRIALS, last)


def _without_gp(settings: Settings, seconds: float, reason: str) -> Choice:
    objectives = settings.objectives
    if objectives > MOST_FOR_HYPERVOLUME:
        return Choice("nsga3", f"{reason}: too many objectives for hypervolumes")
    screened = Choice("sms_emoa", reason, {"prescreen": "gp"})
    if settings.sure is not None:
        return Choice("sms_emoa", f"{reason}, most choices of the start kept")
    if objectives > 1:
        return screened if seconds >= SCREENED_SECONDS else replace(screened, options={})
    name = "catcma" if any(count > 1 for count in settings.box.categories) else "cma"
    alone = Choice(name, reason)
    return replace(screened, until=SCREENED_TRIALS, then=alone) if seconds >= SCREENED_SECONDS else alone


def _counted(objectives: int) -> str:
    return "one objective" if objectives == 1 else f"{objectives} objectives"


def _genes(count: int) -> str:
    return "one gene" if count == 1 else f"{count} genes"


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
        self._hand_over()
        return self._optimizer.ask(id, pending)

    def remembered(self, id: int) -> dict[str, Any] | None:
        """See :class:`search.optimizers.contract.Recalling`."""
        return remembered(self._optimizer, id)

    def recall(self, trial: Trial, memo: Mapping[str, Any]) -> None:
        """See :class:`search.optimizers.contract.Recalling`."""
        self._hand_over()
        if not isinstance(self._optimizer, Recalling):
            raise TypeError(f"{self._choice.name} remembers nothing")
        self._optimizer.recall(trial, memo)

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """See :class:`search.optimizers.contract.Optimizer`."""
        if self._choice.then is not None:
            self._told.append((trial, outcome))
        self._optimizer.tell(trial, outcome)

    def diagnosis(self) -> dict[str, float | str]:
        """Which optimizer is at work and why, and what it says of itself."""
        inner: Any = getattr(self._optimizer, "diagnosis", dict)
        return {"optimizer": self._choice.name, "reason": self._choice.reason, **inner()}

    def _hand_over(self) -> None:
        """To the next optimizer, when its time has come."""
        until, then = self._choice.until, self._choice.then
        if until is None or then is None or len(self._told) < until:
            return
        self._choice = then
        self._optimizer = self._build()
        for trial, outcome in self._told:
            self._optimizer.tell(trial, outcome)
        self._told = []

    def _build(self) -> Optimizer:
        return registry.build(self._choice.name, replace(self._settings, options=dict(self._choice.options)))
