"""Genes, and the way between a genome and a recipe."""

from search.space.any_path import AnyPath
from search.space.genes import Gene
from search.space.hops import Hop, Path, outside_of, path_of
from search.space.known_paths import KnownPaths
from search.space.methods import MethodChoice
from search.space.mixing import Mixing, mixed
from search.space.paths import PathSpace
from search.space.scales import Bounds, SpaceError
from search.space.space import Space
from search.space.tracks import Blocks, Borders, Granularity, Knots, PlacedBlocks

AnySpace = Space | AnyPath

__all__ = [
    "AnyPath",
    "AnySpace",
    "Blocks",
    "Borders",
    "Bounds",
    "Gene",
    "Granularity",
    "Hop",
    "Knots",
    "KnownPaths",
    "MethodChoice",
    "Mixing",
    "Path",
    "PathSpace",
    "PlacedBlocks",
    "Space",
    "SpaceError",
    "mixed",
    "outside_of",
    "path_of",
]
