"""From lm-eval's requests, which are texts, to an engine's, which are tokens; and from its answers back.

Where a context ends and a continuation begins, what stands before an empty context, how long texts are cut into windows
and what is cut off on the left: as ``lm_eval.models.huggingface.HFLM`` has it, so that scores are the same.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evaluators.contract import Engine, EvaluatorError, Generation, Request, Sampling

_MAX_NEW_TOKENS = 256  # lm-eval's, where a task says nothing
_SAME = 1e-6  # rounding of float32 sums, relative
_IGNORED_WHEN_GREEDY = frozenset({"temperature", "top_p", "top_k"})


@dataclass(frozen=True)
class Drawing:
    """What generations have in common that are asked for together.

    Attributes:
        max_new_tokens: at most so many.
        stop: the answer ends before the first of these.
        temperature: 0 for greedy decoding.
        top_p: as in :class:`evaluators.contract.Sampling`.
    """

    max_new_tokens: int
    stop: tuple[str, ...]
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Ask:
    """One of lm-eval's requests in tokens.

    Attributes:
        kind: lm-eval's: "loglikelihood", "loglikelihood_rolling" or "generate_until".
        requests: what log-likelihoods are asked for: one, or one a window.
        prompt: what is gone on with.
        drawing: how.
        seeds: one a repeat, where answers are drawn.
        repeats: how many answers lm-eval wants.
    """

    kind: str
    requests: tuple[Request, ...] = ()
    prompt: tuple[int, ...] = ()
    drawing: Drawing | None = None
    seeds: tuple[int, ...] = ()
    repeats: int = 1


class Encoder:
    """Makes :class:`Ask` of lm-eval's instances.

    Args:
        engine: whose tokenizer and limits are used.
        seed: of the draws, where a task draws its answers.

    Raises:
        EvaluatorError: the tokenizer in the engine's folder cannot be read.
    """

    def __init__(self, engine: Engine, seed: int) -> None:
        self._engine = engine
        self._seed = seed
        self._prefix, self._end_text = _special_tokens(engine)
        self._known: dict[Request, Request] = {}
        # Where the last token of a continuation is never read, one more than there are positions fits: lm-eval counts
        # on it for its own class.
        limit = engine.max_length
        self._scored = limit if limit is None or engine.reads_last_token else limit + 1
        self.cut = 0
        """How many prompts have lost their beginning, so that the model has positions for the rest."""

    def ask(self, instance: Any, place: str) -> Ask:
        """An instance in tokens.

        Args:
            instance: ``lm_eval.api.instance.Instance``.
            place: the document, for messages.

        Raises:
            EvaluatorError: it cannot be asked of this engine.
        """
        kind, arguments = instance.request_type, instance.args
        repeats = int(instance.repeats or 1)
        if kind == "loglikelihood":
            return Ask(kind, (self._pair(str(arguments[0]), str(arguments[1]), place),), repeats=repeats)
        if kind == "loglikelihood_rolling":
            return Ask(kind, self._windows(str(arguments[0]), place), repeats=repeats)
        if kind == "generate_until":
            return self._generation(str(arguments[0]), dict(arguments[1]), instance, place, repeats)
        raise EvaluatorError(f"{place}: lm-eval asks for {kind}, which no engine here answers")

    def _tokens(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids as HFLM has them: a text that brings the first special token along gets no second one."""
        ids = self._engine.encode(text, special=special)
        if special and len(ids) > 1 and ids[0] == ids[1] == self._prefix:
            return self._engine.encode(text, special=False)
        return ids

    def _before(self, place: str) -> int:
        if self._prefix is None:
            raise EvaluatorError(
                f"{place}: a text without a context is scored after the token that begins or ends a text, and this "
                "tokenizer has neither; use a task with prompts"
            )
        return self._prefix

    def _pair(self, context: str, continuation: str, place: str) -> Request:
        """The boundary of ``TemplateLM._encode_pair``: spaces that end a context belong to the continuation, and the
        continuation's tokens are what the whole has beyond the context's."""
        stripped = context.rstrip()
        continuation, context = context[len(stripped) :] + continuation, stripped
        if context:
            before = self._tokens(context)
            after = self._tokens(context + continuation)[len(before) :]
        else:
            before, after = [], self._tokens(continuation, special=False)
        if not before:
            first = self._before(place)
            before, after = ([first], after) if after[:1] != [first] else (after[:1], after[1:])
        if not after:
            raise EvaluatorError(
                f"{place}: the continuation {continuation!r} has no tokens of its own after this context; lm-eval "
                "could not score it either: correct the task's target or its delimiter"
            )
        limit = self._scored
        if limit is not None and len(after) >= limit:
            raise EvaluatorError(
                f"{place}: a continuation of {len(after)} tokens, and the model has positions for "
                f"{self._engine.max_length}; leave the document out"
            )
        if limit is not None and len(before) + len(after) > limit:
            self.cut += 1
            before = before[len(before) + len(after) - limit :]
        return self._once(before, after)

    def _windows(self, text: str, place: str) -> tuple[Request, ...]:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        tokens = self._tokens(text)
        longest = len(tokens) if self._scored is None else self._scored - 1
        windows = get_rolling_token_windows(tokens, self._before(place), max(1, longest), 1)
        return tuple(self._once(*make_disjoint_window(window)) for window in windows)

    def _once(self, context: Sequence[int], continuation: Sequence[int]) -> Request:
        """Equal requests are one object, and asked once."""
        request = Request(tuple(context), tuple(continuation))
        return self._known.setdefault(request, request)

    def _generation(self, text: str, settings: dict[str, Any], instance: Any, place: str, repeats: int) -> Ask:
        drawing = _drawing(settings, self._end_text, place)
        prompt = self._tokens(text)
        limit = self._engine.max_length
        if limit is not None:
            room = limit - drawing.max_new_tokens
            if room < 1:
                raise EvaluatorError(
                    f"{place}: answers may have {drawing.max_new_tokens} tokens, and the model has positions for "
                    f"{limit}, prompt included; lower it: generation_kwargs: {{max_gen_toks: …}}"
                )
            self.cut += len(prompt) > room
            prompt = prompt[-room:]
        if not prompt:
            raise EvaluatorError(f"{place}: the prompt has no tokens under this tokenizer")
        seeds: tuple[int, ...] = ()
        if drawing.temperature > 0.0:
            seeds = tuple(_seed(self._seed, instance.task_name, text, instance.idx, turn) for turn in range(repeats))
        return Ask("generate_until", (), tuple(prompt), drawing, seeds, repeats)


