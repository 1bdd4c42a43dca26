"""Singular values and directions of task vectors: how many directions matter, and whether experts share them.

A matrix up to ``exact_rank`` rows or columns is decomposed exactly, from the eigenvalues of its smaller Gram matrix in
float64; singular values below 3e-7 of the largest are lost in that, and taken for zero. Of a larger one the leading
directions come from subspace iteration; what they leave is described by stochastic Lanczos quadrature (Ubaru, Chen and
Saad 2017), which gives the effective and the energy rank to a few per cent at the cost of some hundred products with a
vector. A change that is known as a product of factors is decomposed in their small common space, exactly at any size.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from merging.diagnose.measures import Tally
from merging.linear_algebra import eigh, svd

SAMPLED = 4
"""How many of the tensors whose names differ only in numbers are decomposed with ``spectra: sampled``."""

ENERGY = 0.9
"""Of ‖Δ‖_F², what the energy rank's directions hold."""

MERGED_ENERGY = 0.95
"""Of ‖Σ Δ_t‖_F², what the directions hold that alignment is measured against."""

# Eigenvalues of a Gram matrix below this fraction of the largest are rounding.
_ZERO = 1e-13

# Squared singular values above this fraction of the largest have directions that are orthonormal to 1e-6.
_RESOLVED = 1e-9

# Of a matrix of unit norm in float32, what is left of a square by rounding.
_FLOAT32 = 1e-11

_ITERATIONS = 6
_PROBES = 8
_STEPS = 40

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True)
class Spectrum:
    """Of one matrix Δ [m, n].

    Attributes:
        u: [m, k] float64, leading left singular vectors, of directions that are not lost in rounding.
        s: [k] the leading singular values, descending.
        v: [n, k] leading right singular vectors.
        ranks: effective, stable and energy rank; nan for a matrix of zeros.
        estimated: effective and energy rank are estimates.
    """

    u: Tensor
    s: Tensor
    v: Tensor
    ranks: tuple[float, float, float]
    estimated: bool = False


@dataclass(frozen=True)
class Product:
    """A matrix as ``left`` [m, r] times ``right`` [r, n], float64."""

    left: Tensor
    right: Tensor

    def dense(self) -> Tensor:
        """[m, n]."""
        return self.left @ self.right


def decompose(matrix: Tensor | Product, count: int, exact_rank: int, seed: int = 0) -> Spectrum:
    """Leading singular directions and ranks.

    Args:
        matrix: [m, n] floating point, or a product.
        count: how many directions.
        exact_rank: see the module.
        seed: of the estimate of a large matrix.
    """
    if isinstance(matrix, Product):
        u, s, vh = factored_svd(matrix)
        kept = min(count, int((s.square() > _RESOLVED * s.square().amax()).sum())) if s.numel() else 0
        return Spectrum(u[:, :kept], s[:kept], vh[:kept].mT, ranks(s))
    if matrix.shape[0] > matrix.shape[1]:
        turned = decompose(matrix.mT, count, exact_rank, seed)
        return Spectrum(turned.v, turned.s, turned.u, turned.ranks, turned.estimated)
    if matrix.shape[0] > exact_rank:
        return _estimated(matrix, count, seed)
    matrix = matrix.to(torch.float64)
    squares, vectors = eigh(matrix @ matrix.mT)
    squares, vectors = squares.flip(0), vectors.flip(1)
    largest = float(squares[0]) if squares.numel() else 0.0
    kept = min(count, int((squares > max(_RESOLVED * largest, 0.0)).sum())) if largest > 0.0 else 0
    u, s = vectors[:, :kept], squares[:kept].sqrt()
    return Spectrum(u, s, matrix.mT @ u / s, ranks(torch.where(squares > _ZERO * largest, squares, 0.0).sqrt()))


def factored_svd(matrix: Product) -> tuple[Tensor, Tensor, Tensor]:
    """U [m, r], S [r] descending, Vᵀ [r, n] of a product, from the triangles of its factors."""
    q, left = torch.linalg.qr(matrix.left)
    p, right = torch.linalg.qr(matrix.right.mT)
    u, s, vh = svd(left @ right.mT)
    return q @ u, s, vh @ p.mT


