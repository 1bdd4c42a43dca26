"""Exact match: the share of prompts whose answer is the expected one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from evaluators.answers import (
    Extraction,
    Normalization,
    NumberExtraction,
    Stops,
    cut,
    extract,
    extract_expected,
    normalize,
)
from evaluators.base import FAILED, ItemEvaluator, Verdict
from evaluators.contract import Engine, EvaluatorError, Generation, Metric, Request, Sampling
from evaluators.fasttext_language import FasttextGate, FasttextOptions, Language
from evaluators.items import DataOptions, Item, Parsed
from evaluators.language import LanguageGate
from evaluators.prompts import PromptOptions, Prompts
from evaluators.tables import Row

# New tokens beyond the expected answer's, where its length does not settle the verdict.
_ROOM = 16
_ROOM_TO_REASON = 256


class Sampled(BaseModel):
    """Answers that are drawn instead of taken greedily: the value is the share of right ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(1.0, gt=0.0, description="what logits are divided by")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="the share of probability that is drawn from")
    samples: int = Field(1, ge=1, description="how many answers an item; each costs as much as the first")
    seed: int = Field(0, ge=0, description="which answers; the same for every candidate")


class ExactMatchOptions(DataOptions):
    """What exact match is told by a config. Every record: prompt, answer, and if wanted id, stratum, cluster."""

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
    stop: Stops = Field((), description="the answer ends before the first of these")
    extract: Extraction = Field(
        "none",
        description="where in the text the answer is: after the last marker, the last match of a regular expression, "
        "the last number, the letter of a multiple choice, a value in the last JSON object. sakana-compat: the last "
        "number as EvoLLM's published evaluator reads it, without sign and group comma (1,234 is 234). No such place: "
        "no usable answer. Applied to the expected answer too, where it has one",
    )
    also_extract: NumberExtraction | None = Field(
        None,
        description="a second way to find the answer, told beside the first as a metric of its own; with extract: "
        "sakana-compat it is last_number where nothing is said",
    )
    normalize: tuple[Normalization, ...] = Field(
        ("strip", "squeeze"), description="differences that do not count, removed in this order from both sides"
    )
    prompt_field: str = "prompt"
    answer_field: str = "answer"
    prompt: PromptOptions = Field(
        default_factory=PromptOptions, description="template, system prompt, chat template, worked examples"
    )
    language: Language | None = Field(
        None,
        description="a code such as ja, told by script; or {code: ja, fasttext: lid.176.ftz}, told by a fastText "
        "model: an answer that is not in this language is wrong, whatever it says",
    )
    sampling: Sampled | None = Field(None, description="draw answers; greedy ones where it is left out")

    @model_validator(mode="after")
    def _teacher_forcing_sees_whole_answers(self) -> ExactMatchOptions:
        if self.mode == "teacher_forced" and (self.extract != "none" or self.stop):
            raise ValueError(
                "mode: teacher_forced compares the whole answer token by token and cannot extract a part of it or stop "
                "early; use mode: generate (or auto), or drop `extract` and `stop`"
            )
        if self.mode == "teacher_forced" and (self.language is not None or self.sampling is not None):
            raise ValueError(
                "mode: teacher_forced writes no text, so that there is no language to tell and nothing to draw; use "
                "mode: generate (or auto), or drop `language` and `sampling`"
            )
        if self.also_extract is not None and self.extract in ("none", self.also_extract):
            other = "last_number" if self.also_extract == "sakana-compat" else "sakana-compat"
            raise ValueError(
                f"also_extract: {self.also_extract} is a second way to find the answer, beside another one in "
                f"`extract`; set extract: {other}, or drop it"
            )
        if self.prompt_field == self.answer_field:
            raise ValueError("prompt_field and answer_field must be two different fields")
        if self.prompt_field != "prompt" and self.prompt.template != "{prompt}":
            raise ValueError("the template names the prompt's fields already; drop prompt_field")
        if f"{{{self.answer_field}}}" in self.prompt.template:
            raise ValueError(f"the template names {{{self.answer_field}}}, which would tell the answer; take it out")
        return self

    @property
    def second(self) -> NumberExtraction | None:
        """The other way to find the answer, said or not."""
        return "last_number" if self.also_extract is None and self.extract == "sakana-compat" else self.also_extract

    def whole_answers(self) -> bool:
        """Whether nothing but the width of white space separates equal texts from equal answers."""
        plain = self.extract == "none" and not self.stop and self.language is None
        return plain and set(self.normalize) <= {"strip", "squeeze"}

    def prompts(self) -> PromptOptions:
        """How prompts are made, with the fields' own names."""
        few = self.prompt.few_shot
        changes: dict[str, object] = {}
        if self.prompt_field != "prompt":
            changes["template"] = f"{{{self.prompt_field}}}"
        if few is not None and self.answer_field != "answer" and few.answer == " {answer}":
            changes["few_shot"] = few.model_copy(update={"answer": f" {{{self.answer_field}}}"})
        return self.prompt.model_copy(update=changes)


