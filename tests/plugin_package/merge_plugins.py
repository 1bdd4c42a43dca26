"""Merge methods of a third party: one of each kind that the contract knows."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

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


class IsotropicMerging(Method):
    """Iso-C: the summed task vectors with one singular value for all directions; other tensors get their mean.

    Δ = Σ τ_t = U S Vᵀ becomes mean(S)·U Vᵀ, over the numerical rank of Δ.
    """

    name: ClassVar[str] = "iso_c"
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


class RegMean(Method):
    """RegMean: the linear layer that is nearest to all tasks' outputs on their own inputs; other tensors: the mean.

    W = (Σ W_t·G_t)·(Σ G_t)⁻¹ with G_t = a·X_tᵀX_t + (1−a)·its diagonal. Calibration batches map the names of weights
    [out, in] to their inputs [tokens, in].
    """

    name: ClassVar[str] = "regmean"
    scope: ClassVar = "matrix"
    needs: ClassVar[Needs] = Needs(calibration=True)
    formula: ClassVar[str] = "W = (Σ W_t·G_t)·(Σ G_t)⁻¹"
    paper: ClassVar[str] = "Jin et al. 2023, arXiv 2212.09849"
    symmetric: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("off_diagonal", float, "factor a on the correlations of inputs", default=0.9, low=0.0, high=1.0),
    )

    def prepare(self, pool: Pool, name: str, values: Values) -> list[Tensor] | None:
        """[sources] XᵀX of the inputs of this weight; None where there are none."""
        calibration = pool.calibration
        if calibration is None:
            raise MergingError("regmean needs calibration data, found none")

        def inputs() -> dict[str, list[Tensor]]:
            found: dict[str, list[Any]] = {}
            for number, alias in enumerate(pool.aliases):
                for batch in calibration.batches(alias):
                    for weight, rows in batch.items():
                        own = found.setdefault(weight, [0.0] * len(pool.aliases))
                        own[number] = own[number] + rows.to(torch.float64).T @ rows.to(torch.float64)
            return found

        grams: dict[str, list[Tensor]] = pool.once((self.name, calibration.fingerprint), inputs)
        return grams.get(name)

    def apply(self, context: Context, values: Values, out: Tensor) -> None:
        """In float64 throughout."""
        weights = [source.to(torch.float64) for source in context.sources]
        if context.statistics is None:
            out.copy_(sum(weights) / len(weights))
            return
        keep = float(values.shared["off_diagonal"])
        grams = [keep * each + (1.0 - keep) * torch.diag(torch.diagonal(each)) for each in context.statistics]
        total = sum(grams)
        ridge = 1e-12 * torch.trace(total) / len(total) * torch.eye(len(total), dtype=torch.float64)
        mean = sum(weights) / len(weights)
        # Where no input ever went, the ridge leaves the mean.
        moved = sum((weight - mean) @ each for weight, each in zip(weights, grams, strict=True))
        out.copy_(mean + torch.linalg.solve(total + ridge, moved.T).T)