def ranks(values: Tensor, weights: Tensor | None = None, largest: float | None = None) -> tuple[float, float, float]:
    """Effective, stable and energy rank.

    Args:
        values: [count] singular values, not negative.
        weights: how often each one occurs; None: once.
        largest: the largest one; None: that of the values.

    Returns:
        nan each where all are zero. The energy rank is a whole number where all weights are 1.
    """
    values = values.to(torch.float64)
    weights = torch.ones_like(values) if weights is None else weights.to(torch.float64)
    there = (values > 0.0) & (weights > 0.0)
    values, weights = values[there], weights[there]
    if not len(values):
        return math.nan, math.nan, math.nan
    values, order = values.sort(descending=True)
    weights = weights[order]
    shares = values / (values * weights).sum()
    entropy = -float((weights * shares * shares.log()).sum())
    energy = values.square() * weights
    whole = float(energy.sum())
    stable = whole / (float(values[0]) if largest is None else largest) ** 2
    upto = energy.cumsum(0)
    wanted = ENERGY * whole * (1.0 - 1e-12)  # nine equal ones of ten hold it
    place = min(int(torch.searchsorted(upto, wanted)), len(values) - 1)
    before = float(upto[place - 1]) if place else 0.0
    inside = min(1.0, (wanted - before) / float(energy[place])) * float(weights[place])
    inside = inside if float(weights[place]) > 1.0 else float(weights[place])
    return math.exp(entropy), stable, float(weights[:place].sum()) + inside


