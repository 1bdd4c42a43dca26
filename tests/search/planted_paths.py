"""A landscape over paths with one known optimum: how much of a planted path is there, in its order, with its scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

from merging.recipe import Group, SourceRef
from search.optimizers.contract import Genome, Outcome, Trial
from search.schema import Config
from search.space import Hop, PathSpace, path_of
from search.stages import Stage, build_optimizer, build_stages, translate

WIDTH = 0.3
"""Of a scale, as a share: further off it counts for little."""


def likeness(path: Sequence[Hop], planted: Sequence[Hop]) -> float:
    """1 for the planted path alone: twice their longest common subsequence over the sum of their lengths, where a hop
    of another scale counts between half and all of one."""
    rows = [[0.0] * (len(planted) + 1) for _ in range(len(path) + 1)]
    for i, hop in enumerate(path):
        for j, other in enumerate(planted):
            same = (hop.alias, hop.layer) == (other.alias, other.layer)
            worth = 0.5 + 0.5 * exp(-((log(hop.scale / other.scale) / WIDTH) ** 2)) if same else 0.0
            rows[i + 1][j + 1] = max(rows[i][j + 1], rows[i + 1][j], rows[i][j] + worth)
    return 2.0 * rows[-1][-1] / (len(path) + len(planted))


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        path: the best one.
        start, best: likeness of model A alone, and of the best path.
        evaluated: genomes in the order of their proposals.
    """

    path: tuple[Hop, ...]
    start: float
    best: float
    evaluated: tuple[Genome, ...]


def stages_over(config: Config, layers: int) -> list[Stage]:
    """The stages of a config over models of so many layers."""
    groups = [Group("embedding"), Group("norm"), *(Group(k, n) for n in range(layers) for k in ("attention", "mlp"))]
    sources = {alias: SourceRef(alias, f"sha256:{alias}") for alias in ("base", *config.models.experts)}
    return build_stages(config, groups, sources)


def searched(config: Config, layers: int, planted: Sequence[Hop], candidates: int) -> Found:
    """Search as the loop does: baselines are told first, as far as the space has them."""
    known, full = stages_over(config, layers)
    space = full.space
    assert isinstance(space, PathSpace)
    optimizer = build_optimizer(config, full, candidates, 1, 0.01)
    best: tuple[float, tuple[Hop, ...]] = (0.0, ())
    evaluated: list[Genome] = []

    def score(id: int, genome: Genome) -> None:
        nonlocal best
        path = path_of(space.decode(genome))
        value = likeness(path, planted)
        best = max(best, (value, path), key=lambda each: each[0])
        optimizer.tell(Trial(id, genome), Outcome("complete", (value,), (0.01,), 100))

    for number, (_, genome) in enumerate(known.fixed):
        told = translate(genome, known.space, space)
        if told is not None:
            score(number, told)
    for id in range(len(known.fixed), candidates):
        evaluated.append(optimizer.ask(id, ()))
        score(id, evaluated[-1])
    start = likeness(path_of(space.decode(space.center())), planted)
    return Found(best[1], start, best[0], tuple(evaluated))
