"""What an evaluator is, what it asks of an engine, and what it gives back.

Three small records and two protocols. An *engine* stands between a live model, whose weights change in place,
and the evaluators; an *evaluator* turns the model's behaviour into one score per item. Nothing here knows of a
search: scores are kept per item, and everything statistical is done by whoever reads them.

The protocols are exercised by :mod:`evaluators.conformance`, whose test classes third parties inherit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:  # records and protocols must not cost an import of torch
    from pathlib import Path

    import torch
    from torch import nn

Split = Literal["search", "selection", "holdout"]
SPLITS: tuple[Split, ...] = ("search", "selection", "holdout")

Direction = Literal["maximize", "minimize"]
Status = Literal["ok", "failed", "unscored"]

Array = npt.NDArray[np.float64]


class EvaluatorError(Exception):
    """A user's mistake in an evaluator's data or options: one paragraph, shown without a traceback."""


@dataclass(frozen=True)
class Metric:
    """One number that an evaluator reports.

    Attributes:
        name: short name, unique within its evaluator ("accuracy", "wer").
        direction: whether more or less of it is better.
        low: the smallest value it can take; ``-inf`` where there is none.
        high: the largest value it can take; ``inf`` where there is none.
        unit: shown to people ("", "bits/byte", "words").
    """

    name: str
    direction: Direction
    low: float
    high: float
    unit: str = ""


@dataclass(frozen=True)
class Items:
    """The examples of one split, in the evaluator's own fixed order.

    Attributes:
        ids: [n] unique across *all* splits of the evaluator.
        strata: [n] the subgroup of each item ("" where there are none); subsets are balanced over them.
        hashes: [n] sha256 of each item's content: two items with one hash are the same example, whatever their ids.
        clusters: [n] items with one cluster are not independent of each other (several questions on one text); empty:
            every item stands for itself.
        weights: metric -> [n] what items count for in it, where that is known beforehand and not 1 (0: such an item
            says nothing of that metric).
    """

    ids: tuple[str, ...]
    strata: tuple[str, ...]
    hashes: tuple[str, ...]
    clusters: tuple[str, ...] = ()
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class ItemScores:
    """Scores of one model on some items: the project's core data product.

    Attributes:
        ids: [n] which items, in the order that was asked for.
        values: metric name -> float64 [n].
        weights: metric name -> float64 [n], what the item counts for in the aggregate (1 for accuracy, the number of
            reference words for WER, so that the weighted mean is the ratio of sums).
        statuses: [n] "ok"; "failed": the model gave no usable answer and the value is the metric's worst bound;
            "unscored": no verdict could be reached, the item leaves numerator and denominator.
    """

    ids: tuple[str, ...]
    values: dict[str, Array]
    weights: dict[str, Array]
    statuses: tuple[Status, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.ids)


class Request(NamedTuple):
    """Score ``continuation`` after ``context``; both are token ids, and the context is never empty."""

    context: Sequence[int]
    continuation: Sequence[int]


class LogLikelihood(NamedTuple):
    """The answer to a :class:`Request`: summed log-probability in nats (float64), and whether greedy decoding
    from the context would have produced exactly this continuation."""

    total: float
    is_greedy: bool


class Sampling(NamedTuple):
    """How answers are drawn instead of taken greedily.

    Attributes:
        temperature: > 0, what logits are divided by.
        top_p: in (0, 1], the share of probability that the most likely tokens must have together to be drawn from.
        seeds: one a prompt: an answer depends on its seed, prompt and weights, not on what shares its batch.
    """

    temperature: float
    top_p: float
    seeds: Sequence[int]


class Generation(NamedTuple):
    """A continuation: new token ids without the end-of-text token, and why it ended.

    "end": the model said so. "stop": its text holds a stop string. "length": the limit on new tokens, or on the
    model's positions. "non_finite": the logits were not finite; what came before is no answer.
    """

    tokens: list[int]
    ended: Literal["end", "stop", "length", "non_finite"]


@runtime_checkable
class Engine(Protocol):
    """How a live model is asked. Holds no candidate's answers: only inputs may be cached across weight changes."""

    @property
    def fingerprint(self) -> str:
        """What of the engine a score depends on (kind, dtype, device type, batching): part of a score's identity."""
        ...

    @property
    def model(self) -> nn.Module | None:
        """The live module where the engine has one in this process, else None."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the module's inputs go."""
        ...

    @property
    def folder(self) -> Path | None:
        """The folder of the base, where its processor (features of sounds, images) is; None where there is none."""
        ...

    def forward(self) -> AbstractContextManager[nn.Module]:
        """The live module for the length of a ``with`` block: in evaluation mode, no gradients recorded.

        Raises:
            EvaluatorError: the engine has no module in this process.
        """
        ...

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of ``text``; ``special`` adds what the tokenizer puts around a prompt (a BOS, usually)."""
        ...

    @property
    def writes_text(self) -> bool:
        """Whether :meth:`generate` and :meth:`loglikelihood` can be asked: the model goes on with a text."""
        ...

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer knows how a conversation is written."""
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation ({"role": …, "content": …} each), up to where the answer begins.

        Raises:
            EvaluatorError: there is no chat template, or it refuses the conversation.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        ...

    @property
    def end_of_text(self) -> int | None:
        """The id that ends an answer, or None."""
        ...

    @property
    def unknown(self) -> int | None:
        """The id that stands for whatever the vocabulary lacks, or None."""
        ...

    @property
    def max_length(self) -> int | None:
        """How many tokens, prompt and answer together, the model has positions for; None when there is no limit."""
        ...

    @property
    def reads_last_token(self) -> bool:
        """Whether the last token of a continuation needs a position too; else a request may have one token more than
        :attr:`max_length`."""
        ...

    @property
    def one_spelling(self) -> bool:
        """True when a text has exactly one token sequence, special tokens apart, and one id ends an answer: equal texts
        mean equal tokens (a word-level vocabulary). Then a teacher-forced check gives greedy decoding's verdict;
        otherwise it may not."""
        ...

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        """Continuations, in the order of the prompts: greedy ones unless ``sampling`` says how to draw them.

        Args:
            prompts: token ids, none empty.
            max_new_tokens: at most so many new tokens each.
            stop: a generation whose text contains one of these ends there (the stop string itself is kept out by the
                evaluator, which sees the decoded text).

        Returns:
            One generation a prompt. Sampling settings that a model brings along have no effect.
        """
        ...

    def loglikelihood(self, requests: Sequence[Request]) -> list[LogLikelihood]:
        """Log-likelihoods, in the order of the requests. Non-finite logits: ``total = nan``, ``is_greedy = False``."""
        ...

    def weights_changed(self) -> None:
        """Called after every change of weights: drop whatever depends on the old ones (KV caches, graphs, prefixes)."""
        ...


