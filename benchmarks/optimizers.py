"""Optimizers on synthetic merges: quality against random search, and what a proposal costs.

    python benchmarks/optimizers.py [--seeds 3] [--budget 1000] [--only sms_emoa cma]

Two coupled quadratic tasks over n coefficients whose optima are smooth over depth, and 8 categories of 4 choices; a
task's accuracy is exp(-5 d), measured on 250 items (binomial noise). Printed is the hypervolume of the TRUE utilities
of the front that was chosen on NOISY ones, divided by that of the exact supported front: (200 / 500 / all evaluations).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search import pareto
from search.optimizers.contract import Box, Genome, Optimizer, Outcome, Settings, Trial
from search.optimizers.registry import build

Array = npt.NDArray[np.float64]
ITEMS = 250


@dataclass
class Problem:
    """Two or more tasks; d is a quadratic form in the coefficients plus a penalty per category."""

    curvature: Array  # [tasks, n, n], symmetric, mean eigenvalue 1
    optimum: Array  # [tasks, n]
    penalty: Array  # [tasks, m, choices]

    @property
    def box(self) -> Box:
        return Box(self.optimum.shape[1], (self.penalty.shape[2],) * self.penalty.shape[1])

    def utilities(self, values: Array, categories: Sequence[int]) -> Array:
        """[tasks] true accuracies in (0, 1]."""
        offset = values - self.optimum
        quadratic = np.einsum("ti,tij,tj->t", offset, self.curvature, offset) / len(values)
        chosen = self.penalty[:, np.arange(self.penalty.shape[1]), list(categories)].mean(axis=1)
        return np.asarray(np.exp(-5.0 * (3.0 * quadratic + chosen)))

    def supported_front(self, points: int = 400) -> Array:
        """[points, tasks] utilities of the minimisers of weighted sums of d, which is convex for each choice."""
        random = np.random.default_rng(0)
        tasks, n = self.optimum.shape
        found = []
        for weights in random.dirichlet(np.ones(tasks), points):
            matrix = np.einsum("t,tij->ij", weights, self.curvature)
            target = np.einsum("t,tij,tj->i", weights, self.curvature, self.optimum)
            values = np.clip(np.linalg.solve(matrix + 1e-9 * np.eye(n), target), 0, 1)
            found.append(self.utilities(values, np.einsum("t,tmc->mc", weights, self.penalty).argmin(axis=1).tolist()))
        return np.asarray(found)


def problem(n: int, seed: int, tasks: int = 2, categories: int = 8, choices: int = 4) -> Problem:
    """A problem of n coefficients whose optima are random smooth functions of the position."""
    random = np.random.default_rng([seed, n, tasks])
    depth = np.linspace(0.0, 1.0, n)
    waves = random.normal(size=(tasks, 4)) / np.arange(1, 5)
    optimum = 0.5 + 0.2 * sum(waves[:, [k]] * np.cos(np.pi * (k + 1) * depth + k)[None] for k in range(4))
    roots = random.normal(size=(tasks, n, n)) / np.sqrt(n) + np.eye(n)
    curvature = np.einsum("tki,tkj->tij", roots, roots)
    curvature /= np.trace(curvature, axis1=1, axis2=2)[:, None, None] / n
    penalty = random.exponential(0.08, size=(tasks, categories, choices))
    return Problem(curvature, np.clip(optimum, 0.02, 0.98), penalty - penalty.min(axis=2, keepdims=True))


def run(make: Callable[[Settings], Optimizer], task: Problem, budget: int, seed: int) -> tuple[list[float], float]:
    """Hypervolume shares at 200, 500 and budget evaluations, and CPU milliseconds per ask and tell."""
    tasks = len(task.optimum)
    settings = Settings(
        box=task.box,
        objectives=tasks,
        seed=seed,
        budget=budget,
        reference=(0.0,) * tasks,
        center=Genome((0.5,) * task.box.continuous, (0,) * len(task.box.categories)),
    )
    optimizer = make(settings)
    noise = np.random.default_rng([seed, 99])
    exact = pareto.hypervolume(task.supported_front(), settings.reference)
    true: list[Array] = []
    noisy: list[Array] = []
    spent = 0.0
    shares = []

    def evaluate(genome: Genome) -> Outcome:
        utilities = task.utilities(np.asarray(genome.values), genome.categories)
        true.append(utilities)
        noisy.append(noise.binomial(ITEMS, utilities) / ITEMS)
        return Outcome("complete", tuple(noisy[-1].tolist()), items=ITEMS)

    for choice in range(4):  # what a run tells first: the average merge with each method
        start = Genome((0.5,) * task.box.continuous, (choice,) * len(task.box.categories))
        optimizer.tell(Trial(choice, start), evaluate(start))
    for id in range(4, budget):
        begin = time.process_time()
        genome = optimizer.ask(id, ())
        spent += time.process_time() - begin
        outcome = evaluate(genome)
        begin = time.process_time()
        optimizer.tell(Trial(id, genome), outcome)
        spent += time.process_time() - begin
        if id + 1 in (200, 500, budget):
            chosen = pareto.nondominated(np.asarray(noisy))
            shares.append(pareto.hypervolume(np.asarray(true)[chosen], settings.reference) / exact)
    return shares, 1000.0 * spent / (budget - 4)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seeds", type=int, default=3)
    arguments.add_argument("--budget", type=int, default=1000)
    arguments.add_argument("--dimensions", type=int, nargs="+", default=[10, 64])
    arguments.add_argument("--tasks", type=int, default=2)
    arguments.add_argument("--only", nargs="+", default=["sms_emoa", "cma", "random"])
    given = arguments.parse_args()
    for n in given.dimensions:
        for name in given.only:
            runs = [
                run(lambda s, name=name: build(name, s), problem(n, seed, given.tasks), given.budget, seed)
                for seed in range(given.seeds)
            ]
            shares = np.asarray([shares for shares, _ in runs])
            mean = " ".join(f"{value:.3f}" for value in shares.mean(axis=0))
            spread = shares[:, -1].std(ddof=1) / np.sqrt(given.seeds) if given.seeds > 1 else float("nan")
            cost = np.mean([cost for _, cost in runs])
            print(f"{n:>4} + 8 categories  {name:<10} {mean} ±{spread:.3f}   {cost:.2f} ms CPU a trial", flush=True)


if __name__ == "__main__":
    main()
