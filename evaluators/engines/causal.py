"""What the engines of causal language models share: what such a model can read, and how its texts are spelled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from evaluators.engines.forward import HFModule, input_embedding, text_config
from evaluators.engines.requests import check_request
from evaluators.engines.tokenizer import has_one_spelling


class CausalModule(HFModule):
    """A live causal language model and its tokenizer.

    Arguments as those of :class:`evaluators.engines.forward.HFModule`.
    """

    reads_last_token: ClassVar[bool] = False
    """Whether the last token of a continuation needs a position too; predicting it does not."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, folder: Path | None = None, device: torch.device | str | None = None
    ) -> None:
        super().__init__(model, tokenizer, folder=folder, device=device)
        config, embedded = text_config(model), input_embedding(model)
        self._vocabulary = int(getattr(config, "vocab_size", len(tokenizer))) if embedded is None else len(embedded)
        limit = getattr(config, "max_position_embeddings", None)
        self._max_length = int(limit) if isinstance(limit, int) and limit > 0 else None
        self._one_spelling = len(self._ends) <= 1 and has_one_spelling(tokenizer)

    @property
    def max_length(self) -> int | None:
        """The configuration's ``max_position_embeddings``, None where it has none."""
        return self._max_length

    @property
    def one_spelling(self) -> bool:
        """True where it is proved: a word-level vocabulary split at white space, and one end-of-text id."""
        return self._one_spelling

    def _check(self, index: int, context: Sequence[int], continuation: Sequence[int]) -> None:
        check_request(
            index, context, continuation, self._max_length, self._vocabulary, reads_last=self.reads_last_token
        )

    def _budget(self, prompt: Sequence[int], new: int) -> int:
        """How many new tokens the model has positions for, ``new`` at most."""
        return new if self._max_length is None else min(new, self._max_length - len(prompt))
