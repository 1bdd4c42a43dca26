"""A live model without weights: what can be said of it from its settings alone, on any machine and in no memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from merging.kernel import torch_dtype
from merging.live import _named_class, _quiet, load_model
from merging.recipe import MergingError


def load_skeleton(base_path: Path | str, dtype: torch.dtype | str | None = None) -> nn.Module:
    """The base as :func:`merging.live.load_model` would load it, on the meta device: class, shapes, dtypes, settings.

    Where neither ``dtype`` nor config.json says what the weights are, only the weights do: they are then read, and let
    go.

    Args:
        base_path: model folder.
        dtype: of the live weights; None keeps what is stored.

    Raises:
        MergingError: not a model that transformers can load, or an unknown dtype.
    """
    path = Path(base_path)
    wanted = torch_dtype(dtype) if isinstance(dtype, str) else dtype
    try:
        with _quiet():
            model = _built(path, wanted)
    except Exception as error:  # transformers raises whatever its model classes raise
        raise MergingError(
            f"expected a model that transformers can load at {path}; it refused ({type(error).__name__}: {error})"
        ) from error
    if model is None:
        model = load_model(path, dtype=wanted).to("meta")
        getattr(model, "tie_weights", lambda: None)()  # the move has untied them
    return model.eval().requires_grad_(False)


def load_random(path: Path | str, dtype: torch.dtype, device: str = "cpu") -> nn.Module:
    """The model of a folder with a config.json, with random weights: what can be tried without its own.

    Args:
        path: folder; no weights are read.
        dtype: of the live weights.
        device: where it is made; on ``meta`` it has no weights.

    Raises:
        MergingError: not a config that transformers can build a model from.
    """
    try:
        with _quiet():
            model = _built(Path(path), dtype, device)
    except Exception as error:  # transformers raises whatever its model classes raise
        raise MergingError(
            f"expected a config that transformers can build a model from; it refused ({type(error).__name__}: {error})"
        ) from error
    assert model is not None  # its dtype was given
    return model.eval().requires_grad_(False)


def _built(path: Path, wanted: torch.dtype | None, device: str = "meta") -> nn.Module | None:
    """The model, or None where its dtype stands nowhere but in its weights."""
    import transformers

    cls: Any = _named_class(path)
    if cls is not None:
        config: Any = cls.config_class.from_pretrained(path, local_files_only=True)
        build = cls._from_config
    else:
        config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        causal = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
        build = (transformers.AutoModelForCausalLM if causal else transformers.AutoModel).from_config
    dtype = wanted or config.dtype
    if dtype is None:
        return None
    with torch.device(device):
        model: nn.Module = build(config, dtype=dtype)
    if (path / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(path, local_files_only=True)
    return model
