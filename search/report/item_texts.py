"""What items ask, for people: read again from the run's data, where that can be done safely and is still the same.

A report is made without a model, maybe of a run that somebody else sent. So texts are read by evaluators of this
package alone, from files on this machine, and only where the evaluator still has the fingerprint that the run was
started with: it covers the content of every item.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluators import registry
from evaluators.contract import EvaluatorError
from search.errors import SearchError
from search.results import Results

LONGEST = 240
"""Characters of an item that are shown."""
LARGEST = 100_000_000
"""Bytes of data files that are read again for one evaluator."""

READABLE = ("exact_match", "choice", "perplexity", "refusal", "reward_pairs", "similarity", "classification", "length")
"""Evaluators whose items are texts in files, and whose construction neither loads a model nor runs anybody's code."""


class Said(NamedTuple):
    """What is known of an item beside its id.

    Attributes:
        stratum: its subgroup, "" where there is none.
        text: what it asks.
    """

    stratum: str
    text: str


def texts_of(results: Results, evaluator: str) -> tuple[dict[str, Said], str]:
    """(item id -> what is known of it, "") of one evaluator; or ({}, why nothing is).

    Args:
        results: of the run.
        evaluator: its name in the config.
    """
    options = results.config.evaluators.get(evaluator, {})
    kind = str(options.get("type", ""))
    if kind not in READABLE:
        return {}, f"items of the kind {kind or 'unknown'} are not read by a report"
    if options.get("judge", "prefix") != "prefix" or options.get("fluency") is not None:
        return {}, "a model judges its answers, which a report does not look for"
    try:
        return _read(results, evaluator, kind)
    except (SearchError, EvaluatorError, OSError, ValueError):
        return {}, "the data are no longer where the run found them, or cannot be read"


def _read(results: Results, evaluator: str, kind: str) -> tuple[dict[str, Said], str]:
    from search.workers.identity import evaluator_identity
    from zoo import ZooError

    loaded = results.loaded
    try:
        _, options = loaded.evaluator_options(evaluator)
    except ZooError:
        return {}, "the data are no longer on this machine"
    size = _size(registry.options_model(kind).model_validate(options).data)  # type: ignore[attr-defined]
    if size is None:
        return {}, "the data are not in local files, and a report asks no network"
    if size > LARGEST:
        return {}, "the data files are too large to be read again for a report"
    found: Any = registry.build(kind, options)
    if evaluator_identity(loaded, evaluator, found.fingerprint) != results.started.evaluators.get(evaluator):
        return {}, "data or evaluator have changed since the run was started"
    items = [item for split in found.read().values() for item in split]
    return {item.id: Said(item.stratum, words(item.value)) for item in items}, ""


def _size(data: Any) -> int | None:
    """Bytes of all data files; None where some are not regular files."""
    found = 0
    for path in _files(data):
        if path is None or not path.exists():
            return None
        inside = [each for each in path.iterdir() if each.is_file()] if path.is_dir() else [path]
        if not all(each.is_file() for each in inside):
            return None
        found += sum(each.stat().st_size for each in inside)
    return found


def _files(data: Any) -> Iterable[Path | None]:
    if isinstance(data, Mapping):
        for each in data.values():
            yield from _files(each)
    elif isinstance(data, Path):
        yield data
    else:
        yield getattr(data, "file", None)


def words(value: object) -> str:
    """The texts in what an evaluator keeps of an item, one after the other, cut to :data:`LONGEST` characters."""
    parts = list(dict.fromkeys(" ".join(each.split()) for each in _texts(value)))
    text = " · ".join(each for each in parts if each)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _texts(value: object) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for each in value:
            yield from _texts(each)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _texts(getattr(value, name))
