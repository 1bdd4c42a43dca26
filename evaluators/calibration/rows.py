"""Rows that calibrate, drawn by a seed, and what of a row or an item could be the same in another. Cheap to import."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluators.calibration.options import InputsOptions
from evaluators.contract import SPLITS, EvaluatorError
from evaluators.items import Table, split_tables
from evaluators.prompts import PromptOptions, Prompts
from evaluators.tables import Row, kind_of

_LOG = logging.getLogger("paretomerge")
_DRAW = "paretomerge-calibration/1"  # part of the draw's definition


@dataclass(frozen=True)
class Content:
    """What a row or an item shows a model.

    Attributes:
        place: "file:line", for messages.
        texts: each field's text, and what is made of them.
        media: sha256 of the bytes (or of the pixels) of images and recordings.
    """

    place: str
    texts: tuple[str, ...] = ()
    media: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drawn(Content):
    """A row that calibrates.

    Attributes:
        row: the record.
        read: the texts that the model reads: one, or two of a pair.
        messages: the conversation, where it is one.
    """

    row: Row = field(default_factory=lambda: Row({}, ""))
    read: tuple[str, ...] = ()
    messages: tuple[Mapping[str, str], ...] = ()


def draw_rows(options: InputsOptions, limit: int, seed: int = 0) -> list[Drawn]:
    """At most ``limit`` rows, chosen and ordered by seed and content, whatever the order of the file.

    A smaller limit draws some of the rows that a larger one draws. Rows alike in all that counts are one. Where there
    are fewer rows than asked for, these are all, with a note.

    Raises:
        EvaluatorError: no rows, or one that cannot be used: names file and line.
    """
    if limit < 1:
        raise EvaluatorError(
            f"calibration needs at least one input an expert, and {limit} are asked for; raise `items`"
        )
    table = _table(options)
    rows = table.read()
    names = _fields(options)
    by_key = {_key(row, names, seed): row for row in reversed(rows)}
    if not by_key:
        raise EvaluatorError(
            f"{table.label}: no rows, and calibration needs at least one; add some, or name another file"
        )
    if len(by_key) < limit:
        _LOG.warning(
            "note: %s: %d inputs are asked for, and there are %d different ones; all are used",
            table.label, limit, len(by_key),
        )  # fmt: skip
    return [_drawn(options, by_key[key]) for key in sorted(by_key)[:limit]]


def _table(options: InputsOptions) -> Table:
    data = options.data
    if data is None:
        raise EvaluatorError(
            f'the inputs are recorded from the evaluator "{options.evaluator}", and not read from rows'
        )
    if isinstance(data, Path):
        if data.is_dir():
            return split_tables(data)[SPLITS[0]]
        data = Table(file=data)
    if data.file is not None and not data.file.is_file():
        raise EvaluatorError(f"expected a file at {data.file}, and there is none")
    return data


def _fields(options: InputsOptions) -> tuple[str, ...]:
    own = {"chat": options.chat, "image": options.image, "audio": options.audio}.get(options.kind)
    if own is not None:
        return (own,)
    return tuple(dict.fromkeys(name for each in _templates(options) for name in each.fields))


def _templates(options: InputsOptions) -> list[Prompts]:
    return [Prompts(PromptOptions(template=template)) for template in options.templates]


def _key(row: Row, names: Sequence[str], seed: int) -> str:
    content = json.dumps([row.record.get(name) for name in names], sort_keys=True, default=_as_json)
    return hashlib.sha256(f"{_DRAW}:{seed}:{content}".encode("utf-8", "surrogatepass")).hexdigest()


def _as_json(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)


def _drawn(options: InputsOptions, row: Row) -> Drawn:
    if options.image is not None:
        from evaluators.images import picture_of

        return Drawn(row.place, media=(picture_of(row, options.image).content,), row=row)
    if options.audio is not None:
        return Drawn(row.place, media=(row.media(options.audio).sha256,), row=row)
    if options.chat is not None:
        messages = _messages(row, options.chat)
        contents = tuple(message["content"] for message in messages)
        return Drawn(row.place, texts=(*contents, "\n".join(contents)), row=row, messages=messages)
    templates = _templates(options)
    fields = tuple(row.texts(name)[0] for each in templates for name in each.fields)
    read = tuple(each.text(row.record) for each in templates)
    return Drawn(row.place, texts=(*fields, *read), row=row, read=read)


def _messages(row: Row, field: str) -> tuple[Mapping[str, str], ...]:
    value = row.value(field)
    if row.textual and isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    fine = isinstance(value, list | tuple) and all(
        isinstance(each, Mapping) and all(isinstance(each.get(key), str) for key in ("role", "content"))
        for each in value
    )
    if not fine or not value:
        raise row.error(
            f'the field "{field}" must be a list of messages {{"role": …, "content": …}}, each with a text; found '
            f"{'an empty list' if value == [] else kind_of(row.value(field))}"
        )
    if not any(each["content"].strip() for each in value):
        raise row.error(f'the field "{field}" is a conversation in which nothing is said; give it a text')
    return tuple({"role": each["role"], "content": each["content"]} for each in value)
