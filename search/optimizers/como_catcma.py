"""COMO-CatCMA with margin: several CatCMA distributions that share the front of two objectives between them.

Each kernel looks for the point that adds most to what the other kernels' means (*incumbents*) already dominate: its
solutions are ranked by uncrowded hypervolume improvement, the volume gained or, where none is, minus the distance to
the region that would gain some. Kernels take turns, a generation each, and the moved mean is evaluated after its turn.

Touré, Hansen, Auger & Brockhoff, "Uncrowded hypervolume improvement: COMO-CMA-ES and the Sofomore framework", GECCO
2019; kernels: :class:`search.optimizers.kernel.Kernel`, Hamano et al., arXiv:2504.07884. The library's own
``COMOCatCMAwM`` hands out a queue and waits for every answer to it. Here turns are ours, so that more workers than a
queue holds, answers that are late or never come, failures, constraints and points that were found before are at home.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from search import pareto
from search.optimizers.contract import Genome, OptimizerError, Outcome, Settings, Trial
from search.optimizers.kernel import Kernel, kept_choices
from search.optimizers.outcomes import Array, generator, genome, utilities, violation

FRONT = 64


class ComoCatCmaOptions(BaseModel):
    """Options of ``como_catcma``.

    Attributes:
        kernels: how many distributions (>= 2); one for 500 evaluations of the budget, between 2 and 10, if None.
        popsize: points per generation of a kernel (>= 4); cmaes' own, about 4 + 3 ln n, if None.
        sigma0: first step size in units of a gene's range, in (0, 1].
        kept: first probability of the start's own choices, in [0, 1), the rest uniform over all of them; 0.25 if None,
            or what the settings are sure of.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kernels: int | None = Field(default=None, ge=2, le=64)
    popsize: int | None = Field(default=None, ge=4)
    sigma0: float = Field(default=0.15, gt=0.0, le=1.0)
    kept: float | None = Field(default=None, ge=0.0, lt=1.0)


class Standing(NamedTuple):
    """A complete and feasible point: utilities [2], and its genome."""

    utilities: Array
    genome: Genome


@dataclass(frozen=True)
class Proposal:
    """A point that was asked for: by which kernel, in which of its lives; a solution of it, or its mean (None)."""

    kernel: int
    life: int
    genome: Genome
    solution: Any


class Result(NamedTuple):
    """What became of a solution. Classes, best first: 0 complete, 1 breaks a constraint, 2 censored, 3 failed."""

    solution: Any
    rank: int
    violation: float
    utilities: Array | None


@dataclass
class Turn:
    """A kernel and what it has heard.

    Attributes:
        life: how often it has begun again.
        incumbent: utilities of its mean, or of an earlier one while the mean is unknown; None if there is none.
        moved: whether its mean waits to be evaluated.
        heard: results of this generation.
    """

    kernel: Kernel
    life: int = 0
    incumbent: Array | None = None
    moved: bool = True
    heard: list[Result] | None = None


