"""The space that a search moves in: from a genome to a recipe and back.

One recipe per effect: :meth:`Space.decode` writes an assignment for every group, whatever the granularity, spelled as
:mod:`merging.methods` spells it, with coefficients rounded to 12 significant digits, before interpolation and after it.
A coefficient per expert and equal knots are thus the same recipe, with the same hash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from merging.recipe import Assignment, Group, Recipe, SourceRef, Value
from search.optimizers.contract import Box, Genome
from search.space.genes import (
    Array,
    Bounds,
    Gene,
    Granularity,
    SpaceError,
    kind_sets,
    method_gene,
    method_runs,
    tracks,
    unknown,
    weights,
)

DIGITS = 12
NEGLIGIBLE = 1e-6
"""Below this absolute sum of coefficients a method that divides by the sum has no meaning."""


class Space:
    """What may vary, over one model's groups.

    Args:
        base: alias of the base model.
        sources: every model by alias, the base included.
        experts: aliases of the experts, in the order that methods see them.
        groups: all groups of the model.
        granularity: how finely a track follows the depth.
        kinds: kind sets; every kind that the model has must be in exactly one. Of no effect at granularity ``model``.
        coefficient: bounds of every coefficient.
        methods: names out of :data:`METHODS`; a gene per run of depths chooses where there are several.
        method_blocks: how many runs of depths, per stack, choose their method separately.
        normalize: task arithmetic divides by the sum of the coefficients.
        dtype: of the merged weights; None keeps the base's.

    A method that divides by the sum of the coefficients (linear, slerp, normalised task arithmetic) means nothing where
    they sum to 0: there :meth:`decode` writes plain task arithmetic with the same coefficients, which for all zeros is
    the base.

    Raises:
        SpaceError: arguments that contradict each other or the model.
    """

    def __init__(
        self,
        *,
        base: str,
        sources: Mapping[str, SourceRef],
        experts: Sequence[str],
        groups: Sequence[Group],
        granularity: Granularity,
        kinds: Sequence[Sequence[str]],
        coefficient: Bounds,
        methods: Sequence[str] = ("task_arithmetic",),
        method_blocks: int = 1,
        normalize: bool = False,
        dtype: str | None = None,
    ) -> None:
        self.base = base
        self.sources = dict(sources)
        self.experts = tuple(experts)
        self._by_name = sorted(range(len(self.experts)), key=lambda index: self.experts[index])
        self.groups = tuple(sorted(set(groups), key=lambda group: group.order))
        self.granularity = granularity
        self.coefficient = coefficient
        self.methods = tuple(methods)
        self.normalize = normalize
        self.dtype = dtype
        self._check_models()
        self._check_methods(method_blocks)
        self._tracks = tracks(self.groups, granularity, kind_sets(self.groups, granularity, kinds))
        self._weights = weights(self._tracks, len(self.groups))
        runs = method_runs(self.groups, method_blocks) if len(self.methods) > 1 else []
        self._method_gene = np.zeros(len(self.groups), dtype=np.int64)
        for run, (_, _, members) in enumerate(runs):
            self._method_gene[list(members)] = run
        self.genes = (*self._coefficient_genes(), *(method_gene(self.groups, runs, run) for run in range(len(runs))))
        self.box = Box(len(self.experts) * self._weights.shape[1], (len(self.methods),) * len(runs))

    def decode(self, genome: Genome) -> Recipe:
        """The recipe at a point.

        Raises:
            SpaceError: the genome is not in :attr:`box`.
        """
        if genome not in self.box:
            raise SpaceError(
                f"expected a genome with {self.box.continuous} values in [0, 1] and choices below "
                f"{self.box.categories}, found {len(genome.values)} values and choices {genome.categories}"
            )
        low, high = self.coefficient.low, self.coefficient.high
        genes = low + (high - low) * np.asarray(genome.values).reshape(len(self.experts), -1)
        rows = _round(_round(genes) @ self._weights.T).T.tolist()  # [groups][experts]
        chosen = np.asarray(genome.categories or (0,), dtype=np.int64)[self._method_gene].tolist()
        known: dict[tuple[int, tuple[float, ...]], Assignment] = {}
        assignments: dict[Group, Assignment] = {}
        for group, method, row in zip(self.groups, chosen, rows, strict=True):
            key = (method, tuple(row))
            found = known.get(key)
            if found is None:
                found = known[key] = self._assignment(self.methods[method], key[1])
            assignments[group] = found
        return Recipe(self.base, self.sources, assignments, {}, self.dtype)

    def encode(self, recipe: Recipe) -> Genome:
        """The point at which a recipe lies: ``decode(encode(recipe))`` has its hash.

        Raises:
            SpaceError: the recipe is not in this space.
        """
        coefficients, methods = self._read(recipe)
        values: list[float] = []
        for expert in range(len(self.experts)):
            for track in self._tracks:
                values.extend(self._gene(float(coefficients[witness, expert])) for witness in track.witnesses)
        genome = Genome(tuple(values), self._method_choices(coefficients, methods))
        again = self.decode(genome)
        if again.hash != recipe.hash:
            raise SpaceError(f"the recipe is not a point of this space: {_difference(recipe, again)}")
        return genome

    def uniform(self, coefficients: Mapping[str, float], method: str | None = None) -> Genome:
        """The same coefficients everywhere: the base ({}), an expert alone ({expert: 1}), the mean, a λ grid.

        Args:
            coefficients: by expert; 0 for those that are not named.
            method: one of :attr:`methods`; the first if None.

        Raises:
            SpaceError: an unknown expert or method, or a coefficient outside the bounds.
        """
        for name in coefficients:
            if name not in self.experts:
                raise SpaceError(unknown("expert", name, self.experts))
        if method is not None and method not in self.methods:
            raise SpaceError(unknown("method", method, self.methods))
        choice = 0 if method is None else self.methods.index(method)
        per_expert = self._weights.shape[1]
        values = [
            self._gene(float(coefficients.get(expert, 0.0))) for expert in self.experts for _ in range(per_expert)
        ]
        return Genome(tuple(values), (choice,) * len(self.box.categories))

    def table(self, recipe: Recipe) -> dict[str, dict[Group, float]]:
        """Coefficients by expert and group, for heatmaps. Any recipe with these sources will do, also from another
        granularity.

        Raises:
            SpaceError: other sources or groups.
        """
        coefficients, _ = self._read(recipe)
        return {
            expert: dict(zip(self.groups, coefficients[:, index].tolist(), strict=True))
            for index, expert in enumerate(self.experts)
        }

    def _assignment(self, method: str, row: tuple[float, ...]) -> Assignment:
        """Canonical: what ``Assignment.of`` would build, without sorting what is known to be sorted (this is most of
        the time that decode takes)."""
        normalize = self.normalize
        if abs(sum(row)) < NEGLIGIBLE:
            method, normalize = "task_arithmetic", False
        spelling = METHODS[method]
        if spelling.sums:
            named = [(self.experts[index], row[index]) for index in self._by_name if row[index]]
        else:
            named = list(zip(self.experts, row, strict=True))
        return Assignment(
            method, tuple((name, (("coefficient", value),)) for name, value in named), spelling.parameters(normalize)
        )

    def _gene(self, coefficient: float) -> float:
        """A gene's value in [0, 1] for a coefficient."""
        low, high = self.coefficient.low, self.coefficient.high
        value = (coefficient - low) / (high - low)
        if not -1e-9 <= value <= 1 + 1e-9:
            raise SpaceError(
                f"expected coefficients in [{low:g}, {high:g}], found {coefficient:g}; widen the bounds of the space"
            )
        return min(1.0, max(0.0, value))

    def _read(self, recipe: Recipe) -> tuple[Array, list[str]]:
        """Coefficients [groups, experts] and methods [groups] of a recipe with this space's models and groups."""
        missing = [str(group) for group in self.groups if group not in recipe.groups]
        extra = [str(group) for group in recipe.groups if group not in set(self.groups)]
        if missing or extra or recipe.tensors:
            raise SpaceError(
                f"expected a recipe for exactly this model's {len(self.groups)} groups and no single tensors, found "
                f"{len(missing)} groups missing {missing[:3]}, {len(extra)} unknown {extra[:3]} and "
                f"{len(recipe.tensors)} tensors set apart"
            )
        coefficients = np.zeros((len(self.groups), len(self.experts)))
        for index, group in enumerate(self.groups):
            for alias, values in recipe.groups[group].sources:
                expert = self._expert(recipe, alias)
                coefficients[index, expert] = _coefficient(group, alias, dict(values))
        return coefficients, [recipe.groups[group].method for group in self.groups]

    def _expert(self, recipe: Recipe, alias: str) -> int:
        """Index of the expert that a recipe calls by this alias: the one with its content."""
        content = recipe.sources[alias].content if alias in recipe.sources else "unknown"
        same = [index for index, expert in enumerate(self.experts) if self.sources[expert].content == content]
        if not same:
            raise SpaceError(
                f"expected the experts {', '.join(self.experts)}, found {alias!r} with content {content}, which "
                "is none of them"
            )
        return next((index for index in same if self.experts[index] == alias), same[0])

    def _method_choices(self, coefficients: Array, methods: Sequence[str]) -> tuple[int, ...]:
        """[method genes] The choice that each run of depths shows; the first where its coefficients all sum to 0."""
        choices = []
        for run in range(len(self.box.categories)):
            shown = {
                methods[index]
                for index in np.flatnonzero(self._method_gene == run).tolist()
                if abs(sum(coefficients[index].tolist())) >= NEGLIGIBLE
            }
            if len(shown) > 1 or not shown <= set(self.methods):
                raise SpaceError(
                    f"expected one method out of {', '.join(self.methods)} per run of depths, found "
                    f"{', '.join(sorted(shown))} in run {run}"
                )
            choices.append(self.methods.index(shown.pop()) if shown else 0)
        return tuple(choices)

    def _coefficient_genes(self) -> Iterable[Gene]:
        for expert in self.experts:
            for track in self._tracks:
                stack = f"{track.stack}/" if track.stack else ""
                where = "" if self.granularity == "model" else f".{stack}{'+'.join(track.kinds)}"
                several = len(track.depths) > 1
                for position, depth in enumerate(track.depths):
                    name = f"{expert}{where}@{track.label}{position}" if several else f"{expert}{where}"
                    at = position if several else None
                    yield Gene(name, "coefficient", expert, track.kinds, track.stack, at, depth)

    def _check_models(self) -> None:
        absent = [alias for alias in (self.base, *self.experts) if alias not in self.sources]
        if absent:
            raise SpaceError(unknown("source", absent[0], tuple(self.sources)))
        if not self.experts or len(set(self.experts)) < len(self.experts) or self.base in self.experts:
            raise SpaceError(
                f"expected one or more different experts beside the base {self.base!r}, found {list(self.experts)}"
            )
        if not self.groups:
            raise SpaceError("expected the groups of a model, found none")

    def _check_methods(self, blocks: int) -> None:
        for method in self.methods:
            if method not in METHODS:
                raise SpaceError(unknown("method", method, tuple(METHODS)))
        if not self.methods or len(set(self.methods)) < len(self.methods) or blocks < 1:
            raise SpaceError(
                f"expected one or more different methods and method_blocks >= 1, found {list(self.methods)} and "
                f"{blocks}"
            )
        if "slerp" in self.methods and len(self.experts) != 2:
            raise SpaceError(
                f"slerp is between exactly two experts, found {len(self.experts)}: {', '.join(self.experts)}; leave it "
                "out of the methods or search over two"
            )


