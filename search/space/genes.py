"""What the numbers of a genome stand for, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from merging.recipe import KINDS, Group, Value
from search.space.methods import SearchedMethod
from search.space.scales import Bounds, Steps
from search.space.tracks import Run, Track


@dataclass(frozen=True)
class Gene:
    """What one number of a genome stands for.

    Attributes:
        name: unique: ``math``, ``math.attention@knot2``, ``math.encoder/mlp@layer3``, ``math.alpha``,
            ``density.math@block0``, ``method@block0``, ``dare_ties.scale``; ``density.math.attention@block0``,
            ``method.attention@block0``, ``ties.scale.attention@block0`` where kind sets choose apart. Coefficients
            that all experts share are ``coefficient``, ``coefficient.attention@knot2``, …
        role: coefficients and densities are among ``Genome.values``, methods among ``Genome.categories``, parameters
            where their kind is. Of a space of paths: includes (among the values or the categories), scales and shifts
            of a slot, ``include[r0 math.3]``; the choice of a path.
        expert: whose coefficient, density or layer; "" where it is that of all; the variable where a space is searched
            by an expression.
        kinds: module kinds that it moves.
        stack: the stack of blocks; "" where there is one, or where it moves all of them.
        position: index of the knot, run or layer within its track; None where the track has one gene. Of a slot: its
            repetition.
        depth: the depth of a knot or layer, the first depth of a run; None where it has no depth. Of a slot: the
            layer.
        tensor: the tensor that it moves, at granularity ``tensor``.
        method: whose parameter.
        bounds: of the number that it stands for; None for a categorical one.
        choices: of a categorical one.
    """

    name: str
    role: Literal["coefficient", "density", "parameter", "method", "include", "scale", "shift", "path"]
    expert: str
    kinds: tuple[str, ...]
    stack: str = ""
    position: int | None = None
    depth: int | None = None
    tensor: str = ""
    method: str = ""
    bounds: tuple[float, float] | None = None
    choices: tuple[Value, ...] = ()


def coefficient_genes(
    owners: Sequence[str], tracks: Sequence[Track], bounds: Sequence[Bounds], everything: bool
) -> Iterator[Gene]:
    """One for every owner (an expert, a variable, or "" for all experts), track and gene of it, in the genome's order.

    Args:
        owners: in order.
        tracks: of each.
        bounds: [owners] of the numbers.
        everything: a track holds the whole model, and needs no name.
    """
    for owner, own in zip(owners, bounds, strict=True):
        for track in tracks:
            stack = f"{track.stack}/" if track.stack else ""
            where = f".{stack}{'+'.join(track.kinds)}" if not track.tensor else f".{track.tensor}"
            start = (owner or "coefficient") + ("" if everything else where)
            for index, (label, depth) in enumerate(zip(track.labels, track.depths, strict=True)):
                yield Gene(
                    f"{start}{label}",
                    "coefficient",
                    owner,
                    track.kinds,
                    track.stack,
                    index if label else None,
                    depth,
                    track.tensor,
                    bounds=(own.low, own.high),
                )


def density_genes(owners: Sequence[str], groups: Sequence[Group], runs: Sequence[Run], steps: Steps) -> Iterator[Gene]:
    """One for every run of depths and owner."""
    bounds = (steps.first / steps.per, steps.last / steps.per)
    for run in range(len(runs)):
        for owner in owners:
            start = f"density.{owner}" if owner else "density"
            stack, position, depth, label = _place(runs, run)
            kinds = _kinds(groups, runs[run].members)
            yield Gene(f"{start}{label}", "density", owner, kinds, stack, position, depth, bounds=bounds)


def method_genes(groups: Sequence[Group], runs: Sequence[Run], methods: Sequence[str]) -> Iterator[Gene]:
    """One for every run of depths."""
    for run in range(len(runs)):
        stack, position, depth, label = _place(runs, run)
        kinds = _kinds(groups, runs[run].members)
        yield Gene(f"method{label}", "method", "", kinds, stack, position, depth, choices=tuple(methods))


def parameter_genes(
    methods: Sequence[SearchedMethod], groups: Sequence[Group], runs: Sequence[Run], categorical: bool
) -> Iterator[Gene]:
    """One for every searched parameter of a method: the numbers, or the categorical ones.

    Args:
        methods: of the space.
        groups: [units].
        runs: that choose apart from each other; () where a parameter is the same everywhere.
        categorical: which of them.
    """
    everywhere = [("", None, None, "", _kinds(groups, range(len(groups))))]
    for stack, position, depth, label, kinds in [
        (*_place(runs, run), _kinds(groups, runs[run].members)) for run in range(len(runs))
    ] or everywhere:
        for method in methods:
            for gene in method.genes:
                if (gene.scale is None) == categorical:
                    name, scale = f"{method.name}.{gene.name}{label}", gene.scale
                    bounds = None if scale is None else (float(scale.value(0.0)), float(scale.value(1.0)))
                    yield Gene(
                        name, "parameter", "", kinds, stack, position, depth,
                        method=method.name, bounds=bounds, choices=gene.options,
                    )  # fmt: skip


def _kinds(groups: Sequence[Group], members: Sequence[int]) -> tuple[str, ...]:
    return tuple(kind for kind in KINDS if any(groups[index].kind == kind for index in members))


def _place(runs: Sequence[Run], run: int) -> tuple[str, int | None, int | None, str]:
    """Stack, position within the stack, first depth and label of a run; no label where there is one run."""
    stack, depth, _, kinds = runs[run]
    if len(runs) == 1:
        return stack, None, depth, ""
    starts = list(dict.fromkeys(each.depth for each in runs if each.stack == stack))
    position = starts.index(depth)
    start = f".{'+'.join(kinds)}" if kinds else ""
    return stack, position, depth, f"{start}@{stack}/block{position}" if stack else f"{start}@block{position}"
