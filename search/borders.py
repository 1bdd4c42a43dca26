"""``blocks: auto``: borders of blocks of layers, placed where the experts' task vectors change.

They are found once, when a run begins, by :mod:`merging.diagnose.borders` over the config's own experts, and stored
with it: a resumed run, its report and its export take the stored ones, whatever the code says by then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from search.space.tracks import Borders
from search.space_schema import AUTO, Blocks
from search.virtual import Say

if TYPE_CHECKING:
    from merging import Sources
    from merging.recipe import Group
    from search.schema import Config

MOST_PLANNED = 8
"""Blocks that are assumed of a stack while nothing was looked at: no more are placed."""


def wants_borders(config: Config) -> bool:
    """Whether the space has blocks whose borders are to be placed."""
    granularity = config.space.granularity
    return (isinstance(granularity, Blocks) and granularity.blocks == AUTO) or config.space.method_blocks == AUTO


def place_borders(config: Config, sources: Sources, say: Say) -> dict[str, list[int]]:
    """Stack -> first depth of each block; {} where the config wants none.

    Args:
        config: the run's.
        sources: its models, whatever was made of the experts among them: that is not looked at.
        say: told one line.

    Raises:
        MergingError: a model cannot be read.
    """
    if not wants_borders(config):
        return {}
    from merging import Sources
    from merging.diagnose.borders import borders_by_stack, depth_profile

    say("blocks: auto: looking at the task vectors of every layer")
    aliases = (sources.base, *config.models.experts)
    own = Sources.opened({alias: sources.checkpoints[alias] for alias in aliases})
    found = {stack: list(borders) for stack, borders in borders_by_stack(depth_profile(own)).items()}
    say(f"blocks: auto: {told(found)}")
    return found


def planned_borders(groups: Sequence[Group]) -> dict[str, list[int]]:
    """What is assumed before the models are looked at: equal blocks, as many as there may be at most."""
    import numpy as np

    found = {}
    for stack in sorted({group.stack for group in groups}):
        depths = sorted({group.depth for group in groups if group.stack == stack and group.depth is not None})
        if depths:
            found[stack] = [int(run[0]) for run in np.array_split(depths, min(MOST_PLANNED, len(depths)))]
    return found


def as_borders(placed: Mapping[str, Sequence[int]]) -> Borders:
    """As a space takes them."""
    return {stack: tuple(depths) for stack, depths in placed.items()}


def told(placed: Mapping[str, Sequence[int]]) -> str:
    """For people: ``3 blocks, from layers 0, 4 and 20``."""
    parts = []
    for stack, depths in placed.items():
        of = f"{stack}: " if stack else ""
        if len(depths) < 2:
            parts.append(f"{of}1 block, since no layer stands out")
        else:
            listed = f"{', '.join(map(str, depths[:-1]))} and {depths[-1]}"
            parts.append(f"{of}{len(depths)} blocks, from layers {listed}")
    return "; ".join(parts) or "the model has no layers to divide"
