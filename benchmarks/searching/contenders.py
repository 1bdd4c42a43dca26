"""Who is compared: our optimizers behind their contract, and other libraries as their users run them.

Every contender meets the same start points first, as the baselines of a run, and pays for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.searching.landscapes import Landscape
from search.optimizers import registry
from search.optimizers.contract import Genome, Outcome, Settings, Trial

Array = npt.NDArray[np.float64]

CHEAP = 0.06
"""Seconds that a candidate of the quickstart costs."""

OURS = (
    "auto", f"auto@{CHEAP}", "gp", "cma", "catcma", "como_catcma", "sms_emoa", "nsga2", "nsga3", "tpe", "random",
    "sobol",
)  # fmt: skip
OUTSIDE = ("optuna/nsga2", "optuna/tpe", "optuna/gp", "pymoo/nsga2")

BLIND = ("gp", "cma", "catcma", "tpe", "random", "sobol", *OUTSIDE)
"""Contenders that do not know the budget: the first part of a long run is their short run."""


class Contender(Protocol):
    """Proposes and hears; evaluations are numbered from 0, one at a time."""

    def ask(self, number: int) -> Genome:
        """The point of this evaluation."""
        ...

    def tell(self, number: int, genome: Genome, utilities: Array, repeats: int | None) -> None:
        """Its utilities; ``repeats`` is an earlier evaluation of the same point."""
        ...


class Ours:
    """One of :mod:`search.optimizers`, told as :mod:`search.loop` would tell it."""

    def __init__(self, name: str, landscape: Landscape, budget: int, seed: int, seconds: float | None) -> None:
        self._starts = landscape.starts
        box = landscape.box
        self._optimizer = registry.build(
            name,
            Settings(
                box=box,
                objectives=landscape.objectives,
                seed=seed,
                budget=budget,
                reference=(0.0,) * landscape.objectives,
                center=Genome((0.5,) * box.continuous, (0,) * len(box.categories)),
                seconds=seconds,
            ),
        )

    def ask(self, number: int) -> Genome:
        return self._starts[number] if number < len(self._starts) else self._optimizer.ask(number, ())

    def tell(self, number: int, genome: Genome, utilities: Array, repeats: int | None) -> None:
        state: Literal["complete", "duplicate"] = "complete" if repeats is None else "duplicate"
        self._optimizer.tell(Trial(number, genome), Outcome(state, tuple(utilities.tolist()), of=repeats))

    @property
    def diagnosis(self) -> dict[str, float | str]:
        """What the optimizer says about itself."""
        found: Callable[[], dict[str, float | str]] | None = getattr(self._optimizer, "diagnosis", None)
        return {} if found is None else found()


class OptunaStudy:
    """Optuna's ask and tell, with a sampler at its defaults; starts are enqueued."""

    def __init__(self, name: str, landscape: Landscape, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        samplers: dict[str, Callable[[], Any]] = {
            "optuna/nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
            "optuna/tpe": lambda: optuna.samplers.TPESampler(seed=seed),
            "optuna/gp": lambda: optuna.samplers.GPSampler(seed=seed),
        }
        box = landscape.box
        directions = ["maximize"] * landscape.objectives
        self._study = optuna.create_study(directions=directions, sampler=samplers[name]())
        self._values = {f"x{i}": optuna.distributions.FloatDistribution(0.0, 1.0) for i in range(box.continuous)}
        self._choices = {
            f"c{j}": optuna.distributions.CategoricalDistribution(range(count))
            for j, count in enumerate(box.categories)
        }
        for start in landscape.starts:
            parameters = dict(zip(self._values, start.values, strict=True))
            self._study.enqueue_trial(parameters | dict(zip(self._choices, start.categories, strict=True)))
        self._open: dict[int, Any] = {}

    def ask(self, number: int) -> Genome:
        trial = self._open[number] = self._study.ask({**self._values, **self._choices})
        return Genome(
            tuple(trial.params[name] for name in self._values), tuple(trial.params[name] for name in self._choices)
        )

    def tell(self, number: int, genome: Genome, utilities: Array, repeats: int | None) -> None:
        self._study.tell(self._open.pop(number), utilities.tolist())


class PymooNsga2:
    """pymoo's mixed-variable NSGA-II (``MixedVariableGA`` with rank and crowding), generation by generation; starts are
    part of the first one."""

    def __init__(self, landscape: Landscape, budget: int, seed: int) -> None:
        from pymoo.core.mixed import MixedVariableGA, MixedVariableSampling
        from pymoo.core.problem import Problem
        from pymoo.core.variable import Choice, Real
        from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

        box = landscape.box
        self._names = [f"x{i}" for i in range(box.continuous)], [f"c{j}" for j in range(len(box.categories))]
        variables: dict[str, Any] = {name: Real(bounds=(0.0, 1.0)) for name in self._names[0]}
        choices = zip(self._names[1], box.categories, strict=True)
        variables |= {name: Choice(options=list(range(count))) for name, count in choices}
        self._problem = Problem(vars=variables, n_obj=landscape.objectives)
        starts = [self._as_point(start) for start in landscape.starts]

        class Sampling(MixedVariableSampling):  # type: ignore[misc]
            def _do(self, problem: Any, n_samples: int, **more: Any) -> list[dict[str, Any]]:
                return [*starts, *super()._do(problem, n_samples, **more)][:n_samples]

        self._algorithm = MixedVariableGA(sampling=Sampling(), survival=RankAndCrowding())
        self._algorithm.setup(self._problem, termination=("n_eval", 10 * budget), seed=seed, verbose=False)
        self._generation: Any = None
        self._told: list[Array] = []

    def ask(self, number: int) -> Genome:
        if self._generation is None:
            self._generation = self._algorithm.ask()
            self._told = []
        point = self._generation[len(self._told)].X
        return Genome(
            tuple(float(point[name]) for name in self._names[0]), tuple(int(point[name]) for name in self._names[1])
        )

    def tell(self, number: int, genome: Genome, utilities: Array, repeats: int | None) -> None:
        from pymoo.core.evaluator import Evaluator
        from pymoo.problems.static import StaticProblem

        self._told.append(-utilities)
        if len(self._told) == len(self._generation):
            Evaluator().eval(StaticProblem(self._problem, F=np.asarray(self._told)), self._generation)
            self._algorithm.tell(infills=self._generation)
            self._generation = None

    def _as_point(self, genome: Genome) -> dict[str, Any]:
        values = dict(zip(self._names[0], genome.values, strict=True))
        return values | dict(zip(self._names[1], genome.categories, strict=True))


def build(name: str, landscape: Landscape, budget: int, seed: int) -> Contender:
    """A contender, ready for evaluation 0.

    Args:
        name: one of :data:`OURS` or :data:`OUTSIDE`. ``auto@0.06`` is told that a candidate costs so many seconds; an
            optimizer that is told nothing takes candidates for expensive.
        landscape: whose box, objectives and starts it is told.
        budget: evaluations in all.
        seed: its own.

    Raises:
        OptimizerError: unknown, or it cannot handle this landscape (``como_catcma`` takes two objectives).
        ImportError: its library or module is not there.
    """
    if name.startswith("optuna/"):
        return OptunaStudy(name, landscape, seed)
    if name == "pymoo/nsga2":
        return PymooNsga2(landscape, budget, seed)
    name, _, seconds = name.partition("@")
    return Ours(name, landscape, budget, seed, float(seconds) if seconds else None)


def budgets(name: str, checkpoints: Sequence[int]) -> list[tuple[int, list[int]]]:
    """The runs that a contender needs to be scored at all checkpoints: (budget, checkpoints of this run)."""
    if name in BLIND:
        return [(max(checkpoints), sorted(checkpoints))]
    return [(each, [each]) for each in sorted(checkpoints)]
