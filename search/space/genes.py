"""Which genes there are, and which groups of tensors each one moves.

A *track* is one expert's coefficient over the groups that share it: a kind set (module kinds that move together) in one
stack of blocks. Its genes are coefficients at depth knots, at runs of depths or at every depth; between knots the
coefficient is interpolated linearly. Knots lie on depths that exist, so every gene can be read back from a recipe.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from merging.recipe import KINDS, Group
from search.errors import SearchError

Array = npt.NDArray[np.float64]


class SpaceError(SearchError):
    """A space, a genome or a recipe that do not fit: one paragraph, shown without a traceback."""


@dataclass(frozen=True)
class Bounds:
    """Coefficients from low to high, both included."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise SpaceError(f"expected finite bounds with low < high, found [{self.low}, {self.high}]")


@dataclass(frozen=True)
class Knots:
    """Coefficients at ``count`` depths, evenly spaced, both ends among them; linear in between. One is a constant."""

    count: int


@dataclass(frozen=True)
class Blocks:
    """One coefficient for each of ``count`` nearly equal runs of depths."""

    count: int


Granularity = Literal["model", "layer"] | Knots | Blocks
"""``model``: one coefficient per expert, for everything. ``layer``: one for every depth."""


@dataclass(frozen=True)
class Gene:
    """What one number of a genome stands for.

    Attributes:
        name: unique: ``math``, ``math.attention@knot2``, ``math.encoder/mlp@layer3``, ``method@block0``.
        role: "coefficient": one of ``Genome.values``. "method": one of ``Genome.categories``.
        expert: whose coefficient; "" for a method.
        kinds: module kinds that it moves.
        stack: the stack of blocks; "" where there is one, or where it moves all of them.
        position: index of the knot, run or layer within its track; None where the track has one gene.
        depth: the depth of a knot or layer, the first depth of a run; None where it has no depth.
    """

    name: str
    role: Literal["coefficient", "method"]
    expert: str
    kinds: tuple[str, ...]
    stack: str = ""
    position: int | None = None
    depth: int | None = None


@dataclass(frozen=True)
class Track:
    """The genes that one expert has for a kind set in a stack, and how they reach its groups."""

    kinds: tuple[str, ...]
    stack: str
    groups: tuple[int, ...]  # indices of groups
    weights: Array  # [groups of the track, genes of the track], rows sum to 1
    label: str  # knot, block or layer
    depths: tuple[int | None, ...]  # [genes of the track]
    witnesses: tuple[int, ...]  # [genes] index of a group whose coefficient is the gene's own


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
    if granularity == "model":
        return [tuple(present)]
    left = [kind for kind in present if kind not in named]
    if left:
        raise SpaceError(
            f"expected every kind that the model has in a kind set, found no set for {', '.join(left)}; the model has "
            f"{', '.join(present)}"
        )
    return [tuple(kind for kind in each if kind in present) for each in kinds if set(each) & set(present)]


def tracks(groups: Sequence[Group], granularity: Granularity, sets: Sequence[tuple[str, ...]]) -> list[Track]:
    """One track per kind set and stack that has groups of it."""
    if granularity == "model":
        everything = tuple(range(len(groups)))
        return [Track(sets[0], "", everything, np.ones((len(groups), 1)), "", (None,), (0,))]
    if isinstance(granularity, Knots | Blocks) and granularity.count < 1:
        raise SpaceError(f"expected at least one knot or block, found {granularity.count}")
    found = []
    for kinds in sets:
        for stack in sorted({group.stack for group in groups if group.kind in kinds}):
            members = [index for index, each in enumerate(groups) if each.kind in kinds and each.stack == stack]
            found.append(_track(groups, members, kinds, stack, granularity))
    return found


