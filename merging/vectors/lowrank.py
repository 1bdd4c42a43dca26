"""Low rank: τ as a product of two thin matrices.

``svd`` keeps the largest singular values of each matrix, the best approximation of a rank (Eckart & Young 1936);
storage r(m + n)/(m·n) of the matrix. Of a large matrix a randomised range finder with power iterations finds as many as
are wanted (Halko, Martinsson & Tropp 2011, arXiv 0909.4061, algorithm 4.4). ``factored`` keeps what is a product
already, such as a LoRA adapter, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from merging.composed import Change, Factored, Factors
from merging.files import TensorInfo
from merging.linear_algebra import leading, one_thread, svd
from merging.pool import pieces
from merging.recipe import MergingError, Value
from merging.vectors.frames import malformed
from merging.vectors.shapes import View, matrices
from merging.vectors.tensors import OutOfReach, Pair

Parts = tuple[dict[str, Value], dict[str, Tensor]]

SHARE = 0.1
"""Of the matrix's size, where nobody says otherwise: TSV-C's (Gargiulo et al. 2024, arXiv 2412.00081)."""

_WHOLE = 2048
"""Up to this many singular values, all are computed."""

_OVERSAMPLED = 16
_POWERS = 3
_PROBED = 16
_BLOCK = 1 << 18  # elements: what stays in a cache
_VALUES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_FACTORS = (torch.float32, torch.bfloat16, torch.float16)


def encode_svd(
    pair: Pair,
    rank: int | None = None,
    error: float | None = None,
    values: str = "float32",
    most: int | None = None,
) -> Parts:
    """The largest singular values of every matrix of a tensor, with their vectors.

    Args:
        pair: floating-point, with two axes or more.
        rank: how many, of each matrix; where no ``error`` is given either, as many as have :data:`SHARE` of the
            numbers of the matrix.
        error: as few as leave this relative error of τ, not counting what the rounding of the values adds; the same
            number of every matrix of a stack.
        values: of the factors: float32 or bfloat16.
        most: give up an ``error`` that needs a larger rank.

    Raises:
        MergingError: a number out of its range, a vector, or an error that ``most`` does not reach.
    """
    if values not in _VALUES:
        raise MergingError(f"expected values of a vector in {' or '.join(_VALUES)}, found {values!r}")
    if rank is not None and error is not None:
        raise MergingError("expected a rank or an error for svd, found both; leave one out")
    view = matrices(pair.shape)
    full = min(view.rows, view.columns)
    if error is None:
        wanted = max(1, int(SHARE / cost(view, 1))) if rank is None else rank
        if type(wanted) is not int or wanted < 1:
            raise MergingError(f"expected a rank of at least 1 for svd, found {rank!r}")
        wanted = min(wanted, full)
    else:
        if not error >= 0.0:
            raise MergingError(f"expected a relative error of at least 0 for svd, found {error!r}")
        wanted = min(full, full if most is None else most)
    stack = _each(pair)
    with torch.no_grad(), one_thread():
        spectra = [_leading(each, wanted) for each in stack]
        if error is not None:
            wanted = _rank(spectra, stack, error, wanted, full)
        lefts = torch.stack([(u * s)[:, :wanted] for u, s, _ in spectra])
        rights = torch.stack([vh[:wanted] for _, _, vh in spectra])
    parts = {"left": lefts, "right": rights}
    if not view.count:
        parts = {name: part[0] for name, part in parts.items()}
    return {}, {name: part.to(_VALUES[values]).contiguous() for name, part in parts.items()}


def encode_factors(factors: Factors, values: str = "exact") -> Parts:
    """Factors, each in the narrowest dtype that holds it.

    Args:
        factors: of a tensor.
        values: ``exact``: as narrow as no bit is lost; or ``bfloat16``, rounded.

    Raises:
        MergingError: no such values.
    """
    if values not in ("exact", "bfloat16"):
        raise MergingError(f"expected the values of factors to be exact or bfloat16, found {values!r}")
    parts = {"left": factors.left, "right": factors.right}
    if values == "bfloat16":
        return {}, {name: part.to(torch.bfloat16) for name, part in parts.items()}
    return {}, {name: _narrowest(part) for name, part in parts.items()}


def error_of(factors: Factors, left: Tensor, right: Tensor) -> float:
    """‖BA − B̂Â‖_F/‖BA‖_F of the products of two pairs of factors, in float64; no product is formed."""
    one, two = factors.left.double(), factors.right.double()
    if all(torch.equal(a.double(), b) for a, b in ((left, one), (right, two))):
        return 0.0
    with torch.no_grad(), one_thread():
        off = _norm(torch.cat([one, -left.double()], 1), torch.cat([two, right.double()], 0))
        return off / (_norm(one, two) or 1.0)


def _norm(left: Tensor, right: Tensor) -> float:
    """‖left @ right‖_F: of the product of their triangles."""
    one = torch.linalg.qr(left, mode="r")[1]
    two = torch.linalg.qr(right.mT, mode="r")[1]
    return float(torch.linalg.matrix_norm(one @ two.mT))


def decode(info: TensorInfo, left: Tensor, right: Tensor) -> Change:
    """What adds the product to the base.

    Raises:
        MergingError: malformed.
    """
    view = matrices(info.shape)
    stacked = left.ndim == 3
    if not stacked and len(info.shape) > 0:
        view = View(0, info.shape[0], math.prod(info.shape[1:]))
    lead = (view.count,) if stacked else ()
    fits = (
        left.dtype in _FACTORS
        and right.dtype in _FACTORS
        and left.ndim == right.ndim == 2 + stacked
        and (not stacked or view.count > 0)
        and tuple(left.shape[:-1]) == (*lead, view.rows)
        and tuple(right.shape) == (*lead, left.shape[-1], view.columns)
    )
    if not fits:
        raise malformed(
            f"factors of a tensor {list(info.shape)}, [rows, rank] and [rank, columns]",
            f"{left.dtype} {list(left.shape)} and {right.dtype} {list(right.shape)}",
        )
    if stacked:
        return Stacked(info.shape, info.dtype, left, right)
    return Factored(Factors.of(left, right), info.dtype)


@dataclass(frozen=True, eq=False)
class Stacked:
    """The sum of base and product for every matrix of a stack; see :class:`merging.composed.Change`."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    left: Tensor
    right: Tensor
    factors: None = None

    def compose(self, base: Tensor) -> Tensor:
        """Base + left @ right, matrix by matrix."""
        out = torch.empty(self.shape, dtype=self.dtype)
        for place, origin, left, right in zip(out, base, self.left, self.right, strict=True):
            place.copy_(Factored(Factors.of(left, right), self.dtype).compose(origin))
        return out


