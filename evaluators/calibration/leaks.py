"""Whether calibration data hold what an evaluator judges with at the end.

Calibration never sees a reference, but a merge that has been fitted to the inputs of the holdout is no longer judged on
inputs that it has not seen. Five things give an item away: the same line of the same file (or row of a data set); the
same image or recording, by bytes; a text of the item inside a text of the row; a row whose fields are all of the item's
texts; and of three items and more, rows whose longest text is the item's longest, or all of its texts in one field.
Case, width of letters (NFKC) and white space do not count. What many items have in common (a system prompt, an
instruction) says nothing of any of them, nor do one or two short texts.
"""

from __future__ import annotations

import bisect
import copy
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from evaluators.base import ItemEvaluator
from evaluators.calibration.rows import Content
from evaluators.contract import Evaluator, EvaluatorError, Split
from evaluators.items import Item
from evaluators.tables import Media, Row

# UTF-8 bytes of a text, folded, that give an item away inside another text: about eight English words, or the 13 tokens
# by which training data are searched for benchmarks (Brown et al. 2020, "Language models are few-shot learners").
_TELLING: Final = 40
# Bytes of all texts of an item together, where they are all fields of one row, and of one that is a row's whole text.
_TELLING_TOGETHER: Final = 12
# Items whose short texts are those of rows: fewer may be chance ("How are you doing today?").
_BY_CHANCE: Final = 3
# A text of more items of the holdout than so many, or than this share of them, belongs to none of them.
_COMMON: Final = 8
_COMMON_SHARE: Final = 0.01


class _Seen:
    """What an evaluator made of a row, and the row."""

    def __init__(self, row: Row, value: Any) -> None:
        self.row, self.value = row, value


@dataclass(frozen=True)
class _Known:
    """An item of the holdout: its id, all its texts folded, and those of them that are its own."""

    id: str
    content: Content
    texts: tuple[str, ...]
    own: tuple[str, ...]


def overlap(rows: Iterable[Content], evaluator: Evaluator, name: str = "") -> bool:
    """Refuse rows that hold an item of an evaluator's holdout.

    Args:
        rows: of :func:`evaluators.calibration.rows.draw_rows` or :func:`item_contents`.
        evaluator: whose holdout it is.
        name: of the evaluator in the config, for the message.

    Returns:
        Whether anything could be compared: of an evaluator that is no :class:`evaluators.base.ItemEvaluator` nobody
        knows what its items say.

    Raises:
        EvaluatorError: names row and item.
    """
    if not isinstance(evaluator, ItemEvaluator):
        return False
    known = _holdout(evaluator)
    given = list(rows)
    found = _same_place(given, known) or _same_media(given, known) or _same_texts(given, known)
    found = found or _same_whole(given, known) or _contained(given, known)
    if found is None:
        return True
    row, item, how = found
    raise EvaluatorError(
        f'{row.place}: {how} the item "{item.id}" ({item.content.place}) of the holdout of '
        f"{name or type(evaluator).__name__}, which is to judge the merge and must not shape it; remove the row from "
        "the calibration data, or name other data"
    )


def item_contents(evaluator: Evaluator, split: Split, ids: Iterable[str] | None = None) -> list[Content]:
    """What an evaluator's items show a model, read anew from its data: in its order, for :func:`overlap`.

    Args:
        evaluator: one that is no :class:`evaluators.base.ItemEvaluator` gives nothing.
        split: of its items.
        ids: which of them; None for all.
    """
    if not isinstance(evaluator, ItemEvaluator):
        return []
    wanted = None if ids is None else set(ids)
    return [_content(item) for item in _read(evaluator)[split] if wanted is None or item.id in wanted]


def folded(text: str) -> str:
    """A text without the differences that do not count: NFKC, case folded, white space only between two words."""
    words = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split()
    parts = words[:1]
    for before, word in pairwise(words):
        parts.append(f" {word}" if _joins(before[-1]) and _joins(word[0]) else word)
    return "".join(parts)


def _joins(letter: str) -> bool:
    """Whether a character makes one word with another of its kind beside it: digits, and letters of scripts with
    cases. Scripts that do not separate words have none."""
    return letter.isdigit() or letter.upper() != letter.lower()


def _read(evaluator: ItemEvaluator[Any, Any, Any]) -> dict[Split, list[Item[Any]]]:
    """An evaluator's items, with rows beside what it keeps of them (lm-eval's adapter keeps numbers of documents)."""
    twin = copy.copy(evaluator)

    def parse(row: Row) -> Any:
        parsed = evaluator.parse(row)
        return parsed._replace(value=_Seen(row, parsed.value))

    twin.parse = parse  # type: ignore[method-assign]
    return twin.read()


def _content(item: Item[Any]) -> Content:
    seen = item.value if isinstance(item.value, _Seen) else _Seen(Row({}, item.place), item.value)
    leaves = list(_leaves(seen.value))
    if not any(isinstance(each, str) or _medium(each) for each in leaves):
        leaves = list(_leaves(seen.row.record))
    media = tuple(found for each in leaves if (found := _medium(each)))
    # With an image or a recording, the texts are labels and transcripts.
    texts = () if media else tuple(each for each in leaves if isinstance(each, str))
    return Content(item.place, texts, media)