@dataclass(frozen=True)
class Spelling:
    """How a method's canonical assignment is written, the same as :mod:`merging.methods` would.

    Attributes:
        parameters: from the space's ``normalize`` to the shared parameters, sorted; each source has a ``coefficient``.
        sums: it is a sum over the experts: their order does not matter, those of coefficient 0 are left out.
    """

    parameters: Callable[[bool], tuple[tuple[str, Value], ...]]
    sums: bool


METHODS = {
    "task_arithmetic": Spelling(lambda normalize: (("normalize", normalize), ("scale", 1.0)), sums=True),
    "linear": Spelling(lambda normalize: (("normalize", True),), sums=True),
    "slerp": Spelling(lambda normalize: (), sums=False),
}


def _round(values: Array) -> Array:
    """To 12 significant digits, so that sums that differ in their last bits are one number; no negative zero.

    A whole number divided by a power of ten up to 1e22 is the double nearest to that decimal, hence rounding twice is
    rounding once.
    """
    size = np.abs(values)
    digits = DIGITS - 1 - np.floor(np.log10(np.where(size > 0, size, 1.0)))
    power = 10.0 ** np.clip(digits, 0, 22)
    return np.asarray(np.rint(values * power) / power + 0.0)


def _coefficient(group: Group, alias: str, values: Mapping[str, Value]) -> float:
    found = values.get("coefficient")
    if set(values) != {"coefficient"} or isinstance(found, str | bool) or found is None:
        raise SpaceError(
            f"expected one parameter 'coefficient' per expert, found {dict(values)} for {alias} in group {group}"
        )
    return float(found)


def _difference(recipe: Recipe, again: Recipe) -> str:
    """The first thing in which a recipe is not what the space makes of it."""
    for name, one, other in (
        ("base", recipe.sources[recipe.base].content, again.sources[again.base].content),
        ("dtype", recipe.dtype, again.dtype),
    ):
        if one != other:
            return f"its {name} is {one}, the space's is {other}"
    for group, assignment in again.groups.items():
        if recipe.groups[group] != assignment:
            return f"group {group} is {recipe.groups[group].as_data()}, the nearest point has {assignment.as_data()}"
    return "it differs in a source's content"
