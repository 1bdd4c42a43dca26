"""Factors of arcs and of means on the sphere, from inner products; and sums with one factor for every vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from merging.methods.contract import Elements, Inputs, Values
from merging.methods.pipeline import summed
from merging.recipe import Assignment, MergingError
from merging.statistics import Axis, On, quadratic

COLINEAR = 0.9995  # slerp: beyond this |cos| the arc is a straight line, for all that sin Ω in a denominator can tell
_SHORTEST = 1e-8  # slerp: a vector of at most this norm has no direction
_CLAMP = 1e-7  # nuslerp: norms are at least this
# NuSlerp: sin² Ω of at most this is a straight line. mergekit has 1e-16, which exact opposites miss by the rounding of
# a cosine and which then divides by next to nothing.
_STRAIGHT = 1e-12
_OPPOSITE = 1e-7  # karcher: sin θ under which the way to an opposite is no longer known
_CANCELLED = 1e-8  # of the coefficients of a mean
_SMALLEST_PRODUCT = 1e-6  # model stock: of two norms
_POLE = 1e-6  # model stock in mergekit's convention
_ELEMENTS = 1 << 32  # that the 32-bit index of a kernel tells apart


def arc(matrix: np.ndarray, t: float) -> tuple[float, float]:
    """Slerp's factors of two ends at position ``t`` of the arc.

    Args:
        matrix: [2, 2] their inner products.
        t: 0 is the first end, 1 the second.
    """
    first, second = norms_of(matrix)
    if min(first, second) <= _SHORTEST:
        return 1.0 - t, t
    cosine = max(-1.0, min(1.0, float(matrix[0, 1]) / first / second))
    if abs(cosine) > COLINEAR:
        return 1.0 - t, t
    omega = math.acos(cosine)
    return math.sin((1.0 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)


def arcs(matrices: np.ndarray, t: float) -> np.ndarray:
    """NuSlerp's factors.

    Args:
        matrices: [vectors, 2, 2] inner products of the two ends.
        t: 0 is the first end, 1 the second.

    Returns:
        [2, vectors] float64.
    """
    norms = np.maximum(np.sqrt(np.diagonal(matrices, axis1=1, axis2=2)), _CLAMP)
    cosine = np.clip(matrices[:, 0, 1] / norms[:, 0] / norms[:, 1], -1.0, 1.0)
    straight = 1.0 - cosine * cosine <= _STRAIGHT
    omega = np.where(straight, 1.0, np.arccos(cosine))
    factors = np.stack([np.sin((1.0 - t) * omega), np.sin(t * omega)]) / np.sin(omega)
    factors[:, straight] = [[1.0 - t], [t]]
    return factors


def karcher(matrix: np.ndarray, norms: Sequence[float], alphas: Sequence[float], steps: int, tol: float) -> list[float]:
    """The unit mean direction as factors of the vectors: see :class:`Karcher`.

    Args:
        matrix: [vectors, vectors] inner products.
        norms: [vectors] none of them zero.
        alphas: [vectors] weights of sum 1.
        steps: at most.
        tol: step and angle that count as zero.
    """
    mean = [alpha / norm for alpha, norm in zip(alphas, norms, strict=True)]
    length = _root(quadratic(mean, matrix))
    if length < tol or length == 0.0:
        mean, length = [1.0] + [0.0] * (len(norms) - 1), norms[0]
    mean = [factor / length for factor in mean]
    for _ in range(steps):
        cosines = [
            max(-1.0, min(1.0, math.fsum(factor * float(g) for factor, g in zip(mean, row, strict=True)) / norm))
            for row, norm in zip(matrix, norms, strict=True)
        ]
        angles = [math.acos(cosine) for cosine in cosines]
        pulls = [
            alpha * angle / math.sin(angle) if angle >= tol and math.sin(angle) > _OPPOSITE else 0.0
            for alpha, angle in zip(alphas, angles, strict=True)
        ]
        along = math.fsum(pull * cosine for pull, cosine in zip(pulls, cosines, strict=True))
        tangent = [pull / norm - along * factor for pull, norm, factor in zip(pulls, norms, mean, strict=True)]
        step = _root(quadratic(tangent, matrix))
        if step < tol or step == 0.0:
            break
        mean = [
            math.cos(step) * factor + math.sin(step) / step * toward
            for factor, toward in zip(mean, tangent, strict=True)
        ]
        length = _root(quadratic(mean, matrix)) or 1.0
        mean = [factor / length for factor in mean]
    return mean


def stock(matrices: np.ndarray, mergekit: bool) -> np.ndarray:
    """Model stock's interpolation.

    Args:
        matrices: [vectors, sources, sources] inner products of the task vectors.
        mergekit: its convention, not the paper's.

    Returns:
        [vectors] float64 t.
    """
    count = matrices.shape[1]
    norms = np.sqrt(np.diagonal(matrices, axis1=1, axis2=2))
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    cosine = np.zeros(len(matrices))
    for i, j in pairs:
        cosine += np.clip(matrices[:, i, j] / np.maximum(norms[:, i] * norms[:, j], _SMALLEST_PRODUCT), -1.0, 1.0)
    cosine /= len(pairs)
    below = 1.0 + (count - 1) * cosine
    pole = np.abs(below) < _POLE if mergekit else cosine <= 0.0
    ratio = np.where(pole, 0.0, count * cosine / np.where(pole, 1.0, below))
    return ratio if mergekit else np.clip(ratio, 0.0, 1.0)


def by_vector(inputs: Inputs, along: Axis, on: On, shared: bool) -> Tensor:
    """Σ f_tv·y_t with factors of every vector v, in the dtype of the numbers.

    Numbers: [sources, vectors], or [vectors] if all sources share them. Integers: the length of the last axis, or
    that of all but the first.
    """
    dtype = inputs.numbers.dtype
    vector = vector_of(inputs.indices, inputs.integers[0], along)
    vectors = inputs.numbers.shape[0] if shared else inputs.numbers.shape[0] // len(inputs.sources)
    base = inputs.base.to(dtype)
    terms = []
    for slot, source in enumerate(inputs.sources):
        term = source.to(dtype) - base if on == "task_vectors" else source.to(dtype)
        terms.append(term * inputs.numbers[vector if shared else vector + slot * vectors])
    return summed(terms) + base if on == "task_vectors" else summed(terms)


def vector_of(indices: Tensor, inner: Tensor, along: Axis) -> Tensor:
    """Which vector an element belongs to: int64 index // inner, or index % inner.

    Args:
        indices: int32 bits of numbers in [0, 2³²).
        inner: 0-d int32, at least 1.
        along: ``last`` divides, ``first`` gives the rest.
    """
    # Division in float64 runs on many elements at once, that of integers does not. Its floor is exact here: a quotient
    # that is no integer is at least 1/inner below the next one, and its rounding is at most 2⁻²¹/inner.
    signed, width = indices.to(torch.float64), inner.to(torch.float64)
    place = signed + (signed < 0).to(torch.float64) * _ELEMENTS
    quotient = torch.floor(place / width)
    return (quotient if along == "last" else place - quotient * width).to(torch.int64)


def elements_by_vector(
    method: str, shape: tuple[int, ...], on: On, axis: Axis, factors: np.ndarray, sources: int
) -> Elements:
    """Σ f_tv·θ_t, or θ0 + Σ f_tv·τ_t, for every vector v along an axis.

    Args:
        method: its name, for messages.
        shape: of the tensor.
        on: weights or task vectors.
        axis: along which the vectors run.
        factors: [sources, vectors], or [1, vectors] for all sources alike.
        sources: how many there are.
    """
    inner = shape[-1] if axis == "last" else math.prod(shape[1:])
    if math.prod(shape) > _ELEMENTS or inner >= _ELEMENTS // 2:
        raise MergingError(
            f"{method} by vector counts at most 2^32 elements of a tensor, found one of shape {shape}; merge that one "
            "as a whole"
        )
    return Elements(
        by_vector,
        (axis, on, len(factors) < sources),
        numbers=tuple(factors.reshape(-1).tolist()),
        integers=(inner,),
        sources=tuple(range(sources)),
        base=on == "task_vectors",
        indexed=True,
    )


def has_vectors(shape: tuple[int, ...]) -> bool:
    """Whether a tensor is made of vectors, and is not one itself, or a number, or empty."""
    return len(shape) > 1 and math.prod(shape) > 0


def norms_of(matrix: np.ndarray) -> list[float]:
    """Norms, from the diagonal of a Gram matrix."""
    return [math.sqrt(float(each)) for each in np.diagonal(matrix)]


def _root(square: float) -> float:
    return math.sqrt(max(square, 0.0))


def shares_of(coefficients: Sequence[float], what: str) -> tuple[float, ...]:
    """c_t / Σ c; what sums to 1, but for rounding, stays as it is: dividing again would drift.

    Raises:
        MergingError: Σ c is zero.
    """
    total = math.fsum(coefficients)
    if abs(total) < _CANCELLED:
        raise MergingError(
            f"{what} weights its sources by c_t / Σ c, and the coefficients {list(coefficients)} sum to {total:g}; "
            "change them"
        )
    largest = max(1.0, *map(abs, coefficients))
    if abs(total - 1.0) <= 1e-12 * largest:
        return tuple(coefficients)
    return tuple(coefficient / total for coefficient in coefficients)


def by_shares(assignment: Assignment) -> Assignment:
    """An assignment whose sources have nothing but coefficients, with :func:`shares_of` these; without what is 0.

    Raises:
        MergingError: Σ c is zero.
    """
    shares = shares_of(Values.of(assignment).column("coefficient"), assignment.method)
    sources = tuple(
        (alias, (("coefficient", share),))
        for (alias, _), share in zip(assignment.sources, shares, strict=True)
        if share != 0.0
    )
    return replace(assignment, sources=sources)
