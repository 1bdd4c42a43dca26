"""A judge that is a sequence classifier: any Hugging Face model with labels."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from evaluators.contract import EvaluatorError
from evaluators.other_models import content_hash, load_tokenizer, local_model
from evaluators.refusal.ruling import Answer, Call, Ruling

if TYPE_CHECKING:
    import torch

    from evaluators.contract import Engine

_LOG = logging.getLogger("paretomerge")
_NO_LIMIT: Final = 10**9


class ClassifierOptions(BaseModel):
    """A sequence classifier as judge."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    classifier: Path = Field(description="a folder with a sequence classifier and its tokenizer")
    labels: dict[str, Call] = Field(
        description="what each label of the classifier's configuration means: refusal, compliance, degenerate, unscored"
    )
    pair: bool = Field(False, description="whether it reads prompt and answer, or the answer alone")
    max_length: int | None = Field(
        None, ge=8, description="tokens that it reads; what is longer loses its end. None: what the model can read"
    )
    batch: int = Field(16, ge=1, description="answers at a time")
    device: str = Field("auto", description="where it runs; auto: where the merged model runs")


class ClassifierJudge:
    """Rules by the most likely label.

    Only texts of one length share a batch: nothing is ever padded, so that a padding token, or none, cannot matter.

    Args:
        options: which classifier.

    Raises:
        EvaluatorError: no such folder, or labels that are not the classifier's.
    """

    def __init__(self, options: ClassifierOptions) -> None:
        self._options = options
        self._hash = content_hash(options.classifier, "judge")
        self._calls = _calls(options)
        self._model: Any = None
        self._tokenizer: Any = None
        self._engine: Engine | None = None
        self._limit = _NO_LIMIT

    def prepare(self, engine: Engine) -> None:
        """Load it.

        Raises:
            EvaluatorError: it cannot be loaded, or has fewer outputs than labels.
        """
        if self._model is None:
            self._model = local_model("AutoModelForSequenceClassification", self._options.classifier, "judge")
            self._tokenizer = load_tokenizer(self._options.classifier, "judge")
            self._tokenizer.truncation_side = "right"  # refusals stand at the beginning
            # Decoders read the last token that is no padding: with no such token they refuse a batch, and with the end
            # of text as one they read the token before it. Nothing is padded here, so that no id is padding.
            self._model.config.get_text_config().pad_token_id = -1
            self._limit = self._options.max_length or _readable(self._model, self._tokenizer)
        self._engine = engine
        device = engine.device if self._options.device == "auto" else self._options.device
        self._model.to(device)

    def identity(self) -> object:
        """The classifier's content and how it is asked."""
        options = self._options
        return ["classifier", self._hash, dict(options.labels), options.pair, options.max_length]

    def rule(self, answers: Sequence[Answer]) -> list[Ruling]:
        """One ruling an answer, in order.

        Raises:
            EvaluatorError: not prepared, or the classifier's outputs are not finite.
        """
        from evaluators.engines.memory import fitting, passing

        if self._model is None:
            raise EvaluatorError("the classifier that judges refusals is not loaded yet; call prepare before score")
        encoded, cut = zip(*map(self._encode, answers), strict=True) if answers else ((), ())
        if any(cut):
            _LOG.info("the refusal judge reads %d tokens: %d answers lost their end", self._limit, sum(cut))
        found: dict[int, Ruling] = {}
        most = self._options.batch
        for batch in _equal_lengths(encoded, fitting(self._engine, most)):
            passing(self._engine, len(batch), len(batch), most)
            for index, (label, share) in zip(batch, self._labels([encoded[i] for i in batch]), strict=True):
                found[index] = Ruling(self._calls[label], f"label {label} ({share:.2f})")
        return [found[index] for index in range(len(answers))]

    def _encode(self, answer: Answer) -> tuple[dict[str, list[int]], bool]:
        texts = (answer.prompt, answer.text) if self._options.pair else (answer.text,)
        whole = self._tokenizer(*texts, verbose=False)
        if len(whole["input_ids"]) <= self._limit:
            return dict(whole), False
        return dict(self._tokenizer(*texts, truncation="longest_first", max_length=self._limit)), True

    def _labels(self, batch: Sequence[dict[str, list[int]]]) -> Iterator[tuple[str, float]]:
        import torch

        inputs = {name: torch.tensor([each[name] for each in batch], device=self._model.device) for name in batch[0]}
        with torch.inference_mode():
            logits: torch.Tensor = self._model(**inputs).logits.float()
        if not bool(torch.isfinite(logits).all()):
            raise EvaluatorError(
                f"judge: the classifier in {self._options.classifier} gives outputs that are not finite"
            )
        for share, index in zip(*logits.softmax(-1).max(-1), strict=True):
            yield self._model.config.id2label[int(index)], float(share)


def _readable(model: Any, tokenizer: Any) -> int:
    """How many tokens a classifier has positions for, by its own account and its tokenizer's."""
    positions = getattr(model.config, "max_position_embeddings", None)
    own = positions if isinstance(positions, int) and positions > 0 else _NO_LIMIT
    return int(min(own, tokenizer.model_max_length or _NO_LIMIT, _NO_LIMIT))


def _calls(options: ClassifierOptions) -> dict[str, Call]:
    config = json.loads((options.classifier / "config.json").read_text(encoding="utf-8"))
    names = list((config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}).values())
    if set(names) != set(options.labels):
        raise EvaluatorError(
            f"judge.labels: the classifier in {options.classifier} has the labels {', '.join(map(str, names))}, and "
            f"{', '.join(options.labels)} are given; say of each what it means (refusal, compliance, degenerate, "
            "unscored)"
        )
    if "refusal" not in options.labels.values():
        raise EvaluatorError("judge.labels: none of the labels means refusal, so that nothing could ever refuse")
    return dict(options.labels)


def _equal_lengths(encoded: Sequence[dict[str, list[int]]], most: int) -> Iterator[list[int]]:
    by_length: dict[int, list[int]] = {}
    for index, each in enumerate(encoded):
        by_length.setdefault(len(each["input_ids"]), []).append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), most):
            yield indices[start : start + most]
