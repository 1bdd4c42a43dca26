"""Which stored weights a matrix operand is: by memory, so that no architecture, module class or name matters.

A live model may hold several stored weights in one parameter (the experts of a mixture, gate and up), one stored weight
in several parameters, or a weight transposed. All of them are strided views of one memory, and so is whatever a forward
pass multiplies with: comparing offsets and strides says which weights take part, and along which axis.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


def weak_reference(tensor: Tensor) -> StorageWeakRef:
    """Of a tensor's memory: as long as it is held, no other memory has the same address, though it may be let go."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


class Covered(NamedTuple):
    """A stored weight, or a part of its outputs, that an operand is.

    Attributes:
        name: canonical.
        slot: which of the weights along the first axis of a stack; None for what is no stack.
        axis: of the stored weight, stack apart, that the inputs run along.
        width: length of the inputs.
    """

    name: str
    slot: int | None
    axis: int
    width: int


class Operand(NamedTuple):
    """A weight as an operation sees it: [inputs, outputs] by sizes and strides, in elements of a storage."""

    storage: int
    offset: int
    sizes: tuple[int, int]
    strides: tuple[int, int]

    @staticmethod
    def of(tensor: Tensor, inputs: int) -> Operand | None:
        """Of a 2-D tensor whose axis ``inputs`` is summed over; of one with more axes, all but the first are inputs.

        None where the axes cannot be seen as one.
        """
        if tensor.ndim == 2:
            sizes, strides = tuple(tensor.shape), tuple(tensor.stride())
        else:
            flat = _flattened(tuple(tensor.shape), tuple(tensor.stride()))
            if flat is None:
                return None
            sizes, strides = flat
        return Operand(
            tensor.untyped_storage()._cdata,
            int(tensor.storage_offset()),
            (sizes[inputs], sizes[1 - inputs]),
            (strides[inputs], strides[1 - inputs]),
        )


class _Matrix(NamedTuple):
    """A stored weight in memory."""

    name: str
    slot: int | None
    offset: int
    sizes: tuple[int, int]
    strides: tuple[int, int]


class _Span(NamedTuple):
    """The memory between the first and the last element of a live tensor."""

    start: int
    stop: int
    name: str


