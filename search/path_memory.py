"""What lies in memory where a search looks for paths through layers: every layer once, and by hop keys and values and
what a scale multiplies."""

from __future__ import annotations

from dataclasses import replace

from merging.sizes import ModelSizes, for_paths, writers_of
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

    Raises:
        MergingError: the base is no readable checkpoint.
    """
    if config.space.data_flow is None:
        return sizes
    depth = deepest_path(config, layers_of(sizes))
    scaled = None if config.space.data_flow.scales == "off" else sizes.folder
    writers = 0 if scaled is None else writers_of(scaled, config.models.dtype)
    if config.first is None:
        return for_paths(sizes, depth, writers)
    widths = None if sizes.widths is None else replace(sizes.widths, layers=depth)
    return replace(sizes, widths=widths, live=max(sizes.live, depth * writers))


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
