"""Arcs and means on the sphere: methods whose coefficients follow from norms and angles of whole tensors.

Each is Σ f_t·θ_t or θ0 + Σ f_t·τ_t. The factors f come, in float64, from inner products that no candidate changes
(:mod:`merging.statistics`); what is left is one linear pass. By vector (``flatten: false``, ``row_wise: true``) there
is one factor for every row or column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np

from merging.methods.arcs import arc, arcs, elements_by_vector, has_vectors, karcher, norms_of, shares_of, stock
from merging.methods.arithmetic import base_plus, sum_of_weights, without_zeros
from merging.methods.contract import Elements, Elementwise, Needs, Parameter, Values
from merging.pool import Pool
from merging.recipe import Assignment, MergingError
from merging.statistics import Axis, On, gram, norm_of_sum, quadratic, vector_grams

_SMALLEST_SUM = 1e-6  # of the coefficients of two ends

ON = Parameter(
    "on",
    str,
    "what the arc runs between: the weights themselves, or the task vectors, starting at the base",
    default="weights",
    choices=("weights", "task_vectors"),
)


class _Ends(Elementwise):
    """Two ends of an arc: what slerp and nuslerp share."""

    needs: ClassVar[Needs] = Needs(minimum=2, maximum=2)
    paper: ClassVar[str] = "Shoemake 1985, doi 10.1145/325334.325242"

    def reads_base(self, values: Values) -> bool:
        """On task vectors."""
        return values.shared["on"] == "task_vectors"

    def reduce(self, assignment: Assignment) -> Assignment:
        """Coefficients 1 − t and t: only their ratio acts."""
        t = position(Values.of(assignment))
        (first, _), (second, _) = assignment.sources
        ends = ((first, (("coefficient", 1.0 - t),)), (second, (("coefficient", t),)))
        return replace(assignment, sources=ends)


class Slerp(_Ends):
    """θ = sin((1−t)Ω)/sin Ω · a + sin(tΩ)/sin Ω · b, with t = c_b / (c_a + c_b) (Shoemake 1985; mergekit's convention).

    Ω is the angle between the two whole tensors, flattened; the factors act on the raw, not the unit, vectors. A
    straight interpolation where |cos Ω| > 0.9995, nearly parallel or antipodal, or where a norm is at most 1e-8. t is
    1/2 where |c_a + c_b| < 1e-6, and is not clamped: outside [0, 1] it extrapolates.

    ``on: weights`` is a straight line in practice: fine-tunes of one base that moved by 1 % of its norm have
    cos Ω ≈ 0.9999. ``on: task_vectors``, θ = θ0 + slerp(τ_a, τ_b), keeps the norm of nearly orthogonal task vectors,
    which a mean shrinks by √2.
    """

    name: ClassVar[str] = "slerp"
    formula: ClassVar[str] = "θ = (sin((1−t)Ω)·a + sin(tΩ)·b) / sin Ω, t = c_b / (c_a + c_b)"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("coefficient", float, "share of this end of the arc", per_source=True),
        ON,
    )

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class."""
        on = _on(values)
        return _linear(on, arc(gram(pool, name, on), position(values)))


class NuSlerp(_Ends):
    """Slerp without the shortcut for small angles, over whole tensors or vector by vector (mergekit's convention).

    As ``slerp``, but straight only where sin² Ω ≤ 1e-12, with norms of at least 1e-7 in cos Ω. Nearly antipodal ends
    (cos Ω → −1) have no unique arc: the factors grow as 1/sin Ω, up to 1e6.

    flatten: one Ω for the tensor. Otherwise one for every vector along the last axis, the rows of a weight; with
    ``row_wise`` along the first axis, its columns (the name is mergekit's). Tensors of one axis are one vector.
    """

    name: ClassVar[str] = "nuslerp"
    formula: ClassVar[str] = "θ = (sin((1−t)Ω)·a + sin(tΩ)·b) / sin Ω, Ω of the tensor or of each vector"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("coefficient", float, "share of this end of the arc", per_source=True),
        ON,
        Parameter("flatten", bool, "one angle for the whole tensor, not one for every vector", default=True),
        Parameter("row_wise", bool, "the vectors run along the first axis, not the last", default=False),
    )

    def reduce(self, assignment: Assignment) -> Assignment:
        """Also ``row_wise`` is off where the tensor is flattened."""
        spelled = super().reduce(assignment)
        if not Values.of(spelled).shared["flatten"]:
            return spelled
        shared = dict(spelled.parameters) | {"row_wise": False}
        return replace(spelled, parameters=tuple(sorted(shared.items())))

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class."""
        on, t = _on(values), position(values)
        shape = pool.shape(name)
        if values.shared["flatten"] or not has_vectors(shape):
            return _linear(on, tuple(float(each) for each in arcs(gram(pool, name, on)[None], t)[:, 0]))
        axis: Axis = "first" if values.shared["row_wise"] else "last"
        return elements_by_vector(self.name, shape, on, axis, arcs(vector_grams(pool, name, on, axis), t), 2)


class MultiSlerp(Elementwise):
    """The normalised mean direction of several tensors, with their mean norm (mergekit's convention).

    u_t = y_t / (‖y_t‖ + ε), m = Σ c_t·u_t / ‖Σ c_t·u_t‖, θ = m·cos ε·Σ c_t·‖y_t‖, y the weights, or the task vectors,
    onto the base. mergekit then follows the mean tangent Σ c_t·(u_t − ⟨u_t, m⟩·m) from m, but at this m that is zero.

    Edge cases: a single source is returned as it is, whatever its coefficient. ‖Σ c_t·u_t‖ < ε, as for antipodal
    sources, has no direction: Σ c_t·y_t for two sources or where all are zero, otherwise a MergingError. Sources of
    coefficient 0 are left out where three or more are left.
    """

    name: ClassVar[str] = "multislerp"
    formula: ClassVar[str] = "θ = Σ c_t·‖θ_t‖ · m, m = Σ c_t·u_t / ‖Σ c_t·u_t‖, u_t = θ_t / ‖θ_t‖"
    paper: ClassVar[str] = "Goddard et al. 2024 (mergekit), arXiv 2403.13257"
    symmetric: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("coefficient", float, "weight c_t of this source in the mean", per_source=True),
        ON,
        Parameter("normalize", bool, "divide the coefficients by their sum", default=True),
        Parameter("eps", float, "added to norms; shortest mean that has a direction", default=1e-8, low=0.0),
    )

    def reads_base(self, values: Values) -> bool:
        """On task vectors, of several sources."""
        return values.shared["on"] == "task_vectors" and len(values.sources) > 1

    def reduce(self, assignment: Assignment) -> Assignment:
        """Coefficients that sum to 1 where they are normalised; what is zero is left out where three stay."""
        values = Values.of(assignment)
        if len(values.sources) == 1:
            defaults = {each.name: each.default for each in self.parameters if each.default is not None}
            kept = {name: each for name, each in assignment.parameters if name not in defaults}
            return Assignment.of(self.name, {assignment.sources[0][0]: {"coefficient": 1.0}}, **(defaults | kept))
        spelled = _with_coefficients(assignment, self._shares(values))
        kept_sources = without_zeros(spelled, Values.of(spelled))
        return replace(spelled, sources=kept_sources) if len(kept_sources) > 2 else spelled

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class."""
        if len(values.sources) == 1:
            return sum_of_weights((1.0,))
        on, eps, shares = _on(values), float(values.shared["eps"]), self._shares(values)
        matrix = gram(pool, name, on)
        norms = norms_of(matrix)
        if max(norms) == 0.0:
            return _linear(on, (0.0,) * len(shares))
        units = [share / (norm + eps) if norm + eps > 0.0 else 0.0 for share, norm in zip(shares, norms, strict=True)]
        length = _length(pool, name, on, units, matrix)
        if length < eps or length == 0.0:
            if len(shares) > 2:
                raise MergingError(
                    f"{self.name} finds no mean direction for tensor {name}: the unit vectors of its sources cancel to "
                    f"a norm of {length:.1e}, below eps {eps:g}; change the coefficients or choose another method"
                )
            return _linear(on, shares)
        scale = math.cos(eps) * math.fsum(share * norm for share, norm in zip(shares, norms, strict=True)) / length
        return _linear(on, [unit * scale for unit in units])

    def _shares(self, values: Values) -> tuple[float, ...]:
        coefficients = values.column("coefficient")
        return shares_of(coefficients, self.name) if values.shared["normalize"] else coefficients


class Karcher(Elementwise):
    """Karcher (Riemannian) mean of the directions, with the mean norm (Karcher 1977; for weights, mergekit).

    With unit vectors u_t = θ_t/‖θ_t‖ and weights α_t = c_t / Σ c, from m = Σ α_t·u_t normalised, repeat: v = Σ α_t·
    Ω_t/sin Ω_t·(u_t − cos Ω_t·m), Ω_t = arccos⟨u_t, m⟩; stop where ‖v‖ < tol; m ← cos‖v‖·m + sin‖v‖·v/‖v‖. Then
    θ = m·Σ α_t·‖θ_t‖. All in float64, on the Gram matrix.

    Edge cases: sources of coefficient 0 are left out. Those of norm ≤ tol have no direction: the others' α are
    normalised anew; if none has one, the result is zero. A start that is shorter than tol is u of the first source,
    by alias. Ω_t < tol adds nothing to v. A source antipodal to the mean has no unique arc to it.
    """

    name: ClassVar[str] = "karcher"
    formula: ClassVar[str] = "θ = Σ α_t·‖θ_t‖ · argmin_m Σ α_t·∠(m, θ_t)², ‖m‖ = 1, α_t = c_t / Σ c"
    paper: ClassVar[str] = "Karcher 1977, doi 10.1002/cpa.3160300502"
    symmetric: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("coefficient", float, "weight c_t of this source in the mean", default=1.0, per_source=True),
        Parameter("max_iter", int, "steps at most", default=10, low=0, high=10_000),
        Parameter("tol", float, "step, angle and norm that count as zero", default=1e-5, low=0.0),
    )

    def reduce(self, assignment: Assignment) -> Assignment:
        """Coefficients that sum to 1; what is zero is left out."""
        spelled = _with_coefficients(assignment, shares_of(Values.of(assignment).column("coefficient"), self.name))
        return replace(spelled, sources=without_zeros(spelled, Values.of(spelled)))

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class."""
        shares = shares_of(values.column("coefficient"), self.name)
        matrix, tol = gram(pool, name, "weights"), float(values.shared["tol"])
        norms = norms_of(matrix)
        kept = [number for number, norm in enumerate(norms) if norm > tol]
        if not kept:
            return sum_of_weights((0.0,) * len(shares))
        if len(shares) == 1:
            return sum_of_weights((1.0,))
        alphas = shares_of([shares[number] for number in kept], f"{self.name} of tensor {name}")
        steps = int(values.shared["max_iter"])
        mean = karcher(matrix[np.ix_(kept, kept)], [norms[number] for number in kept], alphas, steps, tol)
        scale = math.fsum(share * norm for share, norm in zip(shares, norms, strict=True))
        factors = [0.0] * len(shares)
        for number, factor in zip(kept, mean, strict=True):
            factors[number] = factor * scale
        return sum_of_weights(factors)


class ModelStock(Elementwise):
    """θ = θ0 + t·mean(τ), t = N·c / (1 + (N−1)·c), c the mean cosine of two task vectors (Jang et al. 2024).

    Meant for several runs of one task; of orthogonal task vectors it gives the base. ``row_wise``: one t for every
    vector along the last axis. The product of two norms counts as at least 1e-6, cosines lie in [−1, 1].

    paper: t lies in [0, 1], and is 0 where c ≤ 0. mergekit: t is not clamped, so c < 0 extrapolates away from the
    mean, without bound towards c = −1/(N−1); 0 where the denominator is below 1e-6.
    """

    name: ClassVar[str] = "model_stock"
    needs: ClassVar[Needs] = Needs(base=True, minimum=2)
    formula: ClassVar[str] = "θ = θ0 + t·mean(τ_t), t = N·c / (1 + (N−1)·c), c = mean cos(τ_i, τ_j)"
    paper: ClassVar[str] = "Jang et al. 2024, arXiv 2403.19522"
    symmetric: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("row_wise", bool, "an interpolation for every row, not one for the tensor", default=False),
        Parameter(
            "convention", str, "whose details where the two differ", default="paper", choices=("paper", "mergekit")
        ),
    )

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class."""
        count, mergekit = len(values.sources), values.shared["convention"] == "mergekit"
        shape = tuple(pool.base(name).shape)
        if values.shared["row_wise"] and has_vectors(shape):
            ratios = stock(vector_grams(pool, name, "task_vectors", "last"), mergekit)
            return elements_by_vector(self.name, shape, "task_vectors", "last", ratios[None] / count, count)
        ratio = float(stock(gram(pool, name, "task_vectors")[None], mergekit)[0])
        return base_plus((ratio / count,) * count)


