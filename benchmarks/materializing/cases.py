"""What is measured: methods, with the parameters that a search changes from candidate to candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from merging.recipe import Assignment, Value

_GRID = 64  # densities of a search are multiples of 1/64


@dataclass(frozen=True)
class Case:
    """A method as it is measured.

    Attributes:
        title: of its rows.
        method: as recipes write it.
        genes: per source, drawn anew for every group and candidate.
        shared_genes: the same, one for all sources.
        fixed: shared parameters that stay.
        most: sources that the method can take.
    """

    title: str
    method: str
    genes: tuple[str, ...] = ()
    shared_genes: tuple[str, ...] = ()
    fixed: Mapping[str, Value] = field(default_factory=dict)
    most: int | None = None

    def assignment(self, aliases: Sequence[str], chance: np.random.Generator) -> Assignment:
        """One group's share of a random candidate."""
        sources = {alias: {gene: _draw(gene, chance) for gene in self.genes} for alias in aliases[: self.most]}
        shared = {gene: _draw(gene, chance) for gene in self.shared_genes}
        return Assignment.of(self.method, sources, **shared, **self.fixed)


CASES = (
    Case("linear", "linear", ("coefficient",)),
    Case("task_arithmetic", "task_arithmetic", ("coefficient",)),
    Case("slerp (2 experts)", "slerp", ("coefficient",), most=2),
    Case("multislerp", "multislerp", ("coefficient",)),
    Case("karcher", "karcher", ("coefficient",)),
    Case("model_stock", "model_stock"),
    Case("ties", "ties", ("coefficient", "density")),
    Case("ties (mergekit)", "ties", ("coefficient", "density"), fixed={"convention": "mergekit"}),
    Case("dare_linear", "dare_linear", ("coefficient", "density")),
    Case("dare_ties", "dare_ties", ("coefficient", "density")),
    Case("della_linear", "della_linear", ("coefficient", "density")),
    Case("della", "della", ("coefficient", "density")),
    Case("breadcrumbs", "breadcrumbs", ("coefficient", "density")),
    Case("breadcrumbs_ties", "breadcrumbs_ties", ("coefficient", "density")),
    Case("magmax", "magmax", ("coefficient",)),
    Case("consensus_ta", "consensus_ta", ("coefficient", "threshold")),
    Case("ram", "ram"),
    Case("nearswap (1 expert)", "nearswap", shared_genes=("t",), most=1),
    Case("sce", "sce", shared_genes=("density",)),
)

# Of which a candidate that changes a single layer is measured, too.
LAYERED = ("linear", "task_arithmetic", "ties", "dare_ties")

# What --small measures: one of each kind of kernel.
FEW = ("linear", "task_arithmetic", "slerp (2 experts)", "ties", "dare_ties")


def _draw(gene: str, chance: np.random.Generator) -> Value:
    if gene == "density":
        return float(chance.integers(8, 57)) / _GRID
    if gene == "t":
        return float(chance.uniform(1e-4, 4e-4))
    return float(chance.uniform(0.2, 0.8))
