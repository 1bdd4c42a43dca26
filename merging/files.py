"""Files of weights, read by position: safetensors, and pickles where the user trusts them.

A safetensors file is its header's length (8 bytes, little-endian), a JSON header, and the tensors' bytes. The header is
checked here, since everything that is read afterwards relies on it: every tensor lies inside the file, has the bytes
that its shape needs, and shares none with another.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from merging.bounded import printable
from merging.recipe import MergingError

# Fills a contiguous tensor with the elements that follow the given one, of a tensor as it lies in the file.
Read = Callable[[Tensor, int], None]

# The safetensors library refuses larger headers too.
_LONGEST_HEADER = 100_000_000

_LONGEST_NAME = 10_000

# What torch can hold.
_MOST_DIMENSIONS = 64
_SIZES = 2**63

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says about a tensor.

    Attributes:
        dtype: as stored.
        shape: as stored; () for a scalar.
        shard: name of the file that holds it.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    shard: str

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()


class WeightFile(Protocol):
    """One file of a checkpoint."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name -> what the file says about it."""

    def read(self, name: str) -> Tensor:
        """The whole tensor, memory-mapped where that can be: treat it as read-only."""

    def reader(self, name: str) -> AbstractContextManager[Read]:
        """Reads parts of a tensor into memory that is given; open for as long as the context."""


class SafetensorsFile:
    """A safetensors file. Only its header is read, and checked, when it is made; no file stays open.

    Raises:
        MergingError: it is truncated, or its header contradicts itself or the file.
    """

    def __init__(self, path: Path):
        self._path = path
        with _opened(path) as handle:
            self._stamp = _stamp(handle)
            try:
                self.tensors, self._begins = _header(handle, self._stamp[0], path)
            except (_Corrupt, OSError) as error:
                raise MergingError(self._corrupt(str(error))) from None
        self._mapped: Any = None

    def read(self, name: str) -> Tensor:
        """The tensor, memory-mapped.

        Raises:
            MergingError: the file was changed or removed since it was opened.
        """
        if self._mapped is None:
            with self._same():
                pass
            try:
                self._mapped = safe_open(self._path, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise MergingError(self._corrupt(str(error))) from error
        tensor: Tensor = self._mapped.get_tensor(name)
        return tensor

    @contextmanager
    def reader(self, name: str) -> Iterator[Read]:
        """Positioned reads of one tensor: nothing is mapped."""
        info, begin = self.tensors[name], self._begins[name]
        with self._same() as handle:

            def read(out: Tensor, start: int) -> None:
                left = memoryview(_bytes(out))
                handle.seek(begin + start * info.dtype.itemsize)
                while left:
                    done = handle.readinto(left)
                    if not done:
                        raise MergingError(self._corrupt("it became shorter while it was read"))
                    left = left[done:]

            yield read

    @contextmanager
    def _same(self) -> Iterator[io.FileIO]:
        with _opened(self._path) as handle:
            if _stamp(handle) != self._stamp:
                raise MergingError(
                    f"{self._path} was changed since it was opened; leave the models alone while they are merged, and "
                    "start again"
                )
            yield handle

    def _corrupt(self, why: str) -> str:
        size = self._stamp[0]
        return (
            f"expected a safetensors file at {self._path}, found {size} bytes that are truncated or corrupt ({why}); "
            "download or save it again"
        )


class PickleFile:
    """A file that ``torch.save`` wrote, read by the loader that builds tensors only and runs no code.

    Raises:
        MergingError: it holds anything but a dictionary of plain tensors, or is corrupt.
    """

    def __init__(self, path: Path):
        self._held = _unpickle(path)
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(tensor.dtype, tuple(tensor.shape), path.name) for name, tensor in self._held.items()
        }

    def read(self, name: str) -> Tensor:
        """The tensor; mapped from the file, unless that is of the old format."""
        return self._held[name].contiguous()

    @contextmanager
    def reader(self, name: str) -> Iterator[Read]:
        """Copies from what the loader mapped."""
        flat = self.read(name).reshape(-1)

        def read(out: Tensor, start: int) -> None:
            out.view(-1).copy_(flat[start : start + out.numel()])

        yield read


class _Corrupt(Exception):
    """Why a header cannot be believed."""


