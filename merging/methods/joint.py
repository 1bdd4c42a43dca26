"""TIES among task vectors that were turned to common directions first: KnOTS, and in Core Space.

Elements of two adapters' task vectors at one place mean little to each other: each was learned in its own directions.
Written in the directions that matter to all of them together, elements agree or disagree about the same direction, and
the rules that look at elements do better. Adapters are merged from their factors; models that were fine-tuned as a
whole may be sources too, at the cost of a singular value decomposition as large as the matrix.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from merging.composed import Factors
from merging.joint import Pair, joint_space, resolution
from merging.linear_algebra import leading, one_thread, wide
from merging.masks import keys, last_kept, seed32
from merging.matrices import Part, matrices
from merging.methods.arithmetic import base_plus, without_zeros
from merging.methods.contract import Elements, Elementwise, Needs, Parameter, Scope, Values
from merging.methods.products import base_plus_product, growth, multiplied_out, thin_parts
from merging.methods.registry import get
from merging.methods.sparse import COEFFICIENT, SCALE, SEED, density, switch
from merging.methods.spectral import rounding
from merging.pool import Pool
from merging.recipe import Assignment, Value

NORMALIZE = switch("normalize", True, "divide by how many sources agree")

# Coordinates below this fraction of a source's largest are the rounding of float32.
_NOTHING = 8.0 * float(torch.finfo(torch.float32).eps)


class Bases(NamedTuple):
    """Directions that the sources' task vectors of one matrix have in common.

    Attributes:
        left: [m, k] float32, orthonormal columns.
        right: [l, n] float32, orthonormal rows; None where inputs stay as they are.
    """

    left: Tensor
    right: Tensor | None


class JointTies(Elementwise):
    """TIES on coordinates in common directions: what the methods of this module share.

    What is no linear weight (:mod:`merging.matrices`) has no directions, and is merged by the rule itself, element by
    element: by ``ties`` or ``dare_ties`` in the paper's convention. Directions are found once; a candidate costs the
    products that turn the task vectors, the rule on their coordinates, and the product that brings them back.

    Class attributes:
        rule: the method whose rule this is.
        two_sided: whether the directions of the inputs are turned as well.
    """

    scope: ClassVar[Scope] = "matrix"
    needs: ClassVar[Needs] = Needs(base=True, minimum=0)
    symmetric: ClassVar[bool] = True
    eager_ns: ClassVar[float] = 1.0
    parameters: ClassVar[tuple[Parameter, ...]] = (COEFFICIENT, density(0.2), SCALE, NORMALIZE, SEED)
    rule: ClassVar[str]
    two_sided: ClassVar[bool]

    def reduce(self, assignment: Assignment) -> Assignment:
        """Sources of coefficient 0 are left out, of the directions too. Without any, or with scale 0: the base."""
        values = Values.of(assignment)
        kept = without_zeros(assignment, values) if values.shared[SCALE.name] != 0.0 else ()
        if kept:
            return replace(assignment, sources=kept)
        defaults = {each.name: each.default for each in self.parameters if not each.per_source}
        return Assignment.of(
            assignment.method, {}, **{name: each for name, each in defaults.items() if each is not None}
        )

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class."""
        if not values.sources:
            return base_plus(())
        parts = matrices(pool, name)
        if not parts:
            return self._by_element(pool, name, values)
        with torch.no_grad(), one_thread():
            delta = self._delta(pool, name, parts, values)
            reach = growth(delta, [pool.base(name)])
        scale = float(values.shared[SCALE.name])
        return Elements(base_plus_product, numbers=(scale,), fields=(delta,), gain=1.0 + abs(scale) * reach)

    def _by_element(self, pool: Pool, name: str, values: Values) -> Elements:
        method = get(self.rule)
        own: dict[str, Value] = {"convention": "paper", "rescale": self.rule == "dare_ties", "trim": "tensor"}
        shared = {each.name: values.shared.get(each.name, own.get(each.name)) for each in method.parameters}
        known = {key: value for key, value in shared.items() if value is not None}
        elements: Elements = method.prepare(pool, name, Values(known, values.sources))
        return elements

    @abstractmethod
    def sparsified(self, coordinates: Tensor, kept: float, seed: int) -> Tensor:
        """τ̂_t of one source.

        Args:
            coordinates: [k, l] float64.
            kept: its density ρ_t.
            seed: of the source's keys in this matrix.
        """

    def _delta(self, pool: Pool, name: str, parts: Sequence[Part], values: Values) -> Tensor:
        """Δ of the tensor, flat float32."""
        thin = thin_parts(pool, name, parts)
        if thin is not None:
            merged = [self._merged(pool, name, number, pairs, values) for number, pairs in enumerate(thin)]
            covered = [(part, _lifted(*each)) for part, each in zip(parts, merged, strict=True)]
            return multiplied_out(pool.shape(name), covered).to(pool.base(name).device)
        base, sources = pool.base(name), pool.sources(name)
        delta = torch.empty(base.shape, dtype=torch.float32, device=base.device)
        for number, part in enumerate(parts):
            origin, own = part.take(base), [part.take(each) for each in sources]
            deltas = [wide(each) - wide(origin) for each in own]
            noise = partial(_roundings, origin, own)
            bases, found = self._merged(pool, name, number, deltas, values, noise)
            found = bases.left @ found.to(torch.float32)
            part.put(delta, found if bases.right is None else found @ bases.right)
        return delta.reshape(-1)

    def _merged(
        self,
        pool: Pool,
        name: str,
        number: int,
        deltas: Sequence[Tensor] | Sequence[Pair],
        values: Values,
        noise: Callable[[], Sequence[float]] = tuple,
    ) -> tuple[Bases, Tensor]:
        """Directions and merged coordinates [k, l] float64 of one matrix of a tensor."""
        bases: Bases = pool.once(
            ("joint", self.two_sided, name, number), lambda: directions(deltas, noise(), two_sided=self.two_sided)
        )
        sparse = []
        for source, own in enumerate(values.sources):
            seed = seed32(int(values.shared[SEED.name]), pool.content(source), f"{name}\n{number}", "joint")
            sparse.append(self.sparsified(coordinates(bases, deltas[source]), float(own["density"]), seed))
        normalize = bool(values.shared[NORMALIZE.name])
        return bases, elected_mean(sparse, values.column("coefficient"), normalize=normalize)


