"""Lazy, validated reading of a Hugging Face checkpoint folder (safetensors only), and its content hash.

Nothing is read but headers until a tensor is asked for, and then it is memory-mapped. Pickled weights are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from merging.recipe import MergingError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

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


class Checkpoint:
    """One model folder. Build with :meth:`open`.

    Attributes:
        path: the folder.
        config: ``config.json`` as plain data.
        tensors: name on disk -> :class:`TensorInfo`, sorted by name.
    """

    def __init__(self, path: Path, config: dict[str, Any], tensors: dict[str, TensorInfo], files: dict[str, Any]):
        self.path = path
        self.config = config
        self.tensors: Mapping[str, TensorInfo] = dict(sorted(tensors.items()))
        self._files = files

    @staticmethod
    def open(path: Path | str) -> Checkpoint:
        """Read the headers of a model folder.

        Args:
            path: a folder with ``config.json`` and ``model.safetensors`` or ``model.safetensors.index.json``.

        Raises:
            MergingError: it is not such a folder, or its files contradict each other.
        """
        path = Path(path)
        if not path.exists():
            raise MergingError(f"expected a model folder at {path}, found nothing there")
        if not path.is_dir():
            raise MergingError(
                f"expected a model folder at {path}, found a file; give the folder that holds config.json"
            )
        config = _read_json(path / "config.json", f"expected config.json in the model folder {path}, found none")
        weight_map = _weight_map(path)
        files: dict[str, Any] = {}
        tensors: dict[str, TensorInfo] = {}
        for shard, names in weight_map.items():
            files[shard] = _open_shard(path / shard)
            tensors |= _shard_tensors(files[shard], path / shard, names)
        if not tensors:
            raise MergingError(f"expected weights in {path}, found no tensor in {', '.join(weight_map)}")
        return Checkpoint(path, config, tensors, files)

    def read(self, name: str) -> Tensor:
        """The tensor, memory-mapped from disk: treat it as read-only.

        Raises:
            MergingError: no such tensor.
        """
        info = self.tensors.get(name)
        if info is None:
            raise MergingError(
                f"{self.path} holds no tensor {name!r}; it has {len(self.tensors)}, from {_some(self.tensors)}"
            )
        tensor: Tensor = self._files[info.shard].get_tensor(name)
        return tensor

    @cached_property
    def content(self) -> str:
        """``sha256:…`` of the sorted (name, dtype, shape, bytes): the same however the tensors are spread over files.

        ``config.json`` is left out on purpose: of the experts only the tensors reach the result, and the base's config
        changes how the result is run, not what its weights are.
        """
        return content_hash(self.tensors, self.read)


def content_hash(names: Iterable[str], read: Callable[[str], Tensor], threads: int = 2) -> str:
    """Hash of named tensors, by the scheme of :attr:`Checkpoint.content`.

    SHA-256 over one line per tensor, sorted by name: the JSON list of name, dtype, shape and the SHA-256 of its
    row-major little-endian bytes. Hashing tensors apart is what lets several threads work.

    Args:
        names: tensor names.
        read: gives the tensor of a name, on any device.
        threads: how many tensors are hashed at once.
    """

    def line(name: str) -> str:
        tensor = read(name).detach()
        data = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest = hashlib.sha256(data.data).hexdigest()
        dtype = str(tensor.dtype).removeprefix("torch.")
        return json.dumps([name, dtype, list(tensor.shape), digest], separators=(",", ":"))

    with ThreadPoolExecutor(threads) as pool:
        lines = pool.map(line, sorted(names))
        return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_compatible(base: Checkpoint, expert: Checkpoint, optional: frozenset[str] = frozenset()) -> None:
    """Check that two checkpoints can be merged: one architecture, the same tensor names and shapes.

    Args:
        base: the base model.
        expert: the model to compare with it.
        optional: names that one of the two may lack (a head that is tied to the embedding).

    Raises:
        MergingError: they differ; at most five tensors are named.
    """
    types = [checkpoint.config.get("model_type") for checkpoint in (base, expert)]
    if types[0] != types[1]:
        raise MergingError(
            f"expected models of one architecture, found model_type {types[0]!r} in {base.path} and {types[1]!r} in "
            f"{expert.path}; only fine-tunes of one base can be merged"
        )
    problems = [
        f"{name} is only in {base.path if name in base.tensors else expert.path}"
        for name in sorted(base.tensors.keys() ^ expert.tensors.keys())
        if name not in optional
    ]
    problems += [
        f"{name} is {list(info.shape)} in the base and {list(expert.tensors[name].shape)} in the expert"
        for name, info in base.tensors.items()
        if name in expert.tensors and expert.tensors[name].shape != info.shape
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise MergingError(
            f"expected {expert.path} to have the tensors and shapes of the base {base.path}, found {len(problems)} "
            f"difference{'s' if len(problems) > 1 else ''}: {'; '.join(problems[:5])}{more}. "
            "Only fine-tunes of one base with an unchanged vocabulary can be merged"
        )


def check_finite(checkpoint: Checkpoint, name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        MergingError: names the tensor and the model.
    """
    if tensor.is_floating_point() and tensor.numel() and not all(torch.isfinite(end) for end in torch.aminmax(tensor)):
        bad = int((~torch.isfinite(tensor)).sum())
        raise MergingError(
            f"expected finite weights, found {bad} NaN or infinite of {tensor.numel()} elements in tensor {name} of "
            f"{checkpoint.path}; that model is broken, leave it out or save it again"
        )