def _track(
    groups: Sequence[Group],
    members: Sequence[int],
    kinds: tuple[str, ...],
    stack: str,
    granularity: Literal["layer"] | Knots | Blocks,
) -> Track:
    inside = sorted({depth for index in members if (depth := groups[index].depth) is not None})
    if not inside:
        return Track(kinds, stack, tuple(members), np.ones((len(members), 1)), "", (None,), (members[0],))
    profile, at, label = _profile(granularity, np.asarray(inside, dtype=np.float64))
    rows = [_row(groups[index], inside) for index in members]
    witnesses = tuple(next(index for index in members if groups[index].depth == inside[row]) for row in at)
    depths: tuple[int | None, ...] = tuple(inside[row] for row in at) if len(at) > 1 else (None,)
    return Track(kinds, stack, tuple(members), profile[rows], label, depths, witnesses)


def _profile(granularity: Literal["layer"] | Knots | Blocks, depths: Array) -> tuple[Array, list[int], str]:
    """Weights [depths, genes], the row at which each gene shows alone [genes], and what the genes are called."""
    count = len(depths)
    if isinstance(granularity, Knots):
        knots = min(granularity.count, count)
        at = np.rint(np.linspace(0, count - 1, knots)).astype(int).tolist() if knots > 1 else [0]
        columns = [np.interp(depths, depths[at], np.eye(knots)[knot]) for knot in range(knots)]
        return np.stack(columns, axis=1), at, "knot"
    runs = min(granularity.count, count) if isinstance(granularity, Blocks) else count
    members = np.array_split(np.arange(count), runs)
    profile = np.zeros((count, runs))
    for run, rows in enumerate(members):
        profile[rows, run] = 1.0
    return profile, [int(rows[0]) for rows in members], "block" if isinstance(granularity, Blocks) else "layer"


def _row(group: Group, depths: Sequence[int]) -> int:
    """Index of the depth whose coefficient a group takes: its own; outside the blocks, the embedding takes the first
    and the rest (head, final norm) the last."""
    if group.depth is not None:
        return depths.index(group.depth)
    return 0 if group.kind == "embedding" else len(depths) - 1


def weights(of: Sequence[Track], groups: int) -> Array:
    """[groups, genes per expert] from all tracks."""
    matrix = np.zeros((groups, sum(track.weights.shape[1] for track in of)))
    first = 0
    for track in of:
        width = track.weights.shape[1]
        matrix[list(track.groups), first : first + width] = track.weights
        first += width
    return matrix


def method_runs(groups: Sequence[Group], blocks: int) -> list[tuple[str, int | None, list[int]]]:
    """Runs of depths, stack by stack: (stack, first depth, indices of groups). Groups outside the blocks go with the
    first run (embedding) or the last (head, final norm); where their stack has no blocks, of all stacks."""
    runs: list[tuple[str, int | None, list[int]]] = []
    of_stack: dict[str, tuple[int, int]] = {}
    for stack in sorted({group.stack for group in groups}):
        depths = sorted({group.depth for group in groups if group.stack == stack and group.depth is not None})
        if not depths:
            continue
        of_stack[stack] = (len(runs), len(runs) + min(blocks, len(depths)) - 1)
        for run in np.array_split(np.asarray(depths), min(blocks, len(depths))):
            inside = set(run.tolist())
            members = [i for i, group in enumerate(groups) if group.stack == stack and group.depth in inside]
            runs.append((stack, int(run[0]), members))
    if not runs:
        return [("", None, list(range(len(groups))))]
    for index, group in enumerate(groups):
        if group.depth is None:
            first, last = of_stack.get(group.stack, (0, len(runs) - 1))
            runs[first if group.kind == "embedding" else last][2].append(index)
    return runs


def method_gene(groups: Sequence[Group], runs: Sequence[tuple[str, int | None, list[int]]], run: int) -> Gene:
    """The gene that chooses the method of a run, numbered within its stack."""
    stack, depth, members = runs[run]
    kinds = tuple(kind for kind in KINDS if any(groups[index].kind == kind for index in members))
    position = [index for index, each in enumerate(runs) if each[0] == stack].index(run)
    where = f"@{stack}/block{position}" if stack else f"@block{position}"
    single = len(runs) == 1
    return Gene(
        "method" if single else f"method{where}", "method", "", kinds, stack, None if single else position, depth
    )