def _leaves(value: object) -> Iterator[object]:
    """What records, lists and mappings hold in the end."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from _leaves(each)
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from _leaves(each)
    elif is_dataclass(value) and not isinstance(value, type) and not _medium(value):
        for each in fields(value):
            yield from _leaves(getattr(value, each.name))
    else:
        yield value


def _medium(value: object) -> str:
    """The hash of an image or a recording; "" for anything else."""
    if isinstance(value, Media):
        return value.sha256
    from evaluators.images import Picture

    return value.content if isinstance(value, Picture) else ""


def _holdout(evaluator: ItemEvaluator[Any, Any, Any]) -> list[_Known]:
    items = _read(evaluator)
    contents = {split: [_content(item) for item in items[split]] for split in items}
    texts = [tuple(dict.fromkeys(map(folded, content.texts))) for content in contents["holdout"]]
    times = Counter(text for own in texts for text in own)
    count = len(texts)
    most = max(1.0, min(max(_COMMON, _COMMON_SHARE * count), count / 2))
    seen = {folded(text) for split in ("search", "selection") for each in contents[split] for text in each.texts}
    return [
        _Known(item.id, content, own, tuple(text for text in own if text not in seen and times[text] <= most))
        for item, content, own in zip(items["holdout"], contents["holdout"], texts, strict=True)
    ]


_Found = tuple[Content, _Known, str]


def _same_place(rows: Sequence[Content], known: Sequence[_Known]) -> _Found | None:
    by_place = {_resolved(item.content.place): item for item in known}
    for row in rows:
        item = by_place.get(_resolved(row.place))
        if item is not None:
            return row, item, "this row is"
    return None


def _resolved(place: str) -> str:
    """A place by the file that it is in, however the file is named; of a data set as it is."""
    file, colon, line = place.rpartition(":")
    return f"{Path(file).resolve()}:{line}" if colon and Path(file).is_file() else place


def _same_media(rows: Sequence[Content], known: Sequence[_Known]) -> _Found | None:
    by_hash = {each: item for item in known for each in item.content.media}
    for row in rows:
        for each in row.media:
            if each in by_hash:
                return row, by_hash[each], "this row has the same image or recording as"
    return None


def _same_texts(rows: Sequence[Content], known: Sequence[_Known]) -> _Found | None:
    """Rows among whose fields are all texts of an item, at least two: a prompt and its answer, however short."""
    telling = [
        item
        for item in known
        if len(item.texts) > 1 and item.own and sum(len(text.encode()) for text in item.texts) >= _TELLING_TOGETHER
    ]
    by_text: dict[str, list[_Known]] = {}
    for item in telling:
        by_text.setdefault(item.own[0], []).append(item)
    for row in rows:
        own = set(map(folded, row.texts))
        for text in own:
            for item in by_text.get(text, ()):
                if own.issuperset(item.texts):
                    return row, item, "this row has the same texts as"
    return None


def _same_whole(rows: Sequence[Content], known: Sequence[_Known]) -> _Found | None:
    """Rows that say what an item says and nothing else, too short to be told inside another text: its prompt alone, or
    prompt and answer in one field. One such row may be chance, rows of several items are not."""
    by_text: dict[str, _Known] = {}
    for item in known:
        longest = max(item.texts, key=len, default="")
        wholes = [longest] if longest in item.own else []
        if item.own and len(item.texts) > 1:
            wholes.append(folded(" ".join(item.texts)))
        by_text |= {_bare(each): item for each in wholes if len(_bare(each).encode()) >= _TELLING_TOGETHER}
    found: dict[str, _Found] = {}
    for row in rows:
        match = by_text.get(_bare(max(map(folded, row.texts), key=len, default="")))
        if match is not None:
            found.setdefault(match.id, (row, match, "this row and others say the same as items of the holdout, as"))
    return next(iter(found.values())) if len(found) >= _BY_CHANCE else None


def _contained(rows: Sequence[Content], known: Sequence[_Known]) -> _Found | None:
    texts = [(folded(text), row) for row in rows for text in row.texts]
    ends: list[int] = []
    for text, _ in texts:
        ends.append((ends[-1] if ends else 0) + len(text) + 1)
    whole = "".join(f"{text}\n" for text, _ in texts)  # a folded text has no line break
    for item in known:
        for text in item.own:
            needle = _bare(text)
            if len(needle.encode()) < _TELLING:
                continue
            place = _place_of(needle, whole)
            if place is not None:
                return texts[bisect.bisect_right(ends, place)][1], item, "this row contains the text of"
    return None


def _bare(text: str) -> str:
    """A folded text without punctuation at its ends: the same question with another sign after it is the same."""
    first, last = 0, len(text)
    while first < last and unicodedata.category(text[first]).startswith("P"):
        first += 1
    while last > first and unicodedata.category(text[last - 1]).startswith("P"):
        last -= 1
    return text[first:last]


def _place_of(needle: str, whole: str) -> int | None:
    """Where a text occurs, not counting where it begins or ends inside a word or a number."""
    place = whole.find(needle)
    while place >= 0:
        before, after = whole[place - 1 : place], whole[place + len(needle) : place + len(needle) + 1]
        cut_before = bool(before) and _joins(before) and _joins(needle[0])
        cut_after = bool(after) and _joins(after) and _joins(needle[-1])
        if not (cut_before or cut_after):
            return place
        place = whole.find(needle, place + 1)
    return None
