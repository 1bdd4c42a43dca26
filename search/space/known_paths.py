"""A space of a few paths that are known by name: the baselines of a data-flow search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from merging.recipe import Group, Recipe, SourceRef, Value
from search.optimizers.contract import Box, Genome
from search.space.any_path import AnyPath
from search.space.genes import Gene
from search.space.hops import Path
from search.space.scales import SpaceError


class KnownPaths(AnyPath):
    """As many points as there are paths, one category to choose among them.

    Args:
        base, sources, groups, dtype: see :class:`AnyPath`.
        paths: name -> (the model outside the layers, its hops); of equal ones, the first.

    Raises:
        SpaceError: no paths, or ones that cannot be laid.
    """

    def __init__(
        self,
        *,
        base: str,
        sources: Mapping[str, SourceRef],
        groups: Sequence[Group],
        paths: Mapping[str, tuple[str, Path]],
        dtype: str | None = None,
    ) -> None:
        models = dict.fromkeys(hop.alias for _, path in paths.values() for hop in path)
        super().__init__(base, sources, tuple(models), groups, dtype)
        self._recipes: dict[str, Recipe] = {}
        self._places: dict[str, int] = {}
        for name, (outside, path) in paths.items():
            recipe = self._writer.recipe(path, outside)
            if recipe.hash not in self._places:
                self._places[recipe.hash] = len(self._recipes)
                self._recipes[name] = recipe
        self.names = tuple(self._recipes)
        self.box = Box(0, (len(self.names),))
        self.genes = (Gene("path", "path", "", (), choices=self.names),)

    @property
    def points(self) -> tuple[tuple[str, Genome], ...]:
        """(name, genome) of every path."""
        return tuple((name, Genome((), (place,))) for place, name in enumerate(self.names))

    def decode(self, genome: Genome) -> Recipe:
        """See :class:`AnyPath`."""
        self._check(genome)
        return self._recipes[self.names[genome.categories[0]]]

    def encode(self, recipe: Recipe) -> Genome:
        """See :class:`AnyPath`."""
        place = self._places.get(recipe.hash)
        if place is None:
            raise SpaceError(f"the recipe is none of the paths {', '.join(self.names)}")
        return Genome((), (place,))

    def canonical(self, genome: Genome) -> Genome:
        """See :class:`AnyPath`."""
        self._check(genome)
        return genome

    def center(self) -> Genome:
        """The first path."""
        return Genome((), (0,))

    def named(self, genome: Genome) -> dict[str, Value]:
        """See :class:`AnyPath`."""
        self._check(genome)
        return {"path": self.names[genome.categories[0]]}
