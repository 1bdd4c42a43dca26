"""The data-flow space: ordered paths through the layers of several models, with a scale for each hop.

After EvoLLM (Akiba et al., arXiv 2403.13187, "Merging in the data flow space"): the layers of all models, several times
over, make a fixed sequence of slots; a genome says which of them are included, and what the input of each is multiplied
by. A shift lets slots change places, which the paper's fixed order does not.

One recipe per effect: what a path is, and not which slots it came from, is in the recipe. Where a layer of another
repetition would give the same path, :meth:`PathSpace.canonical` takes the earliest that does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from merging.recipe import Group, Recipe, SourceRef, Value
from search.optimizers.contract import Genome
from search.space.any_path import AnyPath
from search.space.hops import Hop, Path, outside_of, path_of
from search.space.path_genes import (
    INCLUDED,
    LEFT_OUT,
    PLAIN_SCALE,
    SURE,
    Arrangement,
    Ends,
    Indicators,
    PathGenes,
    ScaleGene,
    ScalePer,
    slots_of,
)
from search.space.path_order import keys_of, matched, shift_gene, shifted
from search.space.scales import Bounds, SpaceError

_CANONICAL = 8192

_THRESHOLD = 0.5


class PathSpace(AnyPath):
    """What paths there are through the layers of some models.

    Args:
        base: alias of the base model: config and tokenizer are its own.
        sources: every model by alias, the base included.
        models: aliases of those whose layers are taken, the first is model A: embedding, head and final norm are its
            own.
        groups: all groups of one model.
        repetitions: passes over all layers, >= 1.
        arrangement: of a pass: all layers of A, then all of B (``models``), or A0 B0 A1 B1 … (``layers``).
        shift: a gene for every slot moves it by up to so many places; 0: the order is that of the slots.
        scales: bounds of a hop's scale, 1 strictly between them; None: every scale is 1.
        scale_per: ``hop``: a scale for every slot; ``pair``: for every (layer before, layer), of which the first hop
            has none.
        ends: ``fixed``: every path begins with the first layer of A and ends with its last.
        depth: hops of a path, at most. Beyond it, the least sure slots are left out (``threshold``), or the last ones
            (``choice``); the ends never.
        indicators: ``threshold``: a real gene, included above 0.5; ``choice``: a category.
        dtype: of the weights; None keeps the base's.

    A path of nothing is no model: where the ends are free and no slot is included, the surest one is, or the first.

    Attributes:
        slots: places that may become hops, in their order.
        depth: as given.

    Raises:
        SpaceError: arguments that contradict each other or the models.
    """

    def __init__(
        self,
        *,
        base: str,
        sources: Mapping[str, SourceRef],
        models: Sequence[str],
        groups: Sequence[Group],
        repetitions: int = 3,
        arrangement: Arrangement = "models",
        shift: int = 0,
        scales: Bounds | None = None,
        scale_per: ScalePer = "hop",
        ends: Ends = "fixed",
        depth: int | None = None,
        indicators: Indicators = "threshold",
        dtype: str | None = None,
    ) -> None:
        super().__init__(base, sources, models, groups, dtype)
        self.depth = 2 * self.layers if depth is None else depth
        least = 2 if ends == "fixed" else 1
        if ends == "fixed" and self.layers < 2:
            raise SpaceError("a model with one layer has no first and last one to begin and end with; use ends: free")
        if self.depth < least or repetitions < 1 or shift < 0:
            raise SpaceError(
                f"expected a depth of at least {least}, one repetition or more and a shift of at least 0, found "
                f"{self.depth}, {repetitions} and {shift}"
            )
        if scales is not None and not 0.0 < scales.low < 1.0 < scales.high:
            raise SpaceError(f"expected bounds of scales with 0 < low < 1 < high, found [{scales.low}, {scales.high}]")
        self.slots = slots_of(self.models, self.layers, repetitions, arrangement)
        first, last = self.slots.index((self.models[0], 0, 0)), self.slots.index((self.models[0], self.layers - 1, 0))
        self._genes = PathGenes(
            self.slots,
            (first, last) if ends == "fixed" else (),
            None if scales is None else ScaleGene(scales),
            scale_per,
            shift,
            indicators,
        )
        self.genes = tuple(self._genes.named())
        self.box = self._genes.box
        # a first sample differs from the center as the published protocol's do, and in one slot at least
        self.sure = min(SURE, 1.0 - 1.0 / (1 + len(self.box.categories))) if self.box.categories else None
        if not self.genes or (ends == "fixed" and self.depth == least and scales is None):
            raise SpaceError(
                "expected something that varies, found paths that are fixed at both ends, with nothing between them; "
                "a larger depth, more repetitions, another model or scales make a space"
            )
        self._canonical = lru_cache(maxsize=_CANONICAL)(lambda genome: self._nearest(self._laid(genome)))

    def decode(self, genome: Genome) -> Recipe:
        """See :class:`AnyPath`."""
        self._check(genome)
        return self._writer.recipe(self._laid(genome), self.models[0])

    def encode(self, recipe: Recipe) -> Genome:
        """See :class:`AnyPath`."""
        if outside_of(recipe) != self.models[0]:
            raise SpaceError(
                f"expected {self.models[0]} outside the layers, as model A of this space, found {outside_of(recipe)}"
            )
        genome = self._nearest(path_of(recipe))
        if self.decode(genome).hash != recipe.hash:
            raise SpaceError("the recipe is not a point of this space: its scales, or its weights' dtype, are others")
        return genome

    def canonical(self, genome: Genome) -> Genome:
        """One genome for all that give the same path: its hops in the earliest slots, indicators clearly on or off,
        scales and shifts of slots that are left out at 0.5. It is its own canonical genome."""
        self._check(genome)
        found: Genome = self._canonical(genome)
        return found

    def center(self) -> Genome:
        """Model A as it is, its first repetition clearly included and all else clearly left out (EvoLLM: two first
        standard deviations), as far as the depth allows."""
        alone = [slot for slot in self._genes.free if self.slots[slot][0::2] == (self.models[0], 0)]
        return self._genome(alone, {}, {})

    def named(self, genome: Genome) -> dict[str, Value]:
        """Whether every slot is included, every scale, and by how many places every slot is moved.

        Raises:
            SpaceError: the genome is not in :attr:`box`.
        """
        self._check(genome)
        numbers: list[Value] = []
        for gene, value in zip(self.genes, genome.values, strict=False):
            if gene.role == "include":
                numbers.append(value > _THRESHOLD)
            elif gene.role == "scale" and self._genes.scale is not None:
                numbers.append(self._genes.scale.value(value))
            else:
                numbers.append(self._genes.shift * (2.0 * value - 1.0))
        numbers += [bool(choice) for choice in genome.categories]
        return dict(zip((gene.name for gene in self.genes), numbers, strict=True))

    def included(self, genome: Genome) -> tuple[int, ...]:
        """Indices of the slots of a genome's path, in its order.

        Raises:
            SpaceError: the genome is not in :attr:`box`.
        """
        self._check(genome)
        return tuple(self._ordered(genome))

    def _laid(self, genome: Genome) -> Path:
        """The hops of a genome."""
        genes = self._genes
        path = []
        before: int | None = None
        for index in self._ordered(genome):
            at = genes.scale_at(index, before)
            scale = 1.0 if at is None or genes.scale is None else genes.scale.value(genome.values[at])
            path.append(Hop(self.slots[index].alias, self.slots[index].layer, scale))
            before = index
        return tuple(path)

    def _ordered(self, genome: Genome) -> list[int]:
        """Indices of the slots of a path, in its order."""
        genes = self._genes
        sure = genome.values if genes.indicators == "threshold" else genome.categories
        real = genes.indicators == "threshold"
        on = [slot for slot in genes.free if sure[genes.indicator[slot]] > (_THRESHOLD if real else 0)]
        room = self.depth - len(genes.fixed)
        if len(on) > room:
            surest = sorted(on, key=lambda slot: (-sure[genes.indicator[slot]], slot))
            on = sorted(surest[:room])  # of choices all are as sure: the first slots
        if not on and not genes.fixed:
            on = [max(genes.free, key=lambda slot: (sure[genes.indicator[slot]], -slot))]
        moved = {slot: genome.values[at] for slot in on if (at := genes.shift_at(slot)) is not None}
        middle = shifted(on, moved, genes.shift)
        return [genes.fixed[0], *middle, genes.fixed[1]] if genes.fixed else middle

    def _nearest(self, path: Path) -> Genome:
        """The genome whose path has these hops, each in the earliest slot, and scales as near as the genes have them.

        Raises:
            SpaceError: no slots in such an order.
        """
        genes = self._genes
        hops = [(hop.alias, hop.layer) for hop in path]
        if genes.fixed:
            ends = [self.slots[index][:2] for index in genes.fixed]
            if len(hops) < 2 or [hops[0], hops[-1]] != ends:
                raise SpaceError(
                    f"expected a path from layer 0 of {self.models[0]} to its layer {self.layers - 1}, found "
                    f"{_told(hops[:1])} to {_told(hops[-1:])}; ends: free leaves them open"
                )
            hops = hops[1:-1]
        room = self.depth - len(genes.fixed)
        if len(hops) > room:
            raise SpaceError(f"expected a path of at most {self.depth} layers, found {len(path)}; widen space.depth")
        middle = matched(hops, [(slot, self.slots[slot][:2]) for slot in genes.free], genes.shift)
        every = [genes.fixed[0], *middle, genes.fixed[1]] if genes.fixed else middle
        scales: dict[int, float] = {}
        for place, (index, hop) in enumerate(zip(every, path, strict=True)):
            at = genes.scale_at(index, every[place - 1] if place else None)
            if at is not None and genes.scale is not None:
                scales.setdefault(at, genes.scale.gene(hop.scale))
        moved = {
            slot: shift_gene(key - slot, genes.shift)
            for slot, key in keys_of(middle).items()
            if genes.shift and key != slot
        }
        return self._genome(middle, scales, moved)

    def _genome(self, on: Sequence[int], scales: Mapping[int, float], moved: Mapping[int, float]) -> Genome:
        """A genome with these slots included.

        Args:
            on: indices of free slots.
            scales: index of a scale's gene -> its value, where it is not that of 1.
            moved: slot -> value of its shift's gene, where it is moved.
        """
        genes = self._genes
        chosen = set(on)
        values = [PLAIN_SCALE] * self.box.continuous
        if genes.indicators == "threshold":
            values[: len(genes.free)] = [INCLUDED if slot in chosen else LEFT_OUT for slot in genes.free]
        for at, value in scales.items():
            values[at] = value
        for slot, value in moved.items():
            if (place := genes.shift_at(slot)) is not None:
                values[place] = value
        choices = tuple(int(slot in chosen) for slot in genes.free) if genes.indicators == "choice" else ()
        return Genome(tuple(values), choices)


def _told(hops: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"layer {layer} of {alias}" for alias, layer in hops) or "nothing"