class Question(NamedTuple):
    """What is kept of a record: the fields that the template names, and the texts of which each is right."""

    record: Mapping[str, str]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class _Prepared:
    """One item in tokens. ``request`` is set where teacher forcing gives the verdict; ``second`` is what the other way
    to find the answer accepts, empty where there is none."""

    prompt: list[int]
    accepted: frozenset[str]
    request: Request | None
    second: frozenset[str] = frozenset()


class _Judged(NamedTuple):
    """One answer: whether it says what is right, is in the language asked for, and there was anything to judge; and
    whether it is right by the other way to find the answer."""

    right: bool
    spoken: bool
    usable: bool
    second: bool = False


_NO_ANSWER = _Judged(False, False, False)


class ExactMatch(ItemEvaluator[ExactMatchOptions, Question, _Prepared]):
    """Exact match behind :class:`evaluators.contract.Evaluator`: metric ``accuracy`` in [0, 1].

    An answer is right when the text that decoding gives (cut at ``stop``, extracted, normalised) equals one of the
    expected answers, as written or as the tokenizer would write it back, and is in the language asked for, if one is.
    Special tokens inside an answer make it wrong where the tokenizer lets that be told. An item's value is 0 or 1, or
    with ``sampling`` the share of right answers. With ``language`` there is also ``in_language``, the share of answers
    in it; with a fastText model also ``accuracy_any_language``, right answers in whatever language. A second way to
    find the answer has a metric of its own, ``accuracy_last_number`` or ``accuracy_sakana_compat``, for which the
    language counts too. "failed", with the value 0: the logits were not finite, or there was nothing to extract in
    either way, in every sample.

    Args:
        options: see :class:`ExactMatchOptions`.

    Raises:
        EvaluatorError: the data are missing or bad; the paragraph names file and line.
    """

    kind: ClassVar[str] = "exact_match"
    version: ClassVar[int] = 1
    asks_text = True
    Options: ClassVar[type[ExactMatchOptions]] = ExactMatchOptions

    def __init__(self, options: ExactMatchOptions) -> None:
        self._gate = _gate(options.language)
        self._prompts = Prompts(options.prompts())
        super().__init__(options)
        items = self._items.values()
        self._prompts.check_unseen((self._prompts.text(item.value.record), item.place) for item in items)
        if options.mode == "teacher_forced":
            self._check_single_answers()
        self._max_new_tokens = 0

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """``accuracy``, and what else is told (see above); all to be maximised."""
        names = ["accuracy"] if self._gate is None else ["accuracy", "in_language"]
        if isinstance(self._gate, FasttextGate):
            names.append("accuracy_any_language")
        if self.options.second is not None:
            names.append(_metric_of(self.options.second))
        return tuple(Metric(name, "maximize", 0.0, 1.0) for name in names)

    def identity(self) -> object:
        """The options, but paths and names of fields. What came later than version 1 counts where it is used, so that
        scores of old keep their names."""
        later = {"prompt", "language", "sampling", "also_extract"}
        used: dict[str, object] = self.options.model_dump(
            mode="json", exclude={"data", "limit", "prompt_field", "answer_field", *later}
        )
        if self.options.prompt != PromptOptions():
            used["prompt"] = self._prompts.identity()
        if self._gate is not None:
            used["language"] = self._gate.identity
        if self.options.sampling is not None:
            used["sampling"] = self.options.sampling.model_dump(mode="json")
        if self.options.second is not None:
            used["also_extract"] = self.options.second
        return used

    def parse(self, row: Row) -> Parsed[Question]:
        """A prompt and the texts of which each is a right answer."""
        record = {name: row.text(name) for name in self._prompts.fields}
        answers = row.answers(self.options.answer_field)
        return Parsed(Question(record, answers), [[self._prompts.text(record)], answers])

    def prepare_items(self, engine: Engine, items: Sequence[Item[Question]]) -> dict[str, _Prepared]:
        """Tokenise everything for this engine.

        Raises:
            EvaluatorError: a prompt without tokens, an answer with words that the vocabulary lacks, a prompt and answer
                too long for the model, or fewer ``max_new_tokens`` than an answer needs.
        """
        answers = {item.id: [engine.encode(text, special=False) for text in item.value.answers] for item in items}
        longest = max((len(ids) for each in answers.values() for ids in each), default=0)
        self._max_new_tokens = self.options.max_new_tokens or self._room(engine, longest)
        return {item.id: self._prepare(item, answers[item.id], engine) for item in items}

    def score_items(self, engine: Engine, items: Sequence[tuple[Item[Question], _Prepared]]) -> list[Verdict]:
        """One verdict an item, in order."""
        verdicts = self._teacher_forced(engine, [(item.id, ready.request) for item, ready in items if ready.request])
        verdicts |= self._generated(engine, [(item, ready) for item, ready in items if item.id not in verdicts])
        return [verdicts[item.id] for item, _ in items]

    def _teacher_forced(self, engine: Engine, asked: Sequence[tuple[str, Request]]) -> dict[str, Verdict]:
        if not asked:
            return {}
        answers = engine.loglikelihood([request for _, request in asked])
        return {
            name: FAILED if np.isnan(answer.total) else Verdict({"accuracy": float(answer.is_greedy)})
            for (name, _), answer in zip(asked, answers, strict=True)
        }

    def _generated(self, engine: Engine, asked: Sequence[tuple[Item[Question], _Prepared]]) -> dict[str, Verdict]:
        if not asked:
            return {}
        how, stop = self.options.sampling, self.options.stop
        if how is None:
            drawn = [(item, ready) for item, ready in asked]
            generations = engine.generate(
                [ready.prompt for _, ready in drawn], max_new_tokens=self._max_new_tokens, stop=stop
            )
        else:
            drawn = [pair for pair in asked for _ in range(how.samples)]
            seeds = [_seed(how.seed, item, number) for item, _ in asked for number in range(how.samples)]
            generations = engine.generate(
                [ready.prompt for _, ready in drawn],
                max_new_tokens=self._max_new_tokens,
                stop=stop,
                sampling=Sampling(how.temperature, how.top_p, seeds),
            )
        judged: dict[str, list[_Judged]] = {item.id: [] for item, _ in asked}
        for (item, ready), generation in zip(drawn, generations, strict=True):
            judged[item.id].append(self._judge(engine, ready, generation))
        return {name: self._verdict(answers) for name, answers in judged.items()}

    def _verdict(self, answers: Sequence[_Judged]) -> Verdict:
        if not any(answer.usable for answer in answers):
            return FAILED
        values = {"accuracy": _share(answer.right and answer.spoken for answer in answers)}
        if self._gate is not None:
            values["in_language"] = _share(answer.spoken for answer in answers)
        if isinstance(self._gate, FasttextGate):
            values["accuracy_any_language"] = _share(answer.right for answer in answers)
        if self.options.second is not None:
            values[_metric_of(self.options.second)] = _share(answer.second and answer.spoken for answer in answers)
        return Verdict(values)

    def _judge(self, engine: Engine, item: _Prepared, generation: Generation) -> _Judged:
        if generation.ended == "non_finite":
            return _NO_ANSWER
        text = engine.decode(generation.tokens)
        said = cut(text, self.options.stop)
        found = extract(said, self.options.extract)
        other = None if self.options.second is None else extract(said, self.options.second)
        if found is None and other is None:
            return _NO_ANSWER
        spoken = self._gate is None or self._gate(said)
        right = found is not None and normalize(found, self.options.normalize) in item.accepted
        if right and engine.one_spelling and self.options.whole_answers():
            # Decoding leaves special tokens out; an answer that holds some is not the expected one.
            right = engine.encode(text, special=False) == list(generation.tokens)
        second = other is not None and normalize(other, self.options.normalize) in item.second
        return _Judged(right, spoken, True, second)

    def _room(self, engine: Engine, longest: int) -> int:
        if engine.one_spelling and self.options.whole_answers():
            return longest + 1
        return 2 * longest + (_ROOM if self.options.extract == "none" else _ROOM_TO_REASON)

    def _prepare(self, item: Item[Question], answers: Sequence[list[int]], engine: Engine) -> _Prepared:
        prompt = self._prompts.encode(engine, item.value.record)
        if not prompt:
            raise EvaluatorError(f"{item.place}: the prompt has no tokens under this tokenizer; give it a text")
        texts = item.value.answers
        accepted: set[str] = set()
        second: set[str] = set()
        for text, ids in zip(texts, answers, strict=True):
            self._check_answer(item, text, ids, len(prompt), engine)
            spellings = (text, engine.decode(ids))
            accepted |= {self._expected(item, each, self.options.extract) for each in spellings}
            if self.options.second is not None:
                second |= {self._expected(item, each, self.options.second) for each in spellings}
        request = None
        if len(texts) == 1 and self._may_force(engine, answers[0]):
            end = engine.end_of_text
            request = Request(prompt, [*answers[0], *([] if end is None else [end])])
        return _Prepared(prompt, frozenset(accepted), request, frozenset(second))

    def _may_force(self, engine: Engine, answer: list[int]) -> bool:
        if self.options.mode != "auto":
            return self.options.mode == "teacher_forced"
        return (
            engine.one_spelling
            and self.options.sampling is None
            and self.options.whole_answers()
            and engine.end_of_text is not None
            and engine.encode(engine.decode(answer), special=False) == answer
        )

    def _expected(self, item: Item[Question], text: str, how: Extraction) -> str:
        found = extract_expected(text, how)
        if found is None and how in ("last_number", "sakana-compat", "choice"):
            lacks = "no letter of a choice" if how == "choice" else "no number"
            raise EvaluatorError(f'{item.place}: extract: {how}, and the answer "{text}" holds {lacks}')
        expected = normalize(text if found is None else found, self.options.normalize)
        if not expected:
            raise EvaluatorError(f'{item.place}: nothing is left of the answer "{text}" after normalize; change either')
        return expected

    def _check_answer(self, item: Item[Question], text: str, ids: list[int], before: int, engine: Engine) -> None:
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
        generates = self.options.mode != "teacher_forced"
        if generates and self.options.extract == "none" and self._max_new_tokens < needed:
            raise EvaluatorError(
                f"{item.place}: the answer and its end are {needed} tokens, and max_new_tokens is "
                f"{self._max_new_tokens}; raise it to {needed} at least, or leave it out"
            )

    def _check_single_answers(self) -> None:
        for item in self._items.values():
            if len(item.value.answers) > 1:
                raise EvaluatorError(
                    f"{item.place}: several accepted answers, and mode: teacher_forced checks one; use mode: generate "
                    "(or auto), or keep one answer"
                )


def _gate(language: str | FasttextOptions | None) -> LanguageGate | FasttextGate | None:
    if language is None:
        return None
    return LanguageGate(language) if isinstance(language, str) else FasttextGate(language)


def _metric_of(how: NumberExtraction) -> str:
    return f"accuracy_{how.replace('-', '_')}"


def _share(answers: Iterable[bool]) -> float:
    counted = list(answers)
    return sum(counted) / len(counted)


def _seed(seed: int, item: Item[Question], number: int) -> int:
    """A seed below 2^63 of an item's own, so that its answer depends on no other item."""
    digest = hashlib.sha256(f"{seed}:{item.hash}:{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
