"""One tensor of a recipe, computed: pieces in, method, one rounding, out. Live models and exports share this code."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from merging.calibration.contract import Calibration
from merging.compiled import Mode, run_whole, worthwhile
from merging.methods.contract import CALIBRATION, Context, Elements, Elementwise, Inputs, Method, Values
from merging.methods.registry import canonical, get
from merging.pool import ALIGNMENT, Pool, pieces
from merging.recipe import DTYPES, Assignment, MergingError, Recipe
from merging.sources import Sources

# Elements of a piece: the temporaries of a few terms stay in the second-level cache, and torch starts no threads.
CHUNK = 1 << 15

# On a device there is no such cache to stay in, and starting a kernel costs more than it does.
DEVICE_CHUNK = 1 << 24

# Below this the guards of a compiled call cost more than the operations: of a kernel with options, and of a simple one.
COSTLY_SMALL = 1 << 10
SMALL = 1 << 12

# Of a compiled call: positions in it are 32-bit numbers.
COMPILED_CHUNK = 1 << 30


class MergeFailed(MergingError):
    """A candidate cannot be used: its weights are not finite. The live model is undefined until the next apply."""


class Task(NamedTuple):
    """A canonical assignment, resolved: what :func:`merge_tensor` needs besides the tensor's name."""

    method: Method
    values: Values
    pool: Pool


class Resolver:
    """Turns a recipe's assignments into tasks; remembers them, since a recipe has few and a model has many tensors."""

    def __init__(
        self,
        sources: Sources,
        recipe: Recipe,
        calibration: Calibration | None = None,
        *,
        searching: bool = False,
    ):
        """Bind the recipe to sources.

        Args:
            sources: the models.
            recipe: whose assignments will be asked for.
            calibration: what was collected for methods that need it.
            searching: more recipes will follow, so that statistics may be prepared for them.

        Raises:
            MergingError: the recipe was made from other models.
        """
        self._searching = searching
        self._sources = sources
        self._bound = sources.bind(recipe)
        self._dtype = torch_dtype(recipe.source_dtype)
        self._calibration = calibration
        self._tasks: dict[Assignment, Task] = {}

    def task(self, assignment: Assignment) -> Task:
        """The task of an assignment.

        Raises:
            MergingError: unknown method, bad parameters, calibration data that are needed and not there, or a source
                that the recipe does not list.
        """
        task = self._tasks.get(assignment)
        if task is None:
            resolved = canonical(assignment)
            for alias, _ in resolved.sources:
                if alias not in self._bound:
                    raise MergingError(
                        f"the recipe assigns source {alias!r} but lists only {', '.join(self._bound)} under sources"
                    )
            pool = self._sources.pool(tuple(self._bound[alias] for alias, _ in resolved.sources), self._dtype)
            pool.searching = self._searching
            method, values = get(resolved.method), Values.of(resolved)
            if method.needs.calibration:
                pool.calibration = _checked(self._calibration, method, values)
            task = self._tasks[assignment] = Task(method, values, pool)
        return task


def _checked(calibration: Calibration | None, method: Method, values: Values) -> Calibration:
    wanted = values.shared[CALIBRATION.name]
    if calibration is None or calibration.fingerprint != wanted:
        found = "none was given" if calibration is None else f"found data {calibration.fingerprint!r}"
        raise MergingError(f"method {method.name} needs the calibration data {wanted!r} of its recipe; {found}")
    return calibration


