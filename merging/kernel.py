"""One tensor of a recipe, computed: pieces in, method, one rounding, out. Live models and exports share this code."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from merging.methods.contract import Context, Method, Values
from merging.methods.registry import canonical, get
from merging.pool import Pool, Workspace, pieces
from merging.recipe import DTYPES, Assignment, MergingError, Recipe
from merging.sources import Sources

# Elements of a piece: the buffers of a few terms stay in the second-level cache, and torch starts no threads below it.
CHUNK = 1 << 15

# On a device there is no such cache to stay in, and starting a kernel costs more than it does.
DEVICE_CHUNK = 1 << 24


class MergeFailed(MergingError):
    """A candidate cannot be used: its weights are not finite. The live model is undefined until the next apply."""


class Task(NamedTuple):
    """A canonical assignment, resolved: what :func:`merge_tensor` needs besides the tensor's name."""

    method: Method
    values: Values
    pool: Pool


class Resolver:
    """Turns a recipe's assignments into tasks; remembers them, since a recipe has few and a model has many tensors."""

    def __init__(self, sources: Sources, recipe: Recipe):
        self._sources = sources
        self._bound = sources.bind(recipe)
        self._dtype = torch_dtype(recipe.source_dtype)
        self._tasks: dict[Assignment, Task] = {}

    def task(self, assignment: Assignment) -> Task:
        """The task of an assignment.

        Raises:
            MergingError: unknown method, bad parameters, or a source that the recipe does not list.
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
            task = self._tasks[assignment] = Task(get(resolved.method), Values.of(resolved), pool)
        return task


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


def merge_tensor(name: str, task: Task, out: Tensor, workspace: Workspace, chunk: int | None = None) -> list[Tensor]:
    """Compute one merged tensor.

    Args:
        name: canonical tensor name.
        task: what to do.
        out: contiguous, of the merged tensor's shape and dtype; overwritten.
        workspace: scratch memory, reused over calls.
        chunk: elements of a piece; does not change the result.

    Returns:
        Smallest and largest elements of the pieces, 0-d tensors on its device: for :func:`check_finite_result`.
    """
    method, values, pool = task
    statistics = pool.once((method.name, name), lambda: method.statistics(pool, name))
    whole = tuple(out.shape)
    inputs = pool.sources(name)
    if method.needs.base:
        inputs = (pool.base(name), *inputs)
    limit = chunk or (CHUNK if out.device.type == "cpu" else DEVICE_CHUNK)
    accumulate = accumulation_dtype(out.dtype)
    ends: list[Tensor] = []
    for start, stop, shape in _pieces(method.scope, whole, limit):
        piece = workspace.take(0, stop - start, accumulate, out.device)
        target, *parts = (_cut(tensor, start, stop, shape) for tensor in (out, *inputs))
        context = Context(
            name=name,
            shape=whole,
            start=start,
            base=parts[0] if method.needs.base else None,
            sources=tuple(parts[1:] if method.needs.base else parts),
            statistics=statistics,
            workspace=workspace,
        )
        if len(shape) != 1:
            piece = piece.view(shape)
        method.apply(context, values, piece)
        ends += torch.aminmax(target.copy_(piece))
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


def _cut(tensor: Tensor, start: int, stop: int, shape: tuple[int, ...]) -> Tensor:
    flat = tensor if tensor.dim() == 1 else tensor.view(-1)
    if stop - start < flat.numel():
        flat = flat[start:stop]
    return flat if len(shape) == 1 else flat.view(shape)


def check_finite_result(ends: Mapping[str, Sequence[Tensor]]) -> None:
    """Refuse a result that is not finite.

    Args:
        ends: tensor name -> what :func:`merge_tensor` returned.

    Raises:
        MergeFailed: names the first such tensor.
    """
    if all(_finite(each) for each in _by_dtype(end for pieces_of in ends.values() for end in pieces_of)):
        return
    bad = [name for name, each in ends.items() if not all(_finite(group) for group in _by_dtype(each))]
    raise MergeFailed(
        f"the merged weights are not finite in {len(bad)} of {len(ends)} rewritten tensors, first in {bad[0]}: "
        "the coefficients are too large for the dtype"
    )


def _by_dtype(ends: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    groups: dict[torch.dtype, list[Tensor]] = {}
    for end in ends:
        groups.setdefault(end.dtype, []).append(end)
    return groups.values()


def _finite(ends: list[Tensor]) -> bool:
    # One comparison for the whole model: asking for every tensor apart would wait for the device each time.
    return bool(torch.stack(ends).isfinite().all())
