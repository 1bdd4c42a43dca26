"""Gram matrices of the inputs of linear weights, streamed: as many blocks at once as memory holds.

G = Σ x·xᵀ over every vector x that a weight was multiplied with, in float64, divided by the number of these rows. The
experts of a mixture are divided by one number, the rows of all of them together: where few tokens were sent to one, its
matrix stays small, and counts as little when models are merged. Other weights of a block have no part in it: what a
decoder's keys read of an encoder is as long as another input, and says nothing of how much the decoder itself read.

A pass over the samples collects consecutive stages and leaves each forward pass as soon as these are behind it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from merging.calibration.contract import Gram
from merging.calibration.linears import Operand
from merging.calibration.live import Live
from merging.calibration.moments import ROWS, Moments, from_panels, panels, stored_bytes
from merging.calibration.samples import Samples
from merging.calibration.store import Entry, Writer
from merging.calibration.survey import Cell, Stage, Survey, forward, stage_of
from merging.calibration.watching import InputKey, Leave, Use, Watch, plain_products
from merging.recipe import MergingError
from merging.sources import Sources

# Experts of a mixture that are stored one by one: "experts.3.w1", "experts.expert_3.wi".
_EXPERT = re.compile(r"(experts?[._])\d+", re.IGNORECASE)


@dataclass(frozen=True)
class CalibrationPlan:
    """What collecting takes.

    Attributes:
        passes: how often a source's samples go through the model, summed over sources.
        bytes_in_memory: of statistics and their buffers, at most; the model and its activations come on top.
        bytes_on_disk: of what is stored, summed over sources.
        depths: stage, as text -> bytes of its Gram matrices and buffers, for one source.
    """

    passes: int
    bytes_in_memory: int
    bytes_on_disk: int
    depths: Mapping[str, int]


class _Disagreement(BaseException):
    """Weights that shared inputs in the survey do not share them in a sample: raised inside a forward pass."""


class _Pass:
    """The matrices of some stages, while samples go through the model."""

    def __init__(self, sources: Sources, found: Survey, stages: Iterable[Stage], sharing: bool):
        self._sources = sources
        self._survey = found
        self._stages = frozenset(stages)
        self._exits = found.after(self._stages)
        self._sharing = sharing
        self._moments: dict[tuple[Cell, ...], Moments] = {}
        self._cells: dict[Cell, tuple[Cell, ...]] = {}
        self._targets: dict[Operand, tuple[tuple[Cell, ...], ...]] = {}
        self._mark: dict[Operand, Stage | Operand] = {}
        self._seen: dict[Operand, list[InputKey]] = {}
        together: dict[tuple[Stage, tuple[Operand, ...]], list[Cell]] = {}
        for cell, leaders in found.cells.items():
            if sharing:
                together.setdefault((stage_of(sources, cell.name), leaders), []).append(cell)
        for cells in together.values():
            self._cells |= dict.fromkeys(cells, tuple(cells))

    def use(self, use: Use) -> None:
        """Called with each product of a live weight."""
        if use.operand not in self._mark:
            names = [each.name for each in use.covered if each.name in self._survey.linears]
            self._mark[use.operand] = stage_of(self._sources, names[0]) if names else use.operand
        mark = self._mark[use.operand]
        if mark in self._exits:
            raise Leave
        if mark in self._stages:
            self._take(use)

    def next_sample(self) -> None:
        """The next forward pass begins."""
        self._seen.clear()

    def of(self, cell: Cell) -> tuple[tuple[Cell, ...], Moments | None]:
        """The weights that share the matrix of this one, and it; None where nothing reached it."""
        shared = self._cells.get(cell, (cell,))
        return shared, self._moments.get(shared)

    def _take(self, use: Use) -> None:
        keys = self._seen.setdefault(use.operand, [])
        keys.append(use.key)
        leader = self._survey.leaders.get(use.operand, use.operand) if self._sharing else use.operand
        if leader != use.operand:
            others = self._seen.get(leader, [])
            if len(others) < len(keys) or others[len(keys) - 1] != use.key:
                raise _Disagreement
            return
        targets = self._matrices(use)
        for rows in use.rows():
            for target in targets:
                if target not in self._moments:
                    self._moments[target] = Moments(use.operand.sizes[0], rows.device)
                self._moments[target].add(rows)

    def _matrices(self, use: Use) -> tuple[tuple[Cell, ...], ...]:
        """The matrices that an operand's inputs belong to."""
        if use.operand not in self._targets:
            covered = [Cell(each.name, each.slot) for each in use.covered if each.name in self._survey.linears]
            new = tuple(cell for cell in covered if cell not in self._cells)
            self._cells |= dict.fromkeys(new, new) if self._sharing else {cell: (cell,) for cell in new}
            targets = tuple(dict.fromkeys(self._cells[cell] for cell in covered))
            if (
                self._sharing
                and use.operand not in self._survey.leaders
                and any(set(target) - set(covered) for target in targets)
            ):
                raise _Disagreement  # a way to use it that the survey did not see: others may not have these inputs
            self._targets[use.operand] = targets
        return self._targets[use.operand]


def plan_grams(found: Survey, memory: int, *, one_by_one: bool = False) -> CalibrationPlan:
    """What :func:`collect_grams` will take.

    Args:
        found: of the model and the samples.
        memory: bytes that matrices and buffers may take; one stage is collected at once in any case.
        one_by_one: every stage in a pass of its own, as behind merged layers.
    """
    sizes = {stage: _bytes(found, stage) for stage in found.linear_stages()}
    parts = list(_passes(found, 0 if one_by_one else memory))
    return CalibrationPlan(
        len(parts),
        max(sum(sizes[stage] for stage in part) for part in parts),
        sum(stored_bytes(width) for stage in sizes for width in _widths(found, stage)),
        {str(stage): size for stage, size in sizes.items()},
    )


