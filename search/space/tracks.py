"""Which coefficients move which groups of tensors.

A *track* is one expert's coefficient over the units that share it, where a unit is a group, or at granularity
``tensor`` a single tensor. It belongs to a kind set (module kinds that move together) in one stack of blocks. Its genes
are coefficients at depth knots, at runs of depths or at every depth; between knots the coefficient is interpolated
linearly. Knots lie on depths that exist, so every gene can be read back from a recipe.
"""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from merging.recipe import KINDS, Group
from search.space.scales import Array, SpaceError


@dataclass(frozen=True)
class Knots:
    """Coefficients at ``count`` depths, evenly spaced, both ends among them; linear in between. One is a constant."""

    count: int


Borders = Mapping[str, tuple[int, ...]]
"""Stack -> the first depth of each run of depths, ascending from the first depth that there is."""


@dataclass(frozen=True)
class Blocks:
    """One coefficient for each of ``count`` nearly equal runs of depths."""

    count: int


@dataclass(frozen=True)
class PlacedBlocks:
    """One coefficient for each run of depths between borders that were placed where the models differ."""

    borders: Borders


Granularity = Literal["model", "layer", "tensor", "lines"] | Knots | Blocks | PlacedBlocks
"""``model``: one coefficient per expert, for everything. ``layer``: one for every depth. ``tensor``: one for every
tensor. ``lines``: α + β·l/(L − 1) at depth l of L, α outside the blocks (LiNeS, arXiv 2410.17146)."""


@dataclass(frozen=True)
class Track:
    """The genes that one expert has for a kind set in a stack, and how they reach its units.

    Attributes:
        kinds, stack: which.
        units: [units of the track] their indices.
        weights: [units of the track, genes] of each gene in each unit's coefficient.
        labels: [genes] what tells them apart in their names.
        depths: [genes] the depth of a knot or layer, the first of a run; None where there is none.
        knots: [genes] the row of ``places`` that each knot lies on; empty where nothing is interpolated.
        places: [units of the track] the row of a unit: the index of its depth among the track's depths.
        tensor: whose track it is, at granularity ``tensor``.
        line: the genes are a line's start and rise.
    """

    kinds: tuple[str, ...]
    stack: str
    units: tuple[int, ...]
    weights: Array
    labels: tuple[str, ...] = ("",)
    depths: tuple[int | None, ...] = (None,)
    knots: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    tensor: str = ""
    line: bool = False


class Run(NamedTuple):
    """Units that choose their method and their densities together: a run of depths, or the kind sets in one.

    Attributes:
        stack: of blocks; "" where there is one, or none.
        depth: the first one; None where no unit has any.
        members: indices of units.
        kinds: of the kind set; () where all kinds choose together.
    """

    stack: str
    depth: int | None
    members: tuple[int, ...]
    kinds: tuple[str, ...] = ()


class Projection(NamedTuple):
    """From genes to coefficients, where some units take none.

    Attributes:
        weights: [units, genes per expert]; rows of units that take no coefficient say nothing.
        witnesses: [genes] index of a unit whose coefficient is the gene's own; None for a gene without effect. Of a
            line's rise: the unit whose coefficient is start plus rise.
    """

    weights: Array
    witnesses: tuple[int | None, ...]


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """A message about a name that is none of the known ones."""
    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"expected a {what} out of {', '.join(known)}, found {name!r}{hint}"


def kind_sets(
    groups: Sequence[Group], granularity: Granularity, kinds: Sequence[Sequence[str]]
) -> list[tuple[str, ...]]:
    """Kind sets that have groups in this model, in the order given."""
    named = [kind for each in kinds for kind in each]
    for kind in named:
        if kind not in KINDS:
            raise SpaceError(unknown("kind", kind, KINDS))
    if len(set(named)) < len(named):
        raise SpaceError(f"expected every kind in one kind set only, found {[list(each) for each in kinds]}")
    present = [kind for kind in KINDS if any(group.kind == kind for group in groups)]
    if granularity in ("model", "lines", "tensor"):
        return [tuple(present)]
    left = [kind for kind in present if kind not in named]
    if left:
        raise SpaceError(
            f"expected every kind that the model has in a kind set, found no set for {', '.join(left)}; the model has "
            f"{', '.join(present)}"
        )
    return [tuple(kind for kind in each if kind in present) for each in kinds if set(each) & set(present)]


