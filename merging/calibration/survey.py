"""In which order a model uses its weights, and which of them see the same inputs: from a forward pass or two."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from merging.calibration.linears import LiveWeights, Operand
from merging.calibration.samples import Sample, Samples
from merging.calibration.watching import InputKey, Use, Watch, plain_products
from merging.recipe import MergingError
from merging.sources import Sources

# Samples of equal shape that are run at once: what it gains on a device is gained by then, and activations stay small.
BATCH = 16


class Stage(NamedTuple):
    """Weights that are looked at together: a block, or one tensor outside the blocks."""

    stack: str
    depth: int | None
    name: str

    def __str__(self) -> str:
        if self.depth is None:
            return self.name
        return f"block {self.depth}" + (f" of {self.stack}" if self.stack else "")


class Cell(NamedTuple):
    """One weight: a stored tensor, or one of the weights along the first axis of a stack."""

    name: str
    slot: int | None


@dataclass(frozen=True)
class Linear:
    """A stored tensor that a linear layer or convolution multiplies with.

    Attributes:
        axis: that its inputs run along, stack apart.
        width: length of its inputs.
        stack: how many weights it holds along its first axis; None for one weight that is no stack.
    """

    axis: int
    width: int
    stack: int | None

    def cells(self, name: str) -> tuple[Cell, ...]:
        """Its weights."""
        return (Cell(name, None),) if self.stack is None else tuple(Cell(name, each) for each in range(self.stack))


@dataclass(frozen=True)
class Survey:
    """What a forward pass uses.

    Attributes:
        stages: in the order of their first use, with the tensors of each; those that nothing reads are left out.
        linears: canonical name -> what kind of linear weight it is. Also those of a mixture that were not reached,
            where others of their kind were.
        leaders: operand -> the first operand that has the same inputs; itself where it is that one.
        cells: weight -> the leaders whose inputs it has: one, but where a weight is used in parts.
        spans: [kinds of samples] stage, or operand that nothing is collected of -> first and last use, counted in a
            forward pass.
        batch: how many samples the model takes at once.
    """

    stages: Mapping[Stage, tuple[str, ...]]
    linears: Mapping[str, Linear]
    leaders: Mapping[Operand, Operand]
    cells: Mapping[Cell, tuple[Operand, ...]]
    spans: tuple[Mapping[Stage | Operand, tuple[int, int]], ...]
    batch: int

    def linear_stages(self) -> tuple[Stage, ...]:
        """The stages with a linear weight, in order."""
        return tuple(stage for stage, names in self.stages.items() if any(name in self.linears for name in names))

    def after(self, stages: Iterable[Stage]) -> frozenset[Stage | Operand]:
        """What is only used when all of these stages were used for the last time, whatever the sample."""
        wanted = list(stages)
        beyond: set[Stage | Operand] = {each for spans in self.spans for each in spans}
        for spans in self.spans:
            last = max((spans[stage][1] for stage in wanted if stage in spans), default=-1)
            beyond -= {each for each, (first, _) in spans.items() if first <= last}
        return frozenset(beyond)


def stage_of(sources: Sources, name: str) -> Stage:
    """The stage of a canonical tensor."""
    group = sources.layout.group(name)
    return Stage("", None, name) if group.depth is None else Stage(group.stack, group.depth, "")


def survey(model: nn.Module, sources: Sources, weights: LiveWeights, samples: Samples, source: str) -> Survey:
    """Run one sample of each kind and look.

    Args:
        model: live model.
        sources: whose layout says what belongs together.
        weights: live weights of the model.
        samples: inputs.
        source: whose inputs they are, for messages.

    Raises:
        MergingError: the model refuses the samples, or uses no linear weight.
    """
    look_at = partial(_look, model, sources, weights, source)
    looks = [look_at(sample) for sample in samples.kinds()]
    embedded = {name for look in looks for name in look.embedded}
    heads = _vocabulary_heads(sources)
    stages: dict[Stage, list[str]] = {}
    for look in sorted(looks, key=lambda each: -len(each.touched)):
        for name in look.touched:
            names = stages.setdefault(stage_of(sources, name), [])
            if name not in names:
                names.append(name)
    uses = _used(looks, without=embedded | heads)
    linears = _linears(uses, weights, without=embedded | heads)
    linears |= dict(_unreached(linears, sources, stages))
    if not linears:
        raise MergingError(
            f"the live {type(model).__name__} multiplies none of its stored weights with the calibration inputs of "
            f"{source}: there is nothing to collect"
        )
    leaders = _leaders(uses, sources)
    cells: dict[Cell, list[Operand]] = {}
    for operand, (covered, _) in uses.items():
        for cell in covered:
            found = cells.setdefault(cell, [])
            if leaders[operand] not in found:
                found.append(leaders[operand])
    return Survey(
        {stage: tuple(names) for stage, names in stages.items()},
        linears,
        leaders,
        {cell: tuple(found) for cell, found in cells.items()},
        tuple(look.spans(sources, linears) for look in looks),
        BATCH if samples.repeats_shapes and _takes_batches(looks, look_at) else 1,
    )


def forward(model: nn.Module, sample: Sample, source: str) -> Any:
    """One forward pass, without gradients unless the caller asks for them; inputs are moved to the model.

    Raises:
        MergingError: the model does not take these inputs.
    """
    parameter = next(model.parameters())
    moved = {
        name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else value.dtype)
        for name, value in sample.items()
    }
    try:
        return model(**moved)
    except torch.OutOfMemoryError as error:
        raise MergingError(
            f"the live {type(model).__name__} runs out of memory on calibration inputs of {source}: {error}. Give "
            "shorter inputs, or less memory to the statistics"
        ) from error
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
        given = ", ".join(f"{name} {list(value.shape)}" for name, value in sample.items())
        raise MergingError(
            f"the live {type(model).__name__} refused the calibration inputs of {source} ({given}): "
            f"{type(error).__name__}: {error}. Give inputs of the kind that this model was trained on"
        ) from error


class _Look:
    """What one forward pass used, in order."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.rows: dict[Operand, int] = {}
        self.touched: dict[str, tuple[int, int]] = {}
        self.embedded: set[str] = set()
        self.uses: list[Use] = []
        self._times: list[int] = []
        self._clock = 0

    def use(self, use: Use) -> None:
        self._clock += 1
        self._times.append(self._clock)
        self.rows[use.operand] = self.rows.get(use.operand, 0) + sum(map(len, use.rows()))
        self.uses.append(use._replace(rows=lambda: iter(())))  # the inputs themselves are let go

    def touch(self, name: str) -> None:
        self._clock += 1
        self.touched[name] = (self.touched.get(name, (self._clock, 0))[0], self._clock)

    def spans(self, sources: Sources, linears: Mapping[str, Linear]) -> dict[Stage | Operand, tuple[int, int]]:
        spans: dict[Stage | Operand, tuple[int, int]] = {}
        for use, time in zip(self.uses, self._times, strict=True):
            if not any(each.name in linears for each in use.covered):
                spans[use.operand] = (spans.get(use.operand, (time, 0))[0], time)
        for name, (first, last) in self.touched.items():
            stage = stage_of(sources, name)
            old = spans.get(stage, (first, last))
            spans[stage] = (min(first, old[0]), max(last, old[1]))
        return spans