def _header(handle: io.FileIO, size: int, path: Path) -> tuple[dict[str, TensorInfo], dict[str, int]]:
    """(name -> what it is, name -> where it begins in the file)."""
    prefix = handle.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(size - 8, _LONGEST_HEADER):
        raise _Corrupt("there is no room for its header")
    try:
        header = json.loads(handle.read(length), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _Corrupt(f"its header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise _Corrupt("its header is no JSON object")
    header.pop("__metadata__", None)
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if len(name) > _LONGEST_NAME or any(0xD800 <= ord(sign) < 0xE000 for sign in name):
            raise _Corrupt(f"its header calls a tensor {printable(name)}, which is no name")
        tensors[name], begin, end = _entry(name, entry, path)
        spans.append((begin, end, name))
    _check_spans(sorted(spans), size - 8 - length)
    return tensors, {name: 8 + length + begin for begin, _, name in spans}


def _entry(name: str, entry: Any, path: Path) -> tuple[TensorInfo, int, int]:
    try:
        kind, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise _Corrupt(f"its header gives tensor {printable(name)} no dtype, shape and data_offsets") from None
    if not all(type(each) is int and each >= 0 for each in (*shape, begin, end)):
        raise _Corrupt(f"its header gives tensor {printable(name)} sizes that are no sizes")
    if len(shape) > _MOST_DIMENSIONS or max(shape, default=0) >= _SIZES:
        raise _Corrupt(f"its header gives tensor {printable(name)} a shape that none can have")
    dtype = _DTYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise MergingError(
            f"expected float or integer weights, found dtype {printable(str(kind))} in tensor {printable(name)} of "
            f"{path}; quantised checkpoints cannot be merged, use the unquantised model"
        )
    needed = dtype.itemsize
    for each in shape:
        needed *= each
    if end - begin != needed:
        said = printable(f"{name} of {kind} {list(shape)} needs {needed} bytes")
        raise _Corrupt(f"tensor {said}, its header gives {end - begin}")
    return TensorInfo(dtype, shape, path.name), begin, end


def _check_spans(spans: list[tuple[int, int, str]], room: int) -> None:
    """Tensors follow each other from the first byte to the last, as the format demands."""
    position, before = 0, ""
    for begin, end, name in spans:
        if end > room:
            raise _Corrupt(f"tensor {printable(name)} ends at byte {end} of {room}")
        if begin < position:
            raise _Corrupt(f"tensors {printable(before)} and {printable(name)} overlap")
        if begin > position:
            raise _Corrupt(f"{begin - position} bytes before tensor {printable(name)} belong to none")
        position, before = end, name
    if position != room:
        raise _Corrupt(f"its tensors end at byte {position} of {room}")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For ``json.loads``: an object in which no key stands twice, where readers could disagree about what it says.

    Raises:
        ValueError: one does.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{printable(key)!r} stands there twice")
        found[key] = value
    return found


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what it refuses, or reads all the same
            held = _load(path)
    except pickle.UnpicklingError as error:
        reason = str(error).split(". ")[0].strip()
        raise MergingError(
            f"{path} holds more than tensors, or is corrupt, and torch's weights-only loader refuses it ({reason}). "
            "Convert it where you trust it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        ) from error
    except Exception as error:  # of a broken file the loader reads what it likes, and raises what comes of it
        raise MergingError(
            f"expected a file of torch.save at {path}, found {path.stat().st_size} bytes that are truncated or corrupt "
            f"({error}); download or save it again"
        ) from error
    plain = isinstance(held, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) and _is_plain(tensor) for name, tensor in held.items()
    )
    if not plain:
        raise MergingError(
            f"expected a dictionary of names to plain tensors in {path}, found something else; load the model and save "
            "it with save_pretrained"
        )
    return dict(held)


def _is_plain(tensor: Tensor) -> bool:
    """Whether it has as many elements as it has memory for: a stranger's may repeat one element 10¹² times."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # the format of before 2020


@contextmanager
def _opened(path: Path) -> Iterator[io.FileIO]:
    try:
        handle = io.FileIO(path)
    except OSError as error:
        raise MergingError(f"expected a file of weights at {path}, could not open it: {error.strerror}") from error
    with handle:
        yield handle


def _stamp(handle: io.FileIO) -> tuple[int, int]:
    status = os.fstat(handle.fileno())
    return status.st_size, status.st_mtime_ns


def _bytes(out: Tensor) -> Any:
    return out.view(-1).view(torch.uint8).numpy()
