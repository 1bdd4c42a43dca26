"""What matrix methods compute once per pool of sources: a difference to the base; a candidate takes a multiple of it.

θ = θ0 + scale·Δ. The decompositions and solves behind Δ are done once; what is left for a candidate is one linear pass.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from merging.linear_algebra import one_thread
from merging.matrices import Part, matrices
from merging.methods.arithmetic import base_plus
from merging.methods.contract import Elements, Elementwise, Inputs, Needs, Parameter, Scope, Values
from merging.pool import Pool

SCALE = Parameter("scale", float, "factor λ on what the method adds to the base", default=1.0)


class Product(NamedTuple):
    """What one tensor moves by.

    Attributes:
        delta: flat, float32, on the device of the sources.
        growth: largest |element| of ``delta``, as a multiple of the base's; infinite where the base is zero.
    """

    delta: Tensor
    growth: float


def base_plus_product(inputs: Inputs) -> Tensor:
    """θ0 + scale·Δ, in the dtype of the numbers; Δ is the only field."""
    base = inputs.base.to(inputs.numbers.dtype)
    return inputs.fields[0].to(base.dtype) * inputs.numbers[0] + base


def along(product: Product, scale: float) -> Elements:
    """θ0 + scale·Δ."""
    if scale == 0.0:
        return base_plus(())
    gain = 1.0 + abs(scale) * product.growth
    return Elements(base_plus_product, numbers=(scale,), fields=(product.delta,), gain=gain)


def along_mean(sources: int, scale: float) -> Elements:
    """θ0 + scale·mean(τ_t): of a tensor that is no linear weight."""
    return base_plus((scale / sources,) * sources)


def product(pool: Pool, key: tuple[Hashable, ...], name: str, compute: Callable[[], Tensor]) -> Product:
    """A tensor's Δ, computed when it is first asked for.

    Args:
        pool: the sources; it remembers.
        key: the method and whatever Δ depends on besides sources and tensor.
        name: canonical tensor name.
        compute: Δ, of the tensor's shape, in any floating dtype. Called on one thread.
    """

    def made() -> Product:
        with torch.no_grad(), one_thread():
            delta = compute().to(torch.float32).reshape(-1)
            return Product(delta, growth(delta, [pool.base(name)]))

    found: Product = pool.once(("product", *key, name), made)
    return found


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

    def _changes(self, pool: Pool, name: str, parts: Sequence[Part], values: Values) -> Tensor:
        base, sources = pool.base(name), pool.sources(name)
        delta = torch.empty(base.shape, dtype=torch.float32, device=base.device)
        for part in parts:
            part.put(delta, self.change(part.take(base), [part.take(each) for each in sources], values))
        return delta


def _largest(tensor: Tensor) -> float:
    return max((abs(float(end)) for end in torch.aminmax(tensor)), default=0.0) if tensor.numel() else 0.0
