"""What matrix methods compute once per pool of sources: a difference to the base; a candidate takes a multiple of it.

θ = θ0 + scale·Δ. The decompositions and solves behind Δ are done once; what is left for a candidate is one linear pass.
Where all sources are known in factors and the method allows it, Δ is computed in their joint subspace and kept in
factors too: a candidate multiplies them out, and no matrix of the model's size is kept.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from merging.composed import Factors
from merging.joint import JointSpace, Pair, joint_space, part_factors, resolution
from merging.linear_algebra import one_thread, wide
from merging.matrices import Part, matrices
from merging.methods.arithmetic import base_plus
from merging.methods.contract import Elements, Elementwise, Inputs, Needs, Parameter, Scope, Values
from merging.pool import Pool

SCALE = Parameter("scale", float, "factor λ on what the method adds to the base", default=1.0)


Thin = Sequence[tuple[Part, Factors]]
"""Δ of a tensor: matrices that cover it, and the Δ of each in factors."""


class Product(NamedTuple):
    """What one tensor moves by.

    Attributes:
        delta: flat, float32, on the device of the sources.
        growth: largest |element| of ``delta``, as a multiple of the base's; infinite where the base is zero.
    """

    delta: Tensor
    growth: float


@dataclass(frozen=True, eq=False)
class ThinProduct:
    """What one tensor moves by, matrix by matrix in factors.

    Attributes:
        shape: of the tensor.
        parts: matrices that cover it, and the Δ of each.
        growth: as in :class:`Product`.
    """

    shape: tuple[int, ...]
    parts: tuple[tuple[Part, Factors], ...]
    growth: float

    @property
    def delta(self) -> Tensor:
        """As in :class:`Product`, on the CPU; multiplied out whenever it is asked for."""
        return multiplied_out(self.shape, self.parts)


def multiplied_out(shape: tuple[int, ...], parts: Thin) -> Tensor:
    """Δ of a tensor, flat float32 on the CPU, from the factors of the matrices that cover it."""
    if len(parts) == 1 and parts[0][0] == Part():
        return parts[0][1].dense().view(-1)
    delta = torch.empty(shape)
    for part, factors in parts:
        part.put(delta, factors.dense())
    return delta.view(-1)


def base_plus_product(inputs: Inputs) -> Tensor:
    """θ0 + scale·Δ, in the dtype of the numbers; Δ is the only field."""
    base = inputs.base.to(inputs.numbers.dtype)
    return inputs.fields[0].to(base.dtype) * inputs.numbers[0] + base


def along(product: Product | ThinProduct, scale: float) -> Elements:
    """θ0 + scale·Δ."""
    if scale == 0.0:
        return base_plus(())
    gain = 1.0 + abs(scale) * product.growth
    return Elements(base_plus_product, numbers=(scale,), fields=(product.delta,), gain=gain)


def along_mean(sources: int, scale: float) -> Elements:
    """θ0 + scale·mean(τ_t): of a tensor that is no linear weight."""
    return base_plus((scale / sources,) * sources)


def product(
    pool: Pool, key: tuple[Hashable, ...], name: str, compute: Callable[[], Tensor | Thin]
) -> Product | ThinProduct:
    """A tensor's Δ, computed when it is first asked for; kept in factors where it comes so and is smaller, on the CPU.

    Args:
        pool: the sources; it remembers.
        key: the method and whatever Δ depends on besides sources and tensor.
        name: canonical tensor name.
        compute: Δ, of the tensor's shape, in any floating dtype; or in factors. Called on one thread.
    """

    def made() -> Product | ThinProduct:
        with torch.no_grad(), one_thread():
            base, found = pool.base(name), compute()
            if isinstance(found, Tensor):
                delta = found.to(torch.float32).reshape(-1)
                return Product(delta, growth(delta, [base]))
            delta = multiplied_out(tuple(base.shape), found)
            reach = growth(delta, [base])
            smaller = sum(each.left.numel() + each.right.numel() for _, each in found) < delta.numel()
            if smaller and base.device.type == "cpu":
                return ThinProduct(tuple(base.shape), tuple(found), reach)
            return Product(delta.to(base.device), reach)

    kept: Product | ThinProduct = pool.once(("product", *key, name), made)
    return kept


def growth(tensor: Tensor, others: Iterable[Tensor]) -> float:
    """The largest |element| as a multiple of the others' largest; infinite where those are zero."""
    reach, width = _largest(tensor), max(map(_largest, others))
    return 0.0 if not reach else reach / width if width else math.inf