class _Ties(JointTies):
    rule: ClassVar[str] = "ties"

    def sparsified(self, coordinates: Tensor, kept: float, seed: int) -> Tensor:
        """The largest."""
        return trimmed(coordinates, kept)


class _DareTies(JointTies):
    rule: ClassVar[str] = "dare_ties"
    parameters: ClassVar[tuple[Parameter, ...]] = (COEFFICIENT, density(0.5), SCALE, NORMALIZE, SEED)

    def sparsified(self, coordinates: Tensor, kept: float, seed: int) -> Tensor:
        """At random, made up for."""
        return dropped(coordinates, kept, seed)


class KnotsTies(_Ties):
    """TIES on task vectors in common directions of the outputs (Stoica et al. 2024, KnOTS).

    [Δ_1 | … | Δ_T] = U·S·[V_1 | … | V_T]; the rule merges the S·V_t, element by element, and U brings the result back:
    Δ = U·mean{λ_t·τ̂_t that agree}, τ̂_t the ρ_t largest elements of S·V_t, by the election and the mean of ``ties``.
    Directions of the sum of no more than rounding are left out (the authors: S ≤ 1e-5).

    The authors merge with λ = 0.6 or so for eight adapters of rank 16. With density 1 nothing is trimmed, but signs are
    still elected. One source with density 1 is taken whole.
    """

    name: ClassVar[str] = "knots_ties"
    formula: ClassVar[str] = "θ = θ0 + scale·U·TIES(S·V_1, …, S·V_T), with [τ_1 | … | τ_T] = U·S·[V_1 | … | V_T]"
    paper: ClassVar[str] = "Stoica et al. 2024, arXiv 2410.19735"
    two_sided: ClassVar[bool] = False


class KnotsDareTies(_DareTies):
    """As ``knots_ties``, with what DARE keeps at random and divides by ρ_t in place of the largest elements."""

    name: ClassVar[str] = "knots_dare_ties"
    formula: ClassVar[str] = "θ = θ0 + scale·U·DARE-TIES(S·V_1, …, S·V_T), with [τ_1 | … | τ_T] = U·S·[V_1 | … | V_T]"
    paper: ClassVar[str] = "Stoica et al. 2024, arXiv 2410.19735"
    two_sided: ClassVar[bool] = False


class CoreTies(_Ties):
    """TIES on the cores of task vectors, in common directions of outputs and inputs (Panariello et al. 2025).

    Δ_t = U·C_t·V, U the left singular vectors of [Δ_1 | … | Δ_T] and V the right ones of the Δ_t one below the other;
    for adapters of rank r the cores C_t are (T·r)×(T·r). Δ = U·TIES(C_1, …, C_T)·V.

    The paper takes the singular vectors of the stacked factors B_t, and A_t. They span the same, but turn with how an
    adapter shares its size between A and B, which changes nothing that it computes; those of the Δ_t do not, and exist
    for every model. ``tsv_m``, ``iso_c``, ``iso_cts`` and ``wudi`` give the same in Core Space as outside, and are
    computed there for adapters.
    """

    name: ClassVar[str] = "core_ties"
    formula: ClassVar[str] = "θ = θ0 + scale·U·TIES(C_1, …, C_T)·V, with τ_t = U·C_t·V"
    paper: ClassVar[str] = "Panariello et al. 2025, arXiv 2509.17786"
    two_sided: ClassVar[bool] = True


