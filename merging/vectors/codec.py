"""Codecs: how the change of one tensor is written down, and what reads it.

Every codec turns a tensor of a fine-tune, beside its base's, into plain parameters and a few parts that a safetensors
file can hold, and back into a :class:`merging.composed.Change`. The error that goes with it is measured, on what
composing really gives back, and not estimated.

======== ======================================================================================
equal    the base's tensor; nothing is stored
exact    every bit of the fine-tune, compressed (:mod:`merging.vectors.exact`)
bf16     τ in bfloat16 (:mod:`merging.vectors.quantized`)
uniform  τ in multiples of one step (:mod:`merging.vectors.quantized`)
topk     the largest elements of τ (:mod:`merging.vectors.sparse`)
seeded   a random choice of τ's elements, as in DARE (:mod:`merging.vectors.sparse`)
svd      the largest singular values of τ (:mod:`merging.vectors.lowrank`)
factored τ that is a product of factors, such as LoRA (:mod:`merging.vectors.lowrank`)
onebit   the signs of τ and a size for every row (:mod:`merging.vectors.onebit`)
======== ======================================================================================
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args, get_type_hints

import torch
from torch import Tensor

from merging.composed import Change, Factors
from merging.files import TensorInfo
from merging.recipe import MergingError, Value
from merging.vectors import exact, lowrank, onebit, quantized, sparse
from merging.vectors.frames import malformed
from merging.vectors.shapes import matrices
from merging.vectors.tensors import OutOfReach, Pair, aligned, check_finite, relative_error

Parts = tuple[dict[str, Value], dict[str, Tensor]]


class Encoded(NamedTuple):
    """One tensor of a vector.

    Attributes:
        codec: name of the codec.
        parameters: plain data for the manifest.
        tensors: part name -> contiguous CPU tensor; compressed parts are uint8.
        error: ‖τ − τ̂‖_F/‖τ‖_F in float64, of what composing gives back; 0.0 if and only if that is the fine-tune, bit
            for bit.
    """

    codec: str
    parameters: dict[str, Value]
    tensors: dict[str, Tensor]
    error: float

    @property
    def bytes(self) -> int:
        """Of all parts."""
        return sum(part.numel() * part.element_size() for part in self.tensors.values())


@dataclass(frozen=True)
class Codec:
    """What there is to know of a codec.

    Attributes:
        encode: gives the parameters and parts of a pair; takes options by name. None: not made from weights.
        decode: gives the change of parameters and parts, all by name.
        parts: names of its parts.
        parameters: names of its parameters.
        kind: what it is for: ``any`` tensor, ``real`` (floating-point) tensors, ``matrix`` (real, two axes or more).
        lossless: composing gives back every bit.
    """

    encode: Callable[..., Parts] | None
    decode: Callable[..., Change]
    parts: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    kind: str = "real"
    lossless: bool = False


CODECS: dict[str, Codec] = {
    "equal": Codec(None, lambda info: Same(info.dtype), (), kind="any", lossless=True),
    "exact": Codec(exact.encode, exact.decode, ("frames",), ("form",), "any", True),
    "bf16": Codec(quantized.encode_bf16, quantized.decode_bf16, ("frames",)),
    "uniform": Codec(quantized.encode_uniform, quantized.decode_uniform, ("frames",), ("step", "width")),
    "topk": Codec(sparse.encode_topk, sparse.decode_topk, ("gaps", "kept"), ("values",)),
    "seeded": Codec(sparse.encode_seeded, sparse.decode_seeded, ("kept",), ("values", "density", "key", "rescale")),
    "svd": Codec(lowrank.encode_svd, lowrank.decode, ("left", "right"), kind="matrix"),
    "factored": Codec(None, lowrank.decode, ("left", "right"), kind="matrix"),
    "onebit": Codec(onebit.encode, onebit.decode, ("signs", "sizes")),
}


def fits(codec: str, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether a codec can encode a tensor; ``exact`` can encode any.

    Raises:
        MergingError: no such codec.
    """
    kind = _codec(codec).kind
    if kind == "any" or not math.prod(shape):
        return kind == "any"
    view = matrices(shape)
    return dtype.is_floating_point and (kind != "matrix" or (len(shape) > 1 and min(view.rows, view.columns) > 1))


def encode(name: str, base: Tensor, expert: Tensor, codec: str, **options: Any) -> Encoded:
    """One tensor of a fine-tune, encoded.

    A tensor that is the base's, bit for bit, is ``equal`` whatever is asked for.

    Args:
        name: canonical tensor name.
        base: the base's tensor, any device. Where its shape or kind is another, what it lacks counts as zero
            (:func:`merging.vectors.tensors.aligned`).
        expert: the fine-tune's.
        codec: a key of :data:`CODECS`; see :func:`fits`.
        options: of the codec: the arguments of its ``encode``.

    Raises:
        MergingError: weights that are not finite, an unknown codec or option, one that does not fit the tensor.
    """
    pair = Pair(name, base, expert)
    check_finite(pair)
    return encode_pair(pair, codec, **options)


