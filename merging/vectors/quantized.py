"""All elements of τ, each with fewer bits: rounded to bfloat16, or to the multiples of one step.

``bf16`` keeps 8 bits of every value: a relative error of about 0.0017 at two thirds of the size of a 16-bit model.
``uniform`` rounds to multiples of a step s: an error of s/√12 an element while s is below the size of |τ|, and its
small whole numbers compress to about their entropy. For a given error in squares no plain rounding is smaller, and it
is within a quarter of a bit of what any code could reach (Gish & Pierce 1968).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from merging.files import TensorInfo
from merging.pool import pieces
from merging.recipe import MergingError, Value
from merging.vectors.added import Added, added
from merging.vectors.frames import Frames, frame_sizes, malformed, pack
from merging.vectors.tensors import PIECE, Bits, Pair
from merging.vectors.values import is_number, number_of, stored_as, widened

Parts = tuple[dict[str, Value], dict[str, Tensor]]

ERROR = 0.02
"""Relative error of the rounding where nobody says otherwise."""

_HALVINGS = 14  # leaves the step uncertain by 26 / 2¹⁴ of an octave
_MOST = 1 << 30  # levels: float32 holds none beyond 2²⁴ exactly, and nobody needs them
_TRIED = 1 << 19


def encode_bf16(pair: Pair) -> Parts:
    """τ in bfloat16."""
    return {}, {"frames": pack(stored_as(each, "bfloat16") for each in pair.deltas())}


def decode_bf16(info: TensorInfo, frames: Tensor) -> Added:
    """What adds it to the base.

    Raises:
        MergingError: malformed.
    """
    number = number_of("bfloat16")
    held = Frames(frames, len(range(0, info.numel, PIECE)))
    held.check(frame_sizes(info.numel, PIECE, number.itemsize))

    def deltas() -> Iterator[Tensor]:
        for piece, (start, stop) in enumerate(pieces(info.numel, PIECE)):
            yield widened(held.unpack(piece, number, stop - start), "bfloat16")

    return Added(info.shape, info.dtype, deltas)


def encode_uniform(pair: Pair, error: float | None = None, step: float | None = None) -> Parts:
    """τ in multiples of a step.

    Args:
        pair: floating-point.
        error: take the step that gives this relative error;
            :data:`ERROR` where no ``step`` is given either.
        step: the step itself, above 0.

    Raises:
        MergingError: a number out of its range.
    """
    if step is None:
        step = _step(pair.sample(_TRIED), ERROR if error is None else error)
    elif error is not None:
        raise MergingError("expected a step or an error for uniform, found both; leave one out")
    if not (math.isfinite(step) and step > 0.0):
        raise MergingError(f"expected a step above 0 for uniform, found {step!r}")
    step = float(np.float32(step)) or math.ulp(0.0)
    most = max((int(_levels(each, step).abs().max()) for each in pair.deltas()), default=0)
    width = 1 if most < 1 << 7 else 2 if most < 1 << 15 else 4
    return (
        {"step": step, "width": width},
        {"frames": pack(_zigzag(_levels(each, step), width) for each in pair.deltas())},
    )


def decode_uniform(info: TensorInfo, step: object, width: object, frames: Tensor) -> Added:
    """What adds the multiples to the base.

    Raises:
        MergingError: malformed.
    """
    if not is_number(step) or not 0.0 < step < math.inf:
        raise malformed("a step above 0", repr(step))
    if type(width) is not int or width not in (1, 2, 4):
        raise malformed("numbers of 1, 2 or 4 bytes", repr(width))
    number = np.dtype(f"<u{width}")
    held = Frames(frames, len(range(0, info.numel, PIECE)))
    held.check(frame_sizes(info.numel, PIECE, width))
    size = step

    def deltas() -> Iterator[Tensor]:
        for piece, (start, stop) in enumerate(pieces(info.numel, PIECE)):
            stored = held.unpack(piece, number, stop - start).astype(np.uint32)
            levels = ((stored >> 1) ^ (0 - (stored & 1))).view(np.int32)
            yield (torch.from_numpy(levels).double() * size).to(torch.float32)

    return Added(info.shape, info.dtype, deltas)


def _levels(delta: Tensor, step: float) -> Tensor:
    """Whole numbers of steps, float64."""
    return (delta.double() / step).round_().clamp_(-_MOST, _MOST)


def _zigzag(levels: Tensor, width: int) -> Bits:
    whole = levels.to(torch.int32).numpy()
    found: Bits = ((whole << 1) ^ (whole >> 31)).view(np.uint32).astype(f"<u{width}")
    return found


def _step(pair: Pair, error: float) -> float:
    """The largest step whose rounding leaves a relative error, by bisection of its logarithm.

    Of what composing gives back: where the fine-tune has 16 bits, rounding to them takes much of the error away again.
    """
    if not (error > 0.0 and math.isfinite(error)):
        raise MergingError(f"expected a relative error above 0 for uniform, found {error!r}")
    base, expert = pair.base.reshape(-1), pair.expert.reshape(-1).double()
    delta = pair.delta()
    size = float(torch.linalg.vector_norm(delta.double()))
    peak = float(delta.abs().max()) if delta.numel() else 0.0
    if not peak or not math.isfinite(size):
        return 1.0
    low, high = math.log2(peak) - 24.0, math.log2(peak) + 2.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        step = 2.0**middle
        found = added(base, _levels(delta, step).mul_(step).to(torch.float32), pair.dtype)
        off = torch.linalg.vector_norm(found.double() - expert)
        low, high = (middle, high) if float(off) <= error * size else (low, middle)
    return float(2.0**low)
