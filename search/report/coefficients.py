"""What candidates are made of, group by group, in few bytes: coefficients, densities, methods.

A report holds the layers of every candidate that it has room for: first those that somebody is likely to ask for, then
the others by how near the front they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from merging.methods import is_ready
from merging.recipe import Group, Recipe
from search import pareto
from search.errors import SearchError
from search.report.facts import Facts
from search.space import AnySpace, Space

ROOM = 600_000
"""Bytes of JSON that the layers of all candidates may take together."""
MOST = 1_000
"""Candidates whose recipes are decoded at most: each takes milliseconds."""
STEP = 1000
"""Numbers are kept as whole thousandths."""
OUTSIDE = "outside"
"""The column of tensors that belong to no block: embeddings, head, final norm."""

Encoded = dict[str, Any]
"""Of one candidate: ``c`` [experts] coefficients, ``d`` [experts] densities (left out where there is none), ``m``
methods as indices, ``t`` how many tensors are set apart from their group (left out where none is). A list has a value
per group, a single value stands for all of them, None for "takes none"."""


@dataclass(frozen=True)
class Fitted:
    """What the candidates are made of that a page has room for.

    Attributes:
        candidates: number -> what it is made of.
        left_out: candidates that there was no room for.
        unreadable: number -> why its recipe cannot be shown.
    """

    candidates: dict[int, Encoded]
    left_out: int
    unreadable: dict[int, str]


Some = TypeVar("Some", bound=Fitted)


@dataclass(frozen=True)
class Layers(Fitted):
    """The layers of the candidates that a page has room for.

    Attributes:
        experts: aliases, virtual ones among them.
        groups: in the order of the model.
        methods: every name that is used, in order of first use.
    """

    experts: tuple[str, ...]
    groups: tuple[Group, ...]
    methods: tuple[str, ...]

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest coefficient of all, and 0 between them."""
        known = [value for each in self.candidates.values() for value in _numbers(each["c"])]
        return min([0, *known]) / STEP, max([0, *known]) / STEP

    @property
    def has_densities(self) -> bool:
        """Whether any candidate leaves elements out."""
        return any("d" in each for each in self.candidates.values())

    def values(self, id: int, what: str) -> list[list[float | None]]:
        """[experts][groups] the coefficients ("c") or densities ("d") of a candidate, as they are shown."""
        given = self.candidates[id].get(what, [None] * len(self.experts))
        whole = [each if isinstance(each, list) else [each] * len(self.groups) for each in given]
        return [[None if value is None else value / STEP for value in each] for each in whole]

    def methods_of(self, id: int) -> list[str]:
        """[groups] the methods of a candidate."""
        given = self.candidates[id]["m"]
        return [self.methods[each] for each in (given if isinstance(given, list) else [given] * len(self.groups))]


def foreign_methods(facts: Facts) -> list[str]:
    """Methods of the run's space whose code came with the run: to read a report is no consent to run it."""
    methods = [each if isinstance(each, str) else each.name for each in facts.results.config.space.methods]
    return [each for each in methods if not is_ready(each)]


def layers_of(facts: Facts, room: int = ROOM, most: int = MOST) -> Layers | None:
    """The layers of as many candidates as there is room for; None where there is no candidate.

    Raises:
        SearchError: the spaces of the run cannot be built.
    """
    space = facts.results.stages[-1].space
    methods: dict[str, int] = {}
    fitting = fitted(facts, lambda own, recipe: encode(own, recipe, methods), room, most)
    if fitting is None:
        return None
    return Layers(fitting.candidates, fitting.left_out, fitting.unreadable, space.experts, space.groups, tuple(methods))


def fitted(facts: Facts, encoding: Callable[[Any, Recipe], Encoded], room: int, most: int = MOST) -> Fitted | None:
    """As many candidates as there is room for, those of most interest first; None where there is none.

    Args:
        facts: of the run.
        encoding: of a recipe, and the space of its stage.
        room: bytes of JSON.
        most: candidates that are decoded.

    Raises:
        SearchError: the spaces of the run cannot be built.
    """
    order = [id for id in by_interest(facts) if facts.candidates[id].duplicate_of is None]
    stages = facts.results.stages
    if not order:
        return None
    found: dict[int, Encoded] = {}
    unreadable: dict[int, str] = {}
    used = 0
    for id in order[:most]:
        try:
            own = stages[facts.candidates[id].stage].space
            encoded = encoding(own, _recipe(facts, id, own))
        except SearchError as error:
            unreadable[id] = str(error)
            continue
        used += size_of(id, encoded)
        if used > room and found:
            break
        found[id] = encoded
    return Fitted(found, len(order) - len(found) - len(unreadable), unreadable)