class CoreDareTies(_DareTies):
    """As ``core_ties``, with what DARE keeps at random and divides by ρ_t in place of the largest elements."""

    name: ClassVar[str] = "core_dare_ties"
    formula: ClassVar[str] = "θ = θ0 + scale·U·DARE-TIES(C_1, …, C_T)·V, with τ_t = U·C_t·V"
    paper: ClassVar[str] = "Panariello et al. 2025, arXiv 2509.17786"
    two_sided: ClassVar[bool] = True


def directions(deltas: Sequence[Tensor] | Sequence[Pair], noise: Sequence[float] = (), *, two_sided: bool) -> Bases:
    """Singular vectors of task vectors put together: left ones of them side by side, right ones of them stacked.

    Args:
        deltas: [sources] of [m, n] float64, or all of them as factors (L [m, r_t], R [r_t, n]).
        noise: [sources] singular values of theirs that are no larger come from rounding; of factors nothing.
        two_sided: whether right ones are wanted.
    """
    if isinstance(deltas[0], Tensor):
        left, right, cores = None, None, [each for each in deltas if isinstance(each, Tensor)]
    else:
        space = joint_space([each for each in deltas if not isinstance(each, Tensor)])
        left, right, cores = space.left, space.right, list(space.cores)
        noise = [resolution(core) for core in cores]
    floor = math.hypot(*noise)
    u = leading(torch.cat(cores, dim=1), noise=floor)[0]
    vh = leading(torch.cat(cores), noise=floor)[2] if two_sided else None
    u = u if left is None else left @ u
    vh = vh if right is None or vh is None else vh @ right
    return Bases(u.to(torch.float32), None if vh is None else vh.to(torch.float32))


def coordinates(bases: Bases, delta: Tensor | Pair) -> Tensor:
    """One task vector in common directions: Uᵀ·Δ, or Uᵀ·Δ·Vᵀ, in float64. What is 0 but for the rounding of float32 is
    0: a source that does not move along a direction has no vote there.

    Args:
        bases: see :class:`Bases`.
        delta: [m, n] float64, or its factors.
    """
    left, right = bases.left.to(torch.float64).mT, None if bases.right is None else bases.right.to(torch.float64).mT
    if isinstance(delta, Tensor):
        found = left @ delta if right is None else left @ delta @ right
    else:
        inner, outer = wide(delta[0]), wide(delta[1])
        found = (left @ inner) @ (outer if right is None else outer @ right)
    return found * (found.abs() > _NOTHING * found.abs().max()) if found.numel() else found


def trimmed(coordinates: Tensor, kept: float) -> Tensor:
    """The round(ρ·elements) largest |elements|, others 0; of equal ones those that come first.

    Args:
        coordinates: [k, l] float64.
        kept: ρ in [0, 1].
    """
    count = round(kept * coordinates.numel())
    if count >= coordinates.numel():
        return coordinates
    if not count:
        return torch.zeros_like(coordinates)
    sizes = coordinates.abs().reshape(-1)
    last = sizes.numel() - count
    threshold = float(np.partition(sizes.cpu().numpy(), last)[last])
    keep = sizes > threshold
    room = count - int(keep.sum())
    keep[(sizes == threshold).nonzero()[:room, 0]] = True
    return coordinates * keep.view(coordinates.shape)


def dropped(coordinates: Tensor, kept: float, seed: int) -> Tensor:
    """Every element with probability ρ, divided by it, others 0.

    Args:
        coordinates: [k, l] float64.
        kept: ρ in [0, 1]; 0 keeps nothing.
        seed: signed 32-bit number.
    """
    if kept <= 0.0:
        return torch.zeros_like(coordinates)
    index = torch.arange(coordinates.numel(), device=coordinates.device).to(torch.int32)
    keep = keys(index, torch.tensor(seed, dtype=torch.int32, device=index.device)) <= last_kept(kept)
    return coordinates * keep.view(coordinates.shape) / kept


def elected_mean(sparse: Sequence[Tensor], coefficients: Sequence[float], *, normalize: bool) -> Tensor:
    """The election and the disjoint mean of TIES (Yadav et al. 2023, algorithm 1), as ``ties`` has them.

    Args:
        sparse: [sources] of [k, l] float64.
        coefficients: [sources] λ_t.
        normalize: divide by the number of sources that agree; else sum them.
    """
    terms = [each * coefficient for each, coefficient in zip(sparse, coefficients, strict=True)]
    sign = sum(terms[1:], start=terms[0]).sign()
    agreeing = [(each * sign).clamp(min=0.0) for each in terms]
    total = sum(agreeing[1:], start=agreeing[0])
    if normalize:
        total = total / sum(each.sign() for each in agreeing).clamp(min=1.0)  # type: ignore[union-attr]
    return total * sign


def _roundings(base: Tensor, experts: Sequence[Tensor]) -> list[float]:
    return [rounding(base, each) for each in experts]


def _lifted(bases: Bases, merged: Tensor) -> Factors:
    left, right = bases.left, bases.right
    if right is None:
        return Factors.of(left, merged)
    if merged.shape[0] <= merged.shape[1]:
        return Factors.of(left, merged @ right.to(torch.float64))
    return Factors.of(left.to(torch.float64) @ merged, right)
