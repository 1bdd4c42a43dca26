"""Decompositions and solves of the matrix methods: float64, on one thread, with what is exactly singular left out.

A result must not change with the number of threads, and libraries split their sums by it: whoever computes a product
does so within :func:`one_thread`. Tensors may then be worked on side by side, one per thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from merging.recipe import MergingError

_NotConverged: type[Exception] = torch.linalg.LinAlgError  # type: ignore[attr-defined]

# Eigenvalues of a Gram matrix above this fraction of the largest give singular vectors that are orthonormal to 1e-7 and
# better, below the rounding of the float32 that products are kept in.
_RESOLVED = 1e-9

_LOCK = threading.Lock()
_inside = {"threads": 0, "before": 1}  # how many threads are within the context, and their setting before the first was
_own = threading.local()


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the context, torch and its linear algebra use one thread in the calling thread.

    May be nested, and entered by several threads at a time; afterwards each has the setting from before the first.
    """
    depth = getattr(_own, "depth", 0)
    if not depth:
        with _LOCK:
            before = torch.get_num_threads()  # asked for first, or torch would set this thread's number later
            if not _inside["threads"]:
                _inside["before"] = before
            _inside["threads"] += 1
            torch.set_num_threads(1)
    _own.depth = depth + 1
    try:
        yield
    finally:
        _own.depth = depth
        if not depth:
            with _LOCK:
                _inside["threads"] -= 1
                torch.set_num_threads(_inside["before"])


def wide(tensor: Tensor) -> Tensor:
    """In float64, on its device; on the CPU where the device has no float64."""
    return tensor.cpu().to(torch.float64) if tensor.device.type == "mps" else tensor.to(torch.float64)


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular value decomposition.

    Args:
        matrix: [m, n] float64.

    Returns:
        U [m, r], S [r] descending, Vᵀ [r, n], r = min(m, n); ``matrix`` = U·diag(S)·Vᵀ.

    Raises:
        MergingError: it does not converge, as for a matrix that is not finite.
    """
    m, n = matrix.shape
    if not min(m, n):
        return matrix.new_zeros(m, 0), matrix.new_zeros(0), matrix.new_zeros(0, n)
    if m < n:
        u, s, vh = svd(matrix.mT)
        return vh.mT, s, u.mT
    try:
        if 2 * m >= 3 * n:  # the triangle of a tall matrix has its singular values, and is smaller
            q, triangle = torch.linalg.qr(matrix)
            u, s, vh = torch.linalg.svd(triangle)
            return q @ u, s, vh
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    except _NotConverged as error:
        raise MergingError(
            f"the singular value decomposition of a {m}×{n} matrix did not converge ({error}); are its weights finite?"
        ) from error
    return u, s, vh


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [n], ascending, and eigenvectors [n, n], in columns, of a symmetric float64 matrix.

    Raises:
        MergingError: it does not converge.
    """
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except _NotConverged as error:
        raise MergingError(
            f"the eigenvalues of a symmetric matrix of size {matrix.shape[-1]} did not converge ({error}); are its "
            "inputs finite?"
        ) from error
    return values, vectors


def leading(matrix: Tensor, count: int | None = None, noise: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """The part of a singular value decomposition that stands out from rounding.

    From the eigenvalues of the smaller Gram matrix where none of what is asked for is lost to their squares, which is
    several times faster; otherwise from the matrix itself.

    Args:
        matrix: [m, n] float64.
        count: singular values at most, the largest; None is all.
        noise: singular values up to this may come from the rounding of the matrix's own elements, and are left out.

    Returns:
        U [m, k], S [k] descending, all positive, Vᵀ [k, n].

    Raises:
        MergingError: as :func:`svd`.
    """
    m, n = matrix.shape
    if m < n:
        u, s, vh = leading(matrix.mT, count, noise)
        return vh.mT, s, u.mT
    wanted = n if count is None else min(count, n)
    if not wanted:
        return matrix.new_zeros(m, 0), matrix.new_zeros(0), matrix.new_zeros(0, n)
    squares, vectors = eigh(matrix.mT @ matrix)
    s = squares.clamp_min(0.0).sqrt().flip(0)[:wanted]
    resolved = float(s[0]) * _RESOLVED**0.5
    if float(s[-1]) > resolved or noise > 2.0 * resolved:  # what is not resolved is not wanted
        s = s[s > max(noise, resolved)]
        v = vectors.flip(1)[:, : len(s)]
        return matrix @ v / s, s, v.mT
    u, s, vh = svd(matrix)
    floor = max(noise, float(s[0]) * max(m, n) * torch.finfo(s.dtype).eps)
    kept = int((s[:wanted] > floor).sum())
    return u[:, :kept], s[:kept], vh[:kept]


def polar(matrix: Tensor) -> Tensor:
    """The orthogonal factor of the polar decomposition: the nearest matrix whose columns (rows) are orthonormal.

    Of a matrix without full numerical rank it is the partial isometry PQᵀ over the singular values that are not zero:
    what the rest would be is up to the library.

    Args:
        matrix: [m, n] float64.
    """
    p, _, qh = leading(matrix)
    return p @ qh


def solve_right(right: Tensor, matrix: Tensor) -> Tensor:
    """``right`` · ``matrix``⁻¹ for a symmetric positive semidefinite matrix.

    By Cholesky; where the matrix is singular to working precision, by the pseudo-inverse of its eigenvalues.

    Args:
        right: [k, n] float64.
        matrix: [n, n] float64, symmetric.
    """
    rounding = matrix.shape[0] * torch.finfo(matrix.dtype).eps
    factor, info = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal().square()
    # The rounding of a singular matrix may leave small positive pivots: then the factorisation succeeds, of noise.
    if not int(info) and bool((pivots > 100 * rounding * pivots.max()).all()):
        return torch.cholesky_solve(right.mT, factor).mT
    values, vectors = eigh(matrix)
    kept = values > values[-1].clamp_min(0.0) * rounding
    vectors = vectors[:, kept]
    return (right @ vectors / values[kept]) @ vectors.mT
