"""Task arithmetic: add scaled task vectors to the base."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from merging.methods.arithmetic import base_plus, normalized, without_zeros
from merging.methods.contract import Elements, Elementwise, Needs, Parameter, Values
from merging.pool import Pool
from merging.recipe import Assignment


class TaskArithmetic(Elementwise):
    """θ = θ0 + s·Σ c_t·τ_t with τ_t = θ_t − θ0 (Ilharco et al. 2023, arXiv 2212.04089). c_t < 0 forgets a task."""

    name: ClassVar[str] = "task_arithmetic"
    needs: ClassVar[Needs] = Needs(base=True, minimum=0)
    formula: ClassVar[str] = "θ = θ0 + scale·Σ c_t·(θ_t − θ0) (÷ Σ c_t)"
    paper: ClassVar[str] = "Ilharco et al. 2023, arXiv 2212.04089"
    symmetric: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("coefficient", float, "coefficient λ_t of this source's task vector", per_source=True),
        Parameter("scale", float, "factor on the summed task vector", default=1.0),
        Parameter("normalize", bool, "divide by the sum of the coefficients", default=False),
    )

    def reduce(self, assignment: Assignment) -> Assignment:
        """Sources of coefficient 0 are left out; without any source, or with scale 0, it is the base."""
        values = Values.of(assignment)
        self._effective(values)  # refuses a zero sum
        if values.shared["scale"] == 0.0:
            return Assignment.of(self.name, {}, scale=1.0, normalize=False)
        kept = without_zeros(assignment, values)
        return replace(assignment, sources=kept) if kept else Assignment.of(self.name, {}, scale=1.0, normalize=False)

    def prepare(self, pool: Pool, name: str, values: Values) -> Elements:
        """See the class."""
        return base_plus(self._effective(values))

    def _effective(self, values: Values) -> tuple[float, ...]:
        coefficients = values.column("coefficient")
        if values.shared["normalize"] and coefficients:
            coefficients = normalized(coefficients, self.name)
        return tuple(float(values.shared["scale"]) * coefficient for coefficient in coefficients)