def answer(engine: Engine, asks: Sequence[Ask]) -> list[list[Any] | None]:
    """What lm-eval calls responses: of each ask, one a repeat; None where the model's logits were not finite."""
    found: list[list[Any] | None] = [None] * len(asks)
    _log_likelihoods(engine, asks, found)
    groups: dict[Drawing, list[int]] = {}
    for index, ask in enumerate(asks):
        if ask.drawing is not None:
            groups.setdefault(ask.drawing, []).append(index)
    for drawing, members in groups.items():
        _generations(engine, asks, drawing, members, found)
    return found


def is_usable(asks: Sequence[Ask], responses: Sequence[list[Any] | None]) -> bool:
    """Whether a document's answers say anything: all are finite, and choices differ by more than their length.

    A model whose logits are all the same would otherwise be given every document whose right choice stands first, or
    is the shortest.
    """
    if any(each is None for each in responses):
        return False
    means = {
        id(ask.requests[0]): each[0][0] / len(ask.requests[0].continuation)  # equal requests are one object
        for ask, each in zip(asks, responses, strict=True)
        if each is not None and ask.kind == "loglikelihood"
    }
    spread = max(means.values(), default=0.0) - min(means.values(), default=0.0)
    return len(means) < 2 or spread > _SAME * abs(min(means.values()))


