"""Exact: composing gives back every bit of the fine-tune, whatever its dtype.

Five forms, of which the smallest is taken. Each stores one number an element, in frames
(:mod:`merging.vectors.frames`):

- ``sum``: τ in float32, where base + τ rounds back to the fine-tune's bits in every element.
- ``steps``: how many representable numbers lie between the base's and the fine-tune's, modulo 2^bits, with the signs of
  small steps in the lowest bit ("zigzag"). Small changes are small numbers, also where subtraction does not round-trip.
- ``changed``: those steps of the elements that changed, and where these lie.
- ``xor``: the bits in which the two differ.
- ``whole``: the fine-tune's own bits, where it has little to do with the base.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from merging.files import TensorInfo
from merging.pool import pieces
from merging.recipe import MergingError, Value
from merging.vectors.added import added
from merging.vectors.frames import Frames, frame_sizes, malformed, pack
from merging.vectors.positions import count, gaps, positions
from merging.vectors.tensors import PIECE, Bits, Pair, bits_of, from_bits

FORMS = ("steps", "changed", "xor", "sum", "whole")

_TRIED = 1 << 22
"""Elements by which the form of a larger tensor is chosen: slices that lie evenly over it."""


def encode(pair: Pair, form: str = "smallest") -> tuple[dict[str, Value], dict[str, Tensor]]:
    """The parameters and parts of a tensor.

    Args:
        pair: of any dtype.
        form: one of :data:`FORMS`, or ``smallest``.

    Raises:
        MergingError: no such form, or ``sum`` does not give the bits back.
    """
    if form == "smallest":
        form = _smallest(pair)
    elif form not in FORMS:
        raise MergingError(f"expected the form of an exact tensor to be one of {', '.join(FORMS)}, found {form!r}")
    found = _encoded(pair, form)
    if found is None and form == "sum":
        raise MergingError(
            f"the difference of {pair.name} in float32, added to its base again, does not give the fine-tune's bits; "
            "use the form steps, or leave the choice to the program"
        )
    if found is None:  # the sample's choice, and elsewhere sums do not round-trip
        form = "steps"
        found = _encoded(pair, form)
    assert found is not None
    return {"form": form}, {"frames": found}


def decode(info: TensorInfo, form: object, frames: Tensor) -> Exact | Changed:
    """What gives the tensor back.

    Raises:
        MergingError: malformed.
    """
    if form not in FORMS:
        raise malformed(f"one of the forms {', '.join(FORMS)}", repr(form))
    if form == "sum" and not info.dtype.is_floating_point:
        raise malformed("a form for integers", repr(form))
    frame_count = len(range(0, info.numel, PIECE))
    if form == "changed":
        found = Frames(frames, 2 * frame_count)  # of each piece where they lie, and what they are
        found.check(_sizes_of_changed(found, info))
        return Changed(info.shape, info.dtype, found)
    found = Frames(frames, frame_count)
    found.check(frame_sizes(info.numel, PIECE, 4 if form == "sum" else info.dtype.itemsize))
    return Exact(info.shape, info.dtype, str(form), found)


@dataclass(frozen=True, eq=False)
class Exact:
    """See :class:`merging.composed.Change`."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    form: str
    frames: Frames
    factors: None = None

    def compose(self, base: Tensor) -> Tensor:
        """The fine-tune's bits."""
        out = torch.empty(self.shape, dtype=self.dtype)
        flat, origin = out.view(-1), base.reshape(-1)
        number = np.dtype("<f4" if self.form == "sum" else f"<u{self.dtype.itemsize}")
        for piece, (start, stop) in enumerate(pieces(flat.numel(), PIECE)):
            stored = self.frames.unpack(piece, number, stop - start)
            flat[start:stop] = _restored(origin[start:stop], stored, self.form, self.dtype)
        return out


