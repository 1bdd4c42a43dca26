"""Merge methods of a third party: one of each kind that the contract knows."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from merging.calibration import Gram
from merging.linear_algebra import one_thread
from merging.methods import Context, Method, Needs, Parameter, Values
from merging.methods.arithmetic import base_plus
from merging.methods.contract import Elements, Elementwise, Inputs
from merging.pool import Pool
from merging.recipe import MergingError
from merging.statistics import gram

SCALE = Parameter("scale", float, "factor on the merged task vector", default=1.0)


def median(inputs: Inputs) -> Tensor:
    """The middle of every element's values, the mean of the middle two if their number is even."""
    dtype = inputs.numbers.dtype
    ranked = [source.to(dtype) for source in inputs.sources]
    for last in range(len(ranked) - 1, 0, -1):  # bubble sort: minima and maxima fuse into one pass
        for first in range(last):
            low, high = ranked[first], ranked[first + 1]
            ranked[first], ranked[first + 1] = torch.minimum(low, high), torch.maximum(low, high)
    low, high = ranked[(len(ranked) - 1) // 2], ranked[len(ranked) // 2]
    return (low + high) * 0.5


class Median(Elementwise):
    """θ = the median of θ_t, element by element: robust to one odd fine-tune."""

    name: ClassVar[str] = "median"
    formula: ClassVar[str] = "θ = median_t θ_t"
    paper: ClassVar[str] = "Yin et al. 2018, arXiv 1803.01498"
    symmetric: ClassVar[bool] = True

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """Nothing to know beforehand."""
        return Elements(median, sources=tuple(range(len(values.sources))), base=False)


class FlatSpectrum(Method):
    """The summed task vectors with one singular value for all directions; other tensors get their mean.

    Δ = Σ τ_t = U S Vᵀ becomes mean(S)·U Vᵀ, over the numerical rank of Δ.
    """

    name: ClassVar[str] = "flat_spectrum"
    scope: ClassVar = "matrix"
    needs: ClassVar[Needs] = Needs(base=True)
    formula: ClassVar[str] = "θ = θ0 + scale·mean(S)·U Vᵀ, Σ τ_t = U S Vᵀ"
    paper: ClassVar[str] = "Marczak et al. 2025, arXiv 2502.04959"
    symmetric: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (SCALE,)

    def apply(self, context: Context, values: Values, out: Tensor) -> None:
        """In float64 throughout."""
        base = context.base.to(torch.float64)
        total = torch.zeros_like(base)
        for source in context.sources:
            total += source.to(torch.float64) - base
        if total.ndim == 2 and total.numel():
            u, s, vh = torch.linalg.svd(total, full_matrices=False)
            rank = int((s > s[0] * 1e-10).sum())
            total = s[:rank].mean() * (u[:, :rank] @ vh[:rank]) if rank else torch.zeros_like(total)
        else:
            total /= len(context.sources)
        out.copy_(base + float(values.shared["scale"]) * total)


class Balanced(Method):
    """Task vectors weighted by the inverse of their norms over the whole model; the weights sum to 1 (NAN)."""

    name: ClassVar[str] = "balanced"
    scope: ClassVar = "model"
    needs: ClassVar[Needs] = Needs(base=True)
    formula: ClassVar[str] = "θ = θ0 + scale·Σ λ_t·τ_t, λ_t = ‖τ_t‖⁻¹ / Σ ‖τ_j‖⁻¹ over the whole model"
    paper: ClassVar[str] = "Si et al. 2025, arXiv 2505.16148"
    symmetric: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (SCALE,)

    def prepare(self, pool: Pool, name: str, values: Values) -> tuple[float, ...]:
        """λ_t, from all tensors of the model, once."""

        def shares() -> tuple[float, ...]:
            squares = [
                math.fsum(gram(pool, each, "task_vectors")[number, number] for each in pool.names)
                for number in range(len(pool.aliases))
            ]
            inverses = [1.0 / math.sqrt(square) if square else 0.0 for square in squares]
            return tuple(inverse / (math.fsum(inverses) or 1.0) for inverse in inverses)

        found: tuple[float, ...] = pool.once((self.name, "shares"), shares)
        return found

    def apply(self, context: Context, values: Values, out: Tensor) -> None:
        """A sum of the kind that the package's own methods use."""
        elements = base_plus([share * float(values.shared["scale"]) for share in context.statistics])
        chosen = tuple(context.sources[number] for number in elements.sources)
        numbers = torch.tensor(elements.numbers, dtype=out.dtype, device=out.device)
        nothing = torch.empty(0, dtype=torch.int32, device=out.device)
        out.copy_(elements.kernel(Inputs(context.base, chosen, numbers, nothing, nothing, ())))


class Regression(Method):
    """The linear layer that is nearest to all tasks' outputs on their own inputs; other tensors: the mean.

    W = (Σ W_t·G_t)·(Σ G_t)⁻¹, where the calibration gives the second moments G_t of the inputs.
    """

    name: ClassVar[str] = "regression"
    scope: ClassVar = "matrix"
    needs: ClassVar[Needs] = Needs(calibration=True, statistics=frozenset({"gram"}))
    formula: ClassVar[str] = "W = (Σ W_t·G_t)·(Σ G_t)⁻¹"
    paper: ClassVar[str] = "Jin et al. 2023, arXiv 2212.09849"
    symmetric: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("off_diagonal", float, "factor on the correlations of inputs", default=0.9, low=0.0, high=1.0),
    )

    def prepare(self, pool: Pool, name: str, values: Values) -> list[Gram] | None:
        """[sources] the inputs of this weight; None where there are none."""
        if pool.calibration is None:
            raise MergingError("regression needs calibration data, found none")
        found = [pool.calibration.gram(pool.content(number), name) for number in range(len(pool.aliases))]
        return None if None in found else [each for each in found if each is not None]

    def apply(self, context: Context, values: Values, out: Tensor) -> None:
        """In float64 throughout, on one thread: sums of several end in other bits."""
        weights = [source.to(torch.float64) for source in context.sources]
        mean = torch.stack(weights).mean(0)
        if context.statistics is None:
            out.copy_(mean)
            return
        (axis,) = {gram.axis for gram in context.statistics}
        if context.statistics[0].matrix.ndim == 3:  # a stack of matrices: this one leaves them to others
            out.copy_(mean)
            return
        keep = float(values.shared["off_diagonal"])
        grams = [each.matrix * keep + torch.diag(each.matrix.diagonal() * (1 - keep)) for each in context.statistics]

        def rows(tensor: Tensor) -> Tensor:  # [out, in] of what is stored as [out, in, …] or as [in, out]
            return tensor.flatten(1).T if axis == 0 else tensor.flatten(1)

        with one_thread():
            wanted = sum(rows(weight - mean) @ gram for weight, gram in zip(weights, grams, strict=True))
            # Where no input ever went, the pseudo-inverse leaves the mean.
            moved = wanted @ torch.linalg.pinv(sum(grams), hermitian=True)
        out.copy_(mean + (moved.T if axis == 0 else moved).reshape(mean.shape))
