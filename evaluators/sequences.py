"""Texts for models that read them whole (encoders, classifiers, reward models): as tokens, in batches.

Padding never changes what a model says here. Rows are padded on the right and masked, whatever side the tokenizer is
set to. Classifiers on causal models read the last token that is not their configuration's padding token; so for the
length of a pass that is an id which none of the rows holds, and what is read is the last token of the text, even where
padding and end of text share an id, or the model has no padding token.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from evaluators.contract import Engine, EvaluatorError
from evaluators.engines.batching import batches
from evaluators.engines.memory import fitting, passing
from evaluators.engines.tokenizer import load_tokenizer

_BATCH_TOKENS = 4096
_LOG = logging.getLogger("paretomerge")


class Tokens(NamedTuple):
    """One text, or a pair of them, as a model reads it.

    Attributes:
        ids: with the special tokens that belong around it.
        types: which of the two texts each token is of, where the model wants to know; else empty.
    """

    ids: tuple[int, ...]
    types: tuple[int, ...] = ()


class TextReader:
    """From texts to tokens, with the tokenizer of an engine's folder.

    Args:
        engine: whose model will read them.
        truncate: whether what is too long is cut off at its end, instead of being refused.
        max_length: at most so many tokens; None for what model and tokenizer say.

    Raises:
        EvaluatorError: the engine has no folder, or it holds no tokenizer.
    """

    def __init__(self, engine: Engine, *, truncate: bool = False, max_length: int | None = None) -> None:
        if engine.folder is None:
            raise EvaluatorError(
                "the tokenizer is read from the base model's folder, and this engine has none; open it with "
                "open_engine(model, folder)"
            )
        self._tokenizer = load_tokenizer(engine.folder)
        self._tokenizer.truncation_side = "right"  # some tokenizers cut off the beginning: the prompt
        self._truncate = truncate
        known = [engine.max_length, getattr(self._tokenizer, "model_max_length", None), max_length]
        # tokenizers that know no limit say 10^30
        self._limit = min((limit for limit in known if limit is not None and limit < 10**9), default=None)
        with engine.forward() as module:
            self._types = "token_type_ids" in inspect.signature(module.forward).parameters

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer knows how a conversation is written."""
        return bool(getattr(self._tokenizer, "chat_template", None))

    def texts(self, texts: Sequence[str], place: str) -> Tokens:
        """A text with the tokenizer's special tokens, or two, joined as the tokenizer joins pairs.

        Raises:
            EvaluatorError: no tokens, or too many; names ``place``.
        """
        return self._read(place, *texts)

    def conversation(self, messages: Sequence[Mapping[str, str]], place: str) -> Tokens:
        """A whole conversation in the tokenizer's chat template, its last answer included.

        Raises:
            EvaluatorError: there is no chat template, or it refuses these messages; or as :meth:`texts`.
        """
        if not self.has_chat_template:
            raise EvaluatorError(
                f"{place}: a conversation needs a chat template, and the tokenizer has none; use the tokenizer of a "
                "model that was trained on conversations, or give one prompt and one answer as texts, with chat: false"
            )
        try:
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=False)
        except Exception as error:  # templates raise what they like, for a role that they do not know, for instance
            raise EvaluatorError(f"{place}: the tokenizer's chat template refuses the conversation: {error}") from error
        return self._read(place, text, special=False)

    def _read(self, place: str, *texts: str, special: bool = True) -> Tokens:
        asked = self._tokenizer(
            *texts, add_special_tokens=special, return_token_type_ids=self._types, return_attention_mask=False
        )
        if not asked["input_ids"]:
            raise EvaluatorError(f"{place}: the tokenizer makes no tokens of this text; correct or remove the item")
        if self._limit is not None and len(asked["input_ids"]) > self._limit:
            if not self._truncate:
                raise EvaluatorError(
                    f"{place}: the text is {len(asked['input_ids'])} tokens long, and the model takes {self._limit}; "
                    "shorten or remove the item, or set truncate: true to cut its end off"
                )
            asked = self._tokenizer(
                *texts, add_special_tokens=special, return_token_type_ids=self._types, return_attention_mask=False,
                truncation=True, max_length=self._limit,
            )  # fmt: skip
        return Tokens(tuple(asked["input_ids"]), tuple(asked.get("token_type_ids", ())))


Read = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
"""What a module says of a batch: (module, inputs such as ``input_ids`` [rows, tokens]) -> [rows, k]."""


