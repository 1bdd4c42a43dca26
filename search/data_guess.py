"""Which evaluator fits a table of records, and what its fields are called: a guess, said to the user as one.

Only names of fields and the look of a few answers are used. Nothing is guessed silently: every guess comes with a line
that says why.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from search.errors import SearchError
from search.presets import Kind

LOOKED_AT = 200
"""Records that a guess is made from."""

_PROMPTS = ("prompt", "question", "instruction", "input", "query", "problem", "request")
_ANSWERS = ("answer", "output", "response", "target", "completion", "solution", "expected", "label")
_AUDIO = ("audio", "file", "path", "audio_path", "audio_filepath", "wav", "speech")
_SAID = ("text", "sentence", "transcript", "transcription", "normalized_text")
_IMAGES = ("image", "img", "image_path", "pixel_values", "file", "path")
_LABELS = ("label", "labels", "class", "fine_label", "target", "category")
_TEXTS = ("text", "document", "content", "sentence")
_CHOICES = ("choices", "options", "endings")
_RIGHT = ("answer", "answerKey", "answer_key", "label", "gold", "correct")
_FIRST = ("sentence1", "text1", "first", "premise", "sentence_1")
_SECOND = ("sentence2", "text2", "second", "hypothesis", "sentence_2")
_SCORES = ("score", "similarity", "similarity_score", "label")
_LETTERS = ("A", "B", "C", "D", "E", "F")
_KINDS = frozenset({"harmful", "benign", "unsafe", "safe"})
_NUMBER = re.compile(r"[-+]?[\d,]*\.?\d+")


class Guess(NamedTuple):
    """An evaluator for a table.

    Attributes:
        type: of the evaluator.
        options: beside ``type`` and ``data``; only what differs from the defaults.
        why: for the user, one line.
    """

    type: str
    options: dict[str, Any]
    why: str


def guess(records: Sequence[Mapping[str, Any]], kind: Kind, type: str = "") -> Guess | None:
    """What fits best.

    Args:
        records: some of the table, at least one.
        kind: of the models that are to be scored.
        type: the evaluator that the user has named; "" to find one.

    Returns:
        None where the fields fit no evaluator for such models, or not the one that was named.
    """
    fields = list(dict.fromkeys(itertools.chain.from_iterable(records)))
    known = {
        "reward_pairs": _reward_pairs, "wer": _wer, "classification": _classification, "similarity": _similarity,
        "choice": _choice, "refusal": _refusal, "exact_match": _exact_match, "length": _asked, "throughput": _asked,
        "perplexity": _document, "drift": _document,
    }  # fmt: skip
    if type:
        found = known[type](fields, records, kind) if type in known else {}
        return None if found is None else Guess(type, found, _why(type, found, fields))
    order: dict[Kind, tuple[str, ...]] = {
        "speech": ("wer",), "images": ("classification",), "reward": ("reward_pairs",),
        "classifier": ("classification",), "embedding": ("similarity",),
        "text": ("choice", "refusal", "exact_match", "perplexity"),
    }  # fmt: skip
    for each in order[kind]:
        found = known[each](fields, records, kind)
        if found is not None:
            return Guess(each, found, _why(each, found, fields))
    return None


def first_records(data: str, folder: Path) -> list[Mapping[str, Any]]:
    """Some records of what a user names as data: a file, a folder with splits, or a ``zoo://`` reference.

    Args:
        data: as the user wrote it.
        folder: where a relative path starts.

    Raises:
        SearchError, EvaluatorError: nothing there, or nothing that can be read.
    """
    import zoo
    from evaluators.items import split_tables
    from evaluators.tables import read_rows

    path = zoo.resolve(data) if zoo.is_reference(data) else folder / Path(data).expanduser()
    if not path.exists():
        raise SearchError(
            f"{data}: expected a file of records (.jsonl, .json, .csv, .tsv, .parquet) or a folder with one for each "
            "of search, selection and holdout; found nothing there"
        )
    file = path if path.is_file() else split_tables(path)["search"].file
    assert file is not None  # a folder's tables are files
    rows = read_rows(file)
    if not rows:
        raise SearchError(f"{file}: expected at least one record, found none")
    return [row.record for row in rows[:LOOKED_AT]]


def _why(type: str, options: Mapping[str, Any], fields: Sequence[str]) -> str:
    chosen = ", ".join(f"{name}: {value}" for name, value in options.items())
    return f"{type}{f' with {chosen}' if chosen else ''}, from the fields {', '.join(map(str, fields[:8]))}"


def _named(fields: Sequence[str], candidates: Sequence[str]) -> str | None:
    """The first candidate that is a field, whatever its case."""
    by_name = {str(field).lower(): str(field) for field in fields}
    return next((by_name[each.lower()] for each in candidates if each.lower() in by_name), None)


def _unless(default: str, found: str, option: str) -> dict[str, Any]:
    return {} if found == default else {option: found}


def _reward_pairs(fields: Sequence[str], records: Sequence[Mapping[str, Any]], kind: Kind) -> dict[str, Any] | None:
    return {} if {"chosen", "rejected"} <= set(fields) else None


def _wer(fields: Sequence[str], records: Sequence[Mapping[str, Any]], kind: Kind) -> dict[str, Any] | None:
    audio, text = _named(fields, _AUDIO), _named(fields, _SAID)
    if audio is None or text is None:
        return None
    return _unless("audio", audio, "audio") | _unless("text", text, "text")


def _classification(fields: Sequence[str], records: Sequence[Mapping[str, Any]], kind: Kind) -> dict[str, Any] | None:
    label = _named(fields, _LABELS)
    if label is None:
        return None
    named = _unless("label", label, "label_field")
    if kind == "images":
        image = _named(fields, _IMAGES)
        return None if image is None else {"image_field": image} | named
    first, second = _named(fields, _FIRST), _named(fields, _SECOND)
    if first is not None and second is not None:
        return _unless("text", first, "text_field") | {"pair_field": second} | named
    text = _named(fields, (*_TEXTS, *_PROMPTS))
    return None if text is None else _unless("text", text, "text_field") | named


def _similarity(fields: Sequence[str], records: Sequence[Mapping[str, Any]], kind: Kind) -> dict[str, Any] | None:
    found = [_named(fields, each) for each in (_FIRST, _SECOND, _SCORES)]
    if None in found:
        return None
    named: dict[str, Any] = {}
    for name, default, option in zip(found, ("sentence1", "sentence2", "score"),
                                     ("first_field", "second_field", "score_field"), strict=True):  # fmt: skip
        named |= _unless(default, str(name), option)
    return named


def _choice(fields: Sequence[str], records: Sequence[Mapping[str, Any]], kind: Kind) -> dict[str, Any] | None:
    right, question = _named(fields, _RIGHT), _named(fields, ("question", *_PROMPTS))
    lettered = [each for each in _LETTERS if each in fields]
    choices: Any = lettered if len(lettered) > 1 else _named(fields, _CHOICES)
    if right is None or question is None or choices is None:
        return None
    named = {} if choices == "choices" else {"choices_field": choices}
    if question != "question":
        named["prompt"] = {"template": f"Question: {{{question}}}\nAnswer:"}
    return named | _unless("answer", right, "answer_field")


def _refusal(fields: Sequence[str], records: Sequence[Mapping[str, Any]], kind: Kind) -> dict[str, Any] | None:
    prompt = _named(fields, ("prompt",))
    if prompt is None:
        return None
    for name in ("kind", "stratum", "label"):
        values = {str(record.get(name)).lower() for record in records}
        if name in fields and values <= _KINDS and len(values) > 1:
            return {}
    return None


def _exact_match(fields: Sequence[str], records: Sequence[Mapping[str, Any]], kind: Kind) -> dict[str, Any] | None:
    prompt, answer = _named(fields, _PROMPTS), _named(fields, _ANSWERS)
    if prompt is None or answer is None or prompt == answer:
        return None
    named = _unless("prompt", prompt, "prompt_field") | _unless("answer", answer, "answer_field")
    extract = _extraction([str(record.get(answer, "")).strip() for record in records])
    return named if extract is None else named | {"extract": extract}


def _asked(fields: Sequence[str], records: Sequence[Mapping[str, Any]], kind: Kind) -> dict[str, Any] | None:
    prompt = _named(fields, _PROMPTS)
    if prompt is None:
        return None
    return {} if prompt == "prompt" else {"prompt": {"template": f"{{{prompt}}}"}}


def _document(fields: Sequence[str], records: Sequence[Mapping[str, Any]], kind: Kind) -> dict[str, Any] | None:
    text = _named(fields, (*_TEXTS, *_PROMPTS))
    return None if text is None else _unless("text", text, "text_field")


def _extraction(answers: Sequence[str]) -> str | None:
    """Where in a text such answers are looked for; None: the whole text is the answer."""
    told = [each for each in answers if each]
    if not told:
        return None
    if _mostly(told, lambda each: "####" in each and _is_number(each.rpartition("####")[2])):
        return "last_number"  # worked out in words, then the number: GSM8K's way
    if _mostly(told, _is_number):
        return "last_number"
    if _mostly(told, lambda each: len(each) == 1 and each in "ABCDEFGHIJ"):
        return "choice"
    return None


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text.strip().strip("$%").strip()) is not None


def _mostly(answers: Sequence[str], test: Callable[[str], bool]) -> bool:
    return sum(map(test, answers)) >= 0.95 * len(answers)
