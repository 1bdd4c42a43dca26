"""Elementwise kernels through ``torch.compile``: one fused pass over memory instead of one per operation.

Inductor contracts no multiply-add and reorders no sum of an elementwise kernel, so a compiled kernel gives the bits of
the eager one; the tests hold it to that.
"""

from __future__ import annotations

import functools
import importlib.util
import itertools
import shutil
import types
from collections.abc import Callable, Hashable
from typing import Any, Literal

import torch
from torch import Tensor

from merging.methods.contract import Inputs

Mode = Literal["auto", "always", "never"]

# Seconds to build the kernel of one method, number of sources and dtype, on a CPU.
_BUILDING = 10.0


@functools.cache
def available(device: str) -> bool:
    """Whether inductor can build kernels for a kind of device here."""
    if device == "cpu":
        return any(shutil.which(name) for name in ("g++", "clang++", "c++"))
    return importlib.util.find_spec("triton") is not None


def worthwhile(mode: Mode, seconds: float, device: str) -> bool:
    """Whether to compile.

    Args:
        mode: what the user wants; ``auto`` decides.
        seconds: that all that is to be computed takes eagerly on one core.
        device: type of the device that computes.
    """
    return mode != "never" and available(device) and (mode == "always" or seconds > _BUILDING or device != "cpu")


def run_whole(
    kernel: Callable[..., Tensor],
    options: tuple[Hashable, ...],
    inputs: Inputs,
    start: int,
    out: Tensor,
    *,
    indexed: bool,
    checked: bool,
) -> Tensor:
    """Run a kernel over whole tensors, rounding and storing in the same pass.

    Args:
        kernel, options: as :class:`merging.methods.contract.Elements` has them.
        inputs: its indices are not read: they are counted from ``start``.
        start: index of the first element.
        out: flat, contiguous; overwritten.
        indexed: whether the kernel wants indices.
        checked: whether to look for what is not finite.

    Returns:
        0-d of the dtype of ``out``, not finite where something is that was written; 0 where nobody looked.
    """
    base, sources, numbers, integers, _, fields = inputs
    dtypes = tuple(each.dtype for each in (out, numbers, base, *sources, *fields))
    fused = _compiled(kernel, options, indexed, checked, len(sources), dtypes)
    # As a tensor: added as a Python number, 32-bit indices would be computed in 64 bits.
    first = torch.tensor(start, dtype=torch.int32, device=out.device)
    found: Tensor = fused(base, sources, numbers, integers, first, fields, out)
    return found.to(out.dtype)  # rounds the largest as it was rounded in its place


@functools.cache
def _compiled(
    kernel: Callable[..., Tensor],
    options: tuple[Hashable, ...],
    indexed: bool,
    checked: bool,
    sources: int,
    dtypes: tuple[torch.dtype, ...],
) -> Callable[..., Tensor]:
    """One compiled function for one combination of arguments' kinds, so that it is compiled once and never again."""

    def fused(
        base: Tensor,
        sources: tuple[Tensor, ...],
        numbers: Tensor,
        integers: Tensor,
        start: Tensor,
        fields: tuple[Tensor, ...],
        out: Tensor,
    ) -> Tensor:
        index = integers
        if indexed:
            index = torch.arange(out.numel(), dtype=torch.int32, device=out.device) + start
        merged = kernel(Inputs(base, sources, numbers, integers, index, fields), *options)
        out.copy_(merged.to(out.dtype))
        # NaN wins over every number. The reduction costs as much as a source in so small a kernel.
        return merged.abs().amax() if checked else numbers.new_zeros(())

    # Dynamo counts recompilations by code object, and gives up after a few: every kernel gets a code object of its own.
    own = types.FunctionType(
        fused.__code__.replace(co_name=f"fused_{kernel.__name__}_{next(_NUMBERS)}"),
        fused.__globals__,
        closure=fused.__closure__,
    )
    compile_: Any = torch.compile
    return compile_(own, dynamic=True, fullgraph=True)  # type: ignore[no-any-return]


_NUMBERS = itertools.count()
