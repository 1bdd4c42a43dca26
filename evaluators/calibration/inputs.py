"""Inputs as a model's ``forward`` takes them: one each, without padding, every one of them once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Input = dict[str, Tensor]
"""Keyword arguments of the module's ``forward`` for one input: first dimension 1, on the CPU, nothing padded."""


class Inputs:
    """A collection in which equal inputs are one, in the order of their first coming."""

    def __init__(self) -> None:
        self._found: dict[bytes, Input] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, one: Mapping[str, Tensor]) -> None:
        """Keep a copy that depends on nothing else. One made in inference mode could take part in no gradient."""
        with torch.inference_mode(False):
            kept = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in sorted(one.items())}
        self._found.setdefault(_digest(kept), kept)

    def add_tokens(self, tokens: Sequence[int]) -> None:
        """Keep a text: ``input_ids``, int64 [1, tokens]."""
        self.add({"input_ids": torch.tensor([list(tokens)], dtype=torch.int64)})

    def all(self) -> list[Input]:
        """The inputs."""
        return list(self._found.values())


def without_padding(one: Mapping[str, Tensor]) -> Input:
    """An input without the places that its masks call padding, and without masks that then say nothing.

    ``attention_mask`` and ``decoder_attention_mask``, [1, places] of 0 and 1, speak of the sequences of their side.
    Where the model's own input is none (Whisper's features, whose length is fixed), nothing is cut, and the mask stays.

    Args:
        one: tensors of first dimension 1.
    """
    result = dict(one)
    for name in ("attention_mask", "decoder_attention_mask"):
        mask = result.get(name)
        if mask is None or mask.ndim != 2:
            continue
        decoding = name.startswith("decoder_")
        kept = mask[0] != 0
        if not bool(kept.all()):
            own = [
                other
                for other, value in result.items()
                if other != name and other.startswith("decoder_") == decoding and is_sequence(other, value, len(kept))
            ]
            if not own or not bool(kept.any()):
                continue
            for other in own:
                result[other] = result[other][:, kept]
        del result[name]
    return result


def is_sequence(name: str, value: Tensor, length: int) -> bool:
    """Whether a tensor says something of each of ``length`` places: [rows, length] or [rows, length, width], and no
    image."""
    return value.ndim in (2, 3) and value.shape[1] == length and not name.startswith("pixel_")


def _digest(one: Input) -> bytes:
    digest = hashlib.sha256()
    for name, value in one.items():
        digest.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.digest()
