"""Spherical linear interpolation between the weights of two models."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

from torch import Tensor

from merging.methods.arithmetic import weighted_sum
from merging.methods.contract import Context, Method, Needs, Parameter, Values
from merging.pool import Pool, dot
from merging.recipe import Assignment

COLINEAR = 0.9995  # beyond this |cos| the arc is a straight line, for all that sin Ω in a denominator can tell
SMALLEST_NORM = 1e-8
SMALLEST_SUM = 1e-6


class Angle(NamedTuple):
    """Norms of two flattened tensors and the cosine of the angle between them; nan where a norm is nearly zero."""

    norm_a: float
    norm_b: float
    cosine: float


class Slerp(Method):
    """θ = sin((1−t)Ω)/sin Ω · a + sin(tΩ)/sin Ω · b, with t = c_b / (c_a + c_b) (Shoemake 1985; mergekit's convention).

    Ω is the angle between the two whole tensors, flattened; its coefficients act on the raw, not the unit, vectors. A
    straight interpolation where |cos Ω| > 0.9995 or a norm is at most 1e-8. t is 1/2 where |c_a + c_b| < 1e-6, and is
    not clamped: outside [0, 1] it extrapolates.
    """

    name: ClassVar[str] = "slerp"
    needs: ClassVar[Needs] = Needs(minimum=2, maximum=2)
    formula: ClassVar[str] = "θ = (sin((1−t)Ω)·a + sin(tΩ)·b) / sin Ω, t = c_b / (c_a + c_b)"
    paper: ClassVar[str] = "Shoemake 1985, doi 10.1145/325334.325242"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("coefficient", float, "share of this end of the arc", per_source=True),
    )

    def statistics(self, pool: Pool, name: str) -> Angle:
        """Norms and cosine in float64 over the whole tensor."""
        a, b = pool.sources(name)
        norm_a, norm_b = math.sqrt(dot(a, a)), math.sqrt(dot(b, b))
        if min(norm_a, norm_b) <= SMALLEST_NORM:
            return Angle(norm_a, norm_b, math.nan)
        return Angle(norm_a, norm_b, max(-1.0, min(1.0, dot(a, b) / norm_a / norm_b)))

    def reduce(self, assignment: Assignment) -> Assignment:
        """Coefficients 1 − t and t: only their ratio acts."""
        t = self._position(Values.of(assignment))
        ends = [alias for alias, _ in assignment.sources]
        return Assignment.of(self.name, {ends[0]: {"coefficient": 1.0 - t}, ends[1]: {"coefficient": t}})

    def apply(self, context: Context, values: Values, out: Tensor) -> None:
        """See the class."""
        coefficients = arc(context.statistics, self._position(values))
        weighted_sum(context.sources, coefficients, out, context.workspace)

    def _position(self, values: Values) -> float:
        a, b = values.column("coefficient")
        total = a + b
        if abs(total) < SMALLEST_SUM:
            return 0.5
        # Already 1 − t and t, but for the rounding of 1 − t: dividing again would drift.
        return b if abs(total - 1.0) <= 1e-12 * max(1.0, abs(a), abs(b)) else b / total


def arc(angle: Angle, t: float) -> tuple[float, float]:
    """The factors of the two ends at position ``t`` of the arc."""
    if math.isnan(angle.cosine) or abs(angle.cosine) > COLINEAR:
        return 1.0 - t, t
    omega = math.acos(angle.cosine)
    return math.sin((1.0 - t) * omega) / math.sin(omega), math.sin(t * omega) / math.sin(omega)