class MatrixMethod(Elementwise):
    """A method of linear weights that needs no data: its Δ of a matrix, computed once, times ``scale``.

    Δ is kept for every value of the parameters in ``fixed``, which a search therefore does not vary. What is no linear
    weight (:mod:`merging.matrices`) moves by ``scale`` times the mean of the task vectors.
    """

    scope: ClassVar[Scope] = "matrix"
    needs: ClassVar[Needs] = Needs(base=True)
    symmetric: ClassVar[bool] = True
    eager_ns: ClassVar[float] = 1.0
    parameters: ClassVar[tuple[Parameter, ...]] = (SCALE,)

    @abstractmethod
    def change(self, base: Tensor, experts: Sequence[Tensor], values: Values) -> Tensor:
        """Δ of one matrix.

        Args:
            base: [out, in], in its stored dtype.
            experts: [sources] the same of the sources.
            values: checked parameters.

        Returns:
            [out, in] float64.
        """

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class."""
        scale, parts = float(values.shared[SCALE.name]), matrices(pool, name)
        if not parts or scale == 0.0:
            return along_mean(len(values.sources), scale)
        key = (self.name, *(values.shared[each] for each in sorted(self.fixed)))
        return along(product(pool, key, name, lambda: self._changes(pool, name, parts, values)), scale)

    def _changes(self, pool: Pool, name: str, parts: Sequence[Part], values: Values) -> Tensor | Thin:
        base, sources = pool.base(name), pool.sources(name)
        delta = torch.empty(base.shape, dtype=torch.float32, device=base.device)
        for part in parts:
            part.put(delta, self.change(part.take(base), [part.take(each) for each in sources], values))
        return delta


class SubspaceMethod(MatrixMethod):
    """A matrix method whose Δ turns with the task vectors: with orthogonal A and B, A·Δ_t·B give A·Δ·B.

    Then it makes no difference whether it sees the task vectors or their cores in the joint subspace
    (:mod:`merging.joint`), but for what both cost; sources that are adapters are merged there.
    """

    @abstractmethod
    def merge(self, deltas: Sequence[Tensor], noise: Sequence[float], shape: tuple[int, int], values: Values) -> Tensor:
        """Δ of one matrix, in the coordinates of the task vectors.

        Args:
            deltas: [sources] the task vectors [p, q] in float64: as they are, or their cores.
            noise: [sources] singular values of theirs that are no larger are not what was learned.
            shape: [out, in] of the matrix itself.
            values: checked parameters.

        Returns:
            [p, q] float64.
        """

    def noise(self, base: Tensor, expert: Tensor) -> float:
        """Of the task vector of stored weights, for :meth:`merge`; 0 unless a method knows better."""
        return 0.0

    def change(self, base: Tensor, experts: Sequence[Tensor], values: Values) -> Tensor:
        """See :class:`MatrixMethod`."""
        origin = wide(base)
        deltas = [wide(expert) - origin for expert in experts]
        rows, columns = base.shape
        return self.merge(deltas, [self.noise(base, expert) for expert in experts], (rows, columns), values)

    def _changes(self, pool: Pool, name: str, parts: Sequence[Part], values: Values) -> Tensor | Thin:
        pairs = thin_parts(pool, name, parts)
        if pairs is None:
            return super()._changes(pool, name, parts, values)
        return [(part, self._joint(each, values)) for part, each in zip(parts, pairs, strict=True)]

    def _joint(self, pairs: Sequence[Pair], values: Values) -> Factors:
        space: JointSpace = joint_space(pairs)
        noise = [resolution(core) for core in space.cores]
        return space.lift(self.merge(space.cores, noise, space.shape, values))


def thin_parts(pool: Pool, name: str, parts: Sequence[Part]) -> list[list[Pair]] | None:
    """Matrices -> [sources] factors of their task vectors; None unless all of them are known so."""
    factors = pool.all_factors(name)
    if factors is None:
        return None
    shape = pool.shape(name)
    found = [[part_factors(part, each, shape) for each in factors] for part in parts]
    known = [[each for each in pairs if each is not None] for pairs in found]
    return known if all(len(one) == len(other) for one, other in zip(known, found, strict=True)) else None


def _largest(tensor: Tensor) -> float:
    return max((abs(float(end)) for end in torch.aminmax(tensor)), default=0.0) if tensor.numel() else 0.0
