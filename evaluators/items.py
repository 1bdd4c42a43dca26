"""Items from JSON Lines files: read strictly, hashed by content, in an order whose prefixes are fair samples."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.contract import SPLITS, EvaluatorError, Items, Split

# Part of the order's definition: another value is another order, and another subset under a limit.
_ORDER = "paretomerge-order/1"


@dataclass(frozen=True)
class Item:
    """One line of a data file.

    Attributes:
        id: given, or the first 16 hexadecimal digits of ``hash``.
        fields: field name -> text, or the list of texts that the line holds.
        stratum: the subgroup, "" where the line names none.
        hash: sha256 of the texts, whatever their fields are called.
        place: "file:line", for messages.
        cluster: what it shares with items that are not independent of it, "" where the line names nothing.
    """

    id: str
    fields: dict[str, tuple[str, ...]]
    stratum: str
    hash: str
    place: str
    cluster: str = ""


def split_files(data: Path | Mapping[Split, Path]) -> dict[Split, Path]:
    """The three files of a data set: ``search.jsonl``, … in a folder, or those that are named one by one.

    Raises:
        EvaluatorError: no folder, or a split without a file.
    """
    if isinstance(data, Path):
        if not data.is_dir():
            raise EvaluatorError(
                f"data: expected a folder with {', '.join(f'{split}.jsonl' for split in SPLITS)} at {data}, and there "
                "is no such folder; name the folder, or one file a split (data: {search: …, selection: …, holdout: …})"
            )
        files = {split: data / f"{split}.jsonl" for split in SPLITS}
    else:
        files = dict(data)
    for split in SPLITS:
        if split not in files:
            raise EvaluatorError(
                f"data: the split {split} has no file; name one for each of {', '.join(SPLITS)}, since what the search "
                "sees cannot also judge its finalists"
            )
        if not files[split].is_file():
            raise EvaluatorError(f"data: the file of the split {split} is missing: expected {files[split]}")
    return files


def read_splits(
    files: Mapping[Split, Path], *, required: Mapping[str, bool], limit: Mapping[Split, int]
) -> dict[Split, list[Item]]:
    """Read, check and order all splits.

    Args:
        files: one JSON Lines file a split.
        required: the fields that every line must have, and whether each may also be a list of texts.
        limit: how many items to keep of a split: a prefix of the order, so that smaller limits keep subsets.

    Raises:
        EvaluatorError: anything wrong with a line, an empty split, or an item that occurs twice, in whatever splits:
            the same example in two of them is a leak. Checked before the limit.
    """
    by_id: dict[str, Item] = {}
    by_hash: dict[str, Item] = {}
    splits: dict[Split, list[Item]] = {}
    for split in SPLITS:
        items = read_items(files[split], required)
        if not items:
            raise EvaluatorError(f"{files[split]}: the split {split} is empty; it needs at least one item")
        for item in items:
            twin = by_hash.setdefault(item.hash, item)
            if twin is not item:
                raise EvaluatorError(
                    f"{item.place}: the same item as {twin.place} (equal {' and '.join(required)}); remove one of the "
                    "two: counted twice it would weigh double, and in two splits it would leak from one into the other"
                )
            namesake = by_id.setdefault(item.id, item)
            if namesake is not item:
                raise EvaluatorError(
                    f'{item.place}: the id "{item.id}" is taken by {namesake.place}; ids are unique over all splits: '
                    "rename one, or leave the ids out and let the content name the items"
                )
        splits[split] = balanced_order(items)[: limit.get(split)]
    return splits


def read_items(path: Path, required: Mapping[str, bool]) -> list[Item]:
    """The items of one file, in its order. Blank lines are skipped. Arguments and errors as in :func:`read_splits`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EvaluatorError(
            f"{path}: cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    items = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if line.strip():
            items.append(_item(line, f"{path}:{number}", required))
    return items


def _item(line: bytes, place: str, required: Mapping[str, bool]) -> Item:
    record = _record(line, place)
    fields = {name: _texts(record, name, many, place) for name, many in required.items()}
    content = hashlib.sha256(json.dumps(list(fields.values())).encode()).hexdigest()
    name = _optional_text(record, "id", place) or content[:16]
    stratum, cluster = _optional_text(record, "stratum", place), _optional_text(record, "cluster", place)
    return Item(name, fields, stratum, content, place, cluster)


def _record(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise EvaluatorError(
            f"{place}: not UTF-8 (byte {error.start + 1} of the line); save the file in that encoding"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a bare ValueError
        where = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise EvaluatorError(f"{place}: not JSON ({where}); every line holds one JSON object") from error
    if not isinstance(record, dict):
        raise EvaluatorError(f"{place}: expected a JSON object, found {_kind(record)}; every line holds one item")
    return record


def _texts(record: dict[str, Any], name: str, many: bool, place: str) -> tuple[str, ...]:
    if name not in record:
        raise EvaluatorError(
            f'{place}: the field "{name}" is missing; this line has {", ".join(sorted(record)) or "no fields"}. Add '
            "it, or name the field that holds it in the evaluator's options"
        )
    value = record[name]
    values = value if many and isinstance(value, list) else [value]
    if not values:
        raise EvaluatorError(f'{place}: the field "{name}" is an empty list; it needs at least one text')
    for each in values:
        if not isinstance(each, str):
            expected = "a text or a list of texts" if many else "a text"
            raise EvaluatorError(
                f'{place}: the field "{name}" must be {expected}, found {_kind(each)}; put it in quotes'
            )
        if not each.strip():
            raise EvaluatorError(f'{place}: the field "{name}" is empty; give it a text')
        _check_text(each, name, place)
    return tuple(values)


def _optional_text(record: dict[str, Any], name: str, place: str) -> str:
    value = record.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise EvaluatorError(f'{place}: the field "{name}" must be a text, found {_kind(value)}; put it in quotes')
    _check_text(value, name, place)
    return value


def _check_text(text: str, name: str, place: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EvaluatorError(
            f'{place}: the field "{name}" has half a surrogate pair at character {error.start + 1}, which is no text; '
            "write the character itself, or both halves of its escape"
        ) from error


def _kind(value: object) -> str:
    names = {"NoneType": "null", "dict": "an object", "list": "a list", "str": "a text", "bool": "true or false"}
    return names.get(type(value).__name__, "a number")


def balanced_order(items: Iterable[Item]) -> list[Item]:
    """A fixed shuffle in which every prefix has the strata in their proportions, to within one item each.

    Depends on the contents alone, not on the order of the file: within a stratum items go by a keyed hash, and strata
    are interleaved as if each were spread evenly over the whole.
    """
    shuffled = sorted(items, key=lambda item: hashlib.sha256(f"{_ORDER}:{item.hash}".encode()).digest())
    sizes = Counter(item.stratum for item in shuffled)
    seen: Counter[str] = Counter()
    places = []
    for rank, item in enumerate(shuffled):
        places.append(((seen[item.stratum] + 0.5) / sizes[item.stratum], rank))
        seen[item.stratum] += 1
    return [item for _, item in sorted(zip(places, shuffled, strict=True), key=lambda pair: pair[0])]


def as_items(items: Sequence[Item]) -> Items:
    """The public record of a split. An item without a cluster is one of its own."""
    clusters = tuple(item.cluster or item.id for item in items) if any(item.cluster for item in items) else ()
    return Items(
        tuple(item.id for item in items),
        tuple(item.stratum for item in items),
        tuple(item.hash for item in items),
        clusters,
    )
