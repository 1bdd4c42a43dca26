"""One tensor of a recipe, computed: pieces in, method, one rounding, out. Live models and exports share this code."""

from __future__ import annotations

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


class MergeFailed(MergingError):  # noqa: N818 - it names what happened to a candidate
    """A candidate cannot be used: its weights are not finite. The model's weights are undefined until the next apply."""


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


def merge_tensor(name: str, task: Task, out: Tensor, workspace: Workspace, chunk: int | None = None) -> Tensor:
    """Compute one merged tensor.

    Args:
        name: canonical tensor name.
        task: what to do.
        out: contiguous, of the merged tensor's shape and dtype; overwritten.
        workspace: scratch memory, reused over calls.
        chunk: elements of a piece; does not change the result.

    Returns:
        [2] smallest and largest element of the result, on its device: finite if, and only if, all elements are.
    """
    method, values, pool = task
    statistics = pool.once((method.name, name), lambda: method.statistics(pool, name))
    base = pool.base(name) if method.needs.base else None
    sources = pool.sources(name)
    limit = chunk or (CHUNK if out.device.type == "cpu" else DEVICE_CHUNK)
    accumulate = accumulation_dtype(out.dtype)
    lows, highs = [], []
    for start, stop, shape in _pieces(method.scope, tuple(out.shape), limit):
        piece = workspace.take(0, stop - start, accumulate, out.device).view(shape)
        context = Context(
            name=name,
            shape=tuple(out.shape),
            start=start,
            base=None if base is None else _cut(base, start, stop, shape),
            sources=tuple(_cut(source, start, stop, shape) for source in sources),
            statistics=statistics,
            workspace=workspace,
        )
        method.apply(context, values, piece)
        low, high = torch.aminmax(_cut(out, start, stop, shape).copy_(piece))
        lows.append(low)
        highs.append(high)
    if not lows:
        return out.new_zeros(2)
    if len(lows) == 1:
        return torch.stack((lows[0], highs[0]))
    return torch.stack((torch.stack(lows).amin(), torch.stack(highs).amax()))


def _pieces(scope: str, shape: tuple[int, ...], limit: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """(start, stop, shape) of the pieces of a tensor, in elements of the flattened tensor."""
    numel = torch.Size(shape).numel()
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
    return tensor.view(-1)[start:stop].view(shape)


def check_finite_result(names: list[str], ends: list[Tensor]) -> None:
    """Refuse a result that is not finite.

    Args:
        names: [n] of the tensors.
        ends: [n] what :func:`merge_tensor` returned for each.

    Raises:
        MergeFailed: names the first such tensor.
    """
    if not ends:
        return
    finite = torch.stack([end.float() if end.dtype.itemsize == 2 else end for end in _one_dtype(ends)]).isfinite().all(dim=1)
    if not bool(finite.all()):
        bad = [name for name, good in zip(names, finite.tolist(), strict=True) if not good]
        raise MergeFailed(
            f"the merged weights are not finite in {len(bad)} of {len(names)} tensors, first in {bad[0]}: "
            "the coefficients are too large for the dtype"
        )


def _one_dtype(ends: list[Tensor]) -> list[Tensor]:
    return ends if len({end.dtype for end in ends}) == 1 else [end.to(torch.float64) for end in ends]
