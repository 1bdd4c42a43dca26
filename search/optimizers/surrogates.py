"""Models of one utility over genomes, for pre-screening: small, exact about their own quality, numpy and scipy only.

Both are kernel regressions, so that leave-one-out predictions have a closed form (Rasmussen & Williams, "Gaussian
processes for machine learning", 2006, equations 5.10 to 5.12; here with the hyperparameters held fixed). ``quadratic``
is ridge regression on all monomials up to degree two (the kernel ``(1 + x . y)^2``), its ridge chosen by
leave-one-out error. ``gp`` has a Matern 5/2 kernel and hyperparameters of maximum marginal likelihood (ibid., 5.9)
under weak priors: a length scale per gene up to 24 of them, beyond that one for all coefficients and one for all
categories.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import linalg, optimize

from search.optimizers.contract import Box, Genome
from search.optimizers.outcomes import Array

MOST_SCALES = 24
RIDGES = 10.0 ** np.arange(-4.0, 3.5, 0.5)
LEAST_NOISE = 1e-4
WIDEST = 12.0


class Surrogate(ABC):
    """A model of n observations.

    Attributes:
        quality: leave-one-out R2, at most 1; 0 is as good as the mean, and where all observations are equal.
        parameters: that took long to find, if any.
    """

    quality: float
    parameters: Array = np.zeros(0)

    @abstractmethod
    def predict(self, genomes: Sequence[Genome]) -> Array:
        """[m] expected values."""


class Quadratic(Surrogate):
    """Ridge regression on all monomials of degree 0, 1 and 2; one-hot categories."""

    def __init__(self, box: Box, genomes: Sequence[Genome], targets: Array) -> None:
        """Fit.

        Args:
            box: of the genomes.
            genomes: n >= 2 canonical ones.
            targets: [n] finite.
        """
        self._box = box
        features = _one_hot(box, genomes)
        self._middle = features.mean(axis=0)
        size = np.sqrt(((features - self._middle) ** 2).sum(axis=1).mean())
        self._size = size if size > 0.0 else 1.0
        self._features = (features - self._middle) / self._size
        self._mean = float(targets.mean())
        values, vectors = np.linalg.eigh(self._kernel(self._features))
        values = np.maximum(values, 0.0)
        turned = vectors.T @ (targets - self._mean)
        errors = []
        for ridge in RIDGES:
            weights = 1.0 / (values + ridge)
            residuals = (vectors @ (weights * turned)) / ((vectors**2) @ weights)
            errors.append(float((residuals**2).sum()))
        best = int(np.argmin(errors))
        self._dual = vectors @ (turned / (values + RIDGES[best]))
        self.quality = _quality(errors[best], targets)

    def predict(self, genomes: Sequence[Genome]) -> Array:
        """See :class:`Surrogate`."""
        features = (_one_hot(self._box, genomes) - self._middle) / self._size
        return np.asarray(self._mean + self._kernel(features) @ self._dual)

    def _kernel(self, features: Array) -> Array:
        return np.asarray((1.0 + features @ self._features.T) ** 2)


class GaussianProcess(Surrogate):
    """Matern 5/2, maximum marginal likelihood."""

    def __init__(
        self,
        box: Box,
        genomes: Sequence[Genome],
        targets: Array,
        start: Array | None = None,
        parameters: Array | None = None,
    ) -> None:
        """Fit.

        Args:
            box: of the genomes.
            genomes: n >= 2 canonical ones.
            targets: [n] finite.
            start: :attr:`parameters` of an earlier fit in the same box, to begin at; else the priors' means.
            parameters: that this fit came to before: then they are not sought again.

        Raises:
            ValueError: parameters that are not of this box.
        """
        self._box, self._genomes = box, list(genomes)
        self._mean, spread = float(targets.mean()), float(targets.std())
        self._spread = spread if spread > 0.0 else 1.0
        self._targets = (targets - self._mean) / self._spread
        self._gaps = _gaps(box, genomes, genomes)
        groups = len(self._gaps)
        # in units of the gaps' own mean, so that a prior of mean 1 / groups fits every box
        scale = self._gaps.mean(axis=(1, 2))
        self._scale = np.where(scale > 0.0, scale, 1.0)
        self._gaps = self._gaps / self._scale[:, None, None]
        self._prior = np.concatenate([np.full(groups, -np.log(max(1, groups))), [0.0, np.log(0.1)]])
        if parameters is None:
            parameters = self._optimized(self._prior if start is None else start)
        elif parameters.shape != self._prior.shape or not (np.abs(parameters) <= WIDEST).all():
            raise ValueError(f"expected {len(self._prior)} parameters within ±{WIDEST}, found {parameters}")
        self.parameters: Array = parameters
        covariance, _, _ = self._covariance(self.parameters)
        inverse = linalg.inv(covariance)
        self._dual = inverse @ self._targets
        residuals = self._dual / np.diag(inverse)
        self.quality = _quality(float((residuals**2).sum()), self._targets)

    def predict(self, genomes: Sequence[Genome]) -> Array:
        """See :class:`Surrogate`."""
        gaps = _gaps(self._box, genomes, self._genomes) / self._scale[:, None, None]
        kernel, _ = _matern(np.tensordot(np.exp(self.parameters[:-2]), gaps, axes=1))
        return np.asarray(self._mean + self._spread * np.exp(self.parameters[-2]) * (kernel @ self._dual))

    def _optimized(self, start: Array) -> Array:
        found: Any = optimize.minimize(
            self._loss,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=[(-WIDEST, 6.0)] * len(start),
            options={"maxiter": 40},
        )
        return np.asarray(found.x, dtype=np.float64)

    def _loss(self, parameters: Array) -> tuple[float, Array]:
        """Negative log posterior of the hyperparameters, and its gradient."""
        covariance, kernel, slope = self._covariance(parameters)
        away = (parameters - self._prior) / 2.0
        try:
            factor = linalg.cholesky(covariance, lower=True)
        except linalg.LinAlgError:
            return 1e10, np.zeros(len(parameters))
        inverse = linalg.cho_solve((factor, True), np.eye(len(covariance)))
        dual = inverse @ self._targets
        loss = 0.5 * float(self._targets @ dual) + float(np.log(np.diag(factor)).sum()) + 0.5 * float(away @ away)
        outer = 0.5 * (inverse - np.outer(dual, dual))
        signal = np.exp(parameters[-2])
        weights = np.exp(parameters[:-2])
        gradient = np.empty(len(parameters))
        gradient[:-2] = weights * np.einsum("ij,gij->g", outer * slope * signal, self._gaps, optimize=True)
        gradient[-2] = signal * float((outer * kernel).sum())
        gradient[-1] = np.exp(parameters[-1]) * float(np.trace(outer))
        return loss, gradient + away / 2.0

    def _covariance(self, parameters: Array) -> tuple[Array, Array, Array]:
        """Covariance of the observations [n, n], its kernel and the kernel's slope in the squared distance."""
        kernel, slope = _matern(np.tensordot(np.exp(parameters[:-2]), self._gaps, axes=1))
        covariance = np.exp(parameters[-2]) * kernel
        covariance[np.diag_indices_from(covariance)] += np.exp(parameters[-1]) + LEAST_NOISE
        return covariance, kernel, slope


