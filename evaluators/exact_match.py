"""Exact match: the share of prompts whose greedy answer is the expected one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from evaluators.contract import (
    SPLITS,
    Engine,
    EvaluatorError,
    Items,
    ItemScores,
    Metric,
    Request,
    Split,
    Status,
    weighted_mean,
)
from evaluators.items import Item, as_items, read_splits, split_files
from evaluators.verdict import Extraction, Normalization, cut, extract, normalize

# Raised whenever the same answer to the same item would get another verdict.
_VERSION = 1

# New tokens beyond the expected answer's, where its length does not settle the verdict.
_ROOM = 16
_ROOM_TO_REASON = 256


class ExactMatchOptions(BaseModel):
    """What exact match is told by a config."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: Path | dict[Split, Path] = Field(
        description="a folder with search.jsonl, selection.jsonl, holdout.jsonl; or one file a split. Every line: "
        '{"prompt": …, "answer": …, "id"?: …, "stratum"?: …, "cluster"?: …}'
    )
    mode: Literal["auto", "teacher_forced", "generate"] = Field(
        "auto",
        description="generate: decode greedily and compare texts. teacher_forced: one forward pass; every token of the "
        "answer and the end of text must be the most likely one; stricter than generate where a text has several "
        "spellings in tokens. auto: teacher_forced where it provably gives generate's verdict, else generate",
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        description="by default the longest answer's tokens and one more where that settles the verdict (a word-level "
        f"vocabulary), else twice the longest answer and {_ROOM} more, or {_ROOM_TO_REASON} more with `extract`",
    )
    stop: tuple[str, ...] = Field((), description="the answer ends before the first of these")
    extract: Extraction = Field(
        "none",
        description="where in the text the answer is: after the last marker, the last match of a regular expression, "
        "the last number. No such place: no usable answer. Applied to the expected answer too, where it has one",
    )
    normalize: tuple[Normalization, ...] = Field(
        ("strip", "squeeze"), description="differences that do not count, removed in this order from both sides"
    )
    limit: dict[Split, int] = Field(
        default_factory=dict,
        description="at most so many items of a split: a fixed, stratified sample; a smaller one is part of a larger",
    )
    prompt_field: str = "prompt"
    answer_field: str = "answer"

    @field_validator("stop")
    @classmethod
    def _stops_are_texts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(value):
            raise ValueError("a stop string must not be empty: it would end every answer before it begins")
        return value

    @field_validator("limit")
    @classmethod
    def _limits_are_positive(cls, value: dict[Split, int]) -> dict[Split, int]:
        for split, count in value.items():
            if count < 1:
                raise ValueError(f"the limit of {split} must be at least 1, got {count}")
        return value

    @model_validator(mode="after")
    def _teacher_forcing_sees_whole_answers(self) -> ExactMatchOptions:
        if self.mode == "teacher_forced" and (self.extract != "none" or self.stop):
            raise ValueError(
                "mode: teacher_forced compares the whole answer token by token and cannot extract a part of it or stop "
                "early; use mode: generate (or auto), or drop `extract` and `stop`"
            )
        if self.prompt_field == self.answer_field:
            raise ValueError("prompt_field and answer_field must be two different fields")
        return self

    def whole_answers(self) -> bool:
        """Whether nothing but the width of white space separates equal texts from equal answers."""
        return self.extract == "none" and not self.stop and set(self.normalize) <= {"strip", "squeeze"}


@dataclass(frozen=True)
class _Prepared:
    """One item in tokens. ``request`` is set where teacher forcing gives the verdict."""

    prompt: list[int]
    accepted: frozenset[str]
    request: Request | None