def torch_dtype(name: str | None) -> torch.dtype | None:
    """The torch dtype of a recipe's dtype.

    Raises:
        MergingError: not one of :data:`merging.recipe.DTYPES`.
    """
    if name is None:
        return None
    if name not in DTYPES:
        raise MergingError(f"expected a dtype of {', '.join(DTYPES)}, found {name!r}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for 16-bit results, float64 for wider ones: the sum is as good as exact before it is rounded."""
    return torch.float32 if dtype.itemsize == 2 else torch.float64


def compiles(task: Task, mode: Mode, elements: int, device: str, candidates: int = 1) -> bool:
    """Whether a task is to run compiled.

    Args:
        task: what to do.
        mode: what the user wants.
        elements: of the model.
        device: type of the device that computes.
        candidates: how many there will be at least.
    """
    method = task.method
    if not isinstance(method, Elementwise):
        return False
    eager = elements * candidates * method.eager_ns * max(1, len(task.values.sources)) * 1e-9
    return worthwhile(mode, eager, device)


def merge_tensor(
    name: str, task: Task, out: Tensor, *, chunk: int | None = None, compiled: bool = False
) -> list[Tensor]:
    """Compute one merged tensor.

    Args:
        name: canonical tensor name.
        task: what to do.
        out: of the merged tensor's shape and dtype, on the device that computes; overwritten.
        chunk: elements of a piece; does not change the result.
        compiled: run elementwise kernels compiled; does not change the result.

    Returns:
        0-d tensors that are finite where the result is, for :func:`check_finite_result`; none where it is finite in any
        case.
    """
    if not out.is_contiguous():  # a view into a live layout that stores this tensor otherwise
        whole = torch.empty(out.shape, dtype=out.dtype, device=out.device)
        ends = merge_tensor(name, task, whole, chunk=chunk, compiled=compiled)
        out.copy_(whole)
        return ends
    if isinstance(task.method, Elementwise):
        return _Run(name, *_elements(name, task, out), compiled).compute(chunk)
    return _merge_pieces(name, task, out, chunk)


class Piece(NamedTuple):
    """One of the tensors that :func:`merge_tensors` writes."""

    name: str
    task: Task
    out: Tensor
    compiled: bool


def merge_tensors(work: Iterable[Piece]) -> dict[str, list[Tensor]]:
    """Compute many tensors, as :func:`merge_tensor` each, in as few calls as their memory allows.

    Tensors that follow each other in every arena and take the same numbers, as those of a group do under most
    elementwise methods, are one long tensor.

    Args:
        work: in the order of the arenas.

    Returns:
        Name -> what :func:`merge_tensor` returns; under the first name of tensors that were computed together.
    """
    ends: dict[str, list[Tensor]] = {}
    run: _Run | None = None
    for name, task, out, compiled in work:
        if not isinstance(task.method, Elementwise) or not out.is_contiguous():
            ends[name] = merge_tensor(name, task, out, compiled=compiled)
            continue
        if run is not None and _is_made_for(name, task, out):  # what was made for the one before it goes first
            ends[run.name], run = run.compute(), None
        following = _Run(name, *_elements(name, task, out), compiled)
        if run is not None and run.continues(following):
            run.extend(following)
            continue
        if run is not None:
            ends[run.name] = run.compute()
        run = following
        del following  # a second name would keep what was made for it
    if run is not None:
        ends[run.name] = run.compute()
    return ends


class _Run:
    """Tensors that are computed in one call."""

    def __init__(self, name: str, elements: Elements, tensors: tuple[Tensor, ...], safe: bool, compiled: bool):
        self.name = name
        self.elements = elements
        self.tensors = tensors  # out, base, sources; flat
        self.safe = safe
        self.compiled = compiled
        self.shared = not elements.indexed and not elements.fields

    def continues(self, other: _Run) -> bool:
        """Whether another run can be appended."""
        return (
            self.shared
            and self.compiled == other.compiled
            and self.elements == other.elements
            and all(map(_follows, self.tensors, other.tensors))
            and len(set(map(_distance, self.tensors, other.tensors))) == 1
        )

    def extend(self, other: _Run) -> None:
        """Append another run, with what lies between the two."""
        end = other.tensors[0].storage_offset() + other.tensors[0].numel()
        numel = end - self.tensors[0].storage_offset()
        self.tensors = tuple(each.as_strided((numel,), (1,), each.storage_offset()) for each in self.tensors)
        self.safe = self.safe and other.safe

    def compute(self, chunk: int | None = None) -> list[Tensor]:
        """See :func:`merge_tensor`."""
        elements, (target, base, *sources) = self.elements, self.tensors
        device = target.device
        numbers = torch.tensor(elements.numbers, dtype=accumulation_dtype(target.dtype), device=device)
        integers = torch.tensor(elements.integers, dtype=torch.int32, device=device)
        fields = tuple(_flat(field, target) for field in elements.fields)
        inputs = Inputs(base, tuple(sources), numbers, integers, integers, fields)
        if self.compiled and target.numel() >= (COSTLY_SMALL if elements.options else SMALL):
            return self._compiled(inputs, target)
        return self._eager(inputs, target, chunk or (CHUNK if device.type == "cpu" else DEVICE_CHUNK))

    def _compiled(self, inputs: Inputs, target: Tensor) -> list[Tensor]:
        elements, ends = self.elements, []
        for start, stop in pieces(target.numel(), COMPILED_CHUNK):
            signed = (start + (1 << 31)) % (1 << 32) - (1 << 31)
            cut, out = (
                (_cut(inputs, start, stop), target[start:stop]) if stop - start < target.numel() else (inputs, target)
            )
            end = run_whole(
                elements.kernel, elements.options, cut, signed, out, indexed=elements.indexed, checked=not self.safe
            )
            ends.append(end)
        return ends

    def _eager(self, inputs: Inputs, target: Tensor, chunk: int) -> list[Tensor]:
        elements = self.elements
        ends: list[Tensor] = []
        for start, stop in pieces(target.numel(), chunk):
            cut = _cut(inputs, start, stop)
            if elements.indexed:
                index = torch.arange(start, stop, dtype=torch.int64, device=target.device).to(torch.int32)
                cut = cut._replace(indices=index)
            piece = target[start:stop].copy_(elements.kernel(cut, *elements.options))
            if not self.safe:
                ends += torch.aminmax(piece)
        return ends


def _cut(inputs: Inputs, start: int, stop: int) -> Inputs:
    return inputs._replace(
        base=inputs.base[start:stop],
        sources=tuple(source[start:stop] for source in inputs.sources),
        fields=tuple(field[start:stop] for field in inputs.fields),
    )


def _is_made_for(name: str, task: Task, out: Tensor) -> bool:
    """Whether there is memory for this tensor alone: sources that lie elsewhere than the result are brought to its
    device, those that are kept in factors multiplied out."""
    if task.pool.composes(name):
        return True
    on_cpu = out.device.type == "cpu"  # where they are not brought to from anywhere
    return not on_cpu and any(each.device != out.device for each in task.pool.sources(name))


def _follows(one: Tensor, other: Tensor) -> bool:
    """Whether a flat tensor is the next of an arena."""
    gap = _distance(one, other) - one.numel()
    return (
        0 <= gap * one.itemsize < ALIGNMENT
        and one.dtype == other.dtype
        and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
    )


def _distance(one: Tensor, other: Tensor) -> int:
    """Elements from the start of one tensor to the start of another; arenas of other dtypes are padded otherwise."""
    return int(other.storage_offset() - one.storage_offset())


def _elements(name: str, task: Task, out: Tensor) -> tuple[Elements, tuple[Tensor, ...], bool]:
    """What is to be computed, (out, base, sources) flat, and whether the result is finite in any case.

    A source stands in for a base that is not read.
    """
    method, values, pool = task
    assert isinstance(method, Elementwise)
    elements = _with_delta_scale(method.prepare(pool, name, values), values)
    sources = tuple(_flat(pool.source(name, number), out) for number in elements.sources)
    base = _flat(pool.base(name), out) if elements.base or not sources else sources[0]
    safe = False
    if elements.gain != math.inf:
        largest = pool.once(("largest", name), lambda: _reach(pool, name))
        safe = elements.gain * largest < 0.5 * torch.finfo(out.dtype).max
    return elements, (out.view(-1), base, *sources), safe


def _reach(pool: Pool, name: str) -> float:
    """The largest |element| of base and sources; of sources in factors a bound, without multiplying them out."""
    base = _largest(pool.base(name))
    found = [base]
    for number, factors in enumerate(pool.factors(name)):
        found.append(_largest(pool.source(name, number)) if factors is None else base + 1.001 * factors.bound)
    return max(found) if not any(map(math.isnan, found)) else math.nan


def _largest(*tensors: Tensor) -> float:
    """The largest |element|; NaN where there is one."""
    ends = [float(end) for tensor in tensors if tensor.numel() for end in torch.aminmax(tensor)]
    return max((abs(end) for end in ends), default=0.0) if not any(map(math.isnan, ends)) else math.nan


def _flat(tensor: Tensor, out: Tensor) -> Tensor:
    flat = tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1)
    return flat if flat.device == out.device else flat.to(out.device, non_blocking=True)


