"""The genes of a space of paths: which slots there are, what stands where in a genome, and what it is called."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from search.optimizers.contract import Box
from search.space.genes import Gene
from search.space.scales import Bounds, Interval

Arrangement = Literal["models", "layers"]
ScalePer = Literal["hop", "pair"]
Ends = Literal["fixed", "free"]
Indicators = Literal["threshold", "choice"]

INCLUDED, LEFT_OUT = 0.5 + 1 / 3, 0.5 - 1 / 3
"""Where an indicator stands that is clearly on or off: two of EvoLLM's first standard deviations (1/6) from the
threshold."""

SURE = 0.977
"""So many of the first samples agree with such an indicator: Φ(2)."""

PLAIN_SCALE = 0.5
"""The scale gene of a scale of 1."""


class Slot(NamedTuple):
    """A place in the genome that may become a hop.

    Attributes:
        alias: whose layer.
        layer: which.
        repetition: of the pass over all layers, from 0.
    """

    alias: str
    layer: int
    repetition: int

    def __str__(self) -> str:
        return f"r{self.repetition} {self.alias}.{self.layer}"


def slots_of(models: Sequence[str], layers: int, repetitions: int, arrangement: Arrangement) -> tuple[Slot, ...]:
    """All slots in their order: repetition by repetition, all layers of all models."""
    if arrangement == "models":
        once = [(alias, layer) for alias in models for layer in range(layers)]
    else:
        once = [(alias, layer) for layer in range(layers) for alias in models]
    return tuple(Slot(alias, layer, repetition) for repetition in range(repetitions) for alias, layer in once)


@dataclass(frozen=True)
class ScaleGene:
    """A gene in [0, 1] that stands for a scale: 0.5 for 1, linear from there to either bound.

    Attributes:
        bounds: 1 between them.
    """

    bounds: Bounds

    def value(self, gene: float) -> float:
        """The scale, to 12 significant digits."""
        if gene <= PLAIN_SCALE:
            return Interval(self.bounds.low, 1.0).value(gene * 2.0)
        return Interval(1.0, self.bounds.high).value(gene * 2.0 - 1.0)

    def gene(self, value: float) -> float:
        """The gene of a scale.

        Raises:
            SpaceError: it lies outside the bounds.
        """
        if value <= 1.0:
            return Interval(self.bounds.low, 1.0).gene(value) / 2.0
        return 0.5 + Interval(1.0, self.bounds.high).gene(value) / 2.0


@dataclass(frozen=True)
class PathGenes:
    """What stands where in a genome: indicators, then scales, then shifts; where indicators are choices, they are the
    categories.

    Attributes:
        slots: all of them.
        fixed: indices of the slots that every path has: the first and the last layer of model A where the ends are
            fixed. They have a scale, and nothing else that could be searched.
        scale: None where every scale is 1.
        per: hop: a scale for each slot; pair: for each (layer before, layer).
        shift: places that a slot may be moved by; 0 is no genes.
        indicators: real or categorical.
    """

    slots: tuple[Slot, ...]
    fixed: tuple[int, ...]
    scale: ScaleGene | None
    per: ScalePer
    shift: int
    indicators: Indicators

    @cached_property
    def free(self) -> tuple[int, ...]:
        """Indices of the slots that a path may have or not."""
        return tuple(index for index in range(len(self.slots)) if index not in self.fixed)

    @cached_property
    def layers(self) -> tuple[tuple[str, int], ...]:
        """(alias, layer) of everything that a hop may be of, in the order of the first repetition."""
        return tuple((slot.alias, slot.layer) for slot in self.slots if slot.repetition == 0)

    @cached_property
    def place(self) -> dict[tuple[str, int], int]:
        """(alias, layer) -> its index among :attr:`layers`."""
        return {each: index for index, each in enumerate(self.layers)}

    @cached_property
    def indicator(self) -> dict[int, int]:
        """Slot -> its indicator among the values, or among the categories."""
        return {slot: index for index, slot in enumerate(self.free)}

    @property
    def scales(self) -> int:
        """How many genes of scales."""
        if self.scale is None:
            return 0
        return len(self.slots) if self.per == "hop" else len(self.layers) ** 2

    @property
    def first_scale(self) -> int:
        """Index of the first gene of a scale."""
        return len(self.free) if self.indicators == "threshold" else 0

    @property
    def first_shift(self) -> int:
        """Index of the first gene of a shift."""
        return self.first_scale + self.scales

    def scale_at(self, slot: int, before: int | None) -> int | None:
        """Index of the gene of a hop's scale; None where it has none.

        Args:
            slot: of the hop.
            before: slot of the hop before it; None for the first.
        """
        if self.scale is None:
            return None
        if self.per == "hop":
            return self.first_scale + slot
        if before is None:
            return None  # W_ij scales what layer i hands to layer j
        own, last = self.slots[slot], self.slots[before]
        row, column = self.place[last.alias, last.layer], self.place[own.alias, own.layer]
        return self.first_scale + row * len(self.layers) + column

    def shift_at(self, slot: int) -> int | None:
        """Index of the gene of a slot's shift; None where it has none."""
        at = self.indicator.get(slot)
        return None if at is None or not self.shift else self.first_shift + at

    @cached_property
    def box(self) -> Box:
        """The shape of genomes."""
        shifts = len(self.free) if self.shift else 0
        categories = (2,) * len(self.free) if self.indicators == "choice" else ()
        return Box(self.first_shift + shifts, categories)

    def named(self) -> Iterator[Gene]:
        """A gene for every number: the values, then the categories."""
        includes = [self._of(slot, "include") for slot in self.free]
        if self.indicators == "threshold":
            yield from includes
        if self.scale is not None and self.per == "hop":
            for slot in range(len(self.slots)):
                yield self._of(slot, "scale")
        elif self.scale is not None:
            for alias, layer in self.layers:
                for to, at in self.layers:
                    name = f"scale[{alias}.{layer} > {to}.{at}]"
                    yield Gene(name, "scale", to, (), depth=at, bounds=self._bounds())
        if self.shift:
            for slot in self.free:
                yield self._of(slot, "shift")
        if self.indicators == "choice":
            yield from includes

    def _of(self, index: int, role: Literal["include", "scale", "shift"]) -> Gene:
        slot = self.slots[index]
        bounds = {"include": None, "scale": self._bounds(), "shift": (float(-self.shift), float(self.shift))}[role]
        choices = (False, True) if role == "include" else ()
        name = f"{role}[{slot}]"
        return Gene(
            name, role, slot.alias, (), position=slot.repetition, depth=slot.layer, bounds=bounds, choices=choices
        )

    def _bounds(self) -> tuple[float, float] | None:
        return None if self.scale is None else (self.scale.bounds.low, self.scale.bounds.high)
