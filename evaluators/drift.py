"""Drift: how far a candidate's next-token distributions have moved from a reference model's, on neutral texts.

A merge can win on its objectives and forget all else. Text that belongs to none of the tasks says how much:
KL(reference ‖ candidate) at every position, the penalty that fine-tuning with rewards also uses (Ziegler et al. 2019,
"Fine-tuning language models from human preferences", there the other way round, on the model's own text).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from evaluators.base import FAILED, ItemEvaluator, Verdict
from evaluators.contract import Engine, EvaluatorError, Metric
from evaluators.engines.batching import batches
from evaluators.engines.forward import text_config
from evaluators.engines.memory import fitting, passing
from evaluators.engines.tokenizer import has_tokenizer, load_tokenizer
from evaluators.items import DataOptions, Item, Parsed
from evaluators.other_models import content_hash, local_model
from evaluators.tables import Row

# Tokens of a batch; its logits, at four bytes each a quarter of a gigabyte; and those that are made float64 at a time.
_TOKENS = 4096
_LOGITS = 2**26
_WIDE = 2**20


class DriftOptions(DataOptions):
    """What drift is told by a config. Every record: a text that belongs to none of the tasks."""

    reference: Path = Field(description="the model to stay near: a folder, usually the base's or an expert's")
    max_tokens: int = Field(256, ge=2, description="at most so many tokens of a text are read")
    top: int = Field(
        64, ge=1, description="how many of the reference's likeliest tokens are kept apart; the others count as one"
    )
    cap: float = Field(10.0, gt=0.0, description="a text's KL above this counts as this: the metric's upper bound")
    text_field: str = Field("text", description="the field with the text")


@dataclass(frozen=True)
class _Reference:
    """A text, and what the reference expects after each of its n tokens: 8 · top + 4 bytes a token.

    Attributes:
        tokens: [n].
        likely: int32 [n, top], ids of its likeliest tokens, the likeliest first.
        logp: float32 [n, top + 1], their log-probabilities, then that of all others together.
    """

    tokens: list[int]
    likely: Tensor
    logp: Tensor


class Drift(ItemEvaluator[DriftOptions, str, _Reference]):
    """Drift behind :class:`evaluators.contract.Evaluator`.

    Metrics, an item's weight being its tokens, so that the weighted mean is the mean over tokens:

    - ``kl``, to be minimised: mean over positions of KL(reference ‖ candidate), nats per token, in [0, ``cap``]. Of the
      vocabulary the reference's ``top`` likeliest tokens are told apart, all others are one event: exact for these
      coarser distributions, and by the data-processing inequality a lower bound of the full KL. The reference itself
      has 0.
    - ``top1_agreement``, to be maximised: the share of positions where both find the same token the likeliest.

    "failed": logits that are not finite. The reference is loaded while preparing, in the live model's dtype and on its
    device beside it, asked once, and freed.

    Args:
        options: see :class:`DriftOptions`.

    Raises:
        EvaluatorError: the data or the reference are missing or bad.
    """

    kind: ClassVar[str] = "drift"
    version: ClassVar[int] = 1
    asks_text = True
    Options: ClassVar[type[DriftOptions]] = DriftOptions

    def __init__(self, options: DriftOptions) -> None:
        self.options = options
        self._reference_hash = content_hash(options.reference, "reference")
        super().__init__(options)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """``kl`` and ``top1_agreement``."""
        return (
            Metric("kl", "minimize", 0.0, self.options.cap, "nats/token"),
            Metric("top1_agreement", "maximize", 0.0, 1.0),
        )

    def identity(self) -> object:
        """The reference by its content, and how much of texts and distributions counts."""
        return [self._reference_hash, self.options.max_tokens, self.options.top, self.options.cap]

    def parse(self, row: Row) -> Parsed[str]:
        """A text, as it is."""
        text = row.text(self.options.text_field)
        return Parsed(text, text)

    def prepare_items(self, engine: Engine, items: Sequence[Item[str]]) -> dict[str, _Reference]:
        """Ask the reference.

        Raises:
            EvaluatorError: it cannot be loaded, or has another tokenizer or vocabulary than the live model.
        """
        limit = min(self.options.max_tokens, engine.max_length or self.options.max_tokens)
        tokens = {item.id: engine.encode(item.value, special=True)[:limit] for item in items}
        for item in items:
            if not tokens[item.id]:
                raise EvaluatorError(f"{item.place}: the text has no tokens under this tokenizer; remove it")
        self._check_tokenizer(engine, items)
        order = list(tokens)
        found: dict[str, _Reference] = {}
        with engine.forward() as live:
            reference = self._load(live).to(engine.device)
            self._check_vocabulary(engine, reference, live, tokens[order[0]])
            for index, logits in _logits(engine, reference, [tokens[name] for name in order]):
                found[order[index]] = self._kept(tokens[order[index]], logits, items[index])
        return found

    def score_items(self, engine: Engine, items: Sequence[tuple[Item[str], _Reference]]) -> list[Verdict]:
        """One verdict an item, in order."""
        verdicts: dict[int, Verdict] = {}
        with engine.forward() as live:
            for index, logits in _logits(engine, live, [kept.tokens for _, kept in items]):
                verdicts[index] = self._verdict(items[index][1], logits)
        return [verdicts[index] for index in range(len(items))]

    def _load(self, live: nn.Module) -> nn.Module:
        """The reference, in the live model's dtype and with its way to attend."""
        attention = getattr(getattr(live, "config", None), "_attn_implementation", None)
        dtype = next(live.parameters()).dtype
        model: nn.Module = local_model(
            "AutoModelForCausalLM", self.options.reference, "reference", dtype=dtype, attention=attention
        )
        return model

    def _verdict(self, kept: _Reference, logits: Tensor) -> Verdict:
        likely = kept.likely.to(logits.device).long()
        logq = coarsened(logits, likely)
        weights = dict.fromkeys(("kl", "top1_agreement"), float(len(kept.tokens)))
        if bool(torch.isnan(logq).any()):
            return FAILED._replace(weights=weights)
        kl = float(_divergence(kept.logp.to(logits.device), logq).mean())
        agree = float((logits.argmax(-1) == likely[:, 0]).double().mean())
        return Verdict({"kl": min(max(kl, 0.0), self.options.cap), "top1_agreement": agree}, weights=weights)

    def _kept(self, tokens: list[int], logits: Tensor, item: Item[str]) -> _Reference:
        # The arg max comes first even among equals, so that the reference agrees with itself.
        first = logits.argmax(-1, keepdim=True)
        rest = logits.scatter(-1, first, -math.inf)
        count = min(self.options.top, logits.shape[-1]) - 1
        likely = torch.cat([first, rest.topk(count, dim=-1).indices], dim=-1)
        logp = coarsened(logits, likely)
        if bool(torch.isnan(logp).any()):
            raise EvaluatorError(
                f"{item.place}: the reference {self.options.reference} gives logits that are not finite; name a model "
                "that works in this dtype"
            )
        return _Reference(tokens, likely.to("cpu", torch.int32), logp.to("cpu", torch.float32))

    def _check_tokenizer(self, engine: Engine, items: Sequence[Item[str]]) -> None:
        """The reference must read the same ids; a folder without a tokenizer is taken at its word."""
        folder = self.options.reference
        if not has_tokenizer(folder):
            return
        tokenizer = load_tokenizer(folder)
        for item in items[:16]:
            if tokenizer.encode(item.value, add_special_tokens=False) != engine.encode(item.value, special=False):
                raise EvaluatorError(
                    f"{item.place}: the tokenizer of the reference {folder} reads this text as other tokens than the "
                    "live model's, so that their distributions cannot be compared; name a model with the same tokenizer"
                )

    def _check_vocabulary(self, engine: Engine, reference: nn.Module, live: nn.Module, tokens: list[int]) -> None:
        widths = []
        for model in (reference, live):
            _, logits = next(_logits(engine, model, [tokens[:1]]))
            widths.append(logits.shape[-1])
        if widths[0] != widths[1]:
            raise EvaluatorError(
                f"the reference {self.options.reference} has a vocabulary of {widths[0]} tokens, and the live model "
                f"one of {widths[1]}; name a model of the same family"
            )