def collect_grams(
    live: Live,
    found: Survey,
    samples: Samples,
    source: str,
    writer: Writer,
    memory: int,
    stages: Iterable[Stage] | None = None,
) -> None:
    """Collect the matrices of one source, which the live model holds, and write each stage when it is there.

    Args:
        live: the live model.
        found: survey of the model with these samples.
        samples: inputs.
        source: whose they are, for messages.
        writer: where the matrices go.
        memory: bytes that matrices and buffers may take, see :func:`plan_grams`.
        stages: which; by default all that have linear weights.

    Raises:
        MergingError: activations that are NaN or infinite, or samples that the model refuses.
    """
    wanted = found.linear_stages() if stages is None else tuple(stages)
    for part in _passes(found, memory, wanted):
        try:
            collected = _run(live, found, samples, source, part, sharing=True)
        except _Disagreement:
            collected = _run(live, found, samples, source, part, sharing=False)
        for stage in part:
            _write(found, stage, collected, source, writer)


def read_gram(entry: Entry, name: str) -> Gram | None:
    """The matrix of a weight; None for what is no linear weight.

    Raises:
        MergingError: the file was damaged.
    """
    about = entry.names.get(name)
    if about is None:
        return None
    width = int(about["width"])
    with entry.opened(about["file"]) as read:
        matrices = [
            torch.zeros(width, width, dtype=torch.float64) if key is None else from_panels(key, width, read)
            for key in about["matrices"]
        ]
    matrix = torch.stack(matrices) if about["stack"] else matrices[0]
    return Gram(matrix, tuple(int(each) for each in about["rows"]), str(about["inputs"]), int(about["axis"]))


def _run(
    live: Live,
    found: Survey,
    samples: Samples,
    source: str,
    stages: Iterable[Stage],
    sharing: bool,
) -> _Pass:
    collected = _Pass(live.sources, found, stages, sharing)
    watch = Watch(live.weights, collected.use)
    with torch.no_grad(), plain_products(live.model):
        for batch in samples.batches(found.batch):
            collected.next_sample()
            try:
                with watch:
                    forward(live.model, batch, source)
            except Leave:
                pass
            live.weights.forget_copies()
    return collected


def _write(found: Survey, stage: Stage, collected: _Pass, source: str, writer: Writer) -> None:
    linears = {name: found.linears[name] for name in found.stages[stage] if name in found.linears}
    parts = {cell: collected.of(cell) for name, linear in linears.items() for cell in linear.cells(name)}
    divisors: Counter[str] = Counter()
    for cell, (_, moments) in parts.items():
        divisors[_layer(cell.name)] += moments.rows if moments is not None else 0
    file = f"{len(writer.files):04}.safetensors"
    keys: dict[tuple[Cell, ...], str] = {}
    tensors: dict[str, Tensor] = {}
    for cell, (shared, moments) in parts.items():
        if moments is None or shared in keys:
            continue
        keys[shared] = str(len(keys))
        matrix = moments.result(max(divisors[_layer(each.name)] for each in shared))
        if not bool(matrix.diagonal().isfinite().all()):
            raise MergingError(
                f"the inputs of {cell.name} in {source} are NaN or infinite on some calibration samples: the model "
                "overflows there. Load it in a wider dtype (bfloat16 or float32 in place of float16), or leave those "
                "samples out"
            )
        tensors |= panels(keys[shared], matrix)
    names = {}
    for name, linear in linears.items():
        own = [parts[cell] for cell in linear.cells(name)]
        matrices = [keys.get(shared) if moments is not None else None for shared, moments in own]
        inputs = ",".join(key if key is not None else "-" for key in matrices)
        names[name] = {
            "file": file,
            "matrices": matrices,
            "stack": linear.stack is not None,
            "axis": linear.axis,
            "width": linear.width,
            "rows": [moments.rows if moments is not None else 0 for _, moments in own],
            "inputs": f"{stage}:{inputs}" if "-" not in inputs else f"{stage}:{inputs}:{name}",
        }
    writer.write(file, tensors, names)


def _layer(name: str) -> str:
    """The same for a weight of one expert of a mixture and its like in the others."""
    return _EXPERT.sub(r"\1#", name)


def _passes(found: Survey, memory: int, stages: Iterable[Stage] | None = None) -> Iterator[list[Stage]]:
    """Consecutive stages that fit memory together; at least one at a time."""
    part: list[Stage] = []
    size = 0
    for stage in found.linear_stages() if stages is None else stages:
        needed = _bytes(found, stage)
        if part and size + needed > memory:
            yield part
            part, size = [], 0
        part.append(stage)
        size += needed
    if part:
        yield part


def _bytes(found: Survey, stage: Stage) -> int:
    return sum(8 * width * (width + ROWS) for width in _widths(found, stage))


def _widths(found: Survey, stage: Stage) -> Iterator[int]:
    """Of every matrix of a stage."""
    shared: set[tuple[Operand, ...]] = set()
    for name in found.stages[stage]:
        linear = found.linears.get(name)
        for cell in linear.cells(name) if linear is not None else ():
            leaders = found.cells.get(cell)
            if linear is not None and (leaders is None or leaders not in shared):
                shared |= {leaders} if leaders is not None else set()
                yield linear.width