def _look(model: nn.Module, sources: Sources, weights: LiveWeights, source: str, sample: Sample) -> _Look:
    look = _Look(sample)
    merged = sources.tensors.keys()

    def touched(name: str) -> None:
        if name in merged:
            look.touch(name)

    watch = Watch(weights, look.use, touched, look.embedded.add)
    with torch.no_grad(), plain_products(model), watch:
        forward(model, sample, source)
    weights.forget_copies()
    return look


# Operand -> the weights that it is, and its inputs over all looks.
_Uses = dict[Operand, tuple[list[Cell], list[tuple[int, InputKey]]]]


def _used(looks: list[_Look], without: set[str]) -> _Uses:
    """Operand -> the weights that it is, and its inputs over all looks; leaves out operands that are to be left out."""
    uses: _Uses = {}
    for number, look in enumerate(looks):
        for use in look.uses:
            covered = [Cell(each.name, each.slot) for each in use.covered if each.name not in without]
            if covered:
                uses.setdefault(use.operand, (covered, []))[1].append((number, use.key))
    return uses


def _linears(uses: Iterable[Operand], weights: LiveWeights, without: set[str]) -> dict[str, Linear]:
    linears = {}
    for operand in uses:
        for each in (covered for covered in weights.find(operand) if covered.name not in without):
            stack = None if each.slot is None else int(weights.tensors[each.name].shape[0])
            linears[each.name] = Linear(each.axis, each.width, stack)
    return linears


def _unreached(
    linears: Mapping[str, Linear], sources: Sources, stages: Mapping[Stage, list[str]]
) -> Iterator[tuple[str, Linear]]:
    """Weights that no input reached, where one of the same kind in the same block was reached: a mixture's experts."""
    kinds = {_kind(sources, name): linear for name, linear in linears.items()}
    for name in sorted(sources.tensors.keys() - linears.keys()):
        stage = stage_of(sources, name)
        if stage.depth is not None and _kind(sources, name) in kinds:
            if name not in stages[stage]:
                stages[stage].append(name)
            yield name, kinds[_kind(sources, name)]


def _kind(sources: Sources, name: str) -> tuple[Stage, str, tuple[int, ...]]:
    return stage_of(sources, name), re.sub(r"\d+", "#", name), sources.tensors[name].shape


def _leaders(uses: _Uses, sources: Sources) -> dict[Operand, Operand]:
    """Operands of one stage that had the same inputs each time share the first one's."""
    first: dict[Any, Operand] = {}
    return {
        operand: first.setdefault((stage_of(sources, covered[0].name), tuple(keys)), operand)
        for operand, (covered, keys) in uses.items()
    }


def _vocabulary_heads(sources: Sources) -> set[str]:
    """Heads with an output for every token: their inputs are as large as the last block's, and nothing is gained."""
    sizes = set(_numbers(sources.config, "vocab_size"))
    return {
        name
        for name, info in sources.tensors.items()
        if sources.layout.group(name).kind == "head" and info.shape and info.shape[0] in sizes
    }


def _numbers(config: Any, key: str) -> Iterator[int]:
    if isinstance(config, Mapping):
        for name, value in config.items():
            if name == key and isinstance(value, int):
                yield value
            yield from _numbers(value, key)


def _takes_batches(looks: list[_Look], again: Callable[[Sample], _Look]) -> bool:
    """Whether two inputs at once are as good as one after the other: every weight sees twice the rows.

    Not so for classifiers without a padding token, which refuse batches, for mixtures that drop what is beyond an
    expert's capacity, or where weights see something else than the inputs once per pass (DeBERTa's distances).
    """
    for look in looks:
        sample = look.sample
        if all(each.ndim and each.shape[0] == 1 for each in sample.values()):
            try:
                pair = again({name: torch.cat([each, each]) for name, each in sample.items()})
            except MergingError:
                return False
            if pair.rows != {operand: 2 * rows for operand, rows in look.rows.items()}:
                return False
    return True