def encode_pair(pair: Pair, codec: str, **options: Any) -> Encoded:
    """As :func:`encode`, of a pair that is known to be finite."""
    found = _codec(codec)
    if pair.is_equal():
        return Encoded("equal", {}, {}, 0.0)
    if found.encode is None:
        raise MergingError(
            f"expected a codec that encodes a pair of tensors for {pair.name}, found {codec}; use one of "
            f"{', '.join(name for name, each in CODECS.items() if each.encode)}"
        )
    if not fits(codec, pair.shape, pair.dtype):
        raise MergingError(
            f"expected {'a floating-point matrix' if found.kind == 'matrix' else 'floating-point numbers'} for the "
            f"codec {codec}, found {pair.name} of {pair.dtype} {list(pair.shape)}; use the codec exact for it"
        )
    _check_options(codec, found.encode, options)
    parameters, tensors = found.encode(pair, **options)
    info = TensorInfo(pair.dtype, pair.shape, "")
    error = relative_error(pair, decode(info, codec, parameters, tensors))
    if found.lossless and error:
        raise MergingError(
            f"{pair.name} did not come back bit for bit from the codec {codec}: this is an error of the program or of "
            "the machine; report it"
        )
    if not math.isfinite(error):
        raise OutOfReach(
            f"the codec {codec} cannot hold {pair.name}: its changes go beyond what float32 or bfloat16 can hold; use "
            "the codec exact for it"
        )
    return Encoded(codec, parameters, tensors, error)


def encode_factors(factors: Factors, values: str = "exact") -> Encoded:
    """A tensor that a product of factors changes, kept as that product.

    Args:
        factors: of the tensor.
        values: ``exact``, or ``bfloat16`` for factors that are rounded.

    Returns:
        Its error is that of the product: with ``exact`` 0.0, and composing gives the bits that the adapter gives.

    Raises:
        MergingError: factors that are not finite, or no such values.
    """
    for part in (factors.left, factors.right):
        if not bool(torch.isfinite(part).all()):
            raise MergingError("expected finite factors, found NaN or infinity in one; that adapter is broken")
    parameters, tensors = lowrank.encode_factors(factors, values)
    return Encoded("factored", parameters, tensors, lowrank.error_of(factors, tensors["left"], tensors["right"]))


def decode(info: TensorInfo, codec: str, parameters: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Change:
    """What makes a tensor of the fine-tune from the base's; nothing is unpacked until it composes.

    Args:
        info: of the fine-tune's tensor: its dtype and shape.
        codec, parameters, tensors: as :class:`Encoded` has them; from anywhere.

    Raises:
        MergingError: an unknown codec, or parameters and parts that are not its own, or do not fit the shape. What
            composes raises it too, where compressed bytes are damaged.
    """
    found = CODECS.get(codec) if isinstance(codec, str) else None
    if found is None:
        raise malformed(f"one of the codecs {', '.join(CODECS)}", repr(codec))
    for what, names, held in (("parameters", found.parameters, parameters), ("parts", found.parts, tensors)):
        if sorted(held) != sorted(names):
            raise malformed(f"the {what} {list(names)} of the codec {codec}", sorted(map(str, held)))
    if found.kind != "any" and not info.dtype.is_floating_point:
        raise malformed(f"floating-point numbers for the codec {codec}", info.dtype)
    return Aligned(found.decode(info, **parameters, **tensors), info.shape)


@dataclass(frozen=True)
class Same:
    """The base's tensor, in the fine-tune's dtype; see :class:`merging.composed.Change`."""

    dtype: torch.dtype
    factors: None = None

    def compose(self, base: Tensor) -> Tensor:
        """A copy."""
        return base.to(self.dtype, copy=True)


@dataclass(frozen=True, eq=False)
class Aligned:
    """A change whose base may have fewer rows than the fine-tune; see :class:`merging.composed.Change`.

    Attributes:
        change: of a base of the fine-tune's shape.
        shape: of the composed tensor.
    """

    change: Change
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the composed tensor."""
        return self.change.dtype

    @property
    def factors(self) -> Factors | None:
        """τ, where it is a product: not where rounding the sum to 16 bits made another one of it."""
        return self.change.factors if self.dtype in (torch.float32, torch.float64) else None

    def compose(self, base: Tensor) -> Tensor:
        """The fine-tune's tensor."""
        return self.change.compose(aligned(base, self.shape, self.dtype))


def _check_options(codec: str, encode: Callable[..., Parts], options: Mapping[str, Any]) -> None:
    """Refuse options that the codec does not have, and values that are of another type.

    Raises:
        MergingError: names the option.
    """
    types = _types(encode) if options else {}
    known = list(types)
    for option, value in options.items():
        if option not in known:
            raise MergingError(
                f"the codec {codec} has no option {option!r}; it has {', '.join(known) if known else 'none'}"
            )
        allowed = get_args(types[option]) or (types[option],)
        fitting = type(value) in allowed or (type(value) is int and float in allowed)
        if not fitting:
            names = " or ".join(_TYPES[each] for each in allowed if each in _TYPES)
            raise MergingError(f"expected {names} for the option {option} of the codec {codec}, found {value!r}")


@functools.cache
def _types(encode: Callable[..., Parts]) -> dict[str, Any]:
    """Option -> its type, of what encodes a pair."""
    types = get_type_hints(encode)
    return {name: types[name] for name in list(inspect.signature(encode).parameters)[1:]}


_TYPES = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}


def _codec(name: str) -> Codec:
    found = CODECS.get(name)
    if found is None:
        raise MergingError(f"expected one of the codecs {', '.join(CODECS)}, found {name!r}")
    return found


__all__ = ["CODECS", "Codec", "Encoded", "decode", "encode", "encode_factors", "encode_pair", "fits"]