class SequencePasses:
    """Forward passes over many texts.

    Args:
        engine: whose module is asked.
        read: one pass.
        samples: texts of different lengths, on which is found out whether padding leaves this module's answers alone.
            Where it does not (a module that ignores the mask), only texts of one length share a batch from then on.

    Raises:
        EvaluatorError: the module cannot be asked so.
    """

    def __init__(self, engine: Engine, read: Read, samples: Sequence[Tokens]) -> None:
        self._read = read
        self._padded = True
        by_length = sorted(samples, key=lambda tokens: len(tokens.ids))
        ends = [by_length[0], by_length[-1]]
        try:
            alone = torch.cat([self.run(engine, [each]) for each in ends])
            together = self.run(engine, ends)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
            name = type(engine.model).__name__
            raise EvaluatorError(
                f"{name} cannot be asked about texts in this way ({type(error).__name__}: {error}); name a model and "
                "an evaluator that fit each other"
            ) from error
        tolerance = max(1e-3, 16.0 * torch.finfo(_dtype(engine)).eps)
        self._padded = bool(((alone - together).abs() <= tolerance * (1.0 + alone.abs())).all())
        if not self._padded:
            _LOG.warning("note: padding changes what this model says; only texts of one length share a batch")

    def run(self, engine: Engine, sequences: Sequence[Tokens]) -> Tensor:
        """What the present weights say, [texts, k] float64 on the CPU, in the order of the texts; at least one text."""
        order: list[int] = []
        parts: list[Tensor] = []
        with engine.forward() as module:
            lengths = [len(tokens.ids) for tokens in sequences]
            for batch in self._batches(lengths, fitting(engine, _BATCH_TOKENS)):
                rows = [sequences[index] for index in batch]
                passing(engine, len(batch), len(batch) * max(lengths[index] for index in batch), _BATCH_TOKENS)
                inputs, padding = _collate(rows, _own_padding(module), _vocabulary(module), engine.device)
                with _padding_token(module, padding):
                    parts.append(self._read(module, inputs).double())
                order += batch
        answers = torch.cat(parts).cpu()
        result = torch.empty_like(answers)
        result[order] = answers
        return result

    def _batches(self, lengths: Sequence[int], most: int) -> Iterator[list[int]]:
        if self._padded:
            yield from batches(lengths, tokens=most)
            return
        for length in sorted(set(lengths)):
            same = [index for index, each in enumerate(lengths) if each == length]
            for group in batches([length] * len(same), tokens=most):
                yield [same[index] for index in group]


def class_logits(module: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """[rows, labels] what a sequence classifier says.

    Raises:
        ValueError: the module is none: it does not say one row of numbers a text.
    """
    logits: Tensor = module(**inputs).logits
    if logits.ndim != 2:
        raise ValueError(f"expected one row of logits a text, found logits of shape {list(logits.shape)}")
    return logits


def _collate(
    rows: Sequence[Tokens], own: int | None, vocabulary: int, device: torch.device
) -> tuple[dict[str, Tensor], int]:
    """Inputs of a batch, padded on the right, and the id that pads them: in no row, the model's own where possible."""
    longest = max(len(row.ids) for row in rows)
    present = {token for row in rows for token in row.ids}
    free = own if own is not None and own not in present else None
    if free is None:
        free = next((token for token in range(vocabulary) if token not in present), None)
    if free is None and any(len(row.ids) < longest for row in rows):
        raise EvaluatorError("one batch holds every token of the vocabulary, so that none is left to pad it with")
    padding = -1 if free is None else free
    # where nothing is padded, no id at all is padding
    inputs = {"input_ids": torch.tensor([[*row.ids, *[max(padding, 0)] * (longest - len(row.ids))] for row in rows])}
    lengths = torch.tensor([len(row.ids) for row in rows])
    inputs["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
    if rows[0].types:
        inputs["token_type_ids"] = torch.tensor([[*row.types, *[0] * (longest - len(row.types))] for row in rows])
    return {name: value.to(device) for name, value in inputs.items()}, padding


@contextmanager
def _padding_token(module: nn.Module, token: int) -> Iterator[None]:
    """The configuration's padding token for the length of a pass."""
    configs = _configs(module)
    before = [(config, config.pad_token_id) for config in configs if hasattr(config, "pad_token_id")]
    try:
        for config, _ in before:
            config.pad_token_id = token
        yield
    finally:
        for config, own in before:
            config.pad_token_id = own


def _configs(module: nn.Module) -> list[Any]:
    config = getattr(module, "config", None)
    if config is None:
        return []
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return [config] if text is config else [config, text]


def _own_padding(module: nn.Module) -> int | None:
    for config in reversed(_configs(module)):
        token = getattr(config, "pad_token_id", None)
        if token is not None:
            return int(token)
    return None


def _vocabulary(module: nn.Module) -> int:
    from evaluators.engines.forward import input_embedding

    weight = input_embedding(module)
    if weight is None:
        raise EvaluatorError(
            f"{type(module).__name__} has no embeddings of tokens, so that it reads no texts; use an evaluator that "
            "fits the model"
        )
    return int(weight.shape[0])


def _dtype(engine: Engine) -> torch.dtype:
    with engine.forward() as module:
        return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
