"""Genes, and the way between a genome and a recipe."""

from search.space.genes import Gene
from search.space.methods import MethodChoice
from search.space.mixing import Mixing, mixed
from search.space.scales import Bounds, SpaceError
from search.space.space import Space
from search.space.tracks import Blocks, Borders, Granularity, Knots, PlacedBlocks

__all__ = [
    "Blocks",
    "Borders",
    "Bounds",
    "Gene",
    "Granularity",
    "Knots",
    "MethodChoice",
    "Mixing",
    "PlacedBlocks",
    "Space",
    "SpaceError",
    "mixed",
]
