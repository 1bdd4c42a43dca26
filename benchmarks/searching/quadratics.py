"""Coupled quadratic losses over coefficients, penalties over categories, and their exact front.

Task t's loss is ``SCALE · (3 q_t(x) + p_t(c))`` with ``q_t(x) = (x − o_t)ᵀ H_t (x − o_t) / n`` and p_t a mean of
penalties, one per category; its accuracy is exp(−loss). Optima are smooth over the position, as coefficients are over
depth. The loss is a sum of a part of x and a part of c, so a candidate can be non-dominated only if both of its parts
are: the front is what is non-dominated among sums of the two fronts. q is convex, so its front is made of the
minimisers of weighted sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import moocore
import numpy as np
import numpy.typing as npt

from search import pareto

Array = npt.NDArray[np.float64]

SCALE = 5.0
CURVED = 3.0


@dataclass(frozen=True)
class Quadratics:
    """The losses of two or more tasks.

    Attributes:
        curvature: [tasks, n, n] symmetric and positive definite, mean eigenvalue 1.
        optimum: [tasks, n] inside [0, 1].
        penalty: [tasks, m, choices] >= 0; 0 for the best choice.
    """

    curvature: Array
    optimum: Array
    penalty: Array

    def loss(self, values: Array, categories: Sequence[int]) -> Array:
        """[tasks] losses >= 0 of one point."""
        return np.asarray(SCALE * (CURVED * self._quadratic(values[None])[0] + self._penalties(categories)))

    def front(self, points: int = 1000) -> Array:
        """[any, tasks] accuracies of the exact front, as densely as ``points`` weights make it."""
        curved = CURVED * self._quadratic(self._minimisers(points))
        chosen = self._penalty_front()
        sums = (curved[:, None, :] + chosen[None, :, :]).reshape(-1, len(self.optimum))
        accuracies = np.exp(-SCALE * sums)
        return np.asarray(accuracies[pareto.nondominated(accuracies)])

    def _quadratic(self, values: Array) -> Array:
        """[points, tasks] q of values [points, n]."""
        offsets = values[:, None, :] - self.optimum[None]
        moved = np.einsum("pti,tij->ptj", offsets, self.curvature)
        return np.asarray((moved * offsets).sum(axis=2) / values.shape[1])

    def _penalties(self, categories: Sequence[int]) -> Array:
        m = self.penalty.shape[1]
        if not m:
            return np.zeros(len(self.optimum))
        return np.asarray(self.penalty[:, np.arange(m), list(categories)].mean(axis=1))

    def _penalty_front(self) -> Array:
        """[any, tasks] non-dominated sums of penalties, category by category."""
        tasks, m, _ = self.penalty.shape
        found = np.zeros((1, tasks))
        for category in range(m):
            sums = (found[:, None, :] + self.penalty[:, category, :].T[None] / m).reshape(-1, tasks)
            found = sums[moocore.is_nondominated(sums, maximise=False)]
        return np.asarray(found)

    def _minimisers(self, points: int) -> Array:
        """[points, n] of weighted sums of q inside the box."""
        tasks, n = self.optimum.shape
        if tasks == 2:
            first = np.linspace(0.0, 1.0, points)
            weights = np.stack([first, 1.0 - first], axis=1)
        else:
            weights = np.concatenate([np.eye(tasks), np.random.default_rng(0).dirichlet(np.ones(tasks), points)])
        pulls = np.einsum("tij,tj->ti", self.curvature, self.optimum)
        found = np.empty((len(weights), n))
        for row, weight in enumerate(weights):
            matrix = np.einsum("t,tij->ij", weight, self.curvature)
            found[row] = _in_box(matrix, weight @ pulls)
        return np.asarray(found)


def _in_box(matrix: Array, pull: Array) -> Array:
    """argmin of xᵀMx/2 − xᵀb over [0, 1]ⁿ: solved freely where that lies inside, else by coordinate descent."""
    values = np.linalg.solve(matrix, pull)
    if values.min() >= 0.0 and values.max() <= 1.0:
        return np.asarray(values)
    values = np.clip(values, 0.0, 1.0)
    for _ in range(500):
        largest = 0.0
        for i in range(len(values)):
            moved = min(1.0, max(0.0, values[i] + (pull[i] - matrix[i] @ values) / matrix[i, i]))
            largest = max(largest, abs(moved - values[i]))
            values[i] = moved
        if largest < 1e-9:
            break
    return np.asarray(values)


def quadratics(n: int, seed: int, tasks: int = 2, categories: int = 8, choices: int = 4) -> Quadratics:
    """n coefficients whose optima are random smooth functions of the position, around the middle."""
    random = np.random.default_rng([seed, n, tasks])
    depth = np.linspace(0.0, 1.0, n)
    waves = random.normal(size=(tasks, 4)) / np.arange(1, 5)
    shapes = np.stack([np.cos(np.pi * (k + 1) * depth + k) for k in range(4)])
    optimum = 0.5 + 0.2 * waves @ shapes
    roots = random.normal(size=(tasks, n, n)) / np.sqrt(n) + np.eye(n)
    curvature = np.einsum("tki,tkj->tij", roots, roots)
    curvature /= np.trace(curvature, axis1=1, axis2=2)[:, None, None] / n
    curvature += 1e-6 * np.eye(n)
    penalty = random.exponential(0.08, size=(tasks, categories, choices))
    return Quadratics(curvature, np.clip(optimum, 0.02, 0.98), penalty - penalty.min(axis=2, keepdims=True))


def ripples(n: int, seed: int, tasks: int, height: float = 0.3, waves: int = 16) -> Callable[[Array], Array]:
    """A loss in [0, 2·height] with many valleys, one function per task: height · (1 + tanh of random cosines).

    The cosines are random Fourier features of a Gaussian kernel whose width is an eighth of the box's expected
    distance between random points, whatever n is: along a line between two of them the loss goes up and down twice.
    """
    random = np.random.default_rng([seed, n, tasks, 5])
    width = np.sqrt(n / 6.0) / 8.0
    frequency = random.normal(size=(tasks, waves, n)) / width
    phase = random.uniform(0.0, 2.0 * np.pi, size=(tasks, waves))

    def ripple(values: Array) -> Array:
        cosines = np.cos(frequency @ values + phase)
        return np.asarray(height * (1.0 + np.tanh(cosines.sum(axis=1) / np.sqrt(waves / 2.0))))

    return ripple