def coarsened(logits: Tensor, likely: Tensor) -> Tensor:
    """Log-probabilities of some tokens, and of all others together.

    Args:
        logits: [n, vocabulary].
        likely: [n, k] token ids, of a row all different.

    Returns:
        float64 [n, k + 1]; the last is -inf where there are no others. A row of logits that are no distribution (NaN,
        +inf, or nothing but -inf) has a NaN.
    """
    rows = max(1, _WIDE // logits.shape[-1])
    parts = []
    for part, chosen in zip(torch.split(logits, rows), torch.split(likely, rows), strict=True):
        wide = part.double()
        total = torch.logsumexp(wide, dim=-1, keepdim=True)
        others = torch.logsumexp(wide.scatter(-1, chosen, -math.inf), dim=-1, keepdim=True)
        parts.append(torch.cat([wide.gather(-1, chosen), others], dim=-1) - total)
    return torch.cat(parts)


def _divergence(reference: Tensor, candidate: Tensor) -> Tensor:
    """Σ p (log p - log q) of log-probabilities [n, k] -> float64 [n]; what the reference excludes adds nothing."""
    logp, logq = reference.double(), candidate.double()
    terms = logp.exp() * (logp - logq)
    return torch.where(logp > -math.inf, terms, torch.zeros_like(terms)).sum(-1)


def _logits(engine: Engine, model: nn.Module, texts: Sequence[Sequence[int]]) -> Iterator[tuple[int, Tensor]]:
    """Index of a text and its logits [tokens, vocabulary], in batches whose logits are bounded in number."""
    device = engine.device
    width = int(text_config(model).vocab_size)
    accepted = inspect.signature(type(model).forward).parameters
    options: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    most = max(1, min(_TOKENS, _LOGITS // width))
    for batch in batches([len(tokens) for tokens in texts], tokens=fitting(engine, most)):
        longest = max(len(texts[index]) for index in batch)
        passing(engine, len(batch), len(batch) * longest, most)
        # A row is filled up with its own first token: what is masked is still read, and another's embedding may be NaN.
        rows = [[*texts[index], *[texts[index][0]] * (longest - len(texts[index]))] for index in batch]
        lengths = torch.tensor([len(texts[index]) for index in batch])
        mask = (torch.arange(longest) < lengths[:, None]).long().to(device)
        logits = model(input_ids=torch.tensor(rows, device=device), attention_mask=mask, **options).logits
        for row, index in enumerate(batch):
            yield index, logits[row, : len(texts[index])]
