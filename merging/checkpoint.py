"""Lazy, validated reading of a Hugging Face checkpoint folder, and its content hash.

Nothing is read but headers until a tensor is asked for. Pickled weights are refused unless the caller allows them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merging.bounded import printable, read_json
from merging.files import PickleFile, Read, SafetensorsFile, TensorInfo, WeightFile, unique
from merging.recipe import MergingError

__all__ = ["Checkpoint", "TensorInfo", "check_finite", "content_hash"]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"

_COUNTED = re.compile(r"(layer|block|expert|head|group|depth)s?$")
_ALWAYS_FINE = 10_000

_HASHED_AT_ONCE = 1 << 20


class Checkpoint:
    """One model folder. Build with :meth:`open`.

    Attributes:
        path: the folder.
        config: ``config.json`` as plain data.
        tensors: name on disk -> :class:`TensorInfo`, sorted by name.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], tensors: Mapping[str, TensorInfo], files: Mapping[str, WeightFile]
    ):
        self.path = path
        self.config = config
        self.tensors: Mapping[str, TensorInfo] = dict(sorted(tensors.items()))
        self._files = files

    @staticmethod
    def open(path: Path | str, *, allow_pickle: bool = False) -> Checkpoint:
        """Read the headers of a model folder.

        Args:
            path: a folder with ``config.json`` and ``model.safetensors`` or ``model.safetensors.index.json``.
            allow_pickle: where there is neither, read ``pytorch_model.bin`` by torch's weights-only loader.

        Raises:
            MergingError: it is not such a folder, or its files contradict each other or themselves.
        """
        path = Path(path)
        if not path.exists():
            raise MergingError(f"expected a model folder at {path}, found nothing there")
        if not path.is_dir():
            raise MergingError(
                f"expected a model folder at {path}, found a file; give the folder that holds config.json"
            )
        config = read_object(path / "config.json", f"expected config.json in the model folder {path}, found none")
        weight_map = _weight_map(path, allow_pickle)
        files: dict[str, WeightFile] = {}
        tensors: dict[str, TensorInfo] = {}
        for shard, names in weight_map.items():
            safe = shard.endswith(".safetensors")
            if not safe and not allow_pickle:
                raise MergingError(_no_weights(path))
            files[shard] = SafetensorsFile(path / shard) if safe else PickleFile(path / shard)
            tensors |= _shard_tensors(files[shard], path / shard, names)
        if not tensors:
            raise MergingError(f"expected weights in {path}, found no tensor in {', '.join(weight_map)}")
        check_depth(config, len(tensors), path)
        return Checkpoint(path, config, tensors, files)

    def read(self, name: str) -> Tensor:
        """The tensor, memory-mapped from disk: treat it as read-only.

        Raises:
            MergingError: no such tensor.
        """
        return self._files[self._info(name).shard].read(name)

    @contextmanager
    def reader(self, name: str) -> Iterator[Read]:
        """``read(out, start)`` fills a contiguous CPU tensor of the stored dtype with the elements from ``start`` on,
        row-major, by positioned reads: nothing is mapped. The file stays open for as long as the context.

        Raises:
            MergingError: no such tensor, or the file was changed since it was opened.
        """
        with self._files[self._info(name).shard].reader(name) as read:
            yield read

    def read_into(self, name: str, out: Tensor) -> None:
        """Read a tensor's bytes straight into memory that is given.

        Args:
            name: of the tensor, on disk.
            out: contiguous, on the CPU, of the stored dtype and number of elements; overwritten.

        Raises:
            MergingError: no such tensor, or ``out`` does not fit.
        """
        info = self._info(name)
        check_room(name, info, out)
        with self.reader(name) as read:
            read(out, 0)

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise MergingError(
                f"{self.path} holds no tensor {name!r}; it has {len(self.tensors)}, from {_some(self.tensors)}"
            )
        return info

    @property
    def home(self) -> Path:
        """Folder of its ``config.json``."""
        return self.path

    @property
    def companions(self) -> Path:
        """Folder of its tokenizer."""
        return self.path

    @cached_property
    def content(self) -> str:
        """``sha256:…`` of the sorted (name, dtype, shape, bytes): the same however the tensors are spread over files.

        ``config.json`` is left out on purpose: of the experts only the tensors reach the result, and the base's config
        changes how the result is run, not what its weights are.
        """

        def line(name: str) -> str:
            info, digest = self.tensors[name], hashlib.sha256()
            buffer = torch.empty(min(_HASHED_AT_ONCE, info.numel), dtype=info.dtype)
            with self.reader(name) as read:
                for start in range(0, info.numel, _HASHED_AT_ONCE):
                    piece = buffer[: info.numel - start]
                    read(piece, start)
                    digest.update(piece.view(torch.uint8).numpy().data)
            return _line(name, info.dtype, info.shape, digest.hexdigest())

        return _hash_of_lines(self.tensors, line)


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
        return _line(name, tensor.dtype, tuple(tensor.shape), hashlib.sha256(data.data).hexdigest())

    return _hash_of_lines(names, line, threads)


