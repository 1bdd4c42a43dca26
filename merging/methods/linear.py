"""Linear combination of weights: the weighted average, or model soup."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from merging.methods.arithmetic import normalized, sum_of_weights, without_zeros
from merging.methods.contract import Elements, Elementwise, Parameter, Values
from merging.pool import Pool
from merging.recipe import Assignment


class Linear(Elementwise):
    """θ = Σ c_t·θ_t, divided by Σ c_t where ``normalize`` is on (Wortsman et al. 2022, arXiv 2203.05482)."""

    name: ClassVar[str] = "linear"
    formula: ClassVar[str] = "θ = Σ c_t·θ_t (÷ Σ c_t)"
    paper: ClassVar[str] = "Wortsman et al. 2022, arXiv 2203.05482"
    symmetric: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("coefficient", float, "weight c_t of this source in the sum", per_source=True),
        Parameter("normalize", bool, "divide by the sum of the coefficients", default=True),
    )

    def reduce(self, assignment: Assignment) -> Assignment:
        """Sources of coefficient 0 are left out: they add nothing to either sum."""
        values = Values.of(assignment)
        self._effective(values)  # refuses a zero sum
        kept = without_zeros(assignment, values) or assignment.sources[:1]
        return replace(assignment, sources=kept)

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class."""
        return sum_of_weights(self._effective(values))

    def _effective(self, values: Values) -> tuple[float, ...]:
        coefficients = values.column("coefficient")
        return normalized(coefficients, self.name) if values.shared["normalize"] else coefficients