@dataclass(frozen=True, eq=False)
class Changed:
    """The base's bits but for some elements; see :class:`merging.composed.Change`."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    frames: Frames
    factors: None = None

    def compose(self, base: Tensor) -> Tensor:
        """The fine-tune's bits."""
        out = base.to(self.dtype, copy=True, memory_format=torch.contiguous_format)
        flat, number = out.view(-1), np.dtype(f"<u{self.dtype.itemsize}")
        for piece, (start, stop) in enumerate(pieces(flat.numel(), PIECE)):
            index = positions(self.frames, 2 * piece, stop - start)
            steps = self.frames.unpack(2 * piece + 1, number, len(index))
            place = bits_of(flat[start:stop])  # a view: what is written there is the tensor
            place[index] = bits_of(_restored(from_bits(place[index], self.dtype), steps, "steps", self.dtype))
        return out


def _sizes_of_changed(frames: Frames, info: TensorInfo) -> Iterator[int]:
    for piece, (start, stop) in enumerate(pieces(info.numel, PIECE)):
        yield frames.sizes[2 * piece]
        yield count(frames, 2 * piece, stop - start) * info.dtype.itemsize


def _smallest(pair: Pair) -> str:
    sample = pair.sample(_TRIED)
    sizes = {}
    for form in FORMS:
        found = _encoded(sample, form)
        if found is not None:
            sizes[form] = found.numel()
    return min(sizes, key=lambda each: (sizes[each], FORMS.index(each)))


def _encoded(pair: Pair, form: str) -> Tensor | None:
    """The part; None where sums do not give the bits back."""
    if form == "sum" and not _sums(pair):
        return None
    if form == "changed":
        return pack(_changed(pair))
    number = {"sum": _sum, "steps": _steps, "xor": _xor, "whole": _whole}[form]
    return pack(number(pair, start, stop) for start, stop in pieces(pair.numel, PIECE))


def _sums(pair: Pair) -> bool:
    """Whether base + τ rounds to the fine-tune's bits everywhere."""
    if not pair.dtype.is_floating_point:
        return False
    for start, stop in pieces(pair.numel, PIECE):
        base, expert = (flat.reshape(-1)[start:stop] for flat in (pair.base, pair.expert))
        again = added(base, pair.delta(start, stop), pair.dtype)
        if not np.array_equal(bits_of(again), bits_of(expert)):
            return False
    return True


def _sum(pair: Pair, start: int, stop: int) -> Bits:
    found: Bits = pair.delta(start, stop).numpy()
    return found


def _xor(pair: Pair, start: int, stop: int) -> Bits:
    base, expert = pair.bits(start, stop)
    return base ^ expert


def _whole(pair: Pair, start: int, stop: int) -> Bits:
    return bits_of(pair.expert.reshape(-1)[start:stop])


def _steps(pair: Pair, start: int, stop: int) -> Bits:
    base, expert = pair.bits(start, stop)
    real = pair.dtype.is_floating_point
    step = (_ordered(expert, real) - _ordered(base, real)).view(_signed(base))
    top = step.dtype.itemsize * 8 - 1
    found: Bits = ((step << 1) ^ (step >> top)).view(base.dtype)
    return found


def _changed(pair: Pair) -> Iterator[Bits]:
    for start, stop in pieces(pair.numel, PIECE):
        steps = _steps(pair, start, stop)
        index = np.flatnonzero(steps)
        yield gaps(index)
        yield steps[index]


def _restored(base: Tensor, stored: Bits, form: str, dtype: torch.dtype) -> Tensor:
    if form == "sum":
        return added(base, torch.from_numpy(stored), dtype)
    if form == "whole":
        return from_bits(stored, dtype)
    origin = bits_of(base.to(dtype))
    if form == "xor":
        return from_bits(origin ^ stored, dtype)
    real = dtype.is_floating_point
    step = (stored >> 1) ^ (0 - (stored & 1))
    return from_bits(_ordered(_ordered(origin, real) + step, real), dtype)


def _ordered(bits: Bits, real: bool) -> Bits:
    """Bits of numbers as unsigned integers modulo 2^bits that go up with them: its own inverse."""
    if not real:
        return bits
    signed = bits.view(_signed(bits))
    top = signed.dtype.itemsize * 8 - 1
    found: Bits = (signed ^ ((signed >> top) & np.iinfo(signed.dtype).max)).view(bits.dtype)
    return found


def _signed(bits: Bits) -> np.dtype[np.generic]:
    return np.dtype(f"<i{bits.dtype.itemsize}")
