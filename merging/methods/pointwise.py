"""Methods that look at one element of the task vectors at a time, and need no order and no transcendental function.

What is compared with a threshold, or with the other sources, is the float32 difference to the base; what is added up
has the accumulation precision.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from merging.methods.arithmetic import base_plus, weighted_sum
from merging.methods.contract import Elements, Elementwise, Inputs, Needs, Parameter, Values
from merging.methods.pipeline import masked, scaled, summed
from merging.pool import Pool, pieces
from merging.recipe import Assignment

COEFFICIENT = Parameter(
    "coefficient", float, "coefficient λ_t of this source's task vector", default=1.0, per_source=True
)
SCALE = Parameter("scale", float, "factor on the merged task vector", default=1.0)
EPSILON = Parameter("epsilon", float, "an element has moved where |τ| is larger", default=1e-5, low=0.0)

_CHUNK = 1 << 16
_NEARSWAP_SMALLEST = 1e-6  # mergekit's floor of the distance that is divided by


def deltas_of(inputs: Inputs) -> list[Tensor]:
    """[sources] τ_t = x_t − b, in the dtype of the numbers."""
    base = inputs.base.to(inputs.numbers.dtype)
    return [source.to(base.dtype) - base for source in inputs.sources]


def distances_of(inputs: Inputs, deltas: list[Tensor]) -> list[Tensor]:
    """[sources] |τ_t| in float32, whatever the dtype of the numbers is: what is selected by."""
    if inputs.numbers.dtype != torch.float32:
        base = inputs.base.to(torch.float32)
        deltas = [source.to(torch.float32) - base for source in inputs.sources]
    return [delta.abs() for delta in deltas]


def positive(values: Tensor) -> Tensor:
    """1 where a value is above 0, else 0, in its dtype: several times as quick as torch.where on a comparison."""
    return values.sign().clamp(min=0.0)


class MagMax(Elementwise):
    """Of every element, the task vector that moved it furthest (Marczak et al. 2024, arXiv 2407.06322).

    θ = θ0 + s·λ_j·τ_j with j = argmax_t |τ_t|. The coefficients do not take part in the comparison. Where several moved
    an element equally far, the first source in alphabetical order of the aliases has it.
    """

    name: ClassVar[str] = "magmax"
    needs: ClassVar[Needs] = Needs(base=True)
    eager_ns: ClassVar[float] = 6.0
    formula: ClassVar[str] = "θ = θ0 + scale·λ_j·τ_j, j = argmax_t |τ_t|"
    paper: ClassVar[str] = "Marczak et al. 2024, arXiv 2407.06322"
    symmetric: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (COEFFICIENT, SCALE)

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class."""
        scale, coefficients = float(values.shared["scale"]), values.column("coefficient")
        return Elements(largest, numbers=tuple(scale * each for each in coefficients), sources=_all(values))


def largest(inputs: Inputs) -> Tensor:
    """b + c_j · (x_j − b) for the j of the largest |x_j − b|; the first of equal ones."""
    deltas = deltas_of(inputs)
    terms = [delta * inputs.numbers[number] for number, delta in enumerate(deltas)]
    distances = distances_of(inputs, deltas)
    chosen, furthest = terms[0], distances[0]
    for term, distance in zip(terms[1:], distances[1:], strict=True):
        further = positive(distance - furthest).to(term.dtype)
        chosen = chosen * (1.0 - further) + term * further
        furthest = torch.maximum(distance, furthest)
    return chosen + inputs.base.to(chosen.dtype)