def thinned(layers: Some, room: int) -> Some:
    """As many of these candidates as there is less room for, those of most interest first."""
    found: dict[int, Encoded] = {}
    used = 0
    for id, encoded in layers.candidates.items():
        used += size_of(id, encoded)
        if used > room and found:
            break
        found[id] = encoded
    return replace(layers, candidates=found, left_out=layers.left_out + len(layers.candidates) - len(found))


def kept(facts: Facts, name: str, build: Callable[[], Some | None]) -> Some | None:
    """What a section shows of candidates: worked out once; a page that became too large takes its share of it.

    Args:
        facts: of the run, which keep it.
        name: of the section.
        build: works it out.
    """
    if name not in facts.kept:
        facts.kept[name] = build()
    found: Some | None = facts.kept[name]
    if found is None or facts.room >= 1.0:
        return found
    taken = sum(size_of(id, each) for id, each in found.candidates.items())
    return thinned(found, round(facts.room * taken))


def size_of(id: int, encoded: Encoded) -> int:
    """Bytes of JSON that a candidate's layers take."""
    return len(json.dumps(encoded, separators=(",", ":"))) + len(f'"{id}":,')


def encode(space: Space, recipe: Recipe, methods: dict[str, int]) -> Encoded:
    """A recipe's layers.

    Args:
        space: of the recipe's stage.
        recipe: one of its sources and groups.
        methods: name -> index; new ones are added.
    """
    read = space.by_group(recipe)
    indices = [methods.setdefault(read.methods[group], len(methods)) for group in space.groups]
    encoded: Encoded = {"c": _by_expert(space, read.coefficients), "m": _shortened(indices)}
    densities = _by_expert(space, read.densities)
    if any(each is not None for each in densities):
        encoded["d"] = densities
    if recipe.tensors:
        encoded["t"] = len(recipe.tensors)
    return encoded


def by_interest(facts: Facts) -> list[int]:
    """All candidates: the pick, the baselines, the front, finalists, picks; then scored ones by their rank on search
    scores; then the others."""
    results = facts.results
    scores = results.scores["search"]
    first = [*([facts.pick] if facts.pick is not None else []), *(each.id for each in facts.baselines)]
    first += [*results.front, *results.finalists, *(id for id, _ in results.picks)]
    ranked: list[int] = []
    if facts.scored:
        violations = [results.judge.violation(id, "search") for id in facts.scored]
        ranks = pareto.ranks(results.judge.utilities(scores, facts.scored), violations)
        ranked = [id for _, id in sorted(zip(ranks.tolist(), facts.scored, strict=True))]
    return list(dict.fromkeys([*first, *ranked, *facts.candidates]))


def row_of(group: Group) -> str:
    """The row of a heatmap that a group is in."""
    return f"{group.stack}/{group.kind}" if group.stack else group.kind


def column_of(group: Group) -> str:
    """The column of a heatmap that a group is in."""
    return OUTSIDE if group.depth is None else str(group.depth)


def columns_of(groups: Iterable[Group]) -> list[str]:
    """All columns, from the input on."""
    found = list(groups)
    depths = sorted({each.depth for each in found if each.depth is not None})
    outside = [OUTSIDE] if any(each.depth is None for each in found) else []
    return [*outside, *(str(each) for each in depths)]


def _recipe(facts: Facts, id: int, space: AnySpace) -> Recipe:
    candidate = facts.candidates[id]
    recipe = space.decode(candidate.genome)
    if recipe.hash != candidate.recipe_hash:
        raise SearchError(
            f"candidate {id} was scored as recipe {candidate.recipe_hash[:12]}, but this version decodes it to "
            f"{recipe.hash[:12]}; use the version that environment.json names"
        )
    return recipe


def _by_expert(space: Space, table: Mapping[str, Mapping[Group, float]]) -> list[Any]:
    return [
        _shortened([round(STEP * table[expert][group]) if group in table[expert] else None for group in space.groups])
        for expert in space.experts
    ]


def _shortened(values: Sequence[int | None]) -> Any:
    """One value where all are equal."""
    return values[0] if len(set(values)) == 1 else list(values)


def _numbers(given: Sequence[Any]) -> list[int]:
    flat = [value for each in given for value in (each if isinstance(each, list) else [each])]
    return [value for value in flat if value is not None]
