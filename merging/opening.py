"""Whatever stands where an expert stands, opened: a model folder, an adapter, a vector of the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from merging.checkpoint import INDEX, PICKLE, PICKLE_INDEX, SINGLE, Checkpoint
from merging.recipe import MergingError

VECTOR = "vector.json"
"""What a folder of the vector store has."""

ADAPTER = "adapter_config.json"
"""What a folder of an adapter has."""


def is_vector(path: Path | str) -> bool:
    """Whether a folder holds a task vector, and no model."""
    return (Path(path) / VECTOR).is_file()


def is_adapter(path: Path | str) -> bool:
    """Whether a folder holds an adapter, and no model; some trainers put a ``config.json`` there too."""
    weights = (SINGLE, INDEX, PICKLE, PICKLE_INDEX)
    return (Path(path) / ADAPTER).is_file() and not any((Path(path) / name).is_file() for name in weights)


def open_model(path: Path | str, base: Checkpoint | None = None, *, allow_pickle: bool = False) -> Checkpoint:
    """Open a model, or what changes a base into one.

    Args:
        path: a folder: a model in Hugging Face format, an adapter as PEFT saves it, or a vector of the store.
        base: the model that adapters and vectors change; None where a base itself is opened.
        allow_pickle: see :meth:`merging.checkpoint.Checkpoint.open`.

    Raises:
        MergingError: no such folder, or it belongs to another base.
    """
    kind = "a task vector" if is_vector(path) else "an adapter" if is_adapter(path) else ""
    if not kind:
        _check_adapter_config(Path(path))
        return Checkpoint.open(path, allow_pickle=allow_pickle)
    if base is None:
        raise MergingError(
            f"expected a model folder at {path}, found {kind}, which is what changes a model: name the model that it "
            "was made for as the base, and this as an expert"
        )
    if is_vector(path):
        from merging.vectors.source import open_vector

        return open_vector(Path(path), base)
    from merging.lora.source import open_adapter

    return open_adapter(Path(path), base, allow_pickle=allow_pickle)


def _check_adapter_config(path: Path) -> None:
    """Say of an adapter without its config what is missing; of anything else, :class:`Checkpoint` says it."""
    if (path / "adapter_model.safetensors").is_file() and not (path / "config.json").is_file():
        raise MergingError(
            f"expected {ADAPTER} beside adapter_model.safetensors in {path}, found none; copy it from where the "
            "adapter was trained: it says how the weights are scaled"
        )


def open_models(
    base: Path | str,
    experts: Mapping[str, Path | str],
    *,
    name: str = "base",
    allow_pickle: bool = False,
) -> dict[str, Checkpoint]:
    """A base and its experts, opened.

    Args:
        base: its folder.
        experts: alias -> folder, as in :func:`open_model`.
        name: alias of the base.
        allow_pickle: see :func:`open_model`.

    Raises:
        MergingError: see :func:`open_model`.
    """
    origin = open_model(base, allow_pickle=allow_pickle)
    opened = {alias: open_model(path, origin, allow_pickle=allow_pickle) for alias, path in experts.items()}
    return {name: origin, **opened}