def tracks(
    groups: Sequence[Group], tensors: Sequence[str], granularity: Granularity, sets: Sequence[tuple[str, ...]]
) -> list[Track]:
    """The tracks of one expert, in the order of its genes.

    Args:
        groups: [units] the group of each unit.
        tensors: [units] their names at granularity ``tensor``.
        granularity: how finely a track follows the depth.
        sets: of :func:`kind_sets`.
    """
    if granularity == "model":
        return [Track(sets[0], "", tuple(range(len(groups))), np.ones((len(groups), 1)))]
    if granularity == "lines":
        return [_line(groups, sets[0])]
    if granularity == "tensor":
        return [
            Track((group.kind,), group.stack, (unit,), np.ones((1, 1)), depths=(group.depth,), tensor=tensors[unit])
            for unit, group in enumerate(groups)
        ]
    if isinstance(granularity, Knots | Blocks) and granularity.count < 1:
        raise SpaceError(f"expected at least one knot or block, found {granularity.count}")
    found = []
    for kinds in sets:
        for stack in sorted({group.stack for group in groups if group.kind in kinds}):
            members = [index for index, each in enumerate(groups) if each.kind in kinds and each.stack == stack]
            found.append(_track(groups, members, kinds, stack, granularity))
    return found


def project(of: Sequence[Track], active: Sequence[bool]) -> Projection:
    """How the genes of one expert reach the units that take coefficients.

    A knot whose own depth takes none stands at the nearest depth between its neighbours that does; where two would
    stand at one depth, the second has no effect. So every gene that has one can be read back.

    Args:
        of: all tracks.
        active: [units] whether a unit's method takes coefficients.
    """
    matrix = np.zeros((len(active), sum(track.weights.shape[1] for track in of)))
    witnesses: list[int | None] = []
    first = 0
    for track in of:
        weights = _over(track, active) if track.knots and not all(active) else track.weights
        width = weights.shape[1]
        matrix[list(track.units), first : first + width] = weights
        witnesses += _witnesses(track, weights, active)
        first += width
    return Projection(matrix, tuple(witnesses))


def method_runs(groups: Sequence[Group], blocks: int | Borders, sets: Sequence[tuple[str, ...]] = ()) -> list[Run]:
    """Runs of depths, stack by stack. Units outside the blocks go with the first run (embedding) or the last (head,
    final norm); where their stack has no blocks, of all stacks.

    Args:
        groups: [units].
        blocks: as many nearly equal runs, or those between these borders.
        sets: kind sets that choose apart from each other; together if ().
    """
    runs = _runs_of_depths(groups, blocks)
    if not sets:
        return runs
    found = []
    for run in runs:
        for kinds in sets:
            members = tuple(index for index in run.members if groups[index].kind in kinds)
            if members:
                found.append(Run(run.stack, run.depth, members, kinds))
    return found


def _runs_of_depths(groups: Sequence[Group], blocks: int | Borders) -> list[Run]:
    runs: list[tuple[str, int | None, list[int]]] = []
    of_stack: dict[str, tuple[int, int]] = {}
    for stack in sorted({group.stack for group in groups}):
        depths = sorted({group.depth for group in groups if group.stack == stack and group.depth is not None})
        if not depths:
            continue
        split = _split(depths, blocks, stack)
        of_stack[stack] = (len(runs), len(runs) + len(split) - 1)
        for run in split:
            inside = set(run)
            members = [i for i, group in enumerate(groups) if group.stack == stack and group.depth in inside]
            runs.append((stack, run[0], members))
    if not runs:
        return [Run("", None, tuple(range(len(groups))))]
    for index, group in enumerate(groups):
        if group.depth is None:
            first, last = of_stack.get(group.stack, (0, len(runs) - 1))
            runs[first if group.kind == "embedding" else last][2].append(index)
    return [Run(stack, depth, tuple(members)) for stack, depth, members in runs]