class LiveWeights:
    """The live tensors of a model, found by their memory.

    The tensors must stay where they are (:attr:`merging.materialize.Materializer.tensors` do).
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = dict(tensors)
        self._spans: dict[int, list[_Span]] = {}
        self._longest: dict[int, int] = {}
        self._copies: dict[int, tuple[StorageWeakRef, int, int]] = {}
        self._found: dict[Operand, tuple[Covered, ...]] = {}
        self._touched: dict[tuple[int, int, int], tuple[str, ...]] = {}
        for name, tensor in self.tensors.items():
            if tensor.numel():
                start, stop = _extent(tensor)
                self._spans.setdefault(tensor.untyped_storage()._cdata, []).append(_Span(start, stop, name))
        for storage, spans in self._spans.items():
            spans.sort()
            self._longest[storage] = max(span.stop - span.start for span in spans)

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in memory of live tensors, or is a copy that :meth:`follow` knows."""
        storage = tensor.untyped_storage()._cdata
        return storage in self._spans or storage in self._copies

    def touched(self, tensor: Tensor) -> tuple[str, ...]:
        """Canonical names of what lies in a tensor's memory."""
        home, shift = self._home(tensor.untyped_storage()._cdata)
        if home not in self._spans or not tensor.numel():
            return ()
        start, stop = (end + shift for end in _extent(tensor))
        key = (home, start, stop)
        if key not in self._touched:
            self._touched[key] = tuple(span.name for span in self._between(*key))
        return self._touched[key]

    def find(self, operand: Operand) -> tuple[Covered, ...]:
        """The stored weights that an operand is or is a part of, those of a whole operand in the order of memory."""
        if operand not in self._found:
            self._found[operand] = tuple(self._matches(operand)) if operand.storage in self._spans else ()
        return self._found[operand]

    def operand(self, tensor: Tensor, inputs: int) -> Operand | None:
        """As :meth:`Operand.of`; a copy that :meth:`follow` knows is what it is a copy of."""
        found = Operand.of(tensor, inputs)
        if found is None:
            return None
        home, shift = self._home(found.storage)
        return found._replace(storage=home, offset=found.offset + shift)

    def follow(self, tensor: Tensor, copy: Any) -> None:
        """From now on a copy of a live tensor (in another dtype) counts as that tensor."""
        if not isinstance(copy, Tensor) or copy.stride() != tensor.stride() or copy.shape != tensor.shape:
            return
        home, shift = self._home(tensor.untyped_storage()._cdata)
        storage = copy.untyped_storage()
        if storage._cdata not in self._spans:
            moved = int(tensor.storage_offset()) + shift - int(copy.storage_offset())
            self._copies[storage._cdata] = (weak_reference(copy), home, moved)

    def forget_copies(self) -> None:
        """After a forward pass: its copies are gone."""
        self._copies.clear()

    def _home(self, storage: int) -> tuple[int, int]:
        _, home, shift = self._copies.get(storage, (None, storage, 0))
        return home, shift

    def _between(self, storage: int, start: int, stop: int) -> Iterator[_Span]:
        spans = self._spans[storage]
        first = bisect_left(spans, (start - self._longest[storage],))
        for span in spans[first:]:
            if span.start >= stop:
                return
            if span.stop > start:
                yield span

    def _matches(self, operand: Operand) -> Iterator[Covered]:
        stop = operand.offset + sum(
            (size - 1) * step for size, step in zip(operand.sizes, operand.strides, strict=True)
        )
        for span in self._between(operand.storage, operand.offset, stop + 1):
            for matrix in _matrices(span.name, self.tensors[span.name]):
                axis = _axis_of_inputs(operand, matrix)
                if axis is not None:
                    yield Covered(matrix.name, matrix.slot, axis, operand.sizes[0])
                    if matrix.slot is None:
                        break


def _extent(tensor: Tensor) -> tuple[int, int]:
    start = int(tensor.storage_offset())
    return start, start + 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


def _flattened(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Sizes and strides as [first, all others]; None where the others are not evenly spaced."""
    width, step = 1, 0
    for size, stride in zip(reversed(shape[1:]), reversed(strides[1:]), strict=True):
        if size == 1:
            continue
        if width == 1:
            step = stride
        elif stride != width * step:
            return None
        width *= size
    return (shape[0], width), (strides[0], step)


def _matrices(name: str, tensor: Tensor) -> Iterator[_Matrix]:
    """A stored tensor as one weight [outputs, inputs] (a convolution flattened), then as a stack of weights."""
    if tensor.ndim < 2:
        return
    shape, strides, offset = tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())
    flat = _flattened(shape, strides)
    if flat is not None:
        yield _Matrix(name, None, offset, *flat)
    if tensor.ndim == 3:
        for index in range(shape[0]):
            yield _Matrix(name, index, offset + index * strides[0], (shape[1], shape[2]), (strides[1], strides[2]))


def _axis_of_inputs(operand: Operand, matrix: _Matrix) -> int | None:
    """The axis of the matrix that the operand's inputs run along, where the two share outputs; None otherwise."""
    (width, outputs), (along, across) = operand.sizes, operand.strides
    gap = matrix.offset - operand.offset
    for axis in (1, 0):
        own_outputs, own_across = matrix.sizes[1 - axis], matrix.strides[1 - axis]
        if matrix.sizes[axis] != width or (width > 1 and matrix.strides[axis] != along):
            continue
        if outputs > 1 and own_outputs > 1 and across != own_across:
            continue
        step = across if outputs > 1 else own_across if own_outputs > 1 else 0
        first, rest = divmod(gap, step) if step else (0, gap)
        if rest == 0 and -own_outputs < first < outputs:
            return axis
    return None