def cost(view: View, rank: int) -> float:
    """Numbers of the factors of a rank, relative to the matrix's own: r(m + n)/(m·n)."""
    return rank * (view.rows + view.columns) / (view.rows * view.columns)


Spectrum = tuple[Tensor, Tensor, Tensor]


class _Matrix:
    """One matrix of a tensor's τ, given out in blocks of rows: all of a large one in float64 would be four times the
    memory of its tensor.
    """

    def __init__(self, pair: Pair, number: int):
        self._pair, self._view = pair, matrices(pair.shape)
        self._first = number * self._view.rows * self._view.columns
        self.shape = (self._view.rows, self._view.columns)

    def blocks(self) -> Iterator[tuple[int, int, Tensor]]:
        """(first row, row after the last, those rows in float64)."""
        columns = self._view.columns
        for start, stop in pieces(self._view.rows, max(1, _BLOCK // columns)):
            rows = self._pair.delta(self._first + start * columns, self._first + stop * columns)
            yield start, stop, rows.reshape(-1, columns).to(torch.float64)

    def whole(self) -> Tensor:
        """All of it."""
        return torch.cat([block for _, _, block in self.blocks()])

    def times(self, other: Tensor) -> Tensor:
        """matrix @ other."""
        return torch.cat([block @ other for _, _, block in self.blocks()])

    def turned_times(self, other: Tensor) -> Tensor:
        """matrixᵀ @ other."""
        found = torch.zeros(self.shape[1], other.shape[1], dtype=torch.float64)
        for start, stop, block in self.blocks():
            found.addmm_(block.mT, other[start:stop])
        return found

    def energy(self) -> float:
        """‖matrix‖²."""
        return math.fsum(float(torch.linalg.vector_norm(block)) ** 2 for _, _, block in self.blocks())


def _each(pair: Pair) -> list[_Matrix]:
    return [_Matrix(pair, number) for number in range(matrices(pair.shape).stack[0])]


def _leading(matrix: _Matrix, wanted: int) -> Spectrum:
    """U, S, Vᵀ of the largest singular values in float64; zeros where there are not as many."""
    full = min(matrix.shape)
    if full <= _WHOLE or wanted + _OVERSAMPLED >= full // 2:
        u, s, vh = leading(matrix.whole(), wanted)
    else:
        u, s, vh = _sketched(matrix, wanted, _OVERSAMPLED, _POWERS)
    rest = wanted - len(s)
    return pad(u, (0, rest)), pad(s, (0, rest)), pad(vh, (0, 0, 0, rest))


def _sketched(matrix: _Matrix, count: int, more: int, powers: int) -> Spectrum:
    """About the ``count`` largest singular values, by powers of the matrix on a few random directions ``more``."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.randn(matrix.shape[1], count + more, generator=draw, dtype=torch.float64)
    basis = torch.linalg.qr(matrix.times(directions))[0]
    for _ in range(powers):
        basis = torch.linalg.qr(matrix.turned_times(basis))[0]
        basis = torch.linalg.qr(matrix.times(basis))[0]
    u, s, vh = svd(matrix.turned_times(basis).mT)
    return basis @ u[:, :count], s[:count], vh[:count]


def _rank(spectra: list[Spectrum], stack: list[_Matrix], error: float, computed: int, full: int) -> int:
    """The smallest rank that leaves a relative error over all matrices."""
    total = math.fsum(each.energy() for each in stack)
    caught = torch.zeros(computed, dtype=torch.float64)
    for _, s, _ in spectra:
        caught += s.square().cumsum(0)
    left = (total - caught).clamp_min(0.0)
    enough = torch.nonzero(left <= error**2 * total)
    if not total:
        return 0
    if not len(enough):
        if computed == full:
            return full
        raise OutOfReach(
            f"expected a relative error of {error:g} from {computed} singular values, found "
            f"{math.sqrt(float(left[-1]) / total):.3g}; allow a larger rank, or use another codec"
        )
    return int(enough[0]) + 1


def _narrowest(part: Tensor) -> Tensor:
    """In the first of bfloat16 and float16 that holds every bit; else as it is."""
    plain = part.to(torch.float32).contiguous()
    for dtype in (torch.bfloat16, torch.float16):
        narrow = plain.to(dtype)
        if torch.equal(narrow.to(torch.float32).view(torch.int32), plain.view(torch.int32)):
            return narrow
    return plain


def is_out_of_reach(pair: Pair, error: float, most: int) -> bool:
    """Whether a few singular values show that no rank up to ``most`` can leave so small an error.

    After r values the energy that is left must be caught by values of at most the r-th each.

    Args:
        pair: floating-point, with two axes or more.
        error: relative, of τ.
        most: the largest rank that would do.
    """
    stack = _each(pair)
    found = []
    for matrix in stack[:: max(1, len(stack) // 4)]:
        total = matrix.energy()
        if min(matrix.shape) <= 4 * _PROBED or not total:
            return False
        count = min(most, _PROBED)
        with torch.no_grad(), one_thread():
            s = _sketched(matrix, count, _PROBED, 1)[1]
        left = total - float(s.square().sum()) - error**2 * total
        found.append(count + max(0.0, left) / max(float(s[-1]) ** 2, total * 1e-30))
    return math.fsum(found) / len(found) > most