def position(values: Values) -> float:
    """t of the two ends: the second's share."""
    a, b = values.column("coefficient")
    total = a + b
    if abs(total) < _SMALLEST_SUM:
        return 0.5
    # Already 1 − t and t, but for the rounding of 1 − t: dividing again would drift.
    return b if abs(total - 1.0) <= 1e-12 * max(1.0, abs(a), abs(b)) else b / total


def _on(values: Values) -> On:
    return "task_vectors" if values.shared["on"] == "task_vectors" else "weights"


def _linear(on: On, factors: Sequence[float]) -> Elements:
    return base_plus(factors) if on == "task_vectors" else sum_of_weights(factors)


def _length(pool: Pool, name: str, on: On, factors: Sequence[float], matrix: np.ndarray) -> float:
    """‖Σ f_t·y_t‖; from the elements where the Gram matrix has lost it to cancellation."""
    square = quadratic(factors, matrix)
    terms = math.fsum(abs(factor) * norm for factor, norm in zip(factors, norms_of(matrix), strict=True))
    return math.sqrt(square) if square > 1e-6 * terms * terms else norm_of_sum(pool, name, on, factors)


def _with_coefficients(assignment: Assignment, coefficients: Sequence[float]) -> Assignment:
    sources = tuple(
        (alias, (("coefficient", coefficient),))
        for (alias, _), coefficient in zip(assignment.sources, coefficients, strict=True)
    )
    return replace(assignment, sources=sources)