def _with_delta_scale(elements: Elements, values: Values) -> Elements:
    scale = values.shared.get("delta_scale", 1.0)
    if scale == 1.0:
        return elements
    return replace(
        elements,
        kernel=_delta_scaled,
        options=(elements.kernel, elements.options),
        numbers=(*elements.numbers, float(scale)),
        base=True,
        gain=1.0 + abs(float(scale)) * (elements.gain + 1.0),
    )


def _delta_scaled(inputs: Inputs, kernel: object, options: tuple[object, ...]) -> Tensor:
    assert callable(kernel)
    merged: Tensor = kernel(inputs._replace(numbers=inputs.numbers[:-1]), *options)
    base = inputs.base.to(merged.dtype)
    return (merged - base) * inputs.numbers[-1] + base


def _merge_pieces(name: str, task: Task, out: Tensor, chunk: int | None) -> list[Tensor]:
    method, values, pool = task
    statistics = method.prepare(pool, name, values)
    whole = tuple(out.shape)
    scale = float(values.shared.get("delta_scale", 1.0))
    reads_base = method.reads_base(values)
    inputs = tuple(_flat(each, out) for each in pool.sources(name))
    base = _flat(pool.base(name), out) if reads_base or scale != 1.0 else None
    limit = chunk or (CHUNK if out.device.type == "cpu" else DEVICE_CHUNK)
    target = out.view(-1)
    ends: list[Tensor] = []
    for start, stop, shape in _pieces(method.scope, whole, limit):
        piece = torch.empty(shape, dtype=accumulation_dtype(out.dtype), device=out.device)
        origin = None if base is None else base[start:stop].view(shape)
        context = Context(
            name=name,
            shape=whole,
            start=start,
            base=origin if reads_base else None,
            sources=tuple(each[start:stop].view(shape) for each in inputs),
            statistics=statistics,
        )
        method.apply(context, values, piece)
        if scale != 1.0 and origin is not None:
            wide = origin.to(piece.dtype)
            piece.sub_(wide).mul_(scale).add_(wide)
        ends += torch.aminmax(target[start:stop].view(shape).copy_(piece))
    return ends