class ComoCatCma:
    """See the module docstring."""

    Options: ClassVar[type[BaseModel]] = ComoCatCmaOptions

    def __init__(self, settings: Settings) -> None:
        if settings.objectives != 2:
            raise OptimizerError(
                f"como_catcma is for exactly two objectives, found {settings.objectives}; take catcma or cma for one, "
                "sms_emoa or nsga3 for more"
            )
        self._options = ComoCatCmaOptions.model_validate(settings.options)
        self._settings = settings
        self._reference = np.asarray(settings.reference, dtype=np.float64)
        self._count = self._options.kernels or min(10, max(2, settings.budget // 500))
        self._front: list[Standing] = []
        self._asked: dict[int, Proposal] = {}
        self._censored: set[int] = set()
        self._turns: list[Turn] = []
        self._order: list[int] = []
        self._learnt = 0

    def ask(self, id: int, pending: Sequence[Trial]) -> Genome:
        """See :class:`search.optimizers.contract.Optimizer`. Means that other kernels need come first."""
        if not self._turns:
            self._begin()
        out = {trial.id for trial in pending}
        on_the_way = {
            (each.kernel, each.life) for key, each in self._asked.items() if key in out and each.solution is None
        }
        current = self._order[0]
        for index, turn in enumerate(self._turns):
            if index != current and turn.moved and (index, turn.life) not in on_the_way:
                return self._propose(id, index, turn.kernel.incumbent(), None)
        solution = self._turns[current].kernel.draw(self._settings.seed, 0, id)
        return self._propose(id, current, self._turns[current].kernel.genome(solution), solution)

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        """See :class:`search.optimizers.contract.Optimizer`."""
        rank, broken, found = self._rank(trial.id, outcome)
        news = rank == 0 and found is not None and self._remember(Standing(found, trial.genome))
        proposal = self._asked.pop(trial.id, None)
        if not self._turns:
            return
        own = proposal is not None and proposal.genome == trial.genome
        if proposal is not None and own and proposal.life == self._turns[proposal.kernel].life:
            turn = self._turns[proposal.kernel]
            if proposal.solution is None:
                turn.moved = False
                turn.incumbent = found if rank == 0 else turn.incumbent
            else:
                self._hear(turn, Result(proposal.solution, rank, broken, found))
        elif news and not own:
            turn = self._turns[self._order[0]]
            self._hear(turn, Result(turn.kernel.solution(trial.genome), rank, broken, found))
        while len(self._turns[self._order[0]].heard or ()) >= self._turns[self._order[0]].kernel.popsize:
            self._learn()

    def _propose(self, id: int, kernel: int, genome: Genome, solution: Any) -> Genome:
        self._asked[id] = Proposal(kernel, self._turns[kernel].life, genome, solution)
        return genome

    def _rank(self, id: int, outcome: Outcome) -> tuple[int, float, Array | None]:
        """Class, violation and utilities, see :class:`Result`."""
        found = utilities(outcome, 2)
        if found is None:
            return 3, 0.0, None
        if outcome.state == "censored" or outcome.of in self._censored:
            self._censored.add(id)
            return 2, 0.0, found
        broken = violation(outcome)
        return int(broken > 0.0), broken, found

    def _remember(self, standing: Standing) -> bool:
        """Keep it if it is on the front; True if it is."""
        front = [each for each in self._front if each.genome != standing.genome] + [standing]
        points = np.asarray([each.utilities for each in front])
        stay = pareto.nondominated(points)
        if len(front) > FRONT and stay.all():
            stay[int(np.argmin(pareto.contributions(points, self._reference)))] = False
        self._front = [each for each, keep in zip(front, stay, strict=True) if keep]
        return bool(stay[-1])

    def _hear(self, turn: Turn, result: Result) -> None:
        turn.heard = [*(turn.heard or ()), result][: turn.kernel.popsize]

    def _begin(self) -> None:
        """A kernel at each of the points that span the front that was told; the rest around the start."""
        spread = self._spread(self._count)
        self._turns = [self._turn(each.genome, each.utilities) for each in spread]
        start = self._start()
        for index in range(len(spread), self._count):
            random = generator(self._settings.seed, 1, index)
            values = np.asarray(start.values) + self._options.sigma0 * random.standard_normal(len(start.values))
            self._turns.append(self._turn(genome(values, np.asarray(start.categories, dtype=np.int64)), None))
        self._next_round()

    def _turn(self, start: Genome, incumbent: Array | None, life: int = 0) -> Turn:
        options = self._options
        shares = kept_choices(self._settings, options.kept)
        kernel = Kernel(self._settings.box, start, options.sigma0, shares, options.popsize)
        return Turn(kernel, life, incumbent, incumbent is None)

    def _start(self) -> Genome:
        if self._settings.center is not None:
            return self._settings.center
        box = self._settings.box
        return Genome((0.5,) * box.continuous, tuple((count - 1) // 2 for count in box.categories))

    def _spread(self, count: int) -> list[Standing]:
        """At most so many points of the front; those that contribute least go one after the other."""
        front = list(self._front)
        while len(front) > count:
            points = np.asarray([each.utilities for each in front])
            del front[int(np.argmin(pareto.contributions(points, self._reference)))]
        return front

    def _next_round(self) -> None:
        random = generator(self._settings.seed, 2, self._learnt)
        self._order = [int(index) for index in random.permutation(self._count)]

    def _learn(self) -> None:
        """The current kernel's generation is full: move it, and pass the turn on."""
        index = self._order.pop(0)
        turn = self._turns[index]
        results = turn.heard or []
        others = [each.incumbent for at, each in enumerate(self._turns) if at != index and each.incumbent is not None]
        turn.kernel.learn([each.solution for each in results], self._values(results, others))
        turn.heard, turn.moved = None, True
        self._learnt += 1
        if turn.kernel.broken or turn.kernel.converged:
            self._turns[index] = self._again(turn)
        if not self._order:
            self._next_round()

    def _again(self, turn: Turn) -> Turn:
        """A new life at the front's point that the kernels' means lack most, else at the start."""
        held = [each.incumbent for each in self._turns if each.incumbent is not None]
        if not self._front:
            return self._turn(self._start(), None, turn.life + 1)
        gains = improvements(np.asarray([each.utilities for each in self._front]), _stack(held), self._reference)
        best = self._front[int(np.argmax(gains))]
        return self._turn(best.genome, best.utilities, turn.life + 1)

    def _values(self, results: Sequence[Result], others: Sequence[Array]) -> Array:
        """[n] numbers to minimise: places in the order of class, violation, uncrowded hypervolume improvement."""
        gains = np.zeros(len(results))
        known = [index for index, each in enumerate(results) if each.utilities is not None]
        if known:
            points = np.asarray([results[index].utilities for index in known])
            gains[known] = improvements(points, _stack(others), self._reference)
        keys = [(each.rank, each.violation, -gain) for each, gain in zip(results, gains.tolist(), strict=True)]
        places = {key: place for place, key in enumerate(sorted(set(keys)))}
        return np.asarray([float(places[key]) for key in keys])


def improvements(points: Array, others: Array, reference: Array) -> Array:
    """Uncrowded hypervolume improvement of each point over others, two objectives.

    Args:
        points: [n, 2] utilities, larger is better.
        others: [m, 2] utilities of the points that stand already.
        reference: [2] the hypervolume's corner.

    Returns:
        [n] the volume that a point adds, > 0; where it adds none, minus its Euclidean distance to the region in which
        it would. Touré et al. 2019, equation 3.
    """
    inside = others[(others > reference).all(axis=1)]
    front = inside[pareto.nondominated(inside)] if len(inside) else inside
    front = front[np.argsort(front[:, 0], kind="stable")]
    volume = pareto.hypervolume(front, reference)
    gains = np.asarray([pareto.hypervolume(np.vstack([front, point]), reference) for point in points]) - volume
    # The region that gains is bounded by corners between neighbours of the front, and the reference.
    corners = np.stack([np.append(reference[0], front[:, 0]), np.append(front[:, 1], reference[1])], axis=1)
    missing = np.maximum(0.0, corners[None, :, :] - points[:, None, :])
    distances = np.sqrt((missing**2).sum(axis=2)).min(axis=1)
    return np.where(distances > 0.0, -distances, np.maximum(gains, 0.0))


def _stack(points: Sequence[Array]) -> npt.NDArray[np.float64]:
    return np.asarray(points, dtype=np.float64).reshape(-1, 2)