def compare(tally: Tally, spectra: Sequence[Spectrum], elements: int, smaller: int) -> None:
    """Add ranks, subspace overlaps and interference of one matrix of every expert.

    Args:
        tally: is added to.
        spectra: [experts].
        elements: of the matrix.
        smaller: its smaller side.
    """
    tally.matrix_elements += elements
    tally.ranks.add(np.array([[each.ranks[kind] for each in spectra] for kind in range(3)]).reshape(-1), elements)
    left = [_overlap(spectra[i].u, spectra[j].u) for i, j in combinations(range(len(spectra)), 2)]
    right = [_overlap(spectra[i].v, spectra[j].v) for i, j in combinations(range(len(spectra)), 2)]
    columns = [[each[0] for each in left], [each[1] for each in left]]
    columns += [[each[0] for each in right], [each[1] for each in right]]
    tally.subspaces.add(np.array(columns).reshape(-1), elements)
    if len(spectra) > 1:
        most = max(1, smaller // len(spectra))  # more directions than that cannot be apart
        u = torch.cat([each.u[:, :most] for each in spectra], dim=1)
        v = torch.cat([each.v[:, :most] for each in spectra], dim=1)
        s = torch.cat([each.s[:most] for each in spectra])
        one = torch.eye(len(s), dtype=s.dtype, device=s.device)
        tally.interference += float((((u.mT @ u - one) * s) @ (v.mT @ v - one)).abs().sum())
        tally.strength += float(s.sum())


def alignments(deltas: Sequence[Callable[[], Tensor]] | Sequence[Product]) -> np.ndarray:
    """‖P·Δ_t‖_F / ‖Δ_t‖_F of every task: see :attr:`merging.diagnose.results.Measures.alignment`.

    Args:
        deltas: [tasks] each gives a matrix [m, n] in float64, made anew whenever it is asked for; or all are products.

    Returns:
        [tasks]; nan where Δ_t or Σ Δ_t is zero.
    """
    factored = [each for each in deltas if isinstance(each, Product)]
    made = [each for each in deltas if not isinstance(each, Product)]
    if factored:
        left = torch.cat([each.left for each in factored], dim=1)
        u, s, _ = factored_svd(Product(left, torch.cat([each.right for each in factored])))
        u = u[:, : _holding(s.square(), MERGED_ENERGY)]
        return np.array([_share(Product(u.mT @ each.left, each.right), each) for each in factored])
    total = made[0]()
    for make in made[1:]:
        total = total + make()
    tall = total.shape[0] > total.shape[1]
    squares, vectors = eigh(total.mT @ total if tall else total @ total.mT)
    squares, vectors = squares.flip(0), vectors.flip(1)
    squares = torch.where(squares > _ZERO * squares[:1].clamp_min(0.0), squares, 0.0)
    kept = _holding(squares, MERGED_ENERGY)
    u = vectors[:, :kept]
    if tall:
        u = torch.linalg.qr(total @ (u / squares[:kept].sqrt())).Q
    return np.array([_share(u.mT @ delta, delta) for delta in (make() for make in made)])


def sampled(names: Iterable[str]) -> frozenset[str]:
    """Some of the tensors whose names differ only in their numbers: up to :data:`SAMPLED` of each, spread evenly."""
    alike: dict[str, list[tuple[list[int], str]]] = {}
    for name in names:
        alike.setdefault(_NUMBER.sub("*", name), []).append(([int(each) for each in _NUMBER.findall(name)], name))
    chosen = set()
    for found in alike.values():
        places = np.linspace(0, len(found) - 1, min(SAMPLED, len(found))).round().astype(int)
        chosen |= {sorted(found)[place][1] for place in places}
    return frozenset(chosen)


def _overlap(one: Tensor, other: Tensor) -> tuple[float, float]:
    """How much of the smaller of two subspaces lies in the larger, and what chance gives; nan for an empty one."""
    least, most = sorted((one.shape[1], other.shape[1]))
    if not least:
        return math.nan, math.nan
    return min(1.0, float((one.mT @ other).square().sum()) / least), most / one.shape[0]


def _share(projected: Tensor | Product, delta: Tensor | Product) -> float:
    """‖projected‖_F / ‖Δ‖_F; nan for zeros."""
    part, whole = _norm(projected), _norm(delta)
    return min(1.0, part / whole) if whole > 0.0 and (part > 0.0 or not _is_empty(projected)) else math.nan


def _is_empty(matrix: Tensor | Product) -> bool:
    return (matrix.left if isinstance(matrix, Product) else matrix).shape[0] == 0


def _norm(matrix: Tensor | Product) -> float:
    if isinstance(matrix, Product):  # without what cancels in tr((LᵀL)(RRᵀ))
        return float((torch.linalg.qr(matrix.left).R @ torch.linalg.qr(matrix.right.mT).R.mT).norm())
    return float(matrix.norm())


def _holding(squares: Tensor, share: float) -> int:
    """How many of the largest squares, descending, hold a share of their sum; 0 where all are zero."""
    whole = float(squares.sum())
    if whole <= 0.0:
        return 0
    wanted = share * whole * (1.0 - 1e-12)
    return min(int(torch.searchsorted(squares.cumsum(0), wanted)) + 1, int((squares > 0.0).sum()))


def _estimated(matrix: Tensor, count: int, seed: int) -> Spectrum:
    """Of a matrix [m, n], m ≤ n, by products with it alone, in float32."""
    m, n = matrix.shape
    scale = float(matrix.to(torch.float32).norm())
    if scale == 0.0:
        empty = torch.zeros(0, dtype=torch.float64, device=matrix.device)
        return Spectrum(empty.new_zeros(m, 0), empty, empty.new_zeros(n, 0), ranks(empty), True)
    unit = matrix.to(torch.float32) / scale
    generator = torch.Generator().manual_seed(seed)
    block = min(m, 2 * count + 8)
    q = torch.linalg.qr(unit @ torch.randn(n, block, generator=generator).to(unit.device)).Q
    for _ in range(_ITERATIONS):
        q = torch.linalg.qr(unit @ (unit.mT @ q)).Q
    inner, s, vh = svd((q.mT @ unit).to(torch.float64))
    kept = min(count, int((s.square() > _FLOAT32 * s[0].square()).sum()))
    values, weights = s, torch.ones_like(s)
    rest = 1.0 - float(s.square().sum())
    if rest > _FLOAT32 and m > block:
        more, often = _quadrature(unit, q, generator)
        often = often * (m - block)
        more = more * math.sqrt(rest / max(float((often * more.square()).sum()), 1e-30))
        values, weights = torch.cat([values, more]), torch.cat([weights, often])
    found = ranks(values, weights, float(s[0]))
    u = q.to(torch.float64) @ inner
    return Spectrum(u[:, :kept], s[:kept] * scale, vh[:kept].mT, found, True)


def _quadrature(matrix: Tensor, without: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Singular values of a matrix [m, n], and how often each occurs, outside of a subspace, by Lanczos' method.

    Args:
        matrix: [m, n] float32.
        without: [m, k] orthonormal columns, the subspace that is left out.
        generator: of the starting vectors.

    Returns:
        values, weights: [probes · steps] float64; the weights sum to 1.
    """
    m = matrix.shape[0]

    def outside(x: Tensor) -> Tensor:
        return x - without @ (without.mT @ x)

    steps = min(_STEPS, m - without.shape[1])
    x = outside(torch.randn(m, _PROBES, generator=generator).to(matrix.device))
    basis = [x / x.norm(dim=0)]
    triangle = torch.zeros(_PROBES, steps, steps, dtype=torch.float64)
    for step in range(steps):
        x = outside(matrix @ (matrix.mT @ basis[-1]))
        triangle[:, step, step] = (x * basis[-1]).sum(0).to(torch.float64).cpu()
        for _ in range(2):  # once more takes away what rounding left
            for each in basis:
                x = x - each * (each * x).sum(0)
        length = x.norm(dim=0)
        going = length > _FLOAT32
        if step + 1 == steps or not bool(going.any()):
            break
        basis.append(torch.where(going, x / length.clamp_min(1e-30), 0.0))
        triangle[:, step, step + 1] = triangle[:, step + 1, step] = torch.where(going, length, 0.0).double().cpu()
    squares, vectors = torch.linalg.eigh(triangle)
    weights = vectors[:, 0].square() / _PROBES
    return squares.clamp_min(0.0).sqrt().reshape(-1).to(matrix.device), weights.reshape(-1).to(matrix.device)