def _log_likelihoods(engine: Engine, asks: Sequence[Ask], found: list[list[Any] | None]) -> None:
    requests = {id(request): request for ask in asks for request in ask.requests}
    answers = dict(zip(requests, engine.loglikelihood(list(requests.values())), strict=True)) if requests else {}
    for index, ask in enumerate(asks):
        if ask.drawing is not None:
            continue
        own = [answers[id(request)] for request in ask.requests]
        total = sum(each.total for each in own)
        if math.isfinite(total):
            rolling = ask.kind == "loglikelihood_rolling"
            found[index] = [total if rolling else (total, own[0].is_greedy)] * ask.repeats


def _generations(
    engine: Engine, asks: Sequence[Ask], drawing: Drawing, members: Sequence[int], found: list[list[Any] | None]
) -> None:
    prompts: list[Sequence[int]] = []
    seeds: list[int] = []
    for index in members:
        ask = asks[index]
        prompts += [ask.prompt] * max(1, len(ask.seeds))
        seeds += ask.seeds
    sampling = Sampling(drawing.temperature, drawing.top_p, seeds) if seeds else None
    said = iter(engine.generate(prompts, max_new_tokens=drawing.max_new_tokens, stop=drawing.stop, sampling=sampling))
    for index in members:
        ask = asks[index]
        own = [_text(engine, next(said), drawing.stop) for _ in range(max(1, len(ask.seeds)))]
        if not any(text is None for text in own):
            found[index] = own if ask.seeds else own * ask.repeats


def _text(engine: Engine, generation: Generation, stop: Sequence[str]) -> str | None:
    if generation.ended == "non_finite":
        return None
    text = engine.decode(generation.tokens)
    for each in stop:
        text = text.split(each)[0]
    return text


def _drawing(settings: dict[str, Any], end_text: str, place: str) -> Drawing:
    """lm-eval's generation settings (``normalize_gen_kwargs``), without what nothing here can honour."""
    lengths = [settings.pop(name, None) for name in ("max_gen_toks", "max_new_tokens", "max_tokens")]
    lengths.append(settings.pop("max_completion_tokens", None))
    given = [int(each) for each in lengths if each is not None]
    until = settings.pop("until", None) or []
    stop = [until] if isinstance(until, str) else list(until)
    sampled = settings.pop("do_sample", None)
    temperature = float(settings.get("temperature") or 0.0)
    if sampled is None:
        sampled = temperature > 0.0
    if not sampled:
        settings = {name: value for name, value in settings.items() if name not in _IGNORED_WHEN_GREEDY}
    top_p = float(settings.pop("top_p", 1.0)) if sampled else 1.0
    settings.pop("temperature", None)
    if sampled and temperature <= 0.0:
        raise EvaluatorError(f"{place}: the task draws its answers (do_sample) and names no temperature; give one")
    if settings:
        raise EvaluatorError(
            f"{place}: the task's generation_kwargs ask for {', '.join(sorted(settings))}, which no engine here "
            "honours; answers are greedy, or drawn with temperature and top_p: change the task, or choose another"
        )
    if end_text:
        stop.append(end_text)
    return Drawing(
        given[0] if given else _MAX_NEW_TOKENS,
        tuple(dict.fromkeys(each for each in stop if each)),
        temperature if sampled else 0.0,
        top_p,
    )


def _special_tokens(engine: Engine) -> tuple[int | None, str]:
    """The id that stands before a text that has no context (``HFLM.prefix_token_id``), and the text of the end."""
    if engine.folder is not None:
        from evaluators.engines.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(engine.folder)
        end = tokenizer.eos_token_id
        first = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return (None if first is None else int(first)), str(tokenizer.eos_token or "")
    ids = engine.encode("", special=True)
    return (ids[0] if ids else engine.end_of_text), ""


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")