def _weight_map(path: Path) -> dict[str, list[str] | None]:
    """Shard file -> the tensors that the index promises in it; None where there is no index."""
    if (path / SINGLE).is_file():
        return {SINGLE: None}
    if (path / INDEX).is_file():
        index = _read_json(path / INDEX, "")
        weight_map = index.get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise MergingError(
                f"expected a weight_map of tensor names to files in {path / INDEX}, found none; save it again"
            )
        shards: dict[str, list[str] | None] = {}
        for name, shard in weight_map.items():
            _check_shard_name(shard, path)
            names = shards.setdefault(shard, [])
            if names is not None:
                names.append(name)
        missing = [shard for shard in shards if not (path / shard).is_file()]
        if missing:
            raise MergingError(
                f"the index of {path} names {len(shards)} files, of which {len(missing)} are missing: "
                f"{_some(missing)}. Was the download complete?"
            )
        return shards
    raise MergingError(_no_weights(path))


def _no_weights(path: Path) -> str:
    expected = f"expected {SINGLE} or {INDEX} in {path}, found "
    if (path / "adapter_config.json").is_file():
        return expected + "a LoRA adapter; fold it into its base first (peft: merge_and_unload, then save_pretrained)"
    pickled = sorted(file.name for file in path.iterdir() if file.suffix in {".bin", ".pt", ".pth"})
    if pickled:
        return (
            expected
            + f"only pickled weights ({_some(pickled)}), which can run code when they are loaded. If you trust them, "
            "convert once: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    return expected + "neither; save the model with save_pretrained"


def _check_shard_name(shard: object, path: Path) -> None:
    if not isinstance(shard, str) or shard in {"", ".", ".."} or any(mark in shard for mark in ("/", "\\", ":", "\0")):
        raise MergingError(
            f"expected plain file names in {path / INDEX}, found {shard!r}; a checkpoint may not point outside its "
            "folder"
        )


def _open_shard(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise MergingError(
            f"expected a safetensors file at {file}, found {file.stat().st_size} bytes that are truncated or corrupt "
            f"({error}); download or save it again"
        ) from error


def _shard_tensors(handle: Any, file: Path, names: list[str] | None) -> dict[str, TensorInfo]:
    held = set(handle.keys())
    missing = sorted(set(names or ()) - held)
    if missing:
        raise MergingError(f"the index says that {file} holds {_some(missing)}, but it does not; save the model again")
    found = {}
    for name in held if names is None else names:
        header = handle.get_slice(name)
        dtype = _DTYPES.get(header.get_dtype())
        if dtype is None:
            raise MergingError(
                f"expected float or integer weights, found dtype {header.get_dtype()} in tensor {name} of {file}; "
                "quantised checkpoints cannot be merged, use the unquantised model"
            )
        found[name] = TensorInfo(dtype, tuple(header.get_shape()), file.name)
    return found


def _read_json(file: Path, missing: str) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MergingError(missing) from error
    except (ValueError, OSError) as error:
        raise MergingError(f"expected JSON in {file}, found something else: {error}") from error
    if not isinstance(data, dict):
        raise MergingError(f"expected a JSON object in {file}, found {type(data).__name__}")
    return data


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
