"""What lies in memory where a search looks for paths through layers: every layer once, and keys and values by hop."""

from __future__ import annotations

from dataclasses import replace

from merging.sizes import ModelSizes, for_paths
from search.path_stages import deepest_path
from search.schema import Config


def in_memory(config: Config, sizes: ModelSizes) -> ModelSizes:
    """The sizes that :func:`search.placement.place` is to reckon with.

    Args:
        config: of a search.
        sizes: of its models, those that are made among them.

    Returns:
        ``sizes``, where the search merges weights. Of a hybrid those of its first search, which merges weights and
        takes more, with the depth of the second.
    """
    if config.space.data_flow is None:
        return sizes
    depth = deepest_path(config, layers_of(sizes))
    if config.first is None:
        return for_paths(sizes, depth)
    return sizes if sizes.widths is None else replace(sizes, widths=replace(sizes.widths, layers=depth))


def largest_export(config: Config, sizes: ModelSizes) -> int | None:
    """Bytes of the weights of an exported candidate, at most; None where all have as many.

    Args:
        config: of a search.
        sizes: of its models.
    """
    if config.space.data_flow is None:
        return None
    return sizes.around + deepest_path(config, layers_of(sizes)) * sizes.layer


def layers_of(sizes: ModelSizes) -> int:
    """How many layers the models have; where their config does not say, reckoned from the largest."""
    if sizes.widths is not None:
        return sizes.widths.layers
    return round((sizes.live - sizes.around) / sizes.layer) if sizes.layer else 1
