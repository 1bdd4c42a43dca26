"""A recipe's assignments as the ``models`` or ``slices`` of a mergekit config, with their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from merging.mergekit import places
from merging.mergekit_filters import Stated, compact
from merging.mergekit_methods import METHODS, Term
from merging.methods.registry import canonical, get
from merging.recipe import Assignment, MergingError, Recipe, Value
from merging.restack import Restacked
from merging.sources import Sources


@dataclass(frozen=True)
class _Part:
    """A slice of the result.

    Attributes:
        tensors: those of its blocks; the first slice's also the embedding, the last's also what follows the blocks.
        sources: the models that are merged, in order.
        first: alias -> the first block that it gives, for every model that is listed; None for all as ``models``.
        length: number of blocks.
    """

    tensors: tuple[str, ...]
    sources: tuple[str, ...]
    first: Mapping[str, int] | None = None
    length: int = 0


class Writer:
    """Writes one recipe. All assignments have one method, which mergekit has."""

    def __init__(self, recipe: Recipe, view: Sources, assignments: Mapping[str, Assignment], method: str):
        """
        Args:
            recipe: canonical, by the aliases of the sources.
            view: its sources, restacked.
            assignments: tensor of the result -> its assignment.
            method: their method.
        """
        self._recipe = recipe
        self._view = view
        self._assignments = assignments
        self._name = method
        self._method = METHODS[method]
        self._symmetric = get(method).symmetric
        vectors = any(dict(each.parameters).get("on") == "task_vectors" for each in assignments.values())
        self._outside_base = self._method.base == "origin" or (self._method.base == "optional" and vectors)

    def write(self) -> dict[str, Any]:
        """merge_method, base_model, models or slices, parameters.

        Raises:
            MergingError: models that mergekit's slices cannot have.
        """
        parts = self._parts()
        sliced = parts[0].first is not None
        self._places = places(self._view.layout, tuple(part.length for part in parts) if sliced else None)
        data: dict[str, Any] = {"merge_method": self._name}
        base = self._base(parts)
        if base is not None:
            data["base_model"] = self._recipe.sources[base].path
        shared = [self._shared(part, base) for part in parts]
        common = shared[0] if all(each == shared[0] for each in shared) else {}
        if sliced:
            data["slices"] = [
                {"sources": self._models(part)} | ({"parameters": own} if own and not common else {})
                for part, own in zip(parts, shared, strict=True)
            ]
        else:
            data["models"] = self._models(parts[0])
        return data | ({"parameters": common} if common else {})

    def _parts(self) -> list[_Part]:
        everything = tuple(self._assignments)
        everyone = self._agreed(everything)
        one_stack = len(self._view.layout.stacks) == 1
        if everyone is not None and not isinstance(self._view, Restacked):
            # Among models that are all merged, mergekit would merge a base_model too; in slices it does not.
            kept_apart = self._method.base == "model" and self._recipe.base not in everyone and one_stack
            if not kept_apart:
                return [_Part(everything, everyone)]
        if not one_stack:
            raise MergingError(
                "mergekit merges all tensors of a slice from the same models, and slices need models with one stack of "
                f"blocks; this one has {', '.join(map(repr, self._view.layout.stacks)) or 'none'}"
            )
        return self._with_outside(self._slices(everyone))

    def _slices(self, everyone: tuple[str, ...] | None) -> list[_Part]:
        """As few as can be, of consecutive blocks."""
        layout = self._view.layout
        parts: list[_Part] = []
        for number in range(layout.depth(layout.stacks[0])):
            names = tuple(name for name in self._assignments if layout.group(name).depth == number)
            block = None if self._recipe.layers is None else self._recipe.layers[number]
            sources = everyone if block is None or set(everyone or ()) <= block.keys() else None
            sources = self._agreed(names) if sources is None else sources
            if sources is None:
                raise MergingError(
                    f"mergekit merges all tensors of a block from the same models; block {number} has several sets"
                )
            listed = (self._recipe.base, *sources) if self._outside_base else sources or (self._recipe.base,)
            absent = [] if block is None else [alias for alias in listed if alias not in block]
            if absent:
                raise MergingError(f"the recipe's layers give block {number} no block of {', '.join(absent)}")
            first = {alias: number if block is None else block[alias] for alias in listed}
            last = parts[-1] if parts else None
            if last and last.first and last.sources == sources and first == _next(last):
                parts[-1] = replace(last, tensors=(*last.tensors, *names), length=last.length + 1)
            else:
                parts.append(_Part(names, sources, first, 1))
        return parts

    def _with_outside(self, parts: list[_Part]) -> list[_Part]:
        where = places(self._view.layout, tuple(part.length for part in parts))
        for name in self._assignments:
            if self._view.layout.group(name).depth is None:
                at = where[name].slice
                if self._filled(name, parts[at].sources) is None:
                    raise MergingError(
                        f"mergekit merges {name} from the models of the {'last' if at else 'first'} slice, here "
                        f"{', '.join(parts[at].sources) or 'none'}; the recipe merges others into it"
                    )
                parts[at] = replace(parts[at], tensors=(*parts[at].tensors, name))
        return parts

    def _agreed(self, names: tuple[str, ...]) -> tuple[str, ...] | None:
        """Models, in an order that suits all of some tensors; None where these cannot have the same."""
        sets = [tuple(alias for alias, _ in self._assignments[name].sources) for name in names]
        order = tuple(dict.fromkeys(alias for each in sorted(sets, key=len, reverse=True) for alias in each))
        if self._symmetric:
            order = tuple(alias for alias in self._recipe.sources if alias in order)
        return order if all(self._filled(name, order) is not None for name in names) else None

    def _filled(self, name: str, sources: tuple[str, ...]) -> Assignment | None:
        """The assignment with the other models at weight 0; None where that would not be the same."""
        assignment = self._assignments[name]
        held = dict(assignment.sources)
        if set(sources) == held.keys():
            return assignment
        if "weight" not in self._method.per_source or not held.keys() <= set(sources):
            return None
        defaults = {term.ours: term.default for term in self._method.per_source.values() if term.default is not None}
        zero = tuple(sorted({**defaults, "coefficient": 0.0}.items()))
        filled = replace(assignment, sources=tuple((alias, held.get(alias, zero)) for alias in sources))
        try:
            return filled if canonical(filled) == assignment else None
        except MergingError:
            return None

    def _base(self, parts: list[_Part]) -> str | None:
        """The base_model, where the config needs one."""
        base = self._recipe.base
        if self._method.base == "arc":
            ends = [alias for alias in parts[0].sources if all(alias in part.sources for part in parts)]
            if not ends:
                raise MergingError(
                    "mergekit's slerp has one base_model as an end of every arc; these have none in common"
                )
            return base if base in ends else ends[0]
        if self._method.base == "model":
            return base if parts[0].first is not None or base in parts[0].sources[1:] else None
        return base if self._outside_base else None

    def _models(self, part: _Part) -> list[dict[str, Any]]:
        listed = part.sources or (self._recipe.base,) if part.first is None else tuple(part.first)
        models = []
        for alias in listed:
            entry: dict[str, Any] = {"model": self._recipe.sources[alias].path}
            if part.first is not None:
                entry["layer_range"] = [part.first[alias], part.first[alias] + part.length]
            parameters = self._own(part, alias) if alias in part.sources else {}
            models.append(entry | ({"parameters": parameters} if parameters else {}))
        return models

    def _own(self, part: _Part, alias: str) -> dict[str, Any]:
        """A model's own parameters. mergekit matches filters with the names that its tensors have in the model."""
        view = self._view

        def named(name: str) -> str:
            return view.source_name(alias, name) if isinstance(view, Restacked) else name

        def value(assignment: Assignment, term: Term) -> Value | None:
            values = dict(assignment.sources).get(alias)
            if values is None:  # at weight 0 nothing else counts
                return 0.0 if term.ours == "coefficient" else None
            return (dict(assignment.parameters) if self._name == "passthrough" else dict(values))[term.ours]

        return self._written(part, self._method.per_source, value, named)

    def _shared(self, part: _Part, base: str | None) -> dict[str, Any]:
        def value(assignment: Assignment, term: Term) -> Value:
            if self._method.base == "arc":
                return next(dict(values)["coefficient"] for alias, values in assignment.sources if alias != base)
            return dict(assignment.parameters)[term.ours]

        return self._written(part, self._method.shared, value, lambda name: name)

    def _written(
        self,
        part: _Part,
        terms: Mapping[str, Term],
        value: Callable[[Assignment, Term], Value | None],
        named: Callable[[str], str],
    ) -> dict[str, Any]:
        """The parameters of some tensors, but for those that have mergekit's default everywhere."""
        parameters = {}
        for key, term in terms.items():
            found = {name: value(self._assignments[name], term) for name in part.tensors}
            stated = {
                named(name): Stated(each, self._places[name].position, self._view.layout.group(name).depth)
                for name, each in found.items()
                if each is not None
            }
            short = compact(stated) if stated else term.default
            if short != term.default:
                parameters[key] = short
        return parameters


def _next(part: _Part) -> dict[str, int]:
    """The blocks that would follow a slice's."""
    return {alias: at + part.length for alias, at in (part.first or {}).items()}