def _pieces(scope: str, shape: tuple[int, ...], limit: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """(start, stop, shape) of the pieces of a tensor, in elements of the flattened tensor."""
    numel = math.prod(shape)
    if not numel:
        return []
    if scope == "element":
        return [(start, stop, (stop - start,)) for start, stop in pieces(numel, limit)]
    if scope == "row":
        width = numel // shape[0] if len(shape) > 1 else numel
        step = max(1, limit // width) * width
        return [(start, stop, ((stop - start) // width, width)) for start, stop in pieces(numel, step)]
    return [(0, numel, shape)]


def check_finite_result(ends: Mapping[str, Sequence[Tensor]], written: Mapping[str, Tensor]) -> None:
    """Refuse a result that is not finite.

    Args:
        ends: what :func:`merge_tensors` returned.
        written: tensor name -> what was written.

    Raises:
        MergeFailed: names the first such tensor.
    """
    if all(_finite(each) for each in _by_dtype(end for pieces_of in ends.values() for end in pieces_of)):
        return
    bad = [name for name, tensor in written.items() if tensor.numel() and not _finite([*torch.aminmax(tensor)])]
    raise MergeFailed(
        f"the merged weights are not finite in {len(bad)} of {len(written)} rewritten tensors, first in {bad[0]}: "
        "the coefficients are too large for the dtype"
    )


def _by_dtype(ends: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for end in ends:
        groups.setdefault((end.dtype, end.device), []).append(end)
    return groups.values()


def _finite(ends: list[Tensor]) -> bool:
    # One comparison for the whole model: asking for every tensor apart would wait for the device each time.
    return bool(torch.stack(ends).isfinite().all())
