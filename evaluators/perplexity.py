"""Perplexity as bits per byte: how many bits a model needs for each byte of documents that it reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

from pydantic import Field

from evaluators.base import FAILED, ItemEvaluator, Verdict
from evaluators.contract import Engine, EvaluatorError, Metric, Request
from evaluators.documents import first_token, windows
from evaluators.items import DataOptions, Item, Parsed
from evaluators.tables import Row

CAP: Final = 8.0
"""Bits per byte of bytes that are written down as they are: a model that needs more knows nothing of them."""


class PerplexityOptions(DataOptions):
    """What perplexity is told by a config. Every record: a document."""

    window: int = Field(
        2048, ge=2, description="at most so many tokens are read at once; fewer where the model has fewer positions"
    )
    text_field: str = Field("text", description="the field with the document")


class Perplexity(ItemEvaluator[PerplexityOptions, str, list[Request]]):
    """Perplexity behind :class:`evaluators.contract.Evaluator`: ``bits_per_byte`` in [0, 8], to be minimised.

    An item's value is -log2 p(document) / its UTF-8 bytes, its weight those bytes, so that the weighted mean is the
    ratio of sums, comparable between tokenizers. (Word perplexity is not: it depends on what a word is; and its
    exponential lets one bad document outweigh all others.) Worth more than 8 bits per byte counts as 8: uniform bytes
    cost that. "failed", with the value 8: a log-likelihood that is not finite.

    Documents are read as lm-eval's ``loglikelihood_rolling`` reads them with ``max_length = window - 1``: the
    beginning-of-text token (else the end-of-text token) first, windows one after another, every token scored once, the
    last window filled up with context from before. (Where the tokenizer adds a beginning-of-text token of its own,
    lm-eval scores that one too; here it is what stands before.) A document's windows are spread over batches like any
    requests.

    Args:
        options: see :class:`PerplexityOptions`.

    Raises:
        EvaluatorError: the data are missing or bad; the paragraph names file and line.
    """

    kind: ClassVar[str] = "perplexity"
    version: ClassVar[int] = 1
    asks_text = True
    Options: ClassVar[type[PerplexityOptions]] = PerplexityOptions

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """One: ``bits_per_byte``."""
        return (Metric("bits_per_byte", "minimize", 0.0, CAP, "bits/byte"),)

    def identity(self) -> object:
        """How many tokens are read at once."""
        return self.options.window

    def parse(self, row: Row) -> Parsed[str]:
        """A document, as it is."""
        text = row.text(self.options.text_field)
        return Parsed(text, text)

    def weights(self, item: Item[str]) -> Mapping[str, float]:
        """A document counts by its bytes."""
        return {"bits_per_byte": float(len(item.value.encode()))}

    def prepare_item(self, item: Item[str], engine: Engine) -> list[Request]:
        """A document's windows.

        Raises:
            EvaluatorError: it has no tokens, or holds what the vocabulary lacks, so that its tokens are not the text.
        """
        tokens = engine.encode(item.value, special=False)
        if not tokens or (engine.unknown is not None and engine.unknown in tokens):
            raise EvaluatorError(
                f"{item.place}: the document holds what the tokenizer has no token for, so that bits per byte would "
                "not be those of its text; remove it, or use the tokenizer that these models were trained with"
            )
        limit = max(2, min(self.options.window, engine.max_length or self.options.window))
        return windows(tokens, first_token(engine), limit)

    def score_items(self, engine: Engine, items: Sequence[tuple[Item[str], list[Request]]]) -> list[Verdict]:
        """One verdict an item, in order."""
        answers = iter(engine.loglikelihood([request for _, requests in items for request in requests]))
        verdicts = []
        for item, requests in items:
            total = math.fsum(next(answers).total for _ in requests)
            if not math.isfinite(total):
                verdicts.append(FAILED)
                continue
            bits = -total / math.log(2.0) / len(item.value.encode())
            verdicts.append(Verdict({"bits_per_byte": min(max(bits, 0.0), CAP)}))
        return verdicts
