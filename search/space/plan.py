"""A space compiled: which number of a genome is what, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from merging.recipe import Group, Value
from search.optimizers.contract import Box, Genome
from search.space.genes import Gene, coefficient_genes, density_genes, method_genes, parameter_genes
from search.space.methods import SearchedMethod
from search.space.mixing import Mixing
from search.space.scales import DIGITS, Array, Scale, SpaceError, Steps, rounded
from search.space.spelling import Settled
from search.space.tracks import Borders, Granularity, Projection, Run, Track, kind_sets, method_runs, project, tracks

_LINE_DIGITS = 15
_LINE_STEP = 1e12
"""A line's rise is rounded to 1e-12 and its coefficients to 15 digits, so that both its genes can be read back."""

_PROJECTIONS = 1024


class Point(NamedTuple):
    """A genome's meaning.

    Attributes:
        choices: [runs] index of the method.
        settled: [runs] the method with its parameters.
        rows: [units] coefficients by expert; () where the method takes none.
        densities: [runs] by expert; () where no method takes any.
        projection: of the coefficient genes.
    """

    choices: tuple[int, ...]
    settled: tuple[Settled, ...]
    rows: list[tuple[float, ...]]
    densities: list[tuple[float, ...]]
    projection: Projection


class Number(NamedTuple):
    """A searched parameter that is a number: index of its method, its name, what its gene stands for, and the scope
    that it is for (:meth:`Plan.scope`)."""

    method: int
    name: str
    scale: Scale
    scope: int = 0


class Option(NamedTuple):
    """A categorical parameter: index of its method, its name, its choices, and its scope."""

    method: int
    name: str
    choices: tuple[Value, ...]
    scope: int = 0


