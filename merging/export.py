"""A recipe to a Hugging Face folder, tensor by tensor; at most one shard is in memory."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from merging.calibration.contract import Calibration
from merging.checkpoint import INDEX, SINGLE
from merging.companions import Companions, write_companions, write_json
from merging.compiled import Mode
from merging.dataflow import folded
from merging.kernel import Resolver, Task, check_finite_result, compiles, merge_tensor, torch_dtype
from merging.materialize import check_names
from merging.new_folder import beside, publish
from merging.recipe import MergingError, Recipe
from merging.restack import for_recipe
from merging.sources import Sources
from merging.stackable import check_stack

SHARD_BYTES = 2 * 1024**3

Finish = Callable[[Path], None]
"""Told of the whole folder just before it gets its name: writes what else belongs into it, or refuses it."""


def export(
    recipe: Recipe,
    sources: Sources,
    out: Path | str,
    *,
    max_shard_size: int = SHARD_BYTES,
    compile: Mode = "auto",
    calibration: Calibration | None = None,
    companions: Companions | None = None,
    finish: Finish | None = None,
) -> Path:
    """Write the merged model as a folder that ``from_pretrained`` loads: weights, config, tokenizer, ``recipe.yaml``.

    Beside them ``mergekit.yaml``, where a config of mergekit says the same.

    The weights are the bits that :class:`merging.materialize.Materializer` writes for the recipe; scales of its blocks
    are within them (:func:`merging.dataflow.folded`). The folder appears whole or not at all: it is written beside its
    place and renamed.

    Args:
        recipe: what to write.
        sources: the models that it was made from.
        out: the new folder; may exist if it is empty.
        max_shard_size: bytes of tensors in one file, unless a single tensor is larger.
        compile: whether elementwise methods run compiled: ``auto`` where the model is so large that it earns it back,
            ``always``, ``never``. The weights are the same.
        calibration: what was collected for methods that need it.
        companions: whose tokenizer and generation settings are written; the base's if None.
        finish: called with the folder when all is written and before it appears in its place; what it raises leaves
            nothing behind.

    Returns:
        The folder.

    Raises:
        MergeFailed: the result is not finite.
        MergingError: the recipe does not fit, the architecture's config cannot describe its blocks in their order, the
            folder is not empty, or the disk is full.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MergingError(f"expected {out} to be a new or empty folder, found content there; choose another folder")
    if max_shard_size < 1:
        raise MergingError(f"expected max_shard_size of at least 1 byte, found {max_shard_size}")
    equivalent = _mergekit(recipe, sources)
    plain = folded(recipe, sources)
    sources = for_recipe(sources, recipe)
    check_stack(sources)
    tasks = _tasks(plain, sources, calibration)
    dtypes = _dtypes(recipe, sources)
    shards = _plan(sources, dtypes, max_shard_size)
    _check_space(out, sum(_bytes(sources, name, dtype) for name, dtype in dtypes.items()))
    with beside(out) as partial:
        for file, tensors in _shards(shards, sources, tasks, dtypes, compile):
            save_file(tensors, partial / file, metadata={"format": "pt"})
        _write_index(partial, shards, sources, dtypes)
        _write_companions(partial, recipe, sources, dtypes, companions)
        if equivalent is not None:
            (partial / "mergekit.yaml").write_text(equivalent, encoding="utf-8")
        if finish is not None:
            finish(partial)
        publish(partial, out)
    return out


def _tasks(recipe: Recipe, sources: Sources, calibration: Calibration | None) -> dict[str, Task]:
    check_names(sources, recipe)
    resolver = Resolver(sources, recipe, calibration)
    return {name: resolver.task(recipe.for_tensor(name, sources.layout.group(name))) for name in sources.tensors}


def _mergekit(recipe: Recipe, sources: Sources) -> str | None:
    from merging.mergekit_export import to_mergekit

    try:
        return to_mergekit(recipe, sources)
    except MergingError:  # a merge that mergekit cannot do; one that nobody can is found out next
        return None


def _dtypes(recipe: Recipe, sources: Sources) -> dict[str, torch.dtype]:
    """Canonical name -> dtype in the export, sorted by name. What is copied keeps its own."""
    wanted = torch_dtype(recipe.dtype)
    dtypes = {name: wanted or info.dtype for name, info in sources.tensors.items()}
    dtypes |= {name: sources.tensor(sources.base, name).dtype for name in sources.frozen}
    return dict(sorted(dtypes.items()))


def _bytes(sources: Sources, name: str, dtype: torch.dtype) -> int:
    info = sources.tensors.get(name)
    numel = sources.tensor(sources.base, name).numel() if info is None else info.numel
    return numel * dtype.itemsize


def _plan(sources: Sources, dtypes: dict[str, torch.dtype], limit: int) -> dict[str, list[str]]:
    """File name -> tensors, in order."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, dtype in dtypes.items():
        more = _bytes(sources, name, dtype)
        if shards[-1] and size + more > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += more
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, start=1)}


@torch.no_grad()
def _shards(
    shards: dict[str, list[str]],
    sources: Sources,
    tasks: dict[str, Task],
    dtypes: dict[str, torch.dtype],
    compile: Mode,
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    elements = sum(info.numel for info in sources.tensors.values())
    for file, names in shards.items():
        tensors, ends = {}, {}
        for name in names:
            if name in tasks:
                tensors[name] = torch.empty(sources.tensors[name].shape, dtype=dtypes[name])
                task = tasks[name]
                compiled = compiles(task, compile, elements, "cpu")
                with sources.borrowed(name):
                    ends[name] = merge_tensor(name, task, tensors[name], compiled=compiled)
                task.pool.forget(name)
            else:
                tensors[name] = sources.tensor(sources.base, name).clone()
        check_finite_result(ends, tensors)
        yield file, tensors


def _write_index(folder: Path, shards: dict[str, list[str]], sources: Sources, dtypes: dict[str, torch.dtype]) -> None:
    if SINGLE in shards:
        return
    index = {
        "metadata": {"total_size": sum(_bytes(sources, name, dtype) for name, dtype in dtypes.items())},
        "weight_map": {name: file for file, names in shards.items() for name in names},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_companions(
    folder: Path, recipe: Recipe, sources: Sources, dtypes: dict[str, torch.dtype], companions: Companions | None
) -> None:
    counts: Counter[torch.dtype] = Counter()
    for name in sources.tensors:
        counts[dtypes[name]] += sources.tensors[name].numel
    config = _with_dtype(sources.config, str(counts.most_common(1)[0][0]).removeprefix("torch."))
    write_json(folder / "config.json", config)
    write_companions(folder, sources, companions)
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config with its dtype set, and those of its parts where they state one; the old spelling kept."""
    parts = {
        key: _with_dtype(value, dtype)
        for key, value in config.items()
        if isinstance(value, dict) and ("dtype" in value or "torch_dtype" in value)
    }
    old = {"torch_dtype": dtype} if "torch_dtype" in config else {}
    return config | parts | old | {"dtype": dtype}


def _check_space(out: Path, needed: int) -> None:
    place = out.parent
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise MergingError(
            f"the merged model needs {_size(needed)} at {out}, and {_size(free)} are free there; free some space or "
            "choose another disk"
        )


def _size(count: int) -> str:
    """Bytes for people, also where they are few."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