def _track(
    groups: Sequence[Group],
    members: Sequence[int],
    kinds: tuple[str, ...],
    stack: str,
    granularity: Literal["layer"] | Knots | Blocks | PlacedBlocks,
) -> Track:
    inside = sorted({depth for index in members if (depth := groups[index].depth) is not None})
    if not inside:
        return Track(kinds, stack, tuple(members), np.ones((len(members), 1)))
    count = len(inside)
    places = tuple(_place(groups[index], inside) for index in members)
    if isinstance(granularity, Knots):
        number = min(granularity.count, count)
        at = np.rint(np.linspace(0, count - 1, number)).astype(int).tolist() if number > 1 else [0]
        profile, label, knots = _interpolation(count, at), "knot", tuple(at)
    else:
        if granularity == "layer":
            runs = [[depth] for depth in inside]
        else:
            blocks = granularity.count if isinstance(granularity, Blocks) else granularity.borders
            runs = _split(inside, blocks, stack)
        profile, at, knots = np.zeros((count, len(runs))), [inside.index(run[0]) for run in runs], ()
        for number, run in enumerate(runs):
            profile[[inside.index(depth) for depth in run], number] = 1.0
        label = "layer" if granularity == "layer" else "block"
    several = len(at) > 1
    return Track(
        kinds,
        stack,
        tuple(members),
        profile[list(places)],
        tuple(f"@{label}{index}" for index in range(len(at))) if several else ("",),
        tuple(inside[row] for row in at) if several else (None,),
        knots,
        places,
    )


def _split(depths: Sequence[int], blocks: int | Borders, stack: str) -> list[list[int]]:
    """Runs of consecutive depths: as many nearly equal ones, or those between borders; none is empty."""
    if isinstance(blocks, int):
        return [run.tolist() for run in np.array_split(np.asarray(depths), min(blocks, len(depths)))]
    if stack not in blocks:
        raise SpaceError(f"expected borders for the stack {stack!r}, found them for {', '.join(blocks) or 'none'}")
    runs: dict[int, list[int]] = {}
    for depth in depths:
        runs.setdefault(bisect.bisect_right(blocks[stack], depth), []).append(depth)
    return list(runs.values())


def _line(groups: Sequence[Group], kinds: tuple[str, ...]) -> Track:
    last: dict[str, int] = {}
    for group in groups:
        if group.depth is not None:
            last[group.stack] = max(group.depth, last.get(group.stack, 0))
    # A stack of one block has α + β, as in merging.scaling: its only block is the last.
    along = [
        0.0 if each.depth is None else each.depth / last[each.stack] if last[each.stack] else 1.0 for each in groups
    ]
    if 0.0 not in along or 1.0 not in along:
        raise SpaceError(
            f"granularity lines needs a model with two blocks or more to draw a line over, found {len(groups)} groups: "
            f"{', '.join(str(each) for each in groups[:6])}; choose granularity model"
        )
    weights = np.stack([np.ones(len(groups)), np.asarray(along)], axis=1)
    units = tuple(range(len(groups)))
    return Track(kinds, "", units, weights, (".alpha", ".beta"), (None, None), line=True)


def _interpolation(count: int, at: Sequence[int]) -> Array:
    """[depths, knots] weights of knots at some of the depths, by row."""
    depths = np.arange(count, dtype=np.float64)
    return np.stack([np.interp(depths, depths[list(at)], row) for row in np.eye(len(at))], axis=1)


def _over(track: Track, active: Sequence[bool]) -> Array:
    """A track's weights with its knots moved to depths that take coefficients."""
    rows = {place for unit, place in zip(track.units, track.places, strict=True) if active[unit]}
    ends = (-1, *track.knots, max(track.places) + 1)
    moved: dict[int, int] = {}  # row -> knot
    for knot, place in enumerate(track.knots):
        reach = [row for row in rows if ends[knot] < row < ends[knot + 2]]
        if reach:
            moved.setdefault(min(reach, key=lambda row: (abs(row - place), row)), knot)
    weights = np.zeros((len(track.places), len(track.knots)))
    if moved:
        profile = _interpolation(max(track.places) + 1, sorted(moved))
        weights[:, [moved[row] for row in sorted(moved)]] = profile[list(track.places)]
    return weights


def _witnesses(track: Track, weights: Array, active: Sequence[bool]) -> list[int | None]:
    """[genes] the first unit that takes a coefficient and shows the gene alone."""
    rows = np.flatnonzero([active[unit] for unit in track.units])
    found: list[int | None] = []
    for gene in range(weights.shape[1]):
        alone = weights[rows, gene] == 1.0
        if track.line and gene == 0:
            alone = weights[rows, 1] == 0.0
        found.append(track.units[rows[int(np.argmax(alone))]] if alone.any() else None)
    return found


def _place(group: Group, depths: Sequence[int]) -> int:
    """Index of the depth whose coefficient a group takes: its own; outside the blocks, the embedding takes the first
    and the rest (head, final norm) the last."""
    if group.depth is not None:
        return depths.index(group.depth)
    return 0 if group.kind == "embedding" else len(depths) - 1
