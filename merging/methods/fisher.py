"""Fisher merging: every element weighted by how much its expert's likelihood depends on it."""

from __future__ import annotations

import math
from typing import ClassVar
from weakref import WeakKeyDictionary

from torch import Tensor, device

from merging.calibration.contract import Calibration
from merging.methods.arcs import by_shares
from merging.methods.arithmetic import base_plus, sum_of_weights
from merging.methods.contract import Elements, Elementwise, Inputs, Needs, Parameter, Values
from merging.methods.regression import calibration_of, data_of
from merging.pool import Pool
from merging.recipe import Assignment, MergingError

# F_t by content, tensor, device and factor (which tells statistics of one live dtype from those of another). A search
# that sets coefficients to zero has a pool for every set of sources: they share these.
_HELD: WeakKeyDictionary[Calibration, dict[tuple[str, str, device, float], Tensor]] = WeakKeyDictionary()


def fisher_mean(inputs: Inputs) -> Tensor:
    """θ_1 + Σ w_t·(θ_t − θ_1) / Σ w_t with w_t = c_t·max(f_t·F_t, floor), in the dtype of the numbers.

    The fields are the F_t. Numbers: c_t, then f_t, of every source, then the floor, and more that are another kernel's.
    """
    dtype, count = inputs.numbers.dtype, len(inputs.sources)
    floor = inputs.numbers[2 * count]
    first = inputs.sources[0].to(dtype)
    divisor = total = None
    for number, (source, field) in enumerate(zip(inputs.sources, inputs.fields, strict=True)):
        weight = (field.to(dtype) * inputs.numbers[count + number]).clamp(min=floor) * inputs.numbers[number]
        divisor = weight if divisor is None else divisor + weight
        if number:
            term = (source.to(dtype) - first) * weight
            total = term if total is None else total + term
    assert divisor is not None and total is not None
    return total / divisor + first


def from_base(inputs: Inputs) -> Tensor:
    """θ0 + scale·(θ − θ0) with θ of :func:`fisher_mean`; scale is the last number."""
    base = inputs.base.to(inputs.numbers.dtype)
    return (fisher_mean(inputs) - base) * inputs.numbers[-1] + base


class Fisher(Elementwise):
    """θ = Σ c_t·F̂_t⊙θ_t / Σ c_t·F̂_t with the diagonal of every expert's Fisher information (Matena and Raffel 2022).

    F_t = E_x E_{y~p_t(y|x)} (∇_θ log p_t(y|x))², labels drawn from the expert itself. F̂_t = max(F_t / r_t, floor),
    where r_t = ‖F_t‖₂/√n is the root mean square over all n elements of the model: the paper's division by the global
    norm, in units that make the floor mean the same for models of every size. ``scale`` is a factor on what the merge
    adds to the base: θ0 + scale·(θ − θ0).

    Edge cases: only the ratio of the coefficients acts; sources of coefficient 0 are left out. Where all F̂_t are at the
    floor, it is the mean by the coefficients. An expert whose F_t is zero everywhere has the floor.

    As genes: a candidate reads every source and its F_t once, in about twice the time of task arithmetic. All F_t are
    kept in float32, once, whichever sources take part.
    """

    name: ClassVar[str] = "fisher"
    needs: ClassVar[Needs] = Needs(calibration=True, statistics=frozenset({"fisher"}))
    formula: ClassVar[str] = "θ = Σ c_t·F̂_t⊙θ_t / Σ c_t·F̂_t, F̂_t = max(F_t / rms(F_t), floor)"
    paper: ClassVar[str] = "Matena and Raffel 2022, arXiv 2111.09832"
    symmetric: ClassVar[bool] = True
    eager_ns: ClassVar[float] = 4.0
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter(
            "coefficient", float, "weight c_t of this source's information", default=1.0, low=0.0, per_source=True
        ),
        Parameter("floor", float, "least F̂_t, relative to the root mean square of F_t", default=1e-6, low=1e-12),
        Parameter("scale", float, "factor on what the merge adds to the base", default=1.0),
    )

    def reads_base(self, values: Values) -> bool:
        """Where what it adds to the base is scaled."""
        return values.shared["scale"] != 1.0

    def reduce(self, assignment: Assignment) -> Assignment:
        """Coefficients that sum to 1; what is zero is left out."""
        return by_shares(assignment)

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class.

        Raises:
            MergingError: no calibration, or one without the information.
        """
        shares, scale = values.column("coefficient"), float(values.shared["scale"])
        if scale == 0.0 or len(shares) == 1:
            return sum_of_weights(shares) if scale == 1.0 else base_plus([share * scale for share in shares])
        calibration = calibration_of(pool, self.name)
        sources = tuple(range(len(shares)))
        data = data_of(calibration)
        factors: tuple[float, ...] = pool.once(
            (self.name, data), lambda: tuple(_factor(calibration, pool, number) for number in sources)
        )
        fields: tuple[Tensor, ...] = pool.once(
            (self.name, data, name),
            lambda: tuple(_fisher(calibration, pool, number, name, factors[number]) for number in sources),
        )
        numbers = (*shares, *factors, float(values.shared["floor"]))
        if scale == 1.0:
            return Elements(fisher_mean, numbers=numbers, sources=sources, base=False, fields=fields)
        return Elements(from_base, numbers=(*numbers, scale), sources=sources, fields=fields)


def _fisher(calibration: Calibration, pool: Pool, number: int, name: str, factor: float) -> Tensor:
    """Flat F_t of one tensor, where the source is; ``factor`` is its source's."""
    content, tensor = pool.content(number), pool.source(name, number)
    held = _HELD.setdefault(calibration, {}) if pool.searching else {}  # one merge goes through the model once
    key = (content, name, tensor.device, factor)
    if key in held:
        return held[key]
    found = calibration.fisher(content, name)
    if found.shape != tensor.shape:
        raise MergingError(
            f"the calibration has the Fisher information of a tensor of shape {list(found.shape)} for {name}, which "
            f"has shape {list(tensor.shape)}: it is of another model"
        )
    held[key] = found.reshape(-1).to(tensor.device)
    return held[key]


def _factor(calibration: Calibration, pool: Pool, number: int) -> float:
    """1/r_t; 0 for no information."""
    norm = calibration.fisher_norm(pool.content(number))
    elements = pool.once(("elements of the model",), lambda: sum(pool.base(name).numel() for name in pool.names))
    return math.sqrt(elements) / norm if norm > 0.0 else 0.0
