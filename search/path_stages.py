"""The stages of a data-flow search: known paths first, then the space of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from merging.recipe import Group, SourceRef
from search.data_flow_schema import DataFlowConfig
from search.schema import Config
from search.space import Bounds, Hop, KnownPaths, Path, PathSpace, SpaceError
from search.virtual import ALONE, evolved, experts_of

UP_SCALED = "{} up-scaled"
"""Label of model A with its middle layers twice: depth up-scaling (Kim et al., SOLAR, arXiv 2312.15166)."""

STACKED = "{}|{} stacked halves"
"""Label of the lower half of one model below the upper half of another."""

REAL_INDICATORS = ("cma",)
"""Optimizers that indicators are real numbers for, as in the paper; the others have choices of their own."""


def flow_of(config: Config) -> DataFlowConfig:
    """The data-flow space of a config that has one.

    Raises:
        SpaceError: it has none.
    """
    if config.space.data_flow is None:
        raise SpaceError("expected a config with space.data_flow, found one whose space merges weights")
    return config.space.data_flow


def models_of(config: Config) -> tuple[str, ...]:
    """Aliases of the models whose layers are taken, model A first."""
    flow = flow_of(config)
    return experts_of(config) if flow.models is None else tuple(flow.models)


def indicators_of(config: Config) -> Literal["threshold", "choice"]:
    """Whether indicators are real numbers or choices, where the config leaves it open."""
    given = flow_of(config).indicators
    if given == "auto":
        return "threshold" if config.search.optimizer.name in REAL_INDICATORS else "choice"
    return given


def deepest_path(config: Config, layers: int) -> int:
    """The most layers that a candidate may have.

    Args:
        config: with a data-flow space.
        layers: of each model.
    """
    depth = flow_of(config).depth
    return 2 * layers if depth is None else max(depth, layers)  # the models alone are candidates too


def path_spaces(
    config: Config, groups: Sequence[Group], sources: Mapping[str, SourceRef]
) -> tuple[KnownPaths, PathSpace]:
    """The baselines' space, and the one that is searched.

    Args:
        config: with a data-flow space.
        groups: of the models' layout.
        sources: alias -> model, "base" among them.

    Raises:
        SpaceError: the config's space contradicts itself or the models.
    """
    flow, models, dtype = flow_of(config), models_of(config), config.models.dtype
    full = PathSpace(
        base="base",
        sources=sources,
        models=models,
        groups=groups,
        repetitions=flow.repetitions,
        arrangement=flow.arrangement,
        shift=flow.shift,
        scales=None if flow.scales == "off" else Bounds(*flow.scales),
        scale_per=flow.scale_per,
        ends=flow.ends,
        depth=flow.depth,
        indicators=indicators_of(config),
        dtype=dtype,
    )
    paths = known_paths(config, full.layers)
    return KnownPaths(base="base", sources=sources, groups=groups, paths=paths, dtype=dtype), full


def known_paths(config: Config, layers: int) -> dict[str, tuple[str, Path]]:
    """Label -> (model outside the layers, path) of what needs no search: every model alone; model A up-scaled, its
    first three quarters below its last three quarters; model A's lower half below the upper half of each other one.

    Args:
        config: with a data-flow space.
        layers: of each model.
    """
    models = models_of(config)
    alone = {"base": "base"}
    alone |= {f"expert {name}": name for name in (*config.models.experts, *config.models.derived)}
    alone |= {f"{name}{ALONE}": name for name in (*config.models.virtual, *evolved(config))}
    found = {label: (name, plain_path(name, 0, layers)) for label, name in alone.items()}
    first, most = models[0], deepest_path(config, layers)
    quarter = max(1, layers // 4)
    if 0 < 2 * (layers - quarter) <= most:
        up = plain_path(first, 0, layers - quarter) + plain_path(first, quarter, layers)
        found[UP_SCALED.format(first)] = (first, up)
    for other in models[1:] if layers > 1 else ():
        stacked = plain_path(first, 0, layers // 2) + plain_path(other, layers // 2, layers)
        found[STACKED.format(first, other)] = (first, stacked)
    return found


def plain_path(alias: str, first: int, end: int) -> Path:
    """Layers of one model in their order, from the first up to, and without, the last."""
    return tuple(Hop(alias, layer) for layer in range(first, end))