class Plan:
    """The genes of a space, in the order of its genomes.

    ``Genome.values``: coefficients (owner by owner, track by track), densities (run by run, owner by owner), numbers
    among the methods' parameters. ``Genome.categories``: the method of each run, categorical parameters.

    With ``apart``, every kind set in a run of depths is a run of its own, with parameters of its own; without, a
    parameter is the same everywhere.
    """

    def __init__(
        self,
        *,
        experts: tuple[str, ...],
        groups: Sequence[Group],
        tensors: Sequence[str],
        granularity: Granularity,
        kinds: Sequence[Sequence[str]],
        mixing: Mixing,
        methods: tuple[SearchedMethod, ...],
        blocks: int | Borders,
        density: Steps | None,
        shared_density: bool,
        apart: bool = False,
    ) -> None:
        self.experts = experts
        self.methods = methods
        self.mixing = mixing
        self.density = density
        self.line = granularity == "lines"
        self.tracks: list[Track] = tracks(groups, tensors, granularity, kind_sets(groups, granularity, kinds))
        if not any(each.coefficients for each in methods):
            self.tracks = []
        self.apart = apart
        varied = len(methods) > 1 or density is not None or (apart and any(each.genes for each in methods))
        sets = kind_sets(groups, "layer", kinds) if apart else ()
        self.runs = method_runs(groups, blocks, sets) if varied else [Run("", None, tuple(range(len(groups))))]
        self.run_of = np.zeros(len(groups), dtype=np.int64)
        for run, each in enumerate(self.runs):
            self.run_of[list(each.members)] = run
        mixed = len({each.coefficients for each in methods}) > 1
        if self.line and mixed and len(self.runs) > 1:
            without = ", ".join(each.name for each in methods if not each.coefficients)
            raise SpaceError(
                f"granularity lines draws one line over all depths, but {without} takes no coefficients and may be "
                "chosen for some of them; set method_blocks: 1 and method_kinds: false, or leave them out"
            )
        self.owners = mixing.owners
        one_density = shared_density or all(each.density != "per_source" for each in methods)
        self.density_owners: tuple[str, ...] = ("",) if one_density else experts
        if density is None:
            self.density_owners = ()
        searched = [
            (method, gene, scope)
            for scope in range(len(self.runs) if apart else 1)
            for method, each in enumerate(methods)
            for gene in each.genes
        ]
        self.numbers = [
            Number(method, gene.name, gene.scale, scope) for method, gene, scope in searched if gene.scale is not None
        ]
        self.options = [
            Option(method, gene.name, gene.options, scope) for method, gene, scope in searched if gene.scale is None
        ]
        self._number_at = {(each.scope, each.method, each.name): index for index, each in enumerate(self.numbers)}
        self._option_at = {(each.scope, each.method, each.name): index for index, each in enumerate(self.options)}
        self.genes = tuple(self._genes(groups, granularity))
        self.width: int = sum(track.weights.shape[1] for track in self.tracks)
        self.coefficients = len(self.owners) * self.width
        self.densities = len(self.runs) * len(self.density_owners)
        self.method_genes = len(self.runs) if len(methods) > 1 else 0
        categories = (len(methods),) * self.method_genes + tuple(len(each.choices) for each in self.options)
        self.box = Box(self.coefficients + self.densities + len(self.numbers), categories)
        self.projection = lru_cache(maxsize=_PROJECTIONS)(self._projection)

    def point(self, genome: Genome) -> Point:
        """What a genome in the box says."""
        choices = genome.categories[: self.method_genes] or (0,) * len(self.runs)
        parameters = self.parameters(genome)
        wanted = [(self.scope(run), choice) for run, choice in enumerate(choices)]
        known = {
            (scope, choice): Settled.of(self.methods[choice], parameters[scope][choice])
            for scope, choice in set(wanted)
        }
        settled = tuple(known[each] for each in wanted)
        projection = self.projection(choices)
        coefficients = self.coefficient_values(genome.values[: self.coefficients])
        return Point(
            choices, settled, self._rows(coefficients, projection, choices), self._densities(genome), projection
        )

    def coefficient_values(self, genes: Sequence[float]) -> Array:
        """[owners, genes of one] in the units of coefficients, or of variables."""
        values = self.mixing.values(np.asarray(genes, dtype=np.float64).reshape(len(self.owners), -1))
        if self.mixing.of_variables:
            return values
        found = rounded(values)
        if self.line and self.width:
            found[:, 1] = np.rint(values[:, 1] * _LINE_STEP) / _LINE_STEP + 0.0
        return found

    def scope(self, run: int) -> int:
        """Whose parameters hold in a run: its own where kind sets choose apart, else those of all, 0."""
        return run if self.apart else 0

    def parameters(self, genome: Genome) -> list[list[dict[str, Value]]]:
        """[scopes][methods] searched parameter -> value."""
        found: list[list[dict[str, Value]]] = [
            [{} for _ in self.methods] for _ in range(len(self.runs) if self.apart else 1)
        ]
        numbers = genome.values[self.coefficients + self.densities :]
        for number, value in zip(self.numbers, numbers, strict=True):
            found[number.scope][number.method][number.name] = number.scale.value(value)
        for option, choice in zip(self.options, genome.categories[self.method_genes :], strict=True):
            found[option.scope][option.method][option.name] = option.choices[choice]
        return found

    def density_gene(self, run: int, expert: int) -> int:
        """Where in ``Genome.values`` the density of an expert in a run stands; the first expert's is that of a method
        with one density for all sources."""
        owners = len(self.density_owners)
        return self.coefficients + run * owners + (expert if owners > 1 else 0)

    def number_gene(self, scope: int, method: int, name: str) -> int:
        """Where in ``Genome.values`` a parameter stands."""
        return self.coefficients + self.densities + self._number_at[scope, method, name]

    def option_gene(self, scope: int, method: int, name: str) -> int:
        """Where in ``Genome.categories`` a parameter stands."""
        return self.method_genes + self._option_at[scope, method, name]

    def _projection(self, choices: tuple[int, ...]) -> Projection:
        taking = [self.methods[choice].coefficients for choice in choices]
        return project(self.tracks, [taking[run] for run in self.run_of.tolist()])

    def _rows(self, coefficients: Array, projection: Projection, choices: Sequence[int]) -> list[tuple[float, ...]]:
        if not self.width:
            return [()] * len(self.run_of)
        digits = _LINE_DIGITS if self.line else DIGITS
        along = coefficients @ projection.weights.T  # [owners, units]
        rows = self.mixing.coefficients(along if self.mixing.of_variables else rounded(along, digits)).T
        found = [tuple(row) for row in rows.tolist()]
        if all(self.methods[choice].coefficients for choice in choices):
            return found
        taking = [self.methods[choice].coefficients for choice in choices]
        return [row if taking[run] else () for run, row in zip(self.run_of.tolist(), found, strict=True)]

    def _densities(self, genome: Genome) -> list[tuple[float, ...]]:
        if self.density is None:
            return [()] * len(self.runs)
        return [
            tuple(
                self.density.value(genome.values[self.density_gene(run, expert)]) for expert in range(len(self.experts))
            )
            for run in range(len(self.runs))
        ]

    def _genes(self, groups: Sequence[Group], granularity: Granularity) -> list[Gene]:
        apart = self.runs if self.apart else ()
        everything = granularity in ("model", "lines")
        found = list(coefficient_genes(self.owners, self.tracks, self.mixing.bounds, everything))
        if self.density is not None:
            found += density_genes(self.density_owners, groups, self.runs, self.density)
        found += parameter_genes(self.methods, groups, apart, categorical=False)
        if len(self.methods) > 1:
            found += method_genes(groups, self.runs, [each.name for each in self.methods])
        return [*found, *parameter_genes(self.methods, groups, apart, categorical=True)]