@runtime_checkable
class Evaluator(Protocol):
    """Turns a live model into one score per item and metric."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """What is reported. Fixed for the life of the evaluator."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of what a score depends on apart from the weights: code version, data content, prompts, options."""
        ...

    def prepare(self, engine: Engine) -> None:
        """Load and check the data, tokenise, bucket by length. Once per run, before the search.

        Raises:
            EvaluatorError: data missing or bad: the paragraph names file and line.
        """
        ...

    def items(self, split: Split) -> Items:
        """The items of a split. Available before :meth:`prepare`."""
        ...

    def score(self, engine: Engine, ids: Sequence[str]) -> ItemScores:
        """Score the engine's present weights on these items, batched. The result has the order of ``ids``, and an
        item's score depends on nothing but the weights and the item: not on the other ids, nor on earlier calls."""
        ...

    def aggregate(self, scores: ItemScores) -> dict[str, float]:
        """Metric name -> corpus-level value (:func:`weighted_mean` unless the field does it differently)."""
        ...


def weighted_mean(scores: ItemScores, metric: str) -> float:
    """Σ w·v / Σ w over the items that have a verdict; nan where there is none.

    The mean for accuracy, the ratio of sums for error rates (value = errors / words, weight = words).
    """
    keep = np.array([status != "unscored" for status in scores.statuses], dtype=bool)
    weights = scores.weights[metric][keep]
    total = float(weights.sum())
    if total <= 0.0:
        return float("nan")
    return float((weights * scores.values[metric][keep]).sum() / total)