class ConsensusTA(Elementwise):
    """Task arithmetic on the elements that enough tasks need (Wang et al. 2024, arXiv 2405.07813).

    With M = Σ λ_t·τ_t, task t needs an element where |λ_t·τ_t| ≥ ϑ_t·|M − λ_t·τ_t|, its TALL mask of threshold ϑ_t; the
    element is kept where at least ``agreement`` tasks need it, and is the base's otherwise. agreement 0 is task
    arithmetic, and more than there are sources is the base. The paper keeps what 2 tasks need, with thresholds of
    0.2 to 0.6 found by validation.
    """

    name: ClassVar[str] = "consensus_ta"
    needs: ClassVar[Needs] = Needs(base=True)
    eager_ns: ClassVar[float] = 8.0
    formula: ClassVar[str] = "θ = θ0 + scale·M⊙[#{t : |λ_t·τ_t| ≥ ϑ_t·|M − λ_t·τ_t|} ≥ agreement], M = Σ λ_t·τ_t"
    paper: ClassVar[str] = "Wang et al. 2024, arXiv 2405.07813"
    symmetric: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        COEFFICIENT,
        Parameter(
            "threshold",
            float,
            "share ϑ_t of all others' sum that this task must reach",
            default=0.4,
            low=0.0,
            high=1e6,
            per_source=True,
        ),
        Parameter("agreement", int, "tasks that must need an element", default=2, low=0, high=2**31 - 1),
        SCALE,
    )

    def reduce(self, assignment: Assignment) -> Assignment:
        """Sources of coefficient 0 are left out: they add nothing, and need nothing unless their threshold is 0."""
        votes = {
            alias: given["coefficient"] != 0.0 or given["threshold"] == 0.0
            for alias, given in ((alias, dict(values)) for alias, values in assignment.sources)
        }
        kept = tuple(each for each in assignment.sources if votes[each[0]])
        return replace(assignment, sources=kept or assignment.sources[:1])

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class."""
        scale, agreement = float(values.shared["scale"]), int(values.shared["agreement"])
        coefficients = values.column("coefficient")
        if agreement == 0:
            return base_plus([scale * each for each in coefficients])
        if agreement > len(coefficients) or scale == 0.0:
            return base_plus(())
        return Elements(
            needed_by_enough,
            numbers=(*coefficients, *values.column("threshold"), scale),
            integers=(agreement,),
            sources=_all(values),
        )


def needed_by_enough(inputs: Inputs) -> Tensor:
    """b + s · Σ c_t (x_t − b), where enough terms are large against the sum of the others; b elsewhere."""
    count = len(inputs.sources)
    terms = [delta * inputs.numbers[number] for number, delta in enumerate(deltas_of(inputs))]
    total = summed(terms)
    votes = [
        1.0 - positive((total - term).abs() * inputs.numbers[count + number] - term.abs())
        for number, term in enumerate(terms)
    ]
    merged = masked(total, summed(votes) >= inputs.integers[0])
    return scaled(merged, inputs.numbers[-1]) + inputs.base.to(total.dtype)


class NearSwap(Elementwise):
    """Takes the other model where it is near, and ever less of it where it is far (mergekit's ``nearswap``).

    θ = (1 − w)·θ0 + w·θ_1 with w = t / max(|τ_1|, 1e-6), at most 1: elements within a distance of t are swapped, and
    further ones move by t towards the other model. t = 0 is the base.
    """

    name: ClassVar[str] = "nearswap"
    needs: ClassVar[Needs] = Needs(base=True, minimum=1, maximum=1)
    eager_ns: ClassVar[float] = 10.0
    formula: ClassVar[str] = "θ = (1 − w)·θ0 + w·θ_1, w = min(t / max(|τ_1|, 1e-6), 1)"
    paper: ClassVar[str] = "no paper; definition of mergekit 0.1.5"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("t", float, "distance within which weights are swapped", low=0.0),
    )

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class."""
        return Elements(swapped_if_near, numbers=(float(values.shared["t"]),), sources=(0,))


def swapped_if_near(inputs: Inputs) -> Tensor:
    """(1 − w) b + w x, exactly x where w is 1 and exactly b where x is b."""
    (delta,) = deltas_of(inputs)
    reach = inputs.numbers[0]
    distance = delta.abs().clamp(min=_NEARSWAP_SMALLEST)
    moved = delta * (reach / distance).clamp(max=1.0) + inputs.base.to(delta.dtype)
    far = positive(distance - reach)
    return inputs.sources[0].to(delta.dtype) * (1.0 - far) + moved * far


class Ram(Elementwise):
    """Averages what several tasks moved, and keeps whole what one alone moved (RAM, arXiv 2601.13572).

    A task has moved an element where |τ_t| > ε. Where one task has, its τ_t is added whole; where several have, their
    mean is. For sparse task vectors, such as reinforcement learning leaves, whose unique elements averaging would
    shrink.
    """

    name: ClassVar[str] = "ram"
    needs: ClassVar[Needs] = Needs(base=True)
    eager_ns: ClassVar[float] = 8.0
    formula: ClassVar[str] = "θ = θ0 + mean{τ_t : |τ_t| > ε}"
    paper: ClassVar[str] = "RAM, arXiv 2601.13572; definition of mergekit 0.1.5"
    symmetric: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (EPSILON,)

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class."""
        factors = self.factors(pool, name, values)
        return Elements(
            mean_of_moved,
            (any(each != 1.0 for each in factors),),
            (*factors, float(values.shared["epsilon"])),
            sources=_all(values),
        )

    def factors(self, pool: Pool, name: str, values: Values) -> tuple[float, ...]:
        """[sources] factor of what one task alone moved."""
        return (1.0,) * len(values.sources)


class RamPlus(Ram):
    """RAM, with the unique elements of a task amplified the more, the more of it others share (arXiv 2601.13572).

    What task t alone moved is multiplied by 1 + r·min(ρ_t, α), where ρ_t = (elements that t and others moved) /
    (elements that t alone moved), both counted over the tensor: a task whose shared elements were averaged away gets
    some of its strength back.
    """

    name: ClassVar[str] = "ramplus_tl"
    formula: ClassVar[str] = "θ = θ0 + mean{τ_t : |τ_t| > ε}, × 1 + r·min(shared_t/unique_t, α) where t alone moved"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        EPSILON,
        Parameter("r", float, "how strongly unique elements are amplified", default=0.1, low=0.0),
        Parameter("alpha", float, "largest ratio of shared to unique elements that counts", default=0.2, low=0.0),
    )

    def factors(self, pool: Pool, name: str, values: Values) -> tuple[float, ...]:
        """[sources] 1 + r·min(shared / unique, α)."""
        epsilon, r, alpha = (float(values.shared[each]) for each in ("epsilon", "r", "alpha"))
        counts = pool.lately((self.name, name, epsilon), lambda: shared_and_unique(pool, name, epsilon))
        # Without unique elements the factor multiplies nothing. mergekit floors their count by ε.
        return tuple(
            1.0 + r * min(shared / max(unique, epsilon), alpha) if unique else 1.0 for shared, unique in counts
        )


def mean_of_moved(inputs: Inputs, amplified: bool) -> Tensor:
    """b + the mean of the x_t − b with |x_t − b| > ε; multiplied by a factor of its own where there is but one."""
    deltas = deltas_of(inputs)
    moved = [mask.to(inputs.numbers.dtype) for mask in moved_of(inputs, deltas, inputs.numbers[-1])]
    count, terms = summed(moved), [delta * mask for delta, mask in zip(deltas, moved, strict=True)]
    if amplified:
        alone = (2.0 - count).clamp(0.0, 1.0)
        terms = [term * (alone * inputs.numbers[number] + (1.0 - alone)) for number, term in enumerate(terms)]
    return summed(terms) / count.clamp(min=1.0) + inputs.base.to(count.dtype)


def moved_of(inputs: Inputs, deltas: list[Tensor], epsilon: Tensor) -> list[Tensor]:
    """[sources] 1 where |τ_t| > ε, else 0, in float32."""
    threshold = epsilon.to(torch.float32)
    return [positive(distance - threshold) for distance in distances_of(inputs, deltas)]


def shared_and_unique(pool: Pool, name: str, epsilon: float) -> tuple[tuple[int, int], ...]:
    """[sources] (elements that it and another moved, elements that it alone moved) of a tensor."""
    base, sources = pool.base(name).reshape(-1), [each.reshape(-1) for each in pool.sources(name)]
    threshold = torch.tensor(epsilon, dtype=torch.float32, device=base.device)
    empty = torch.empty(0, dtype=torch.int32)
    found = [[0, 0] for _ in sources]
    for start, stop in pieces(base.numel(), _CHUNK):
        piece = Inputs(base[start:stop], tuple(each[start:stop] for each in sources), threshold, empty, empty, ())
        moved = moved_of(piece, deltas_of(piece), threshold)
        alone = summed(moved) == 1.0
        for pair, mask in zip(found, moved, strict=True):
            unique = int(torch.count_nonzero(mask * alone))
            pair[0] += int(torch.count_nonzero(mask)) - unique
            pair[1] += unique
    return tuple((shared, unique) for shared, unique in found)


class Passthrough(Elementwise):
    """One model's weights as they are, times a factor: the building stone of stacked models (Kim et al. 2023).

    With ``layers`` in the recipe, blocks of several models or of one, some repeated, make a deeper model, as in
    frankenmerges and depth up-scaling (SOLAR, arXiv 2312.15166). scale 0 on the output projections of a block turns
    the block into the identity.
    """

    name: ClassVar[str] = "passthrough"
    needs: ClassVar[Needs] = Needs(minimum=1, maximum=1)
    formula: ClassVar[str] = "θ = scale·θ_1"
    paper: ClassVar[str] = "Kim et al. 2023, arXiv 2312.15166 (depth up-scaling); mergekit's frankenmerges"
    parameters: ClassVar[tuple[Parameter, ...]] = (Parameter("scale", float, "factor on the weights", default=1.0),)

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class."""
        return Elements(weighted_sum, numbers=(float(values.shared["scale"]),), sources=(0,), base=False)


def _all(values: Values) -> tuple[int, ...]:
    return tuple(range(len(values.sources)))
