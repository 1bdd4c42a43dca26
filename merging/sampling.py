"""How far fine-tunes are from their base, and from each other, told from a sample of the weights.

A model of 7 billion parameters has 14 GB, and what is asked here needs a thousandth of it. Every tensor is read in
pieces that are spread evenly over it, so that no layer is left out; a sum over a tensor is what its pieces hold, times
the tensor's size over theirs. Where the models are small enough, all of it is read, and the numbers are exact.

Norms and cosines of task vectors: sums of inner products over all tensors, never means of per-layer cosines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations

import torch
from torch import Tensor

from merging.files import Read
from merging.sources import Sources

BUDGET = 256 * 2**20
"""Bytes that are read of all models together, about."""

_PIECE = 1 << 15
"""Elements of a piece: what a disk gives in one go."""


@dataclass(frozen=True)
class Sample:
    """What a sample of the weights says.

    Attributes:
        share: of the elements that were looked at, in (0, 1]; 1: all of them, and every number is exact.
        elements: how many of each model.
        distance: alias of each expert -> ‖τ‖/‖θ0‖; infinite where the base is all zeros.
        norms: alias of each expert -> ‖τ‖.
        cosines: (one expert, another) -> cosine of their task vectors; nan where one is zero.
        equal: pairs of aliases, the base among them, that do not differ in any element that was looked at.
        broken: alias -> tensors in which NaN or infinity was found.
    """

    share: float
    elements: int
    distance: Mapping[str, float]
    norms: Mapping[str, float]
    cosines: Mapping[tuple[str, str], float]
    equal: frozenset[tuple[str, str]]
    broken: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def sample(sources: Sources, budget: int = BUDGET) -> Sample:
    """Read a part of every merged tensor of every model.

    Args:
        sources: models that fit each other; see :meth:`merging.sources.Sources.opened`.
        budget: bytes to read, about; at least one piece of each tensor is read in any case.

    Raises:
        MergingError: a file was changed since it was opened.
    """
    experts = [alias for alias in sources.checkpoints if alias != sources.base]
    aliases = [sources.base, *experts]
    stored = sum(
        sources.info(alias, name).numel * _size(sources, alias, name) for name in sources.tensors for alias in aliases
    )
    wanted = min(1.0, budget / max(1, stored))
    gram = torch.zeros(len(aliases), len(aliases), dtype=torch.float64)
    differing: set[tuple[str, str]] = set()
    broken: dict[str, list[str]] = {}
    looked, whole = 0, 0
    for name, info in sources.tensors.items():
        inner, read, bad, unlike = _of_tensor(sources, aliases, name, wanted)
        for alias in bad:
            broken.setdefault(alias, []).append(name)
        if read:
            gram += inner * (info.numel / read)
        differing |= unlike
        looked, whole = looked + read, whole + info.numel
    norms = gram.diagonal().clamp_min(0.0).sqrt().tolist()
    pairs = [(one, two) for one, two in combinations(range(len(aliases)), 2)]
    return Sample(
        share=looked / whole if whole else 1.0,
        elements=looked,
        distance={alias: _ratio(norms[place], norms[0]) for place, alias in enumerate(aliases) if place},
        norms={alias: norms[place] for place, alias in enumerate(aliases) if place},
        cosines={(aliases[i], aliases[k]): _ratio(float(gram[i, k]), norms[i] * norms[k]) for i, k in pairs if i},
        equal=frozenset((aliases[i], aliases[k]) for i, k in pairs) - differing,
        broken={alias: tuple(names) for alias, names in broken.items()},
    )


def _of_tensor(
    sources: Sources, aliases: list[str], name: str, share: float
) -> tuple[Tensor, int, list[str], set[tuple[str, str]]]:
    """Of one tensor: inner products [models, models] of the base (first) and the task vectors over what was read, how
    many finite elements that was, whose are not finite, and which pairs differ."""
    inner = torch.zeros(len(aliases), len(aliases), dtype=torch.float64)
    read, bad, unlike = 0, [], set()
    with ExitStack() as stack:
        opened = [stack.enter_context(sources.pieces(alias, name)) for alias in aliases]
        row = max(width for _, width in opened)
        for start, size in _places(sources.tensors[name].numel, share, row):
            rows = [
                _piece(sources, alias, name, each, start, size)
                for alias, (each, _) in zip(aliases, opened, strict=True)
            ]
            wrong = [alias for alias, weights in zip(aliases, rows, strict=True) if not torch.isfinite(weights).all()]
            bad += [alias for alias in wrong if alias not in bad]
            unlike |= {
                (aliases[i], aliases[k])
                for i, k in combinations(range(len(aliases)), 2)
                if not torch.equal(rows[i], rows[k])
            }
            if wrong:
                continue
            stacked = torch.stack([rows[0], *(weights - rows[0] for weights in rows[1:])])
            inner += stacked @ stacked.T
            read += size
    return inner, read, bad, unlike


def _places(numel: int, share: float, row: int) -> Iterator[tuple[int, int]]:
    """(start, size) of pieces that are spread evenly, whole rows each: all of it for a share of 1."""
    step = max(1, _PIECE // row) * row
    count = -(-numel // step)
    taken = min(count, max(1, round(count * share)))
    for number in range(taken):
        # the middle of each of `taken` equal parts of the pieces
        start = (2 * number + 1) * count // (2 * taken) * step
        yield start, min(step, numel - start)


def _piece(sources: Sources, alias: str, name: str, read: Read, start: int, size: int) -> Tensor:
    """[size] in float64."""
    raw = torch.empty(size, dtype=sources.info(alias, name).dtype)
    read(raw, start)
    return raw.to(torch.float64)


def _size(sources: Sources, alias: str, name: str) -> int:
    return sources.info(alias, name).dtype.itemsize


def _ratio(part: float, whole: float) -> float:
    if whole == 0.0:
        return math.nan if part == 0.0 else math.inf
    return part / whole
