"""What no candidate changes: inner products of the sources' weights, or task vectors, in float64.

Slerp, Karcher means, model stock and their kin need nothing else of a tensor: from a Gram matrix come a few
coefficients, and the merge is one linear pass. float32 sums of a million products would lose the angle between two
fine-tunes of one base.

Every sum is a fixed sequence of elementwise additions, so it is the same for every number of threads, vector width
and device; library reductions are not. Task vectors that all are known in factors are the exception: nothing of them is
multiplied out, and their inner products are those of the factors (:mod:`merging.factored`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from merging import factored
from merging.pool import Pool, pieces

# Weights themselves, or their differences to the base.
On = Literal["weights", "task_vectors"]

# The vectors that a matrix is made of: along its last axis, or along its first.
Axis = Literal["last", "first"]

# A sum over a tensor: blocks of chunks are added lane by lane, the lanes by a tree, and the blocks exactly. On the CPU
# the lanes of a few sources stay in the second-level cache.
LANES = 1 << 14
CHUNKS = 64

# Elements of a piece of a matrix whose vectors are summed.
_PIECE = 1 << 18


def gram(pool: Pool, name: str, on: On) -> np.ndarray:
    """Inner products of all pairs of sources over a whole tensor. Computed once for a pool and tensor.

    Args:
        pool: the sources.
        name: canonical tensor name.
        on: the sources' weights, or their task vectors: differences taken in float64.

    Returns:
        [sources, sources] float64, symmetric; read-only.
    """

    def compute() -> np.ndarray:
        factors = pool.all_factors(name) if on == "task_vectors" else None
        return _gram(pool, name, on) if factors is None else _fixed(factored.inner_products(factors))

    found: np.ndarray = pool.once(("gram", on, name), compute)
    return found


def vector_grams(pool: Pool, name: str, on: On, axis: Axis) -> np.ndarray:
    """As :func:`gram`, for every vector along one axis of a tensor of at least two axes.

    Args:
        pool, name, on: as in :func:`gram`.
        axis: ``last``: the vectors are the rows, in the order of the flattened tensor; ``first``: they run along the
            first axis, one for every position in the others.

    Returns:
        [vectors, sources, sources] float64; read-only.
    """

    def compute() -> np.ndarray:
        # Rows of a tensor of more axes are shorter than those of its factors.
        factors = pool.all_factors(name) if on == "task_vectors" and len(pool.shape(name)) == 2 else None
        if factors is None:
            return _vector_grams(pool, name, on, axis)
        products = factored.row_inner_products if axis == "last" else factored.column_inner_products
        return _fixed(products(factors))

    found: np.ndarray = pool.once(("gram", on, axis, name), compute)
    return found


def norm_of_sum(pool: Pool, name: str, on: On, factors: Sequence[float]) -> float:
    """‖Σ f_t·y_t‖ of a tensor by summing the elements, for vectors that nearly cancel.

    fᵀGf would lose it: its rounding is 1e-16 of the terms, so that of the norm 1e-8. Remembered for recent factors.

    Args:
        pool, name, on: as in :func:`gram`.
        factors: [sources].
    """
    key = ("norm of sum", on, name, tuple(factors))

    def compute() -> float:
        thin = pool.all_factors(name) if on == "task_vectors" else None
        if thin is not None:
            return factored.norm_of_sum(thin, factors)
        squares: list[float] = []
        for run in _runs(pool, name, on):
            lanes = None
            for wide in run:
                total = wide[0] * factors[0]
                for number, factor in enumerate(factors[1:], start=1):
                    total += wide[number] * factor
                total *= total
                lanes = total if lanes is None else lanes.add_(total)
            squares += [] if lanes is None else _tree(lanes).tolist()
        return math.sqrt(math.fsum(squares))

    return float(pool.lately(key, compute))


def quadratic(factors: Sequence[float], matrix: np.ndarray) -> float:
    """Σ f_i·G_ij·f_j, rounded once."""
    return math.fsum(
        one * other * float(matrix[i, j]) for i, one in enumerate(factors) for j, other in enumerate(factors)
    )


def _gram(pool: Pool, name: str, on: On) -> np.ndarray:
    count = len(pool.aliases)
    pairs = [(i, j) for i in range(count) for j in range(i + 1)]
    sums: dict[tuple[int, int], list[float]] = {pair: [] for pair in pairs}
    for run in _runs(pool, name, on):
        lanes: dict[tuple[int, int], Tensor] = {}
        product: Tensor | None = None
        for wide in run:
            for i, j in pairs:
                if (i, j) in lanes:
                    product = torch.mul(wide[i], wide[j], out=product)
                    lanes[i, j] += product
                else:
                    lanes[i, j] = wide[i] * wide[j]
        for pair, terms in lanes.items():
            sums[pair] += _tree(terms).tolist()
    result = np.zeros((count, count))
    for i, j in pairs:
        result[i, j] = result[j, i] = math.fsum(sums[i, j])
    return _fixed(result)


def _runs(pool: Pool, name: str, on: On) -> Iterator[Iterator[list[Tensor]]]:
    """For every few blocks, for each of their chunks in order: [sources] float64 [blocks, lanes].

    Each source is converted once; the tensors are overwritten by the next chunk's.
    """
    sources = [tensor.reshape(-1) for tensor in pool.sources(name)]
    base = pool.base(name).reshape(-1) if on == "task_vectors" else None
    numel, device = sources[0].numel(), sources[0].device
    block = LANES * CHUNKS
    together = block * _blocks_at_once(device)
    runs = [(start, (stop - start) // block, CHUNKS, LANES) for start, stop in pieces(numel - numel % block, together)]
    rest = numel % block
    if rest >= LANES:
        runs.append((numel - rest, 1, rest // LANES, LANES))
    if rest % LANES:
        runs.append((numel - rest % LANES, 1, 1, rest % LANES))

    def chunks(start: int, blocks: int, count: int, lanes: int) -> Iterator[list[Tensor]]:
        wide = [torch.empty((blocks, lanes), dtype=torch.float64, device=device) for _ in sources]
        cut = slice(start, start + blocks * count * lanes)
        narrow = [source[cut].view(blocks, count, lanes) for source in sources]
        origin = None if base is None else base[cut].view(blocks, count, lanes)
        for number in range(count):
            for target, source in zip(wide, narrow, strict=True):
                target.copy_(source[:, number])
            if origin is not None:
                shared = origin[:, number].to(torch.float64)
                for target in wide:
                    target -= shared
            yield wide

    return (chunks(*run) for run in runs)


def _blocks_at_once(device: torch.device) -> int:
    """A device's kernels cost more to start than to run, so it sums many blocks side by side; with the same bits."""
    return 1 if device.type == "cpu" else 64


