"""What a forward pass multiplies with which inputs: every product with a live weight, seen below the model's own code.

The operations are seen as torch dispatches them, where a linear layer, an einsum, a matmul of GPT-2's Conv1D and the
loop over the experts of a mixture are all the same few products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from merging.calibration.linears import Covered, LiveWeights, Operand, weak_reference


class Leave(BaseException):
    """Raised inside a forward pass to leave it: nothing further is needed. No model's ``except Exception`` stops it."""


class InputKey(NamedTuple):
    """What tells inputs apart within a forward pass: equal keys are the same numbers."""

    storage: StorageWeakRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    version: int
    how: tuple[Any, ...]

    @staticmethod
    def of(tensor: Tensor, how: tuple[Any, ...] = ()) -> InputKey:
        """Of a tensor; ``how`` says what else its rows depend on."""
        shape, strides = tuple(tensor.shape), tuple(tensor.stride())
        return InputKey(weak_reference(tensor), int(tensor.storage_offset()), shape, strides, tensor._version, how)


class Use(NamedTuple):
    """One product of a live weight.

    Attributes:
        operand: the weight as it was used.
        covered: the stored weights that it is.
        key: of the inputs.
        rows: gives the inputs, [n, width], in one piece or several.
    """

    operand: Operand
    covered: tuple[Covered, ...]
    key: InputKey
    rows: Callable[[], Iterator[Tensor]]


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, hands over every use of a live weight before it is computed."""

    def __init__(
        self,
        weights: LiveWeights,
        used: Callable[[Use], None],
        touched: Callable[[str], None] | None = None,
        embedded: Callable[[str], None] | None = None,
    ):
        """Watch a live model.

        Args:
            weights: of the model.
            used: called with each product of a weight.
            touched: called with the name of every live tensor that an operation reads, if given.
            embedded: called with the name of every tensor that rows are looked up in, if given.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = weights
        self._used = used
        self._touched = touched
        self._embedded = embedded

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look, then let the operation happen."""
        packet = func.overloadpacket
        if self._touched is not None:
            for each in args:
                if isinstance(each, Tensor) and self._weights.holds(each):
                    for name in self._weights.touched(each):
                        self._touched(name)
        handler = _PRODUCTS.get(packet)
        if handler is not None:
            for use in handler(self._weights, args):
                self._used(use)
        elif packet is torch.ops.aten.embedding and self._embedded is not None:
            for name in self._weights.touched(args[0]):
                self._embedded(name)
        out = func(*args, **(kwargs or {}))
        if packet in _COPIES and isinstance(args[0], Tensor) and self._weights.holds(args[0]):
            self._weights.follow(args[0], out)
        return out


@contextmanager
def plain_products(model: nn.Module) -> Iterator[None]:
    """Within the context, the model computes with weights themselves, not with fused kernels or gathered copies."""
    experts: Mapping[str, str] | str | None = None
    setter = getattr(model, "set_experts_implementation", None)
    getter = getattr(model, "get_experts_implementation", None)
    if setter is not None and getter is not None:
        experts = getter()
        setter("eager")
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        if setter is not None and experts is not None:
            setter(experts)


def _product(weights: LiveWeights, inputs: Tensor, weight: Tensor, axis: int, batch_axis: int) -> Iterator[Use]:
    """Of matrices: ``inputs`` has the vectors along the axis that is not ``batch_axis``."""
    if not weights.holds(weight):
        return
    operand = weights.operand(weight, axis)
    covered = weights.find(operand) if operand is not None else ()
    if operand is not None and covered:
        rows = inputs if batch_axis == 0 else inputs.t()
        yield Use(operand, covered, InputKey.of(inputs), lambda: iter((rows,)))


def _matrices(weights: LiveWeights, left: Tensor, right: Tensor) -> Iterator[Use]:
    yield from _product(weights, left, right, axis=0, batch_axis=0)
    if not weights.holds(right):  # else the left one is the input, as DeBERTa's embeddings of distances are
        yield from _product(weights, right, left, axis=1, batch_axis=1)


def _vector(weights: LiveWeights, matrix: Tensor, vector: Tensor) -> Iterator[Use]:
    yield from _product(weights, vector.unsqueeze(0), matrix, axis=1, batch_axis=0)


def _batched(weights: LiveWeights, left: Tensor, right: Tensor) -> Iterator[Use]:
    for number in range(left.shape[0] if weights.holds(left) or weights.holds(right) else 0):
        yield from _matrices(weights, left[number], right[number])


def _linear(weights: LiveWeights, inputs: Tensor, weight: Tensor) -> Iterator[Use]:
    yield from _product(weights, inputs.reshape(-1, inputs.shape[-1]), weight, axis=1, batch_axis=0)


def _grouped(weights: LiveWeights, inputs: Tensor, stack: Tensor, ends: Tensor | None) -> Iterator[Use]:
    if not weights.holds(stack) or ends is None or inputs.ndim != 2 or stack.ndim != 3:
        return
    start = 0
    for number, stop in enumerate(ends.tolist()):
        if stop > start:
            yield from _product(weights, inputs[start:stop], stack[number], axis=0, batch_axis=0)
        start = stop


def _convolution(weights: LiveWeights, args: tuple[Any, ...]) -> Iterator[Use]:
    inputs, weight, _, stride, padding, dilation, transposed, _, groups = args[:9]
    if transposed or groups != 1 or not weights.holds(weight):
        return
    operand = weights.operand(weight, 1)
    covered = weights.find(operand) if operand is not None else ()
    if operand is not None and covered:
        how = (tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(dilation))
        yield Use(operand, covered, InputKey.of(inputs, how), lambda: _patches(inputs, *how))


def _patches(
    inputs: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Iterator[Tensor]:
    """What a kernel is multiplied with at every position, [positions, channels · kernel], of one input at a time."""
    dims = len(kernel)
    stride, padding, dilation = (each * (dims if len(each) == 1 else 1) for each in (stride, padding, dilation))
    for each in inputs.unbind() if inputs.ndim == dims + 2 else (inputs,):
        windows: Any = nn.functional.pad(each, [size for pad in reversed(padding) for size in (pad, pad)])
        for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True)):
            windows = windows.unfold(axis + 1, (size - 1) * gap + 1, step)[..., ::gap]
        # [channels, positions…, kernel…] -> [positions…, channels, kernel…]
        order = (*range(1, dims + 1), 0, *range(dims + 1, 2 * dims + 1))
        yield windows.permute(order).reshape(-1, each.shape[0] * torch.Size(kernel).numel())


_Handler = Callable[[LiveWeights, tuple[Any, ...]], Iterator[Use]]

_aten = torch.ops.aten

_PRODUCTS: dict[Any, _Handler] = {
    _aten.mm: lambda weights, args: _matrices(weights, args[0], args[1]),
    _aten.addmm: lambda weights, args: _matrices(weights, args[1], args[2]),
    _aten._addmm_activation: lambda weights, args: _matrices(weights, args[1], args[2]),
    _aten.bmm: lambda weights, args: _batched(weights, args[0], args[1]),
    _aten.baddbmm: lambda weights, args: _batched(weights, args[1], args[2]),
    _aten.mv: lambda weights, args: _vector(weights, args[0], args[1]),
    _aten.addmv: lambda weights, args: _vector(weights, args[1], args[2]),
    _aten.linear: lambda weights, args: _linear(weights, args[0], args[1]),
    _aten._grouped_mm: lambda weights, args: _grouped(weights, args[0], args[1], args[2] if len(args) > 2 else None),
    _aten.convolution: _convolution,
}

_COPIES = {_aten._to_copy, _aten.clone}
