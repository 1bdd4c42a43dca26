"""What a recipe says in the terms of a space: coefficients, densities, methods. For reports, and to find its genome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from merging.recipe import Assignment, Group, Recipe, SourceRef, Value
from search.space.methods import COEFFICIENT, DENSITY
from search.space.scales import Array, SpaceError


class Reading(NamedTuple):
    """A recipe, unit by unit.

    Attributes:
        assignments: [units].
        coefficients: [units, experts]; 0 for an expert that is left out; NaN where the method takes none.
        densities: [units, experts]; NaN where there is none.
    """

    assignments: tuple[Assignment, ...]
    coefficients: Array
    densities: Array


class ByGroup(NamedTuple):
    """A recipe, group by group; single tensors are averaged.

    Attributes:
        coefficients: expert -> group -> coefficient; groups whose method takes none are absent.
        densities: expert -> group -> kept fraction; groups without one are absent.
        methods: group -> its method, the most frequent one of its tensors.
    """

    coefficients: dict[str, dict[Group, float]]
    densities: dict[str, dict[Group, float]]
    methods: dict[Group, str]


class Reader:
    """Reads recipes over some models and some units.

    Args:
        sources: every model by alias.
        experts: aliases, in order.
        groups: [units] the group of each.
        tensors: [units] their names where units are tensors; "" where they are whole groups.
    """

    def __init__(
        self,
        sources: Mapping[str, SourceRef],
        experts: Sequence[str],
        groups: Sequence[Group],
        tensors: Sequence[str],
    ) -> None:
        self._sources = sources
        self._experts = tuple(experts)
        self._groups = tuple(groups)
        self._tensors = tuple(tensors)
        self._known_groups = frozenset(groups)
        self._known_tensors = frozenset(each for each in tensors if each)

    def read(self, recipe: Recipe) -> Reading:
        """What it says of every unit.

        Raises:
            SpaceError: it is for other groups, tensors or experts.
        """
        self._check(recipe)
        at = {alias: self._expert(recipe, alias) for alias in self._aliases(recipe)}
        coefficients = np.full((len(self._groups), len(self._experts)), np.nan)
        densities = np.full_like(coefficients, np.nan)
        assignments = []
        for unit, (group, tensor) in enumerate(zip(self._groups, self._tensors, strict=True)):
            found = recipe.tensors.get(tensor) or recipe.groups[group]
            assignments.append(found)
            own = {at[alias]: dict(values) for alias, values in found.sources}
            shared = dict(found.parameters).get(DENSITY)
            if not own or any(COEFFICIENT in values for values in own.values()):
                coefficients[unit] = 0.0
            for expert, values in own.items():
                if COEFFICIENT in values:
                    coefficients[unit, expert] = _number(values, COEFFICIENT, group)
                if DENSITY in values:
                    densities[unit, expert] = _number(values, DENSITY, group)
                elif shared is not None:
                    densities[unit, expert] = _number({DENSITY: shared}, DENSITY, group)
        return Reading(tuple(assignments), coefficients, densities)

    def by_group(self, values: Array) -> dict[str, dict[Group, float]]:
        """[units, experts] by expert and group; the mean over a group's tensors; groups without a value are absent."""
        table: dict[str, dict[Group, float]] = {}
        for index, expert in enumerate(self._experts):
            found: dict[Group, list[float]] = {}
            for group, value in zip(self._groups, values[:, index].tolist(), strict=True):
                if value == value:
                    found.setdefault(group, []).append(value)
            table[expert] = {
                group: each[0] if len(set(each)) == 1 else sum(each) / len(each) for group, each in found.items()
            }
        return table

    def methods(self, reading: Reading) -> dict[Group, str]:
        """The method of every group; the most frequent one of its tensors."""
        found: dict[Group, Counter[str]] = {}
        for group, assignment in zip(self._groups, reading.assignments, strict=True):
            found.setdefault(group, Counter())[assignment.method] += 1
        return {group: counts.most_common(1)[0][0] for group, counts in found.items()}

    def _check(self, recipe: Recipe) -> None:
        missing = [str(group) for group in self._groups if group not in recipe.groups]
        extra = [str(group) for group in recipe.groups if group not in self._known_groups]
        apart = [name for name in recipe.tensors if name not in self._known_tensors]
        if missing or extra or apart:
            raise SpaceError(
                f"expected a recipe for exactly this model's {len(self._known_groups)} groups and no single tensors "
                f"beyond what the space knows, found {len(missing)} groups missing {missing[:3]}, {len(extra)} unknown "
                f"{extra[:3]} and {len(apart)} tensors set apart {apart[:3]}"
            )

    def _aliases(self, recipe: Recipe) -> set[str]:
        assignments = {id(each): each for each in (*recipe.groups.values(), *recipe.tensors.values())}
        return {alias for each in assignments.values() for alias, _ in each.sources}

    def _expert(self, recipe: Recipe, alias: str) -> int:
        """Index of the expert that a recipe calls by this alias: the one with its content."""
        content = recipe.sources[alias].content if alias in recipe.sources else "unknown"
        same = [index for index, expert in enumerate(self._experts) if self._sources[expert].content == content]
        if not same:
            raise SpaceError(
                f"expected the experts {', '.join(self._experts)}, found {alias!r} with content {content}, which "
                "is none of them"
            )
        return next((index for index in same if self._experts[index] == alias), same[0])


def _number(values: Mapping[str, Value], name: str, group: Group) -> float:
    found = values[name]
    if isinstance(found, str | bool):
        raise SpaceError(f"expected a number for the {name} in group {group}, found {found!r}")
    return float(found)


def difference(recipe: Recipe, again: Recipe) -> str:
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
    for name in sorted(recipe.tensors.keys() | again.tensors.keys()):
        if recipe.tensors.get(name) != again.tensors.get(name):
            return f"tensor {name} is merged in another way than at the nearest point"
    return "it differs in a source's content"