def _line(name: str, dtype: torch.dtype, shape: tuple[int, ...], digest: str) -> str:
    return json.dumps([name, str(dtype).removeprefix("torch."), list(shape), digest], separators=(",", ":"))


def _hash_of_lines(names: Iterable[str], line: Callable[[str], str], threads: int = 2) -> str:
    with ThreadPoolExecutor(threads) as pool:
        lines = pool.map(line, sorted(names))
        return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_room(name: str, info: TensorInfo, out: Tensor) -> None:
    """Refuse memory that a tensor cannot be read into.

    Raises:
        MergingError: says what is needed.
    """
    fits = out.dtype == info.dtype and out.numel() == info.numel
    if not fits or not out.is_contiguous() or out.device.type != "cpu":
        raise MergingError(
            f"expected contiguous memory on the CPU for {info.numel} elements of {info.dtype} to read {name} into, "
            f"found {'' if out.is_contiguous() else 'strided '}{out.numel()} of {out.dtype} on {out.device}"
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


def check_depth(config: Any, tensors: int, path: Path) -> None:
    """Refuse a config of many more blocks than there are tensors: building them would never end.

    Args:
        config: as it is read from ``config.json``.
        tensors: how many the model has.
        path: of its folder, for messages.

    Raises:
        MergingError: names the key.
    """
    most = max(_ALWAYS_FINE, 10 * tensors)  # layers may share their weights
    for key, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, dict):
            check_depth(value, tensors, path)
        elif type(value) is int and value > most and _COUNTED.search(key):
            raise MergingError(
                f"expected {printable(key)} in {path / 'config.json'} to be at most {most}, since the weights are "
                f"{tensors} tensors, found {value}; restore that file"
            )


def _weight_map(path: Path, allow_pickle: bool) -> dict[str, list[str] | None]:
    """Shard file -> the tensors that the index promises in it; None where there is no index."""
    for single, index in ((SINGLE, INDEX), *([(PICKLE, PICKLE_INDEX)] if allow_pickle else [])):
        if (path / single).is_file():
            return {single: None}
        if (path / index).is_file():
            return _indexed(path, index)
    raise MergingError(_no_weights(path))


def _indexed(path: Path, file: str) -> dict[str, list[str] | None]:
    weight_map = read_object(path / file, "", unique).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise MergingError(
            f"expected a weight_map of tensor names to files in {path / file}, found none; save it again"
        )
    shards: dict[str, list[str] | None] = {}
    for name, shard in weight_map.items():
        _check_shard_name(shard, path / file)
        names = shards.setdefault(shard, [])
        if names is not None:
            names.append(name)
    missing = [shard for shard in shards if not (path / shard).is_file()]
    if missing:
        raise MergingError(
            f"the index of {path} names {len(shards)} files, of which {len(missing)} are missing: {_some(missing)}. "
            "Was the download complete?"
        )
    return shards


def _no_weights(path: Path) -> str:
    expected = f"expected {SINGLE} or {INDEX} in {path}, found "
    if (path / "adapter_config.json").is_file():
        return expected + "a LoRA adapter; fold it into its base first (peft: merge_and_unload, then save_pretrained)"
    pickled = sorted(file.name for file in path.iterdir() if file.suffix in {".bin", ".pt", ".pth"})
    if pickled:
        return (
            expected
            + f"only pickled weights ({_some(pickled)}), which can run code when they are loaded. If you trust them, "
            f"convert once: paretomerge convert {path} NEW_FOLDER --allow-pickle. Or allow pickles where a command "
            f"offers it: {PICKLE} is then read by torch's weights-only loader"
        )
    return expected + "neither; save the model with save_pretrained"


def _check_shard_name(shard: object, index: Path) -> None:
    if not isinstance(shard, str) or shard in {"", ".", ".."} or any(mark in shard for mark in ("/", "\\", ":", "\0")):
        raise MergingError(
            f"expected plain file names in {index}, found {shard!r}; a checkpoint may not point outside its folder"
        )


def _shard_tensors(held: WeightFile, file: Path, names: list[str] | None) -> Mapping[str, TensorInfo]:
    if names is None:
        return held.tensors
    missing = sorted(set(names) - set(held.tensors))
    if missing:
        raise MergingError(f"the index says that {file} holds {_some(missing)}, but it does not; save the model again")
    return {name: held.tensors[name] for name in names}


def read_object(
    file: Path, missing: str, objects: Callable[[list[tuple[str, Any]]], dict[str, Any]] = dict
) -> dict[str, Any]:
    """A JSON file that holds an object, bounded.

    Args:
        file: of a model's folder.
        missing: what is said where it is not there.
        objects: makes each object of its pairs.

    Raises:
        MergingError: it is not there, or holds something else.
    """
    try:
        data = read_json(file, objects)
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