def _quality(errors: float, targets: Array) -> float:
    """R2 of leave-one-out residuals, against the mean of the others."""
    count = len(targets)
    spread = float(((targets - targets.mean()) ** 2).sum()) * (count / (count - 1.0)) ** 2
    return 1.0 - errors / spread if spread > 0.0 else 0.0


def _matern(squares: Array) -> tuple[Array, Array]:
    """Matern 5/2 of squared distances, and its derivative in them."""
    root = np.sqrt(5.0 * np.maximum(squares, 0.0))
    decay = np.exp(-root)
    return (1.0 + root + root**2 / 3.0) * decay, -(5.0 / 6.0) * (1.0 + root) * decay


def _values(genomes: Sequence[Genome]) -> tuple[Array, npt.NDArray[np.int64]]:
    values = np.asarray([genome.values for genome in genomes], dtype=np.float64).reshape(len(genomes), -1)
    return values, np.asarray([genome.categories for genome in genomes], dtype=np.int64).reshape(len(genomes), -1)


def _one_hot(box: Box, genomes: Sequence[Genome]) -> Array:
    """[n, features] coefficients, then one column per choice; a category that differs is as far as half a range."""
    values, categories = _values(genomes)
    columns = [values]
    for index, count in enumerate(box.categories):
        if count > 1:
            columns.append(np.eye(count)[categories[:, index]] * np.sqrt(0.125))
    return np.concatenate(columns, axis=1)


def _gaps(box: Box, ones: Sequence[Genome], others: Sequence[Genome]) -> Array:
    """[groups, n, m] squared differences of coefficients, 0 or 1 for categories; summed where genes share a scale."""
    values, categories = _values(ones)
    values_too, categories_too = _values(others)
    if box.continuous + len(box.categories) <= MOST_SCALES:
        parts = [(values[:, None, gene] - values_too[None, :, gene]) ** 2 for gene in range(box.continuous)]
        parts += [
            (categories[:, None, gene] != categories_too[None, :, gene]).astype(np.float64)
            for gene in range(len(box.categories))
        ]
    else:
        squares = (values**2).sum(axis=1)[:, None] + (values_too**2).sum(axis=1)[None, :] - 2.0 * values @ values_too.T
        parts = [np.maximum(squares, 0.0)] if box.continuous else []
        if box.categories:
            parts.append((categories[:, None, :] != categories_too[None, :, :]).sum(axis=2).astype(np.float64))
    return np.stack(parts) if parts else np.zeros((0, len(ones), len(others)))