class ExactMatch:
    """Exact match behind :class:`evaluators.contract.Evaluator`: metric ``accuracy`` in [0, 1], one 0 or 1 an item.

    An answer is right when the text that greedy decoding gives (cut at ``stop``, extracted, normalised) equals one of
    the expected answers, as written or as the tokenizer would write it back. Special tokens inside an answer make it
    wrong where the tokenizer lets that be told. "failed", with the value 0: the logits were not finite, or there was
    nothing to extract.

    Args:
        options: see :class:`ExactMatchOptions`.

    Raises:
        EvaluatorError: the data are missing or bad; the paragraph names file and line.
    """

    Options: ClassVar[type[ExactMatchOptions]] = ExactMatchOptions

    def __init__(self, options: ExactMatchOptions) -> None:
        self._options = options
        required = {options.prompt_field: False, options.answer_field: True}
        self._splits = read_splits(split_files(options.data), required=required, limit=options.limit)
        self._public = {split: as_items(self._splits[split]) for split in SPLITS}
        self._items = {item.id: item for split in SPLITS for item in self._splits[split]}
        if options.mode == "teacher_forced":
            self._check_single_answers()
        self._fingerprint = self._hash()
        self._prepared: dict[str, _Prepared] = {}
        self._prepared_for = ""
        self._max_new_tokens = 0

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """One: ``accuracy``, to be maximised."""
        return (Metric("accuracy", "maximize", 0.0, 1.0),)

    @property
    def fingerprint(self) -> str:
        """``exact_match/<sha256>`` of this code's version, the items' contents and ids, and the options but paths."""
        return self._fingerprint

    def items(self, split: Split) -> Items:
        """The items of a split, in an order whose every prefix is a stratified sample."""
        return self._public[split]

    def prepare(self, engine: Engine) -> None:
        """Tokenise everything for this engine.

        Raises:
            EvaluatorError: a prompt without tokens, an answer with words that the vocabulary lacks, a prompt and answer
                too long for the model, or fewer ``max_new_tokens`` than an answer needs.
        """
        room = self._room(engine)
        answers = {
            item.id: [engine.encode(answer, special=False) for answer in item.fields[self._options.answer_field]]
            for item in self._items.values()
        }
        longest = max((len(ids) for each in answers.values() for ids in each), default=0)
        self._max_new_tokens = self._options.max_new_tokens or room(longest)
        self._prepared = {
            item.id: self._prepare(item, answers[item.id], engine, longest) for item in self._items.values()
        }
        self._prepared_for = engine.fingerprint

    def score(self, engine: Engine, ids: Sequence[str]) -> ItemScores:
        """One 0 or 1 an item, in the order of ``ids``.

        Raises:
            EvaluatorError: not prepared for this engine, or an id that is no item of any split.
        """
        if self._prepared_for != engine.fingerprint:
            raise EvaluatorError("exact_match has not been prepared for this engine; call prepare(engine) before score")
        missing = [name for name in ids if name not in self._prepared]
        if missing:
            raise EvaluatorError(f'exact_match has no item "{missing[0]}"; ids come from items(split)')
        verdicts: dict[str, tuple[bool, Status]] = {}
        unique = list(dict.fromkeys(ids))
        self._teacher_forced(engine, unique, verdicts)
        self._generated(engine, [name for name in unique if name not in verdicts], verdicts)
        return ItemScores(
            ids=tuple(ids),
            values={"accuracy": np.array([float(verdicts[name][0]) for name in ids], dtype=np.float64)},
            weights={"accuracy": np.ones(len(ids), dtype=np.float64)},
            statuses=tuple(verdicts[name][1] for name in ids),
        )

    def aggregate(self, scores: ItemScores) -> dict[str, float]:
        """The mean over the items; nan without any."""
        return {"accuracy": weighted_mean(scores, "accuracy")}

    def _teacher_forced(self, engine: Engine, ids: Sequence[str], verdicts: dict[str, tuple[bool, Status]]) -> None:
        asked = [(name, request) for name in ids if (request := self._prepared[name].request) is not None]
        if not asked:
            return
        answers = engine.loglikelihood([request for _, request in asked])
        for (name, _), answer in zip(asked, answers, strict=True):
            verdicts[name] = (answer.is_greedy, "failed" if np.isnan(answer.total) else "ok")

    def _generated(self, engine: Engine, ids: Sequence[str], verdicts: dict[str, tuple[bool, Status]]) -> None:
        if not ids:
            return
        generations = engine.generate(
            [self._prepared[name].prompt for name in ids], max_new_tokens=self._max_new_tokens, stop=self._options.stop
        )
        for name, generation in zip(ids, generations, strict=True):
            if generation.ended == "non_finite":
                verdicts[name] = (False, "failed")
            else:
                verdicts[name] = self._judge(engine, self._prepared[name], generation.tokens)

    def _judge(self, engine: Engine, item: _Prepared, tokens: Sequence[int]) -> tuple[bool, Status]:
        text = engine.decode(tokens)
        found = extract(cut(text, self._options.stop), self._options.extract)
        if found is None:
            return False, "failed"
        if normalize(found, self._options.normalize) not in item.accepted:
            return False, "ok"
        if engine.one_spelling and self._options.whole_answers():
            # Decoding leaves special tokens out; an answer that holds some is not the expected one.
            return engine.encode(text, special=False) == list(tokens), "ok"
        return True, "ok"

    def _room(self, engine: Engine) -> _Room:
        if engine.one_spelling and self._options.whole_answers():
            return _Room(1, 1)
        return _Room(2, _ROOM if self._options.extract == "none" else _ROOM_TO_REASON)

    def _prepare(self, item: Item, answers: Sequence[list[int]], engine: Engine, longest: int) -> _Prepared:
        prompt = engine.encode(item.fields[self._options.prompt_field][0], special=True)
        if not prompt:
            raise EvaluatorError(f"{item.place}: the prompt has no tokens under this tokenizer; give it a text")
        texts = item.fields[self._options.answer_field]
        accepted: set[str] = set()
        for text, ids in zip(texts, answers, strict=True):
            self._check_answer(item, text, ids, len(prompt), engine)
            accepted |= {self._expected(item, text), self._expected(item, engine.decode(ids))}
        request = None
        if len(texts) == 1 and self._may_force(engine, answers[0]):
            end = engine.end_of_text
            request = Request(prompt, [*answers[0], *([] if end is None else [end])])
        return _Prepared(prompt, frozenset(accepted), request)

    def _may_force(self, engine: Engine, answer: list[int]) -> bool:
        if self._options.mode != "auto":
            return self._options.mode == "teacher_forced"
        return (
            engine.one_spelling
            and self._options.whole_answers()
            and engine.end_of_text is not None
            and engine.encode(engine.decode(answer), special=False) == answer
        )

    def _expected(self, item: Item, text: str) -> str:
        found = extract(text, self._options.extract)
        if found is None and self._options.extract == "last_number":
            raise EvaluatorError(f'{item.place}: extract: last_number, and the answer "{text}" holds no number')
        expected = normalize(text if found is None else found, self._options.normalize)
        if not expected:
            raise EvaluatorError(f'{item.place}: nothing is left of the answer "{text}" after normalize; change either')
        return expected

    def _check_answer(self, item: Item, text: str, ids: list[int], before: int, engine: Engine) -> None:
        if not ids or (engine.unknown is not None and engine.unknown in ids):
            raise EvaluatorError(
                f'{item.place}: the answer "{text}" holds what the tokenizer has no token for, so that no model could '
                "give it; correct the answer, or use the tokenizer that these models were trained with"
            )
        needed = len(ids) + 1
        if engine.max_length is not None and before + needed > engine.max_length:
            raise EvaluatorError(
                f"{item.place}: prompt, answer and end of text are {before + needed} tokens, and the model has "
                f"positions for {engine.max_length}; shorten or remove the item"
            )
        generates = self._options.mode != "teacher_forced"
        if generates and self._options.extract == "none" and self._max_new_tokens < needed:
            raise EvaluatorError(
                f"{item.place}: the answer and its end are {needed} tokens, and max_new_tokens is "
                f"{self._max_new_tokens}; raise it to {needed} at least, or leave it out"
            )

    def _check_single_answers(self) -> None:
        for item in self._items.values():
            if len(item.fields[self._options.answer_field]) > 1:
                raise EvaluatorError(
                    f"{item.place}: several accepted answers, and mode: teacher_forced checks one; use mode: generate "
                    "(or auto), or keep one answer"
                )

    def _hash(self) -> str:
        options = self._options.model_dump(mode="json", exclude={"data", "limit", "prompt_field", "answer_field"})
        content = {
            split: sorted((item.id, item.hash, item.stratum) for item in self._splits[split]) for split in SPLITS
        }
        digest = hashlib.sha256(json.dumps([_VERSION, options, content], sort_keys=True).encode()).hexdigest()
        return f"exact_match/{digest}"


@dataclass(frozen=True)
class _Room:
    """How many new tokens are enough for an answer: ``factor`` × its tokens + ``more``."""

    factor: int
    more: int

    def __call__(self, tokens: int) -> int:
        return self.factor * tokens + self.more
