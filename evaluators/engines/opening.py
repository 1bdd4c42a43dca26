"""Which engine asks a live model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from evaluators.contract import Engine, EvaluatorError
from evaluators.engines.forward import HFForwardEngine
from evaluators.engines.hf import HFEngine
from evaluators.engines.tokenizer import has_tokenizer, load_tokenizer


def open_engine(
    model: nn.Module,
    folder: Path | str,
    *,
    kind: Literal["hf", "vllm"] = "hf",
    batch_tokens: int | None = None,
    device: torch.device | str | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    vllm: Mapping[str, Any] | None = None,
) -> Engine:
    """The engine that fits a live model: text for causal language models, bare forward access for all others.

    Args:
        model: on its device.
        folder: where it came from: its tokenizer is read there, and a causal language model must have one.
        kind: "hf" asks the live model itself, "vllm" an engine that takes its weights over.
        batch_tokens: see :class:`evaluators.engines.hf.HFEngine`.
        device: where inputs go; None for where the model's input embeddings are.
        tensors, vllm: see :class:`evaluators.engines.vllm.VLLMEngine`.

    Raises:
        EvaluatorError: no tokenizer where one is needed, or one that cannot be read; vLLM is asked for and cannot be
            had, or the model is no causal language model.
    """
    folder = Path(folder)
    if kind == "vllm":
        if not _is_causal(model):
            raise EvaluatorError(f"vLLM asks causal language models here, and {type(model).__name__} is none; use hf")
        from evaluators.engines.vllm import VLLMEngine

        return VLLMEngine(model, load_tokenizer(folder), folder, tensors=tensors, options=vllm)
    if _is_causal(model):
        tokenizer = load_tokenizer(folder)
        return HFEngine(model, tokenizer, batch_tokens=batch_tokens, device=device, folder=folder)
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    return HFForwardEngine(model, tokenizer, batch_tokens=batch_tokens, device=device, folder=folder)


def _is_causal(model: nn.Module) -> bool:
    """Whether the model's class goes on with a text: causal language models, with images before the text or without."""
    from transformers.models.auto import modeling_auto as auto

    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    name = type(model).__name__
    known = (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    return name.endswith("ForCausalLM") or any(name in names.values() for names in known)
