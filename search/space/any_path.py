"""What all spaces of paths have in common, and with spaces of weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from merging.recipe import Group, Recipe, SourceRef, Value
from search.optimizers.contract import Box, Genome
from search.space.genes import Gene
from search.space.hops import PASSTHROUGH, Path, PathWriter, path_of
from search.space.reading import ByGroup
from search.space.scales import SpaceError
from search.space.tracks import unknown


class AnyPath(ABC):
    """A space whose points are paths through layers: what a :class:`search.space.Space` offers, without coefficients.

    Args:
        base: alias of the base model.
        sources: every model by alias, the base included.
        models: aliases of those whose layers are taken, in order.
        groups: all groups of one model.
        dtype: of the weights; None keeps the base's.

    Attributes:
        models: as given.
        experts: those of them that are not the base.
        layers: how many layers each model has.
        genes: one for every number of a genome: those of its values, then those of its categories.
        box: the shape of its genomes.
        sure: see :class:`search.optimizers.contract.Settings`; None where it has no choices to be sure of.

    Raises:
        SpaceError: unknown models, or ones through which no paths can be laid.
    """

    is_path: ClassVar[Literal[True]] = True
    granularity: ClassVar[str] = "path"
    methods: ClassVar[tuple[str, ...]] = (PASSTHROUGH,)

    genes: tuple[Gene, ...]
    box: Box
    sure: float | None = None

    def __init__(
        self,
        base: str,
        sources: Mapping[str, SourceRef],
        models: Sequence[str],
        groups: Sequence[Group],
        dtype: str | None,
    ) -> None:
        for alias in (base, *models):
            if alias not in sources:
                raise SpaceError(unknown("model", alias, tuple(sources)))
        if not models or len(set(models)) < len(models):
            raise SpaceError(f"expected one or more different models, found {list(models)}")
        self.base = base
        self.sources = dict(sources)
        self.models = tuple(models)
        self.experts = tuple(alias for alias in models if alias != base)
        self.groups = tuple(sorted(set(groups), key=lambda group: group.order))
        self.dtype = dtype
        self._writer = PathWriter(base, self.sources, self.groups, dtype)
        self.layers = self._writer.layers

    @abstractmethod
    def decode(self, genome: Genome) -> Recipe:
        """The recipe at a point.

        Raises:
            SpaceError: the genome is not in :attr:`box`.
        """

    @abstractmethod
    def encode(self, recipe: Recipe) -> Genome:
        """The canonical point at which a recipe lies: ``decode(encode(recipe))`` has its hash.

        Raises:
            SpaceError: the recipe is not in this space.
        """

    @abstractmethod
    def canonical(self, genome: Genome) -> Genome:
        """One genome for all that give the same path; it is its own canonical genome.

        Raises:
            SpaceError: the genome is not in :attr:`box`.
        """

    @abstractmethod
    def center(self) -> Genome:
        """Where a search starts that knows nothing."""

    @abstractmethod
    def named(self, genome: Genome) -> dict[str, Value]:
        """What every gene of a genome stands for, by its name.

        Raises:
            SpaceError: the genome is not in :attr:`box`.
        """

    def path(self, recipe: Recipe) -> Path:
        """The hops of a recipe, also of another space's.

        Raises:
            SpaceError: it is no path.
        """
        return path_of(recipe)

    def table(self, recipe: Recipe) -> dict[str, dict[Group, float]]:
        """Nothing: a path has no coefficients."""
        return {}

    def densities(self, recipe: Recipe) -> dict[str, dict[Group, float]]:
        """Nothing, as :meth:`table`."""
        return {}

    def by_group(self, recipe: Recipe) -> ByGroup:
        """Nothing, as :meth:`table`."""
        return ByGroup({}, {}, {})

    def chosen_methods(self, recipe: Recipe) -> dict[Group, str]:
        """Nothing, as :meth:`table`."""
        return {}

    def _check(self, genome: Genome) -> None:
        if genome not in self.box:
            raise SpaceError(
                f"expected a genome with {self.box.continuous} values in [0, 1] and choices below "
                f"{self.box.categories}, found {len(genome.values)} values and choices {genome.categories}"
            )
