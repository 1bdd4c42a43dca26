"""Genes, and the way between a genome and a recipe."""

from search.space.genes import Gene
from search.space.methods import MethodChoice
from search.space.scales import Bounds, SpaceError
from search.space.space import Space
from search.space.tracks import Blocks, Granularity, Knots

__all__ = ["Blocks", "Bounds", "Gene", "Granularity", "Knots", "MethodChoice", "Space", "SpaceError"]