def _vector_grams(pool: Pool, name: str, on: On, axis: Axis) -> np.ndarray:
    shape = tuple(pool.source(name, 0).shape)
    rows, columns = (math.prod(shape[:-1]), shape[-1]) if axis == "last" else (shape[0], math.prod(shape[1:]))
    count = len(pool.aliases)
    result = np.zeros((rows if axis == "last" else columns, count, count))
    sources = [tensor.reshape(rows, columns) for tensor in pool.sources(name)]
    base = pool.base(name).reshape(rows, columns) if on == "task_vectors" else None
    for start, stop in pieces(rows, max(1, _PIECE // max(columns, 1))):
        origin = None if base is None else base[start:stop].to(torch.float64)
        wide = [_wide(source[start:stop], origin) for source in sources]
        product = torch.empty_like(wide[0])
        for i in range(count):
            for j in range(i + 1):
                terms = torch.mul(wide[i], wide[j], out=product)
                if axis == "last":
                    result[start:stop, i, j] = _tree(terms).cpu().numpy()
                else:  # rows of later pieces are added in order
                    result[:, i, j] += _tree(terms.T).cpu().numpy()
                result[:, j, i] = result[:, i, j]
    return _fixed(result)


def _fixed(result: np.ndarray) -> np.ndarray:
    """Read-only."""
    result.setflags(write=False)
    return result


def _wide(piece: Tensor, origin: Tensor | None) -> Tensor:
    wide = piece.to(torch.float64)
    return wide if origin is None else wide - origin


def _tree(terms: Tensor) -> Tensor:
    """[…, n] -> […] sums over the last axis, by a fixed tree. Overwrites the terms."""
    length = terms.shape[-1]
    while length > 1:
        half = length // 2
        terms[..., :half].add_(terms[..., length - half : length])
        length -= half
    return terms[..., 0] if length else terms.sum(-1)
