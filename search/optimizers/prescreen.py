"""Surrogate pre-screening: of several proposals of an optimizer, evaluate the one that a model thinks best of.

Per objective, and per constraint that was broken, a model (:mod:`search.optimizers.surrogates`) is fitted on the
canonical genomes that were evaluated. The best proposal is the one expected to violate least, then to add most
hypervolume to the front as the models see it (their predictions at the evaluated points, which have less noise in them
than the scores), then to come closest to it. Jin, "Surrogate-assisted evolutionary computation", Swarm and Evolutionary
Computation 1(2), 2011 (individual-based evolution control, pre-selection).

A model earns its say: while the leave-one-out R2 of any objective is below the threshold, or that of a constraint which
more than a tenth of the candidates break, or there are too few points, the first proposal passes through, and the
search is the one without a model, to the bit. A poor model of a rarely broken constraint is left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel, Field

from search import pareto
from search.optimizers.contract import (
    Genome,
    Optimizer,
    OptimizerError,
    Outcome,
    Recalling,
    Settings,
    Trial,
    remembered,
)
from search.optimizers.outcomes import Array, utilities

if TYPE_CHECKING:
    from search.optimizers.surrogates import Surrogate

LEAST_POINTS = 24
WINDOW = {"quadratic": 400, "gp": 250}
CAP = 3.0  # interquartile ranges below the lower quartile, beyond which a bad score is as bad as any


class PrescreenOptions(BaseModel):
    """Options of an optimizer that can be screened; it inherits this model and has ``forget``.

    Attributes:
        prescreen: the model; "off" for none.
        prescreen_proposals: out of how many one is evaluated (>= 2).
        prescreen_quality: leave-one-out R2 that every objective's model must reach, at most 1.
    """

    prescreen: Literal["off", "quadratic", "gp"] = "off"
    prescreen_proposals: int = Field(default=16, ge=2, le=1000)
    prescreen_quality: float = Field(default=0.3, le=1.0)


@runtime_checkable
class Screenable(Optimizer, Protocol):
    """An optimizer whose proposals may be dropped. Negative ids must be as good to it as others."""

    def forget(self, id: int) -> None:
        """The proposal of this id will be neither evaluated nor told."""
        ...


class Evaluated(NamedTuple):
    """What the models are fitted on: a genome (its canonical one), utilities [objectives], and a number per constraint,
    > 0 where it is broken."""

    genome: Genome
    utilities: Array
    violations: tuple[float, ...]


class Prescreened:
    """See the module docstring."""

    def __init__(self, inner: Optimizer, settings: Settings) -> None:
        """Wrap.

        Args:
            inner: fresh; :class:`Screenable`.
            settings: those that it was built from; with the options of :class:`PrescreenOptions` among theirs.

        Raises:
            OptimizerError: the optimizer has no ``forget``.
        """
        if not isinstance(inner, Screenable):
            raise OptimizerError(
                f"expected an optimizer whose proposals may be dropped (with a method forget(id)) for the option "
                f"prescreen, found {type(inner).__name__}; take sms_emoa, or prescreen: off"
            )
        known = {name: settings.options[name] for name in PrescreenOptions.model_fields if name in settings.options}
        self._options = PrescreenOptions.model_validate(known)
        self._inner = inner
        self._settings = settings
        self._evaluated: deque[Evaluated] = deque(maxlen=WINDOW.get(self._options.prescreen, 0))
        self._count = 0
        self._next = LEAST_POINTS
        self._models: list[Surrogate] = []  # of the objectives, then of the constraints that are broken often
        self._constraints: list[Surrogate] = []  # the good ones
        self._front: Array = np.zeros((0, settings.objectives))
        self._taken: dict[int, int] = {}
        self._screened = 0
        self._memo: dict[str, Any] = {}  # of the last ask
        self._recalled: tuple[list[Evaluated], list[Array]] | None = None

    def ask(self, id: int, pending: Sequence[Trial]) -> Genome:
        """See :class:`search.optimizers.contract.Optimizer`."""
        self._rebuild()
        self._memo = {}
        if self._count >= self._next:
            self._memo["fit"] = self._fit(self._evaluated, None)
        first = self._inner.ask(id, pending)
        if not self.good:
            self._memo["inner"] = remembered(self._inner, id)
            return first
        proposals = {id: first}
        for number in range(1, self._options.prescreen_proposals):
            own = -(id * self._options.prescreen_proposals + number)
            proposals[own] = self._inner.ask(own, pending)
        names, genomes = list(proposals), list(proposals.values())
        best = self._best([self._canonical(genome) for genome in genomes])
        for index, name in enumerate(names):
            if index != best:
                self._inner.forget(name)
        self._taken[id] = self._memo["taken"] = names[best]
        self._memo["inner"] = remembered(self._inner, names[best])
        self._screened += 1
        return genomes[best]

    def remembered(self, id: int) -> dict[str, Any] | None:
        """See :class:`search.optimizers.contract.Recalling`: which proposal was taken, what that one left behind, and
        the parameters of the models that were fitted before it."""
        return self._memo if self._memo.get("inner") is not None else None

    def recall(self, trial: Trial, memo: Mapping[str, Any]) -> None:
        """See :class:`search.optimizers.contract.Recalling`. Of all fits only the last one's models are built, when
        they are needed."""
        if "fit" in memo:
            parameters = [np.asarray(each, dtype=np.float64) for each in memo["fit"]]
            self._recalled = (list(self._evaluated), parameters)
            self._plan_next_fit()
        if not isinstance(self._inner, Recalling):
            raise TypeError(f"{type(self._inner).__name__} remembers nothing")
        taken = trial.id
        if "taken" in memo:
            taken = self._taken[trial.id] = int(memo["taken"])
            self._screened += 1
        self._inner.recall(Trial(taken, trial.genome), memo["inner"])

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """See :class:`search.optimizers.contract.Optimizer`."""
        self._inner.tell(Trial(self._taken.pop(trial.id, trial.id), trial.genome), outcome)
        found = utilities(outcome, self._settings.objectives)
        if outcome.state != "complete" or found is None:
            return
        self._evaluated.append(Evaluated(trial.genome, found, _finite(outcome.violations)))
        self._count += 1

    @property
    def good(self) -> bool:
        """Whether the models have their say."""
        return bool(self._models) and min(self._qualities()) >= self._options.prescreen_quality

    def diagnosis(self) -> dict[str, float | str]:
        """Cross-validated R2 per objective, how many proposals were screened, and whether the next one will be."""
        self._rebuild()
        qualities = self._qualities()[: self._settings.objectives]
        found: dict[str, float | str] = {f"r2_{index}": quality for index, quality in enumerate(qualities)}
        state = "on" if self.good else "off: the models are poor" if self._models else "off: too few points"
        return {"prescreen": f"{self._options.prescreen} {state}", "screened": float(self._screened), **found}

    def _qualities(self) -> list[float]:
        return [model.quality for model in self._models]

    def _canonical(self, genome: Genome) -> Genome:
        return self._settings.canonical(genome) if self._settings.canonical else genome

    def _rebuild(self) -> None:
        """The models of the last fit that was recalled."""
        recalled, self._recalled = self._recalled, None
        if recalled is not None:
            try:
                self._fit(*recalled)
            except (ValueError, StopIteration) as error:
                raise OptimizerError(f"the log holds models that do not fit its candidates: {error}") from error

    def _plan_next_fit(self) -> None:
        """When there is a twentieth more to fit models to."""
        self._next = self._count + max(1, len(self._evaluated) // 20)

    def _fit(self, evaluated: Sequence[Evaluated], known: Sequence[Array] | None) -> list[list[float]]:
        """Models of what was evaluated so far.

        Args:
            evaluated: what they are fitted on.
            known: the parameters that this fit came to before, if it did.

        Returns:
            Parameters of all models, in the order of the fits.
        """
        found: list[list[float]] = []
        given = None if known is None else iter(known)
        if known is None:
            self._plan_next_fit()
        genomes = [self._canonical(each.genome) for each in evaluated]

        def model(targets: Array, start: Surrogate | None = None) -> Surrogate:
            made = self._model(genomes, targets, start, None if given is None else next(given))
            found.append(made.parameters.tolist())
            return made

        points = np.asarray([each.utilities for each in evaluated])
        old: Sequence[Surrogate | None] = self._models or [None] * points.shape[1]
        self._models = [model(_fenced(points[:, index]), old[index]) for index in range(points.shape[1])]
        seen = np.stack([each.predict(genomes) for each in self._models], axis=1)
        violations = _padded([each.violations for each in evaluated])
        feasible = seen[(violations <= 0.0).all(axis=1)]
        self._front = feasible[pareto.nondominated(feasible)] if len(feasible) else feasible
        self._constraints = []
        for column in violations.T:
            if (column > 0.0).any():
                broken = model(-_fenced(-column))
                if broken.quality >= self._options.prescreen_quality:
                    self._constraints.append(broken)
                elif np.mean(column > 0.0) > 0.1:
                    self._models.append(broken)
        return found

    def _model(
        self, genomes: Sequence[Genome], targets: Array, earlier: Surrogate | None, parameters: Array | None
    ) -> Surrogate:
        from search.optimizers.surrogates import GaussianProcess, Quadratic  # scipy, which most runs do without

        box = self._settings.box
        if self._options.prescreen == "quadratic":
            return Quadratic(box, genomes, targets)
        start = earlier.parameters if isinstance(earlier, GaussianProcess) else None
        return GaussianProcess(box, genomes, targets, start, parameters)

    def _best(self, genomes: Sequence[Genome]) -> int:
        """Index of the best canonical genome; the first of equals."""
        objectives = self._settings.objectives
        points = np.stack([model.predict(genomes) for model in self._models[:objectives]], axis=1)
        broken = np.zeros(len(genomes))
        for model in self._constraints:
            broken += np.maximum(0.0, model.predict(genomes))
        if not len(self._front):
            closeness = points.min(axis=1)
            gains = np.zeros(len(genomes))
        else:
            closeness = (points[:, None, :] - self._front[None, :, :]).max(axis=2).min(axis=1)
            gains = self._gains(points)
        keys = list(zip(broken.tolist(), (-gains).tolist(), (-closeness).tolist(), strict=True))
        return min(range(len(keys)), key=lambda index: keys[index])

    def _gains(self, points: Array) -> Array:
        """[n] hypervolume that each point would add to the front as the models see it."""
        if points.shape[1] == 1:
            return np.asarray(np.maximum(0.0, points[:, 0] - self._front.max()))
        low, high = self._front.min(axis=0), self._front.max(axis=0)
        corner = np.minimum(np.asarray(self._settings.reference), low - 0.1 * np.maximum(high - low, 1e-9))
        volume = pareto.hypervolume(self._front, corner)
        return np.asarray([pareto.hypervolume(np.vstack([self._front, point]), corner) - volume for point in points])


def _fenced(column: Array) -> Array:
    """[n] with what is far below the others raised to the fence: how bad a broken merge is tells nothing about the good
    ones, and a model would bend for it."""
    low, high = np.quantile(column, [0.25, 0.75])
    return np.asarray(np.maximum(column, low - CAP * max(high - low, 1e-6)))


def _finite(violations: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(np.clip(np.nan_to_num(each, nan=1e6), -1e6, 1e6)) for each in violations)


def _padded(rows: Sequence[tuple[float, ...]]) -> Array:
    """[n, constraints]; one that a candidate has no number for is kept."""
    found = np.zeros((len(rows), max(len(row) for row in rows)))
    for index, row in enumerate(rows):
        found[index, : len(row)] = row
    return found
