"""Genes, and the way between a genome and a recipe."""

from search.space.genes import Blocks, Bounds, Gene, Granularity, Knots, SpaceError
from search.space.space import Space

__all__ = ["Blocks", "Bounds", "Gene", "Granularity", "Knots", "Space", "SpaceError"]
